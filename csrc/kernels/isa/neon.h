// ARMv8.2 with dot products: the vector vocabulary as four 128-bit registers. With FREEHOLD_I8MM also dots of unsigned by signed
// bytes, for the table of that name. Included once by each file of kernels for them, which ends the target region with
// isa/end.h. Empty for other processors.
//
// A dot takes four activations out of a register of sixteen by their number, so one load serves sixteen quads' products and
// nothing is broadcast. Without i8mm its bytes are signed on both sides: whole bytes are taken less 128, which is what their
// offset says anyway.
#pragma once
#include "../kernels.h"

#include <cmath>
#include <cstring>

#if defined(__aarch64__)
#include <arm_neon.h>

#ifdef FREEHOLD_I8MM
#define FREEHOLD_ARM i8mm
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("dotprod,i8mm"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("+dotprod+i8mm")
#endif
#else
#define FREEHOLD_ARM neon
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("dotprod"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("+dotprod")
#endif
#endif

namespace fh::FREEHOLD_ARM {

struct F { float32x4_t a, b, c, d; };      // 16 floats
struct I { int32x4_t a, b, c, d; };        // 16 int32, or 64 bytes

#define OP static inline __attribute__((always_inline))
#define EACH(f, x) {f((x).a), f((x).b), f((x).c), f((x).d)}
#define EACH2(f, x, y) {f((x).a, (y).a), f((x).b, (y).b), f((x).c, (y).c), f((x).d, (y).d)}
#define EACH3(f, x, y, z) {f((x).a, (y).a, (z).a), f((x).b, (y).b, (z).b), f((x).c, (y).c, (z).c), f((x).d, (y).d, (z).d)}
OP int8x16_t s8(int32x4_t v) { return vreinterpretq_s8_s32(v); }
OP uint8x16_t u8(int32x4_t v) { return vreinterpretq_u8_s32(v); }
OP int16x8_t s16(int32x4_t v) { return vreinterpretq_s16_s32(v); }
OP int32x4_t s32(int8x16_t v) { return vreinterpretq_s32_s8(v); }
OP int32x4_t s32(uint8x16_t v) { return vreinterpretq_s32_u8(v); }
OP int32x4_t s32(int16x8_t v) { return vreinterpretq_s32_s16(v); }
OP int32x4_t s32(uint16x8_t v) { return vreinterpretq_s32_u16(v); }

OP F fset(float x) { const float32x4_t v = vdupq_n_f32(x); return {v, v, v, v}; }
OP F fzero() { return fset(0.0f); }
OP F fload(const float* p) { return {vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)}; }
OP void fstore(float* p, F x) { vst1q_f32(p, x.a); vst1q_f32(p + 4, x.b); vst1q_f32(p + 8, x.c); vst1q_f32(p + 12, x.d); }
OP F fload_n(const float* p, int n) { float t[16] = {}; memcpy(t, p, 4 * static_cast<size_t>(n)); return fload(t); }
OP void fstore_n(float* p, F x, int n) { float t[16]; fstore(t, x); memcpy(p, t, 4 * static_cast<size_t>(n)); }
OP F add(F x, F y) { return EACH2(vaddq_f32, x, y); }
OP F sub(F x, F y) { return EACH2(vsubq_f32, x, y); }
OP F mul(F x, F y) { return EACH2(vmulq_f32, x, y); }
OP F div(F x, F y) { return EACH2(vdivq_f32, x, y); }
OP F fma(F x, F y, F z) { return EACH3(vfmaq_f32, z, x, y); }               // x*y + z
OP F fnma(F x, F y, F z) { return EACH3(vfmsq_f32, z, x, y); }              // z - x*y
OP float32x4_t max4(float32x4_t x, float32x4_t y) { return vbslq_f32(vcgtq_f32(x, y), x, y); }
OP float32x4_t min4(float32x4_t x, float32x4_t y) { return vbslq_f32(vcltq_f32(x, y), x, y); }
OP F fmax(F x, F y) { return EACH2(max4, x, y); }                           // y where either is NaN
OP F fmin(F x, F y) { return EACH2(min4, x, y); }
OP F fabs(F x) { return EACH(vabsq_f32, x); }
OP F fround(F x) { return EACH(vrndnq_f32, x); }
OP F to_float(I x) { return EACH(vcvtq_f32_s32, x); }
OP I to_int(F x) { return EACH(vcvtnq_s32_f32, x); }                        // nearest even; 0 for NaN
// x * 2^n in two exact steps, so that n down to -250 neither wraps nor loses the result.
OP float32x4_t pow2(int32x4_t n) { return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(n, vdupq_n_s32(127)), 23)); }
OP float32x4_t scale4(float32x4_t v, int32x4_t n) {
  const int32x4_t h = vshrq_n_s32(n, 1);
  return vmulq_f32(vmulq_f32(v, pow2(h)), pow2(vsubq_s32(n, h)));
}
OP F scale_exp(F x, I n) { return EACH2(scale4, x, n); }
OP F scale_exp(F x, F n) { return scale_exp(x, to_int(n)); }
OP float32x4_t lt4(float32x4_t a, float32x4_t b, float32x4_t x, float32x4_t y) { return vbslq_f32(vcltq_f32(a, b), x, y); }
OP F select_lt(F a, F b, F x, F y) { return {lt4(a.a, b.a, x.a, y.a), lt4(a.b, b.b, x.b, y.b), lt4(a.c, b.c, x.c, y.c), lt4(a.d, b.d, x.d, y.d)}; }   // a<b ? x : y
OP F load_f16(const uint16_t* p) {
  const float16x8_t lo = vreinterpretq_f16_u16(vld1q_u16(p)), hi = vreinterpretq_f16_u16(vld1q_u16(p + 8));
  return {vcvt_f32_f16(vget_low_f16(lo)), vcvt_high_f32_f16(lo), vcvt_f32_f16(vget_low_f16(hi)), vcvt_high_f32_f16(hi)};
}
OP void store_f16(uint16_t* p, F x) {
  vst1q_u16(p, vreinterpretq_u16_f16(vcvt_high_f16_f32(vcvt_f16_f32(x.a), x.b)));
  vst1q_u16(p + 8, vreinterpretq_u16_f16(vcvt_high_f16_f32(vcvt_f16_f32(x.c), x.d)));
}
OP float32x4_t bf16_low(uint16x8_t v) { return vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(v), 16)); }
OP float32x4_t bf16_high(uint16x8_t v) { return vreinterpretq_f32_u32(vshll_high_n_u16(v, 16)); }
OP F load_bf16(const uint16_t* p) {
  const uint16x8_t lo = vld1q_u16(p), hi = vld1q_u16(p + 8);
  return {bf16_low(lo), bf16_high(lo), bf16_low(hi), bf16_high(hi)};
}
// Sums in one fixed tree: lanes i and i+8, then +4, +2, +1.
OP float hsum(F x) {
  const float32x4_t q = vaddq_f32(vaddq_f32(x.a, x.c), vaddq_f32(x.b, x.d));
  return vpadds_f32(vadd_f32(vget_low_f32(q), vget_high_f32(q)));
}
OP float hmax(F x) {
  const float32x4_t q = max4(max4(x.a, x.c), max4(x.b, x.d)), d = max4(q, vextq_f32(q, q, 2));
  return vgetq_lane_f32(max4(d, vextq_f32(d, d, 1)), 0);
}
// The greater of floats >= 0 by their bits, so that NaN is above infinity and both stay. Of a vector; and of eight, in lanes 0 to 7.
OP int32x4_t bits(float32x4_t x) { return vreinterpretq_s32_f32(x); }
OP float32x4_t most4(float32x4_t x, float32x4_t y) { return vreinterpretq_f32_s32(vmaxq_s32(bits(x), bits(y))); }
OP F fmost(F x, F y) { return EACH2(most4, x, y); }
OP int32x4_t most_of(F x) { return bits(most4(most4(x.a, x.b), most4(x.c, x.d))); }
OP float hmost(F x) { return vgetq_lane_f32(vreinterpretq_f32_s32(vdupq_n_s32(vmaxvq_s32(most_of(x)))), 0); }
OP float32x4_t most_each(const F* v) {
  return vreinterpretq_f32_s32(vpmaxq_s32(vpmaxq_s32(most_of(v[0]), most_of(v[1])), vpmaxq_s32(most_of(v[2]), most_of(v[3]))));
}
OP F hmost8(const F* v) { const float32x4_t z = vdupq_n_f32(0.0f); return {most_each(v), most_each(v + 4), z, z}; }
OP int32_t hsum(I x) { return vaddvq_s32(vaddq_s32(vaddq_s32(x.a, x.b), vaddq_s32(x.c, x.d))); }
OP I iset(int32_t x) { const int32x4_t v = vdupq_n_s32(x); return {v, v, v, v}; }
OP I izero() { return iset(0); }
OP I iadd(I x, I y) { return EACH2(vaddq_s32, x, y); }
OP I imul(I x, I y) { return EACH2(vmulq_s32, x, y); }
OP I load_u8(const uint8_t* p) {
  const uint8x16_t v = vld1q_u8(p);
  const uint16x8_t lo = vmovl_u8(vget_low_u8(v)), hi = vmovl_high_u8(v);
  return {vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(lo))), vreinterpretq_s32_u32(vmovl_high_u16(lo)),
          vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(hi))), vreinterpretq_s32_u32(vmovl_high_u16(hi))};
}
OP I load_i8(const int8_t* p) {
  const int8x16_t v = vld1q_s8(p);
  const int16x8_t lo = vmovl_s8(vget_low_s8(v)), hi = vmovl_high_s8(v);
  return {vmovl_s16(vget_low_s16(lo)), vmovl_high_s16(lo), vmovl_s16(vget_low_s16(hi)), vmovl_high_s16(hi)};
}
OP int16x8_t narrow_pair(int32x4_t x, int32x4_t y) { return vqmovn_high_s32(vqmovn_s32(x), y); }
OP void store_i8(int8_t* p, I x) { vst1q_s8(p, vqmovn_high_s16(vqmovn_s16(narrow_pair(x.a, x.b)), narrow_pair(x.c, x.d))); }   // saturates
OP void store_i16(int16_t* p, I x) { vst1q_s16(p, narrow_pair(x.a, x.b)); vst1q_s16(p + 8, narrow_pair(x.c, x.d)); }           // saturates
// Bytes: 64 at a time, lane r holding four codes of row r.
OP int32x4_t load16(const uint8_t* p) { return s32(vld1q_u8(p)); }
OP I bload(const uint8_t* p) { return {load16(p), load16(p + 16), load16(p + 32), load16(p + 48)}; }
OP void bstore(uint8_t* p, I x) { vst1q_u8(p, u8(x.a)); vst1q_u8(p + 16, u8(x.b)); vst1q_u8(p + 32, u8(x.c)); vst1q_u8(p + 48, u8(x.d)); }
OP I bset(int x) { const int32x4_t v = s32(vdupq_n_s8(static_cast<int8_t>(x))); return {v, v, v, v}; }
OP I band(I x, I y) { return EACH2(vandq_s32, x, y); }
OP I blookup(const uint8_t* table, I n) {                      // of sixteen bytes, byte n for each n below 16
  const uint8x16_t t = vld1q_u8(table);
  return {s32(vqtbl1q_u8(t, u8(n.a))), s32(vqtbl1q_u8(t, u8(n.b))), s32(vqtbl1q_u8(t, u8(n.c))), s32(vqtbl1q_u8(t, u8(n.d)))};
}
OP I bor(I x, I y) { return EACH2(vorrq_s32, x, y); }
// x | (y & m) where x has none of m's bits, which is one instruction here and true of every plane.
OP int32x4_t insert(int32x4_t x, int32x4_t y, int32x4_t m) { return vbslq_s32(vreinterpretq_u32_s32(m), y, x); }
OP I bor_masked(I x, I y, I m) { return EACH3(insert, x, y, m); }
template <int S> OP int32x4_t shift_right(int32x4_t v) { return s32(vshrq_n_u16(vreinterpretq_u16_s32(v), S)); }
template <int S> OP I shr16(I x) {
  if constexpr (S == 0) return x;
  else return EACH(shift_right<S>, x);
}
template <int S> OP int32x4_t shift_left(int32x4_t v) { return s32(vshlq_n_u16(vreinterpretq_u16_s32(v), S)); }
template <int S> OP I shl16(I x) { return EACH(shift_left<S>, x); }
OP int32x4_t high_nibble(int32x4_t v) { return s32(vshrq_n_u8(u8(v), 4)); }
OP I high_nibbles(I x) { return EACH(high_nibble, x); }

// ---- dots ------------------------------------------------------------------------------------------------------
struct Sixteen { int8x16_t v; };                               // sixteen activations, or eight of int16
OP Sixteen sixteen(const int8_t* p) { return {vld1q_s8(p)}; }
OP I quad(const int8_t* p) { int32_t x; memcpy(&x, p, 4); return iset(x); }
OP int32x4_t dot_signed(int32x4_t acc, int32x4_t w, int32x4_t x) { return vdotq_s32(acc, s8(w), s8(x)); }
template <int J> OP int32x4_t dot_lane(int32x4_t acc, int32x4_t w, int8x16_t x) { return vdotq_laneq_s32(acc, s8(w), x, J); }
OP I dot4(I acc, I w, I x) { return EACH3(dot_signed, acc, w, x); }         // codes < 128
template <int J> OP I dot4_of(I acc, I w, Sixteen x) {
  return {dot_lane<J>(acc.a, w.a, x.v), dot_lane<J>(acc.b, w.b, x.v), dot_lane<J>(acc.c, w.c, x.v), dot_lane<J>(acc.d, w.d, x.v)};
}
#ifdef FREEHOLD_I8MM
constexpr int kByteBias = 0;
OP I byte_codes(I x) { return x; }
OP int32x4_t dot_mixed(int32x4_t acc, int32x4_t w, int32x4_t x) { return vusdotq_s32(acc, u8(w), s8(x)); }
template <int J> OP int32x4_t dot_mixed_lane(int32x4_t acc, int32x4_t w, int8x16_t x) { return vusdotq_laneq_s32(acc, u8(w), x, J); }
OP I dot4_full(I acc, I w, I x) { return EACH3(dot_mixed, acc, w, x); }
template <int J> OP I dot4_full_of(I acc, I w, Sixteen x) {
  return {dot_mixed_lane<J>(acc.a, w.a, x.v), dot_mixed_lane<J>(acc.b, w.b, x.v), dot_mixed_lane<J>(acc.c, w.c, x.v), dot_mixed_lane<J>(acc.d, w.d, x.v)};
}
#else
constexpr int kByteBias = 128;
OP I byte_codes(I x) { const I m = bset(128); return EACH2(veorq_s32, x, m); }
OP I dot4_full(I acc, I w, I x) { return dot4(acc, w, x); }
template <int J> OP I dot4_full_of(I acc, I w, Sixteen x) { return dot4_of<J>(acc, w, x); }
#endif
constexpr bool kSignedCodes = true;                            // of gemm's: their offset is taken off as they are unpacked
template <int N> OP int32x4_t less16(int32x4_t v) { return s32(vsubq_u8(u8(v), vdupq_n_u8(N))); }
template <int N> OP I less(I x) {
  if constexpr (N == 0) return x;
  else return EACH(less16<N>, x);
}
// Sums of sixteen runs of sixteen int8.
OP int32x4_t quads_of(const int8_t* q) { return vdotq_s32(vdupq_n_s32(0), vdupq_n_s8(1), vld1q_s8(q)); }
OP int32x4_t sums4(const int8_t* q) {
  return vpaddq_s32(vpaddq_s32(quads_of(q), quads_of(q + 16)), vpaddq_s32(quads_of(q + 32), quads_of(q + 48)));
}
OP I sums16(const int8_t* q) { return {sums4(q), sums4(q + 64), sums4(q + 128), sums4(q + 192)}; }

// Pairs of int16: the first ones of sixteen rows in a and b, the second ones in c and d, so that a product takes its
// activation by number too. There is no dot of them before SVE2.1.
OP I pair_products(I acc, I v, int16x4_t x, int16x4_t y) {
  acc.a = vmlal_lane_s16(acc.a, vget_low_s16(s16(v.a)), x, 0);
  acc.b = vmlal_high_lane_s16(acc.b, s16(v.a), x, 0);
  acc.c = vmlal_lane_s16(acc.c, vget_low_s16(s16(v.b)), x, 0);
  acc.d = vmlal_high_lane_s16(acc.d, s16(v.b), x, 0);
  acc.a = vmlal_lane_s16(acc.a, vget_low_s16(s16(v.c)), y, 0);
  acc.b = vmlal_high_lane_s16(acc.b, s16(v.c), y, 0);
  acc.c = vmlal_lane_s16(acc.c, vget_low_s16(s16(v.d)), y, 0);
  acc.d = vmlal_high_lane_s16(acc.d, s16(v.d), y, 0);
  return acc;
}
OP I load_pairs(const uint8_t* p) {
  const int16x8_t a = s16(load16(p)), b = s16(load16(p + 16)), c = s16(load16(p + 32)), d = s16(load16(p + 48));
  return {s32(vuzp1q_s16(a, b)), s32(vuzp1q_s16(c, d)), s32(vuzp2q_s16(a, b)), s32(vuzp2q_s16(c, d))};
}
template <int J> OP I dot2_of(I acc, I v, Sixteen x) {
  const int16x8_t h = vreinterpretq_s16_s8(x.v);
  return pair_products(acc, v, vdup_laneq_s16(h, 2 * J), vdup_laneq_s16(h, 2 * J + 1));
}
OP I load_minima(const uint8_t* mins) {
  const uint8x16_t v = vld1q_u8(mins), w = vld1q_u8(mins + 16);
  return {s32(vmovl_u8(vget_low_u8(v))), s32(vmovl_high_u8(v)), s32(vmovl_u8(vget_low_u8(w))), s32(vmovl_high_u8(w))};
}
OP I dot_minima(I acc, I pair, int32_t sums) {
  const int16x4_t x = vreinterpret_s16_s32(vdup_n_s32(sums));
  return pair_products(acc, pair, vdup_lane_s16(x, 0), vdup_lane_s16(x, 1));
}

// Of 32 registers four tokens' sums take sixteen, their activations four, a quad of weights four; masks and products the rest.
// Of floats a token has sixteen sums by itself.
constexpr int kTileMost = 4, kFloatTile = 1;
constexpr int kCodeQuads = 4;                                  // of a query's codes that attention takes with one load
constexpr int kGemmTile = 4;
constexpr int kChains = 6, kDotsAtOnce = 1;                    // see ceiling.inl
#ifdef FREEHOLD_I8MM
constexpr int kGemmRows = 4;
#else
constexpr int kGemmRows = 8;
#endif
template <int J, int NB> OP void dots_of(I* acc, const uint8_t* w, const Sixteen* x) {
  if constexpr (J < 4) {
    const I v = bload(w + 64 * J);
    for (int b = 0; b < NB; ++b) acc[b] = dot4_of<J>(acc[b], v, x[b]);
    dots_of<J + 1, NB>(acc, w, x);
  }
}
// acc[b] += dots of `Quads` quads of signed codes at w with NB tokens `stride` apart.
template <int Most, int Quads, int NB> OP void dots(I* acc, const uint8_t* w, const int8_t* q, int64_t stride) {
  for (int j = 0; j < Quads; j += 4) {
    Sixteen x[NB];
    for (int b = 0; b < NB; ++b) x[b] = sixteen(q + b * stride + 4 * j);
    dots_of<0, NB>(acc, w + 64 * j, x);
  }
}
#include "quad_dots.inl"
OP void prefetch(const void* p) { __builtin_prefetch(p, 0, 2); }

}  // namespace fh::FREEHOLD_ARM
#endif
