// The norm of a recurrent mixer's heads and the gate after it; without a norm, the gate of attention's output.
#include "kernels/recurrent_delta.h"
#include "ops/record.h"

namespace fh {
namespace {

struct NormGate final : Op {
  enum Act : uint8_t { Sigmoid, Silu, Gelu };
  int y, gate; int64_t width; Act act; Norm norm;
  void run(Run& r, int) override {
    each_row(r, first, r.step->rows, [&](int64_t t) {
      float* row = r.buffer[y] + t * width;
      const int64_t each = norm.weight ? norm.weight->size() : width;
      for (int64_t h = 0; norm.weight && h < width; h += each) r.k->rms_norm(row + h, norm.weight->data(), norm.eps, each, row + h);
      const float* by = r.buffer[gate] + t * width;
      if (act == Gelu) return r.k->gelu_rows(by, row, width, 1, row, width);   // one row's panels lie in a row
      delta_kernels(*r.k).gate(by, act == Silu, width, row);
    });
  }
};

void norm_gate(Plan& plan, int y, int gate, MaybeVector weight, float eps, const std::string& act) {
  if (act != "silu" && act != "sigmoid" && act != "gelu") throw Error(ErrorKind::Usage, "act must be 'silu', 'sigmoid' or 'gelu', got '" + act + "'");
  const int64_t width = plan.width_of(y);
  plan.want_width(gate, width, "the gate");
  if (act == "gelu" && width % kPanelRows) refuse("norm_gate() by gelu over rows of " + std::to_string(width) + ", no multiple of " + std::to_string(kPanelRows));
  if (weight && (!weight->size() || width % weight->size())) refuse("heads of " + std::to_string(weight->size()) + " do not divide a width of " + std::to_string(width));
  auto op = std::make_unique<NormGate>();
  op->y = y;
  op->gate = gate;
  op->width = width;
  op->act = act == "gelu" ? NormGate::Gelu : act == "silu" ? NormGate::Silu : NormGate::Sigmoid;
  op->norm = {std::move(weight), eps};
  op->reads = {y, gate};
  op->writes.push_back(y);
  plan.add(std::move(op));
}
FREEHOLD_OP(norm_gate, "y = norm(y) * act(gate) in place, a norm of heads as wide as the weight, or none.\n\nact: silu, sigmoid or gelu (tanh form).",
            "y"_a, "gate"_a, "weight"_a.none(), "eps"_a = 0.0f, nanobind::kw_only(), "act"_a)

}  // namespace
}  // namespace fh
