// One activation row as a head's screen sees it. Knows floats and the bound's terms; kernels/screen.inl has the bound.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "kernels/kernels.h"

namespace fh {

// Rows for a screen, rounded a second time: to int8 with one scale for screen_inputs() inputs, so that sums of four groups
// of weights share it. What that loses is known, and goes into the bound with the low plane.
struct ScreenRows {
  static constexpr int64_t kSpare = 16;        // rows that may be read past the last: AMX multiplies sixteen at a time
  int64_t k = 0, block = 0;
  std::vector<int8_t> q;
  std::vector<float> scale, reach;             // [row][blocks]; [row]: |row| + kRestShare * |what rounding left|
  std::vector<int32_t> sum16;

  void allocate(WeightType type, int64_t inputs, int64_t rows) {
    k = inputs;
    block = screen_inputs(type);
    q.resize(static_cast<size_t>((rows + kSpare) * k));
    scale.resize(static_cast<size_t>((rows + kSpare) * blocks()));
    sum16.resize(static_cast<size_t>(rows * k / 16));
    reach.resize(static_cast<size_t>(rows));
  }
  int64_t blocks() const { return (k + block - 1) / block; }
  Acts acts() const {
    Acts a;
    a.k = k;
    a.q = q.data();
    a.scale = scale.data();
    a.sum16 = sum16.data();
    return a;
  }
  // Row t is x[0], .., x[k - 1]. What is not finite has no bound.
  void set(int64_t t, const float* x) {
    double seen = 0.0, left = 0.0;
    for (int64_t b = 0; b < blocks(); ++b) {
      const int64_t begin = b * block, end = std::min(k, begin + block);
      float most = 0.0f;
      bool sound = true;
      for (int64_t i = begin; i < end; ++i) {
        most = std::max(most, std::fabs(x[i]));
        sound &= std::isfinite(x[i]);
      }
      if (!sound) left = HUGE_VAL;
      const float step = sound ? most / 127.0f : 0.0f, inverse = step > 1e-30f ? 1.0f / step : 0.0f;
      scale[static_cast<size_t>(t * blocks() + b)] = step;
      for (int64_t i = begin; i < end; ++i) {
        const float exact = sound ? x[i] : 0.0f, steps = exact * inverse;
        const int code = std::clamp(static_cast<int>(steps + std::copysign(0.5f, steps)), -127, 127);
        const double rounded = static_cast<double>(step) * code, rest = exact - rounded;
        q[static_cast<size_t>(t * k + i)] = static_cast<int8_t>(code);
        seen += rounded * rounded;
        left += rest * rest;
      }
    }
    for (int64_t i = 0; i < k / 16; ++i) {
      int32_t& sum = sum16[static_cast<size_t>(t * k / 16 + i)];
      sum = 0;
      for (int64_t j = 0; j < 16; ++j) sum += q[static_cast<size_t>(t * k + 16 * i + j)];
    }
    reach[static_cast<size_t>(t)] = std::nextafter(static_cast<float>(std::sqrt(seen) + double{kRestShare} * std::sqrt(left)), HUGE_VALF);
  }
};

}  // namespace fh
