// Alternating updates: of the residual streams of a row a layer computes one, and predicts and corrects the others.
//
//   m = tanh(R norm(x))                        of the active stream before the layer, of what the layer made of it after
//   predict   x_j += sum over i of (P m)[j n + i] x_i
//   correct   x_j += (1 + (C m)[j]) (made - x_active)
//
// n streams; R [n, width], P [n n, n] and C [n, n] are small, and are computed in floats.
// Knows rows of streams; no layer. Source: arXiv 2301.13310.
#include <algorithm>
#include <cmath>

#include "ops/record.h"
#include "ops/streams.h"

namespace fh {
namespace {

struct AltUp : Op {
  int x, out; int64_t k; int n, active;       // k: width of a stream
  Vector router, coefs; Norm norm;
  std::vector<std::vector<float>> normed;     // by thread
  void allocate(int64_t, int threads) override { normed.assign(static_cast<size_t>(threads), std::vector<float>(static_cast<size_t>(k))); }
  // m of one stream's row: what mixes its streams.
  void modalities(const Run& r, const float* row, int thread, float* m) {
    float* y = normed[static_cast<size_t>(thread)].data();
    r.k->rms_norm(row, norm.weight->data(), norm.eps, k, y);
    for (int j = 0; j < n; ++j) m[j] = std::tanh(dot(y, router.data() + j * k, k));
  }
  // Row j of the coefficients times m.
  float coefficient(int j, const float* m) const {
    float sum = 0;
    for (int i = 0; i < n; ++i) sum += coefs.values[static_cast<size_t>(j * n + i)] * m[i];
    return sum;
  }
};

struct Predict final : AltUp {
  void run(Run& r, int thread) override {
    each_row(r, first, r.step->rows, [&](int64_t t) {
      float *row = r.buffer[x] + t * n * k, *to = r.buffer[out] + t * k;
      float m[kMaxStreams], c[kMaxStreams * kMaxStreams];
      modalities(r, row + active * k, thread, m);
      for (int j = 0; j < n * n; ++j) c[j] = coefficient(j, m);
      for (int64_t i = 0; i < k; i += kStreamLanes) mix(row + i, c);
      std::copy(row + active * k, row + (active + 1) * k, to);
    });
  }
  // Sixteen columns of all streams.
  void mix(float* row, const float* c) const {
    float old[kMaxStreams][kStreamLanes];
    for (int j = 0; j < n; ++j) std::copy(row + j * k, row + j * k + kStreamLanes, old[j]);
    for (int j = 0; j < n; ++j) {
      float sums[kStreamLanes] = {};
      for (int i = 0; i < n; ++i)
        for (int l = 0; l < kStreamLanes; ++l) sums[l] += c[j * n + i] * old[i][l];
      for (int l = 0; l < kStreamLanes; ++l) row[j * k + l] = old[j][l] + sums[l];
    }
  }
};

struct Correct final : AltUp {
  int made; Vector scale;
  void run(Run& r, int thread) override {
    each_row(r, first, r.step->rows, [&](int64_t t) {
      float *row = r.buffer[x] + t * n * k, *to = r.buffer[out] + t * k;
      const float* by = r.buffer[made] + t * k;
      float m[kMaxStreams], c[kMaxStreams];
      modalities(r, by, thread, m);
      for (int j = 0; j < n; ++j) c[j] = 1.0f + coefficient(j, m);
      for (int64_t i = 0; i < k; i += kStreamLanes) {
        float change[kStreamLanes];
        for (int l = 0; l < kStreamLanes; ++l) change[l] = by[i + l] - row[active * k + i + l];
        for (int j = 0; j < n; ++j)
          for (int l = 0; l < kStreamLanes; ++l) row[j * k + i + l] += c[j] * change[l];
      }
      for (int64_t i = 0; i < k; ++i) to[i] = row[active * k + i] * scale.values[static_cast<size_t>(i)];
    });
  }
};

// Streams as wide as the norm; the router has a row for each. square: coefficients for each pair of streams, else for each.
template <class T> std::unique_ptr<T> altup(Plan& plan, int x, Vector router, Vector norm, Vector coefs, int active, float eps, bool square) {
  const int64_t wide = plan.width_of(x), k = norm.size();
  if (!k || k % kStreamLanes || wide % k) refuse("streams of " + std::to_string(k) + " in rows of " + std::to_string(wide));
  const int64_t n = wide / k;
  if (n > kMaxStreams) refuse(std::to_string(n) + " streams; the limit is " + std::to_string(kMaxStreams));
  if (router.size() != wide) refuse("a router of " + std::to_string(router.size()) + " weights for rows of " + std::to_string(wide));
  if (coefs.size() != (square ? n : 1) * n * n) refuse(std::to_string(coefs.size()) + " coefficients for " + std::to_string(n) + " streams");
  if (active < 0 || active >= n) refuse("stream " + std::to_string(active) + " of " + std::to_string(n));
  auto op = std::make_unique<T>();
  op->x = x;
  op->k = k;
  op->n = static_cast<int>(n);
  op->active = active;
  op->router = std::move(router);
  op->coefs = std::move(coefs);
  op->norm = {std::move(norm), eps};
  op->out = plan.buffer(k);
  op->reads.push_back(x);
  op->writes.push_back(op->out);
  return op;
}

int predict(Plan& plan, int x, Vector router, Vector norm, Vector coefs, int active, float eps) {
  return plan.add(altup<Predict>(plan, x, std::move(router), std::move(norm), std::move(coefs), active, eps, true)).out;
}
FREEHOLD_OP(predict, "Mix the streams of every row in place by coefficients of its active one; return that one of the result.\n\n"
            "router: [streams, width], norm: [width], coefs: [streams * streams, streams], flat.",
            "x"_a, "router"_a, "norm"_a, "coefs"_a, "active"_a, "eps"_a)

int correct(Plan& plan, int x, int made, Vector router, Vector norm, Vector coefs, Vector scale, int active, float eps) {
  auto op = altup<Correct>(plan, x, std::move(router), std::move(norm), std::move(coefs), active, eps, false);
  plan.want_width(made, op->k, "what a layer made");
  check({scale, eps}, op->k);
  op->made = made;
  op->scale = std::move(scale);
  op->reads.push_back(made);
  return plan.add(std::move(op)).out;
}
FREEHOLD_OP(correct, "Move every stream of a row in place by what a layer made of the active one; return that one times `scale`.\n\n"
            "router: [streams, width], norm and scale: [width], coefs: [streams, streams], flat.",
            "x"_a, "made"_a, "router"_a, "norm"_a, "coefs"_a, "scale"_a, "active"_a, "eps"_a)

}  // namespace
}  // namespace fh
