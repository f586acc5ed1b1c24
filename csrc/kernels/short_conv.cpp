// Which convolutions go with a table, and their oracle in plain loops and doubles.
#include "kernels/short_conv.h"

#include <cmath>
#include <vector>

#include "kernels/vectors.h"

namespace fh {

const ConvKernels& conv_kernels(const Kernels& table) {
  switch (vectors_of(table)) {
    case Vectors::kNeon: return conv_neon();
    case Vectors::kYmm: return conv_avx2();
    case Vectors::kZmm: return conv_avx512();
    case Vectors::kNone: break;
  }
  return conv_scalar();
}

namespace reference {

void convolve(const ConvArgs& a) {
  const int keep = a.taps - 1;
  for (int c = 0; c < a.channels; ++c) {
    std::vector<double> u(static_cast<size_t>(keep), 0.0);
    for (int j = 0; a.from && j < keep; ++j) u[static_cast<size_t>(j)] = a.from[j * a.state_stride + c];
    for (int64_t t = 0; t < a.tokens; ++t) {
      u.push_back(static_cast<double>(a.x[t * a.stride + c]) * (a.gate_in ? a.gate_in[t * a.stride + c] : 1.0));
      double y = a.bias ? a.bias[c] : 0.0;
      for (int j = 0; j < a.taps; ++j) y += a.weight[j * a.weight_stride + c] * u[static_cast<size_t>(t + j)];
      if (a.silu) y /= 1.0 + std::exp(-y);
      a.out[t * a.stride + c] = static_cast<float>(y * (a.gate_out ? a.gate_out[t * a.stride + c] : 1.0));
    }
    for (int j = 0; j < keep; ++j) a.to[j * a.state_stride + c] = static_cast<float>(u[static_cast<size_t>(a.tokens + j)]);
  }
}

}  // namespace reference
}  // namespace fh
