// RMS norm by itself, and added to the residual stream. Matmul ops normalise their own input: see Input.
#include "ops/record.h"

namespace fh {
namespace {

struct NormRows final : Op {
  int x, out; Vector weight; float eps; int64_t k;
  void run(Run& r, int) override {
    const int64_t group = weight.size();
    each_row(r, first, r.step->rows, [&](int64_t t) {
      for (int64_t i = t * k; i < (t + 1) * k; i += group) r.k->rms_norm(r.buffer[x] + i, weight.data(), eps, group, r.buffer[out] + i);
    });
  }
};

int norm(Plan& plan, int x, Vector weight, float eps) {
  const int64_t k = plan.width_of(x);
  if (!weight.size() || k % weight.size()) check({weight, eps}, k);
  auto op = std::make_unique<NormRows>();
  op->x = x;
  op->k = k;
  op->weight = std::move(weight);
  op->eps = eps;
  op->out = plan.buffer(k);
  op->reads = {x};
  op->writes = {op->out};
  return plan.add(std::move(op)).out;
}
FREEHOLD_OP(norm, "RMS norm of every row, or of every part of it as wide as the weight, such as a head.", "x"_a, "weight"_a, "eps"_a)

struct AddNorm final : Op {
  int x, residual; Vector weight; float eps; int64_t k;
  void run(Run& r, int) override {
    each_row(r, first, r.step->rows, [&](int64_t t) {
      float* y = r.buffer[x] + t * k;
      r.k->rms_norm(y, weight.data(), eps, k, y);
      r.k->add(r.buffer[residual] + t * k, y, k);
    });
  }
};

void add_norm(Plan& plan, int residual, int x, Vector weight, float eps) {
  const int64_t k = plan.width_of(x);
  plan.want_width(residual, k, "the addend");
  check({weight, eps}, k);
  auto op = std::make_unique<AddNorm>();
  op->x = x;
  op->residual = residual;
  op->weight = std::move(weight);
  op->eps = eps;
  op->k = k;
  op->reads = {x, residual};
  plan.add(std::move(op));
}
FREEHOLD_OP(add_norm, "residual += norm(x), in place.", "residual"_a, "x"_a, "weight"_a, "eps"_a)

}  // namespace
}  // namespace fh
