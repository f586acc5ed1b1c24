// Layer norm: in place with weight and bias, or into rows of its own, by groups and without either.
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

// What several projections or a parallel block read: the matmul ops' own norm is RMS alone.
struct LayerNormed final : Op {
  int x, out; Vector weight, bias; float eps; int64_t k, group;
  void run(Run& r, int) override {
    each_row(r, first, r.step->rows, [&](int64_t t) {
      const float* from = r.buffer[x] + t * k;
      float* y = r.buffer[out] + t * k;
      for (int64_t i = 0; i < k; i += group) r.k->layer_norm(from + i, weight.data() + i, bias.data() + i, eps, group, y + i);
    });
  }
};

// As wide as a row: given so, given for one group, or everywhere `absent`.
Vector spread(MaybeVector v, int64_t k, int64_t group, float absent) {
  if (!v) return {std::vector<float>(static_cast<size_t>(k), absent)};
  if (v->size() == k) return std::move(*v);
  if (v->size() != group) refuse("layer_normed() with a vector of " + std::to_string(v->size()) + " for rows of " + std::to_string(k));
  Vector all;
  for (int64_t i = 0; i < k; i += group) all.values.insert(all.values.end(), v->values.begin(), v->values.end());
  return all;
}

int layer_normed(Plan& plan, int x, MaybeVector weight, MaybeVector bias, float eps, int64_t group) {
  const int64_t k = plan.width_of(x);
  if (!group) group = k;
  if (group < 16 || group % 16 || k % group) refuse("layer_normed() over groups of " + std::to_string(group) + " in rows of " + std::to_string(k));
  auto op = std::make_unique<LayerNormed>();
  op->x = x;
  op->weight = spread(std::move(weight), k, group, 1.0f);
  op->bias = spread(std::move(bias), k, group, 0.0f);
  op->eps = eps;
  op->k = k;
  op->group = group;
  op->out = plan.buffer(k);
  op->reads = {x};
  op->writes = {op->out};
  return plan.add(std::move(op)).out;
}
FREEHOLD_OP(layer_normed, "Layer norm of every row, or of every `group` inputs of it, in a new buffer; weight and bias may be None.", "x"_a,
            "weight"_a.none(), "bias"_a.none(), "eps"_a, "group"_a = 0)

}  // namespace
}  // namespace fh
