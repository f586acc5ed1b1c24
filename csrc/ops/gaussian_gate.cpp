// The gates of an MLP, cut to those that stand out: what lies below a row's mean and some deviations counts as 0.
// The share that is left is that of a normal distribution, so no order of the gates is needed.
// Knows rows of gates; the cut needs a whole row, so it cannot happen in a product's tile as gated()'s activation does.
#include <cmath>

#include "ops/record.h"
#include "ops/streams.h"

namespace fh {
namespace {

struct GaussianGate final : Op {
  int gate, up; float above; int64_t k;
  void run(Run& r, int) override {
    each_row(r, first, r.step->rows, [&](int64_t t) {
      float* row = r.buffer[gate] + t * k;
      const float cut = cutoff(row);
      for (int64_t i = 0; i < k; ++i) row[i] = row[i] - cut < 0.0f ? 0.0f : row[i] - cut;   // NaN stays
      r.k->gelu_rows(row, r.buffer[up] + t * k, k, 1, row, k);                              // one row's panels lie in a row
    });
  }
  float cutoff(const float* row) const {
    const float middle = mean(row, k);
    float squares[kStreamLanes] = {};
    for (int64_t i = 0; i < k; i += kStreamLanes)
      for (int j = 0; j < kStreamLanes; ++j) squares[j] += (row[i + j] - middle) * (row[i + j] - middle);
    return middle + above * std::sqrt(total(squares) / static_cast<float>(k));
  }
};

void gaussian_gate(Plan& plan, int gate, int up, float above) {
  const int64_t k = plan.width_of(gate);
  plan.want_width(up, k, "what gates let through");
  if (k % kStreamLanes) refuse("gates of " + std::to_string(k) + ", which are no multiple of " + std::to_string(kStreamLanes));
  if (!std::isfinite(above)) refuse("gaussian_gate() needs a finite number of deviations");
  auto op = std::make_unique<GaussianGate>();
  op->gate = gate;
  op->up = up;
  op->above = above;
  op->k = k;
  op->reads = {gate, up};
  plan.add(std::move(op));
}
FREEHOLD_OP(gaussian_gate, "gate = gelu(max(gate - cut, 0)) * up in place (tanh form).\n\ncut: mean + above * deviation of a row's gates.", "gate"_a, "up"_a, "above"_a)

}  // namespace
}  // namespace fh
