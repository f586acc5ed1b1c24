// Residual streams that lie side by side in a row, and sums over one of them.
// Knows floats; no op. Plain loops: a row is a few thousand floats, and the products between them cost a hundred times that.
#pragma once
#include <cstdint>

namespace fh {

constexpr int kMaxStreams = 8;
constexpr int kStreamLanes = 16;              // running sums, so that vectors need no sum in another order; divides every width

// Adds sixteen running sums up, halves first.
inline float total(float* sums) {
  for (int n = kStreamLanes / 2; n; n /= 2)
    for (int i = 0; i < n; ++i) sums[i] += sums[i + n];
  return sums[0];
}
inline float dot(const float* a, const float* b, int64_t n) {
  float sums[kStreamLanes] = {};
  for (int64_t i = 0; i < n; i += kStreamLanes)
    for (int j = 0; j < kStreamLanes; ++j) sums[j] += a[i + j] * b[i + j];
  return total(sums);
}
inline float mean(const float* x, int64_t n) {
  float sums[kStreamLanes] = {};
  for (int64_t i = 0; i < n; i += kStreamLanes)
    for (int j = 0; j < kStreamLanes; ++j) sums[j] += x[i + j];
  return total(sums) / static_cast<float>(n);
}
inline float mean_square(const float* x, int64_t n) { return dot(x, x, n) / static_cast<float>(n); }

}  // namespace fh
