// Which Mamba-2 kernels go with a table, and their oracle in plain loops and doubles.
#include "kernels/recurrent_mamba.h"

#include <cmath>
#include <vector>

#include "kernels/vectors.h"

namespace fh {

const MambaKernels& mamba_kernels(const Kernels& table) {
  switch (vectors_of(table)) {
    case Vectors::kNeon: return mamba_neon();
    case Vectors::kYmm: return mamba_avx2();
    case Vectors::kZmm: return mamba_avx512();
    case Vectors::kNone: break;
  }
  return mamba_scalar();
}

namespace reference {

void mamba_steps(const float* dt, const float* bias, const float* a, int64_t heads, float* step, float* decay) {
  for (int64_t h = 0; h < heads; ++h) {
    const double x = static_cast<double>(dt[h]) + bias[h], s = std::fmax(x, 0.0) + std::log1p(std::exp(-std::fabs(x)));
    step[h] = static_cast<float>(s);
    decay[h] = static_cast<float>(std::exp(s * a[h]));
  }
}

void mamba_scan(const MambaScan& s) {
  for (int p = 0; p < s.channels; ++p) {
    std::vector<double> state(static_cast<size_t>(s.states), 0.0);
    for (int n = 0; s.from && n < s.states; ++n) state[static_cast<size_t>(n)] = s.from[n * s.state_stride + p];
    for (int64_t t = 0; t < s.tokens; ++t) {
      const double x = s.x[t * s.stride + p], step = s.step[t * s.step_stride], decay = s.decay[t * s.step_stride];
      double y = s.d * x;
      for (int n = 0; n < s.states; ++n) {
        double& h = state[static_cast<size_t>(n)];
        h = decay * h + step * x * s.b[t * s.stride + n];
        y += h * s.c[t * s.stride + n];
      }
      s.y[t * s.y_stride + p] = static_cast<float>(y);
    }
    for (int n = 0; n < s.states; ++n) s.to[n * s.state_stride + p] = static_cast<float>(state[static_cast<size_t>(n)]);
  }
}

void selective_scan(const SelectiveScan& s) {
  for (int p = 0; p < s.channels; ++p) {
    std::vector<double> state(static_cast<size_t>(s.states), 0.0);
    for (int n = 0; s.from && n < s.states; ++n) state[static_cast<size_t>(n)] = s.from[n * s.state_stride + p];
    for (int64_t t = 0; t < s.tokens; ++t) {
      const double x = s.x[t * s.stride + p], v = static_cast<double>(s.dt[t * s.stride + p]) + s.bias[p];
      const double step = std::fmax(v, 0.0) + std::log1p(std::exp(-std::fabs(v)));
      double y = s.d[p] * x;
      for (int n = 0; n < s.states; ++n) {
        double& h = state[static_cast<size_t>(n)];
        h = std::exp(step * s.a[n * s.a_stride + p]) * h + step * x * s.b[t * s.states + n];
        y += h * s.c[t * s.states + n];
      }
      s.y[t * s.y_stride + p] = static_cast<float>(y);
    }
    for (int n = 0; n < s.states; ++n) s.to[n * s.state_stride + p] = static_cast<float>(state[static_cast<size_t>(n)]);
  }
}

}  // namespace reference
}  // namespace fh
