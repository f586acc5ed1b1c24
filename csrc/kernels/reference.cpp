// The oracle for every kernel: definitions written down, plain loops, double sums.
// Knows no vector, no page, no tile, and is never the fast path; tests hold each ISA's table against it.
#include "kernels/reference.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "freehold.h"

namespace fh::reference {
namespace {

double sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }

double score(const AttnArgs& a, const float* q, const float* key) {
  double s = 0.0;
  for (int e = 0; e < a.d; ++e) s += static_cast<double>(q[e]) * key[e];
  s *= a.scale;
  return a.softcap > 0.0f ? a.softcap * std::tanh(s / a.softcap) : s;
}

// One head of one row: softmax over positions (i - window, i], then the mean of their values.
void attend(const AttnArgs& a, int64_t position, int kv_head, const float* q, const float* keys, const float* values, float* out) {
  const int64_t first = a.window > 0 ? std::max<int64_t>(0, position - a.window + 1) : 0;
  std::vector<double> p;
  for (int64_t j = first; j <= position; ++j) p.push_back(score(a, q, keys + (j * a.kv_heads + kv_head) * a.d));
  const double top = *std::max_element(p.begin(), p.end());
  double sum = 0.0;
  for (double& s : p) sum += s = std::exp(s - top);
  for (int c = 0; c < a.dv; ++c) {
    double y = 0.0;
    for (size_t j = 0; j < p.size(); ++j) y += p[j] * values[((first + static_cast<int64_t>(j)) * a.kv_heads + kv_head) * a.dv + c];
    out[c] = static_cast<float>(y / sum);
  }
}

}  // namespace

void rms_norm(const float* x, const float* w, float eps, int64_t n, float* y) {
  double sum = 0.0;
  for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(x[i]) * x[i];
  const double inverse = 1.0 / std::sqrt(sum / static_cast<double>(n) + eps);
  for (int64_t i = 0; i < n; ++i) y[i] = static_cast<float>(x[i] * inverse * w[i]);
}

void layer_norm(const float* x, const float* w, const float* b, float eps, int64_t n, float* y) {
  double mean = 0.0, squares = 0.0;
  for (int64_t i = 0; i < n; ++i) mean += x[i] / static_cast<double>(n);
  for (int64_t i = 0; i < n; ++i) squares += (x[i] - mean) * (x[i] - mean);
  const double inverse = 1.0 / std::sqrt(squares / static_cast<double>(n) + eps);
  for (int64_t i = 0; i < n; ++i) y[i] = static_cast<float>((x[i] - mean) * inverse * w[i] + b[i]);
}

void gelu_erf(float* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = static_cast<float>(y[i] * 0.5 * std::erfc(-y[i] / std::sqrt(2.0)));
}

// To the nearest of 8 bits, ties to even; NaN and infinity stay.
float to_bf16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if ((bits & 0x7f800000u) == 0x7f800000u) return x;
  bits = (bits + 0x7fffu + (bits >> 16 & 1u)) & 0xffff0000u;
  std::memcpy(&x, &bits, 4);
  return x;
}

void attend_both(const BothArgs& a, bool rounded) {
  const auto at = [&](const float* x, int64_t row, int i) { return static_cast<double>(rounded ? to_bf16(x[row * a.stride + i]) : x[row * a.stride + i]); };
  std::vector<double> p(static_cast<size_t>(a.rows));
  for (int64_t r = 0; r < a.rows; ++r) {
    for (int64_t j = 0; j < a.rows; ++j) {
      double s = 0.0;
      for (int i = 0; i < a.d; ++i) s += at(a.q, r, i) * at(a.k, j, i);
      p[static_cast<size_t>(j)] = s * a.scale;
    }
    const double top = *std::max_element(p.begin(), p.end());
    double sum = 0.0;
    for (double& s : p) sum += s = std::exp(s - top);
    for (int c = 0; c < a.d; ++c) {
      double y = 0.0;
      for (int64_t j = 0; j < a.rows; ++j) y += p[static_cast<size_t>(j)] * at(a.v, j, c);
      a.out[r * a.stride + c] = static_cast<float>(y / sum);
    }
  }
}

void silu_mul(float* g, const float* u, int64_t n) {
  for (int64_t i = 0; i < n; ++i) g[i] = static_cast<float>(g[i] * sigmoid(g[i]) * u[i]);
}

void gelu_mul(float* g, const float* u, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const double x = g[i], z = std::sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x);
    g[i] = static_cast<float>(x * sigmoid(2.0 * z) * u[i]);      // 0.5 (1 + tanh z), without its cancellation
  }
}

void softcap(float* y, float cap, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = static_cast<float>(cap * std::tanh(static_cast<double>(y[i]) / cap));
}

void rope(float* x, int heads, int d, int rot, const float* cos, const float* sin, bool adjacent) {
  for (int h = 0; h < heads; ++h) {
    for (int i = 0; i < rot / 2; ++i) {
      float& a = x[h * d + (adjacent ? 2 * i : i)];
      float& b = x[h * d + (adjacent ? 2 * i + 1 : i + rot / 2)];
      const double u = a, v = b;
      a = static_cast<float>(u * cos[i] - v * sin[i]);
      b = static_cast<float>(v * cos[i] + u * sin[i]);
    }
  }
}

void attention(const AttnArgs& a, int rows, const float* keys, const float* values) {
  const int group = a.heads / a.kv_heads;
  for (int r = 0; r < rows; ++r)
    for (int h = 0; h < a.heads; ++h)
      attend(a, static_cast<int64_t>(a.first_position) + r, h / group, a.q + r * a.q_stride + h * a.d, keys, values,
             a.out + r * a.out_stride + h * a.dv);
}

double log_sum_exp(const float* x, int64_t n) {
  if (n < 1 || !std::all_of(x, x + n, [](float v) { return std::isfinite(v); })) return std::numeric_limits<double>::quiet_NaN();
  const double top = *std::max_element(x, x + n);
  double sum = 0.0;
  for (int64_t i = 0; i < n; ++i) sum += std::exp(x[i] - top);
  return top + std::log(sum);
}

int64_t argmax(const float* x, int64_t n) { return std::max_element(x, x + n) - x; }

void quantize(const float* x, int64_t k, int block, int16_t* q, float* scale) {
  const float greatest = block == kWideUnit ? kWideCode : 127;
  for (int64_t b = 0; b < k / block; ++b, x += block, q += block) {
    float most = 0.0f;
    bool finite = true;
    for (int i = 0; i < block; ++i) {
      most = std::max(most, std::fabs(x[i]));
      finite = finite && std::isfinite(x[i]);
    }
    const bool zero = !finite || most <= 1e-30f;      // as the kernels: the inverse scale must stay finite
    scale[b] = !finite ? std::numeric_limits<float>::quiet_NaN() : zero ? 0.0f : most / greatest;
    const float inverse = zero ? 0.0f : greatest / most;      // in float: a half-way case must round as the kernels round it
    for (int i = 0; i < block; ++i) q[i] = zero ? int16_t{0} : static_cast<int16_t>(std::nearbyint(x[i] * inverse));
  }
}

void round_rows(float* x, int64_t rows, int64_t n) {
  for (int64_t r = 0; r < rows; ++r, x += n) {
    float most = 0.0f;
    for (int64_t i = 0; i < n; ++i) most = std::max(most, std::fabs(x[i]));
    const float inverse = most > 1e-30f ? 127.0f / most : 0.0f;
    for (int64_t i = 0; i < n; ++i) x[i] = static_cast<float>(std::nearbyint(x[i] * inverse)) * (most / 127.0f);
  }
}

void matmul(const Panels& w, const float* x, int64_t m, float* out) {
  const int act = traits(w.type).act(), block = act == kAct256 ? 256 : act == kActWide ? kWideUnit : 32;
  std::vector<double> in(static_cast<size_t>(m * w.k));
  std::vector<int16_t> q(static_cast<size_t>(w.k));
  std::vector<float> scale(static_cast<size_t>(w.k / block) + 1), row(static_cast<size_t>(w.k));
  for (int64_t t = 0; t < m; ++t) {
    double* to = in.data() + t * w.k;
    if (act != kActF32) quantize(x + t * w.k, w.k, block, q.data(), scale.data());
    for (int64_t i = 0; i < w.k; ++i)
      to[i] = act == kActF32 ? x[t * w.k + i] : static_cast<double>(scale[static_cast<size_t>(i / block)]) * q[static_cast<size_t>(i)];
  }
  for (int64_t r = 0; r < w.n; ++r) {
    decode_row(w, r, row.data());
    for (int64_t t = 0; t < m; ++t) {
      double y = 0.0;
      for (int64_t i = 0; i < w.k; ++i) y += in[static_cast<size_t>(t * w.k + i)] * row[static_cast<size_t>(i)];
      out[t * w.n + r] = static_cast<float>(y);
    }
  }
}

}  // namespace fh::reference
