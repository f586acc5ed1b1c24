// A causal convolution of each channel over its last inputs, short (3 or 4 taps), with gates before and after it.
// Its own table of kernels, filled by a translation unit for each ISA. Knows plain arrays; no plan, no cache, no thread.
//
//   u[t] = gate_in[t] * x[t],  y[t] = gate_out[t] * act(bias + sum over j of w[j] * u[t - taps + 1 + j])
//
// A few multiply-adds for each float read, so bytes bound it. Bits: a channel's sum goes from its oldest input to its newest,
// wherever the pieces of a sequence are cut.
#pragma once
#include <cstdint>

#include "kernels.h"

namespace fh {

constexpr int kConvChannels = 64;        // most channels of a call: four registers of sixteen floats, 256 bytes of each row in a row
constexpr int kConvTaps = 16;            // most inputs of a sum: the last ones of a call's channels lie in 4 KB of a stack

// Some channels over consecutive tokens of one sequence. Row t of an array lies t strides on.
struct ConvArgs {
  const float* x;
  const float *gate_in, *gate_out;       // null: none
  int64_t stride;                        // of x, gates and out
  const float* weight; int64_t weight_stride;   // [taps][channels]
  const float* bias;                     // null: none
  const float* from;                     // [taps - 1][channels]: the inputs before, oldest first; null for zeros; may be `to`
  float* to;                             // the last taps - 1 inputs
  int64_t state_stride;
  float* out;
  int64_t tokens;
  int taps, channels;                    // channels: a multiple of 16
  bool silu;
};

struct ConvKernels { void (*convolve)(const ConvArgs& a); };

const ConvKernels& conv_scalar();
const ConvKernels& conv_avx2();
const ConvKernels& conv_avx512();
const ConvKernels& conv_neon();
const ConvKernels& conv_kernels(const Kernels& table);       // those that go with a table

namespace reference {
void convolve(const ConvArgs& a);
}  // namespace reference

}  // namespace fh
