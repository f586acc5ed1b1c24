// The gated delta rule: what a token's heads are prepared to, and the recurrence of some value columns of one head.
// Its own table of kernels, filled by a translation unit for each ISA. Knows plain arrays; no plan, no cache, no thread.
//
//   S = g S,  d = beta (v - S' k),  S = S + k d',  o = S' q          (arXiv 2412.06464; S is [keys][columns])
//
// g is a number for each head (gated DeltaNet), or one for each key (KDA, arXiv 2510.26692). A column of S needs no other
// column, so columns are what is divided: a state is kept in blocks of sixteen of them, [columns / 16][keys][16].
// Bits: every element goes through the tokens in order, and both sums over the keys have one order, so neither pieces nor
// the number of columns in a call change one.
#pragma once
#include <cstdint>

#include "kernels.h"

namespace fh {

constexpr int kDeltaColumns = 32;         // most columns that a call takes: two blocks
constexpr float kDeltaEps = 1e-6f;        // of the unit norm: x / sqrt(sum x^2 + eps)

// A prepared token of one head is k and q, both of unit length, q times its scale, and where each key has a decay those.
constexpr int64_t delta_width(int64_t keys, bool by_key) { return (by_key ? 3 : 2) * keys; }
constexpr int64_t delta_state(int64_t keys, int64_t columns) { return keys * ((columns + 15) / 16 * 16); }   // floats of a head

// Up to kDeltaColumns columns of one head over consecutive tokens. Row t of an array lies t strides on.
struct DeltaScan {
  const float* rows; int64_t stride;                   // prepared tokens
  const float *beta, *decay; int64_t gate_stride;      // a float each; decay null: rows hold one for each key
  const float* kq; int64_t kq_stride;                  // k' q of the prepared token
  const float* v; int64_t v_stride;                    // [columns]
  const float* from;                                   // blocks of the state before, null for zeros; may be `to`
  float* to;                                           // blocks of the state after
  float* out; int64_t out_stride;                      // [columns]
  int64_t tokens;
  int keys, columns;                                   // keys: even
};

struct DeltaKernels {
  // One key head of a token: unit k, then unit q times scale, to row; returns k' q.
  float (*prepare)(const float* q, const float* k, int64_t keys, float scale, float* row);
  // out = exp(a * softplus(x + bias)), in place allowed; and x = scale * sigmoid(x).
  void (*decays)(const float* x, const float* a, const float* bias, int64_t n, float* out);
  // The same with a bound: out = exp(bound * sigmoid(a * (x + bias))).
  void (*bounded)(const float* x, const float* a, const float* bias, float bound, int64_t n, float* out);
  void (*betas)(float* x, float scale, int64_t n);
  void (*scan)(const DeltaScan& s);
  // y *= silu(gate), or sigmoid(gate).
  void (*gate)(const float* gate, bool silu, int64_t n, float* y);
};

const DeltaKernels& delta_scalar();
const DeltaKernels& delta_avx2();
const DeltaKernels& delta_avx512();
const DeltaKernels& delta_neon();
const DeltaKernels& delta_kernels(const Kernels& table);     // those that go with a table

namespace reference {
float delta_prepare(const float* q, const float* k, int64_t keys, float scale, float* row);
void delta_decays(const float* x, const float* a, const float* bias, int64_t n, float* out);
void delta_bounded(const float* x, const float* a, const float* bias, float bound, int64_t n, float* out);
void delta_betas(float* x, float scale, int64_t n);
void delta_scan(const DeltaScan& s);
}  // namespace reference

}  // namespace fh
