// Which kernels of the delta rule go with a table, and their oracle in plain loops and doubles.
#include "kernels/recurrent_delta.h"

#include <cmath>
#include <vector>

#include "kernels/vectors.h"

namespace fh {

const DeltaKernels& delta_kernels(const Kernels& table) {
  switch (vectors_of(table)) {
    case Vectors::kNeon: return delta_neon();
    case Vectors::kYmm: return delta_avx2();
    case Vectors::kZmm: return delta_avx512();
    case Vectors::kNone: break;
  }
  return delta_scalar();
}

namespace reference {
namespace {

double unit(const float* x, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(x[i]) * x[i];
  return 1.0 / std::sqrt(sum + kDeltaEps);
}

}  // namespace

float delta_prepare(const float* q, const float* k, int64_t keys, float scale, float* row) {
  const double qs = unit(q, keys) * scale, ks = unit(k, keys);
  double sum = 0;
  for (int64_t i = 0; i < keys; ++i) {
    row[i] = static_cast<float>(k[i] * ks);
    row[keys + i] = static_cast<float>(q[i] * qs);
    sum += static_cast<double>(row[i]) * row[keys + i];
  }
  return static_cast<float>(sum);
}

void delta_decays(const float* x, const float* a, const float* bias, int64_t n, float* out) {
  for (int64_t i = 0; i < n; ++i) {
    const double y = static_cast<double>(x[i]) + bias[i], soft = std::fmax(y, 0.0) + std::log1p(std::exp(-std::fabs(y)));
    out[i] = static_cast<float>(std::exp(a[i] * soft));
  }
}

void delta_bounded(const float* x, const float* a, const float* bias, float bound, int64_t n, float* out) {
  for (int64_t i = 0; i < n; ++i) {
    const double y = a[i] * (static_cast<double>(x[i]) + bias[i]);
    out[i] = static_cast<float>(std::exp(bound / (1.0 + std::exp(-y))));
  }
}

void delta_betas(float* x, float scale, int64_t n) {
  for (int64_t i = 0; i < n; ++i) x[i] = static_cast<float>(scale / (1.0 + std::exp(-static_cast<double>(x[i]))));
}

// As the formula has it, a column after the other.
void delta_scan(const DeltaScan& s) {
  std::vector<double> state(static_cast<size_t>(s.keys));
  for (int c = 0; c < s.columns; ++c) {
    const int64_t at = int64_t{c / 16} * s.keys * 16 + c % 16;
    for (int i = 0; i < s.keys; ++i) state[static_cast<size_t>(i)] = s.from ? s.from[at + 16 * i] : 0.0;
    for (int64_t t = 0; t < s.tokens; ++t) {
      const float *k = s.rows + t * s.stride, *q = k + s.keys, *decay = s.decay ? nullptr : q + s.keys;
      double seen = 0, out = 0;
      for (int i = 0; i < s.keys; ++i) seen += (state[static_cast<size_t>(i)] *= decay ? decay[i] : s.decay[t * s.gate_stride]) * k[i];
      const double d = s.beta[t * s.gate_stride] * (s.v[t * s.v_stride + c] - seen);
      for (int i = 0; i < s.keys; ++i) out += (state[static_cast<size_t>(i)] += k[i] * d) * q[i];
      s.out[t * s.out_stride + c] = static_cast<float>(out);
    }
    for (int i = 0; i < s.keys; ++i) s.to[at + 16 * i] = static_cast<float>(state[static_cast<size_t>(i)]);
  }
}

}  // namespace reference
}  // namespace fh
