// The norm of a recurrent mixer's heads and the gate after it; without a norm, the gate of attention's output.
#include "kernels/recurrent_delta.h"
#include "ops/record.h"

namespace fh {
namespace {

struct NormGate final : Op {
  int y, gate; int64_t width; bool silu; Norm norm;
  void run(Run& r, int) override {
    each_row(r, first, r.step->rows, [&](int64_t t) {
      float* row = r.buffer[y] + t * width;
      const int64_t each = norm.weight ? norm.weight->size() : width;
      for (int64_t h = 0; norm.weight && h < width; h += each) r.k->rms_norm(row + h, norm.weight->data(), norm.eps, each, row + h);
      delta_kernels(*r.k).gate(r.buffer[gate] + t * width, silu, width, row);
    });
  }
};

void norm_gate(Plan& plan, int y, int gate, MaybeVector weight, float eps, const std::string& act) {
  if (act != "silu" && act != "sigmoid") throw Error(ErrorKind::Usage, "act must be 'silu' or 'sigmoid', got '" + act + "'");
  const int64_t width = plan.width_of(y);
  plan.want_width(gate, width, "the gate");
  if (weight && (!weight->size() || width % weight->size())) refuse("heads of " + std::to_string(weight->size()) + " do not divide a width of " + std::to_string(width));
  auto op = std::make_unique<NormGate>();
  op->y = y;
  op->gate = gate;
  op->width = width;
  op->silu = act == "silu";
  op->norm = {std::move(weight), eps};
  op->reads = {y, gate};
  op->writes.push_back(y);
  plan.add(std::move(op));
}
FREEHOLD_OP(norm_gate, "y = norm(y) * act(gate) in place, a norm of heads as wide as the weight, or none; act: silu or sigmoid.",
            "y"_a, "gate"_a, "weight"_a.none(), "eps"_a = 0.0f, nanobind::kw_only(), "act"_a)

}  // namespace
}  // namespace fh
