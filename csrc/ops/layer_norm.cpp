// Layer norm with weight and bias.
#include "ops/record.h"

namespace fh {
namespace {

struct LayerNorm final : Op {
  int x; Vector weight, bias; float eps; int64_t k;
  void run(Run& r, int) override {
    each_row(r, first, r.step->rows, [&](int64_t t) {
      float* y = r.buffer[x] + t * k;
      r.k->layer_norm(y, weight.data(), bias.data(), eps, k, y);
    });
  }
};

void layer_norm(Plan& plan, int x, Vector weight, Vector bias, float eps) {
  const int64_t k = plan.width_of(x);
  if (weight.size() != k || bias.size() != k) refuse("layer_norm() needs a weight and a bias as wide as its rows");
  if (k % 16) refuse("layer_norm() over rows of " + std::to_string(k) + ", no multiple of 16");
  auto op = std::make_unique<LayerNorm>();
  op->x = x;
  op->weight = std::move(weight);
  op->bias = std::move(bias);
  op->eps = eps;
  op->k = k;
  op->reads = {x};
  plan.add(std::move(op));
}
FREEHOLD_OP(layer_norm, "Layer norm of every row, in place.", "x"_a, "weight"_a, "bias"_a, "eps"_a)

}  // namespace
}  // namespace fh
