// Mamba-2's recurrence: the step sizes of a token's heads, and one head's scan over the tokens of a piece; and Mamba-1's.
// Its own table of kernels, filled by a translation unit for each ISA. Knows plain arrays; no plan, no cache, no thread.
//
//   step = softplus(dt + bias),  decay = exp(step * a)
//   h = decay * h + step * x b',  y = h c + d x          (arXiv 2405.21060, section 6; h is [head_dim][state])
//
// A state is kept transposed, [state][head_dim]: lanes are channels, so the sum over states needs no horizontal step and
// b and c are broadcasts. Bits: every element of h goes through the tokens in order, and every y sums over the states in
// order, so neither pieces nor blocks of channels nor the slabs in registers change one.
#pragma once
#include <cstdint>

#include "kernels.h"

namespace fh {

constexpr int kMambaChannels = 64;     // most channels that a call takes: four registers of sixteen floats
constexpr int kMambaStates = 512;      // most states: b and c of a block of tokens take 64 KB of a stack

// Some channels of one head over consecutive tokens. Row t of x, b, c and y lies t strides on.
struct MambaScan {
  const float *x, *b, *c; int64_t stride;              // x [channels]; b, c [states], shared by the heads of a group
  const float *step, *decay; int64_t step_stride;      // one float each
  float d;
  const float* from;                                   // the state before, null for zeros; may be `to`
  float* to;                                           // the state after
  int64_t state_stride;                                // floats from one state's channels to the next one's
  float* y; int64_t y_stride;
  int64_t tokens;
  int states, channels;                                // channels: a multiple of 16
};

// Mamba-1's: every channel has steps of its own, and a decay for each state. Some channels over consecutive tokens.
//
//   step = softplus(dt + bias),  h = exp(step * a) * h + step x b',  y = h c + d x     (arXiv 2312.00752, algorithm 2)
//
// a, like a state, is [states][channels]. Lanes are channels again, so the same holds of bits.
struct SelectiveScan {
  const float *x, *dt; int64_t stride;                 // [channels]; row t lies t strides on
  const float *b, *c;                                  // [states], rows one after another
  const float *a, *d, *bias;                           // [states][a_stride], [channels], [channels]
  int64_t a_stride;
  const float* from;                                   // as in MambaScan
  float* to;
  int64_t state_stride;
  float* y; int64_t y_stride;
  int64_t tokens;
  int states, channels;
};

struct MambaKernels {
  void (*steps)(const float* dt, const float* bias, const float* a, int64_t heads, float* step, float* decay);
  void (*scan)(const MambaScan& s);
  void (*selective)(const SelectiveScan& s);
};

const MambaKernels& mamba_scalar();
const MambaKernels& mamba_avx2();
const MambaKernels& mamba_avx512();
const MambaKernels& mamba_neon();
const MambaKernels& mamba_kernels(const Kernels& table);     // those that go with a table

namespace reference {
void mamba_steps(const float* dt, const float* bias, const float* a, int64_t heads, float* step, float* decay);
void mamba_scan(const MambaScan& s);
void selective_scan(const SelectiveScan& s);
}  // namespace reference

}  // namespace fh
