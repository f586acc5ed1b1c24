// AVX-512 with VNNI: the vector vocabulary for 512-bit registers.
// Included once by each file of kernels for it, which ends the target region with isa/end.h. Empty for other processors.
#pragma once
#include "../kernels.h"

#include <cmath>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")
#endif

namespace fh::avx512 {

struct F { __m512 v; };                    // 16 floats
struct I { __m512i v; };                   // 16 int32, or 64 bytes

#define OP static inline __attribute__((always_inline))
OP F fzero() { return {_mm512_setzero_ps()}; }
OP F fset(float x) { return {_mm512_set1_ps(x)}; }
OP F fload(const float* p) { return {_mm512_loadu_ps(p)}; }
OP void fstore(float* p, F a) { _mm512_storeu_ps(p, a.v); }
OP F fload_n(const float* p, int n) { return {_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p)}; }
OP void fstore_n(float* p, F a, int n) { _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), a.v); }
OP F add(F a, F b) { return {_mm512_add_ps(a.v, b.v)}; }
OP F sub(F a, F b) { return {_mm512_sub_ps(a.v, b.v)}; }
OP F mul(F a, F b) { return {_mm512_mul_ps(a.v, b.v)}; }
OP F div(F a, F b) { return {_mm512_div_ps(a.v, b.v)}; }
OP F fma(F a, F b, F c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }      // a*b + c
OP F fnma(F a, F b, F c) { return {_mm512_fnmadd_ps(a.v, b.v, c.v)}; }    // c - a*b
OP F fmax(F a, F b) { return {_mm512_max_ps(a.v, b.v)}; }                 // b where either is NaN
OP F fmin(F a, F b) { return {_mm512_min_ps(a.v, b.v)}; }
OP F fabs(F a) { return {_mm512_abs_ps(a.v)}; }
OP F fround(F a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
OP F to_float(I a) { return {_mm512_cvtepi32_ps(a.v)}; }
OP I to_int(F a) { return {_mm512_cvtps_epi32(a.v)}; }                    // nearest even
OP F scale_exp(F a, I n) { return {_mm512_scalef_ps(a.v, _mm512_cvtepi32_ps(n.v))}; }   // a * 2^n
OP F scale_exp(F a, F n) { return {_mm512_scalef_ps(a.v, n.v)}; }         // the same, n integral
OP F select_lt(F a, F b, F x, F y) { return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ), y.v, x.v)}; }  // a<b ? x : y
OP F load_f16(const uint16_t* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))}; }
OP void store_f16(uint16_t* p, F a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)); }
OP F load_bf16(const uint16_t* p) { return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16))}; }
// Sums in one fixed tree: lanes i and i+8, then +4, +2, +1.
OP float hsum(F a) {
  const __m256 h = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  const __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
  const __m128 d = _mm_add_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_add_ss(d, _mm_shuffle_ps(d, d, 1)));
}
OP float hmax(F a) { return _mm512_reduce_max_ps(a.v); }
// The greater of floats >= 0 by their bits, so that NaN is above infinity and both stay. Of a vector; and of eight, in lanes 0 to 7.
OP F fmost(F a, F b) { return {_mm512_castsi512_ps(_mm512_max_epi32(_mm512_castps_si512(a.v), _mm512_castps_si512(b.v)))}; }
OP float hmost(F a) { return _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(_mm512_reduce_max_epi32(_mm512_castps_si512(a.v))))); }
// Halves of a and of b folded into one vector; then quarters; then pairs.
OP F fold_halves(F a, F b) { return fmost({_mm512_shuffle_f32x4(a.v, b.v, 0x44)}, {_mm512_shuffle_f32x4(a.v, b.v, 0xee)}); }
OP F fold_quarters(F a, F b) { return fmost({_mm512_shuffle_f32x4(a.v, b.v, 0x88)}, {_mm512_shuffle_f32x4(a.v, b.v, 0xdd)}); }
OP F fold_pairs(F a, F b) { return fmost({_mm512_shuffle_ps(a.v, b.v, 0x44)}, {_mm512_shuffle_ps(a.v, b.v, 0xee)}); }
OP F hmost8(const F* v) {
  const F a = fold_quarters(fold_halves(v[0], v[1]), fold_halves(v[2], v[3])), b = fold_quarters(fold_halves(v[4], v[5]), fold_halves(v[6], v[7]));
  F all = fold_pairs(a, b);                          // 128-bit lane i: two of v[i], two of v[4 + i]
  all = fmost(all, {_mm512_permute_ps(all.v, 0xb1)});
  return {_mm512_permutexvar_ps(_mm512_setr_epi32(0, 4, 8, 12, 2, 6, 10, 14, 0, 4, 8, 12, 2, 6, 10, 14), all.v)};
}
OP int32_t hsum(I a) { return _mm512_reduce_add_epi32(a.v); }
OP I izero() { return {_mm512_setzero_si512()}; }
OP I iset(int32_t x) { return {_mm512_set1_epi32(x)}; }
OP I iadd(I a, I b) { return {_mm512_add_epi32(a.v, b.v)}; }
OP I imul(I a, I b) { return {_mm512_mullo_epi32(a.v, b.v)}; }
OP I load_u8(const uint8_t* p) { return {_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))}; }
OP I load_i8(const int8_t* p) { return {_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))}; }
OP void store_i8(int8_t* p, I a) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(a.v)); }   // saturates
OP void store_i16(int16_t* p, I a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtsepi32_epi16(a.v)); }   // saturates
// Bytes: 64 at a time, lane r holding four codes of row r.
OP I bload(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
OP void bstore(uint8_t* p, I a) { _mm512_storeu_si512(p, a.v); }
OP I bset(int x) { return {_mm512_set1_epi8(static_cast<char>(x))}; }
OP I band(I a, I b) { return {_mm512_and_si512(a.v, b.v)}; }
OP I blookup(const uint8_t* table, I n) {                      // of sixteen bytes, byte n for each n below 16
  return {_mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table))), n.v)};
}
OP I bor(I a, I b) { return {_mm512_or_si512(a.v, b.v)}; }
OP I bor_masked(I a, I b, I m) { return {_mm512_ternarylogic_epi32(a.v, b.v, m.v, 0xf8)}; }       // a | (b & m)
template <int S> OP I shr16(I a) { return {_mm512_srli_epi16(a.v, S)}; }
template <int S> OP I shl16(I a) { return {_mm512_slli_epi16(a.v, S)}; }
template <int S> OP I shl32(I a) { return {_mm512_slli_epi32(a.v, S)}; }
OP I quad(const int8_t* p) { int32_t x; memcpy(&x, p, 4); return {_mm512_set1_epi32(x)}; }     // four activations to every lane
// acc + dot of four unsigned codes and four signed activations a lane. dot4: codes < 128; dot4_full: any byte.
OP I dot4(I acc, I w, I x) { return {_mm512_dpbusd_epi32(acc.v, w.v, x.v)}; }
OP I dot4_full(I acc, I w, I x) { return {_mm512_dpbusd_epi32(acc.v, w.v, x.v)}; }
// Sums of sixteen runs of sixteen int8: quads by dots with ones, then four lanes to one, twice two.
OP __m512i fold_quads(__m512i a, __m512i b) {
  const __m512 x = _mm512_castsi512_ps(a), y = _mm512_castsi512_ps(b);
  return _mm512_add_epi32(_mm512_castps_si512(_mm512_shuffle_ps(x, y, 0x88)), _mm512_castps_si512(_mm512_shuffle_ps(x, y, 0xdd)));
}
OP I sums16(const int8_t* q) {
  __m512i v[4];
  for (int i = 0; i < 4; ++i) v[i] = _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8(1), _mm512_loadu_si512(q + 64 * i));
  const __m512i sums = fold_quads(fold_quads(v[0], v[1]), fold_quads(v[2], v[3]));   // 128-bit lane i: run i of each of the four
  return {_mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), sums)};
}
OP I dot2(I acc, I a, I b) { return {_mm512_dpwssd_epi32(acc.v, a.v, b.v)}; }   // acc + dot of two int16 a lane
constexpr int kChains = 16, kDotsAtOnce = 1;      // see ceiling.inl
constexpr int kGemmTile = 12;
constexpr int kGemmRows = 4;               // Zen 5, qwen2.5-coder:0.5b, of the step by panels: 0.82 at 4 rows, 0.61 at 10 to 15
OP void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }

#include "broadcast.h"
#include "quad_dots.inl"

}  // namespace fh::avx512
#endif
