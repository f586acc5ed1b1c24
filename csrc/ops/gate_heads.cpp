// A gate of each head of attention's output: one number multiplies all values of a head.
// Knows rows, heads and gates; a row's gates are as many as its heads, so their functions cost nothing beside the products.
#include <cmath>

#include "ops/record.h"

namespace fh {
namespace {

struct GateHeads final : Op {
  int y, gate; int64_t width, heads; bool softplus;
  float opened(float x) const {                          // NaN stays
    if (!softplus) return 1.0f / (1.0f + std::exp(-x));
    return (x > 0.0f ? x : 0.0f) + std::log1p(std::exp(-std::fabs(x)));
  }
  void run(Run& r, int) override {
    each_row(r, first, r.step->rows, [&](int64_t t) {
      const int64_t each = width / heads;
      const float* by = r.buffer[gate] + t * heads;
      for (int64_t h = 0; h < heads; ++h) r.k->scale(r.buffer[y] + t * width + h * each, opened(by[h]), each);
    });
  }
};

void gate_heads(Plan& plan, int y, int gate, const std::string& act) {
  if (act != "sigmoid" && act != "softplus") throw Error(ErrorKind::Usage, "act must be 'sigmoid' or 'softplus', got '" + act + "'");
  auto op = std::make_unique<GateHeads>();
  op->y = y;
  op->gate = gate;
  op->width = plan.width_of(y);
  op->heads = plan.width_of(gate);
  op->softplus = act == "softplus";
  if (op->width % op->heads) refuse(std::to_string(op->heads) + " gates do not divide a width of " + std::to_string(op->width));
  op->reads = {y, gate};
  op->writes.push_back(y);
  plan.add(std::move(op));
}
FREEHOLD_OP(gate_heads, "y *= act(gate) in place, the gate a column for each head of y.\n\nact: sigmoid or softplus.", "y"_a, "gate"_a,
            nanobind::kw_only(), "act"_a)

}  // namespace
}  // namespace fh
