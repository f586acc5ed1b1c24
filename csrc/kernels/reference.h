// The oracle's declarations: what every kernel computes, in plain loops with double sums. Never the fast path.
#pragma once
#include <cstdint>

#include "kernels/kernels.h"

namespace fh::reference {

void rms_norm(const float* x, const float* w, float eps, int64_t n, float* y);
void layer_norm(const float* x, const float* w, const float* b, float eps, int64_t n, float* y);
void gelu_erf(float* y, int64_t n);
// softmax(q k' scale) v for one head of one sequence; `rounded`: of q, k and v as bfloat16 keeps them.
void attend_both(const BothArgs& a, bool rounded);
void silu_mul(float* g, const float* u, int64_t n);
void gelu_mul(float* g, const float* u, int64_t n);
void softcap(float* y, float cap, int64_t n);
void rope(float* x, int heads, int d, int rot, const float* cos, const float* sin, bool adjacent);
// Dense causal attention of `rows` rows over keys [positions][kv_heads][d] and values [positions][kv_heads][dv]; of `a` it
// reads q, out, heads, kv_heads, d, dv, scale, softcap, window and first_position. Positions reach the last row's.
void attention(const AttnArgs& a, int rows, const float* keys, const float* values);
double log_sum_exp(const float* x, int64_t n);
int64_t argmax(const float* x, int64_t n);
// Rows of n floats as a cache of codes keeps them: codes times a scale per row.
void round_rows(float* x, int64_t rows, int64_t n);
// x ~ scale[i / block] * q[i]; int8 with block 32 or 256, wide codes with 128; a block with a non-finite input has scale NaN.
void quantize(const float* x, int64_t k, int block, int16_t* q, float* scale);
// out [m][n] = x [m][k] times the rows of w, x rounded to codes first where w's weight type multiplies codes.
void matmul(const Panels& w, const float* x, int64_t m, float* out);

}  // namespace fh::reference
