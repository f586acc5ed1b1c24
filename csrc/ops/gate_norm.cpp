// The gate of a recurrent mixer's output and the norm after it, per group.
#include "ops/record.h"

namespace fh {
namespace {

struct GateNorm final : Op {
  int y, z; int64_t width, groups; Norm norm;
  void run(Run& r, int) override {
    each_row(r, first, r.step->rows, [&](int64_t t) {
      float* row = r.buffer[y] + t * width;
      r.k->silu_rows(r.buffer[z] + t * width, row, width, 1, row, width);      // one row's panels lie in a row
      if (!norm.weight) return;
      const int64_t each = width / groups;
      for (int64_t g = 0; g < width; g += each) r.k->rms_norm(row + g, norm.weight->data() + g, norm.eps, each, row + g);
    });
  }
};

void gate_norm(Plan& plan, int y, int z, MaybeVector weight, float eps, int groups) {
  const int64_t width = plan.width_of(y);
  plan.want_width(z, width, "the gate");
  if (width % kPanelRows) refuse("a gated width must be a multiple of " + std::to_string(kPanelRows));
  if (groups < 1 || width % groups) refuse(std::to_string(groups) + " groups do not divide a width of " + std::to_string(width));
  auto op = std::make_unique<GateNorm>();
  op->y = y;
  op->z = z;
  op->width = width;
  op->groups = groups;
  op->norm = {std::move(weight), eps};
  check(op->norm, width);
  op->reads = {y, z};
  plan.add(std::move(op));
}
FREEHOLD_OP(gate_norm, "y = norm(y * silu(z)) in place, an RMS norm of each group; without a weight the gate alone.", "y"_a, "z"_a,
            "weight"_a.none(), "eps"_a = 0.0f, "groups"_a = 1)

}  // namespace
}  // namespace fh
