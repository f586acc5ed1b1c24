// Plain C++: the vector vocabulary as arrays of sixteen, for machines with nothing better.
// The compiler may vectorise the loops with what the baseline allows; no intrinsics here.
// Included once by each file of kernels for it.
#pragma once
#include "../kernels.h"

#include <cmath>
#include <cstring>

namespace fh::scalar {

struct F { float v[16]; };
struct I { union { int32_t v[16]; uint8_t b[64]; uint16_t h[32]; }; };

#define OP static inline
#define LANES for (int i = 0; i < 16; ++i)
OP F fset(float x) { F r; LANES r.v[i] = x; return r; }
OP F fzero() { return fset(0.0f); }
OP F fload(const float* p) { F r; memcpy(r.v, p, 64); return r; }
OP void fstore(float* p, F a) { memcpy(p, a.v, 64); }
OP F fload_n(const float* p, int n) { F r = fzero(); memcpy(r.v, p, 4 * static_cast<size_t>(n)); return r; }
OP void fstore_n(float* p, F a, int n) { memcpy(p, a.v, 4 * static_cast<size_t>(n)); }
OP F add(F a, F b) { LANES a.v[i] += b.v[i]; return a; }
OP F sub(F a, F b) { LANES a.v[i] -= b.v[i]; return a; }
OP F mul(F a, F b) { LANES a.v[i] *= b.v[i]; return a; }
OP F div(F a, F b) { LANES a.v[i] /= b.v[i]; return a; }
// Two roundings: without an FMA unit std::fma is a library call of 50 ns. Same order, so still deterministic.
OP F fma(F a, F b, F c) { LANES c.v[i] += a.v[i] * b.v[i]; return c; }
OP F fnma(F a, F b, F c) { LANES c.v[i] -= a.v[i] * b.v[i]; return c; }
OP F fmax(F a, F b) { LANES b.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i]; return b; }
OP F fmin(F a, F b) { LANES b.v[i] = a.v[i] < b.v[i] ? a.v[i] : b.v[i]; return b; }
OP F fabs(F a) { LANES a.v[i] = std::fabs(a.v[i]); return a; }
OP F fround(F a) { LANES a.v[i] = std::nearbyintf(a.v[i]); return a; }
OP F to_float(I a) { F r; LANES r.v[i] = static_cast<float>(a.v[i]); return r; }
OP I to_int(F a) {       // out of range or NaN gives the least int, as the vector units do
  I r;
  LANES r.v[i] = a.v[i] >= -2147483648.0f && a.v[i] < 2147483648.0f ? static_cast<int32_t>(std::nearbyintf(a.v[i])) : INT32_MIN;
  return r;
}
OP F scale_exp(F a, I n) { LANES a.v[i] = std::ldexp(a.v[i], n.v[i]); return a; }
OP F scale_exp(F a, F n) { return scale_exp(a, to_int(n)); }
OP F select_lt(F a, F b, F x, F y) { LANES y.v[i] = a.v[i] < b.v[i] ? x.v[i] : y.v[i]; return y; }
OP F load_f16(const uint16_t* p) { F r; LANES r.v[i] = f16_to_f32(p[i]); return r; }
OP void store_f16(uint16_t* p, F a) { LANES p[i] = f32_to_f16(a.v[i]); }
OP F load_bf16(const uint16_t* p) { F r; LANES r.v[i] = bf16_to_f32(p[i]); return r; }
OP float hsum(F a) {     // the same tree as the vector ISAs
  for (int w = 8; w; w >>= 1) for (int i = 0; i < w; ++i) a.v[i] += a.v[i + w];
  return a.v[0];
}
OP float hmax(F a) { float m = a.v[0]; LANES m = a.v[i] > m ? a.v[i] : m; return m; }
// The greater of floats >= 0 by their bits, so that NaN is above infinity and both stay. Of a vector; and of eight, in lanes 0 to 7.
OP F fmost(F a, F b) { LANES b.v[i] = b.v[i] != b.v[i] || b.v[i] > a.v[i] ? b.v[i] : a.v[i]; return b; }
OP float hmost(F a) { float m = 0.0f; LANES m = a.v[i] != a.v[i] || a.v[i] > m ? a.v[i] : m; return m; }
OP F hmost8(const F* v) { F r = fzero(); for (int i = 0; i < 8; ++i) r.v[i] = hmost(v[i]); return r; }
OP int32_t hsum(I a) { int32_t s = 0; LANES s += a.v[i]; return s; }
OP I iset(int32_t x) { I r; LANES r.v[i] = x; return r; }
OP I izero() { return iset(0); }
OP I iadd(I a, I b) { LANES a.v[i] += b.v[i]; return a; }
OP I imul(I a, I b) { LANES a.v[i] *= b.v[i]; return a; }
OP I load_u8(const uint8_t* p) { I r; LANES r.v[i] = p[i]; return r; }
OP I load_i8(const int8_t* p) { I r; LANES r.v[i] = p[i]; return r; }
OP void store_i8(int8_t* p, I a) { LANES p[i] = static_cast<int8_t>(a.v[i] > 127 ? 127 : a.v[i] < -128 ? -128 : a.v[i]); }
OP void store_i16(int16_t* p, I a) { LANES p[i] = static_cast<int16_t>(a.v[i] > 32767 ? 32767 : a.v[i] < -32768 ? -32768 : a.v[i]); }
OP I bload(const uint8_t* p) { I r; memcpy(r.b, p, 64); return r; }
OP void bstore(uint8_t* p, I a) { memcpy(p, a.b, 64); }
OP I bset(int x) { I r; memset(r.b, x, 64); return r; }
OP I band(I a, I b) { LANES a.v[i] &= b.v[i]; return a; }
OP I blookup(const uint8_t* table, I n) {                      // of sixteen bytes, byte n for each n below 16
  for (int i = 0; i < 64; ++i) n.b[i] = table[n.b[i]];
  return n;
}
OP I bor(I a, I b) { LANES a.v[i] |= b.v[i]; return a; }
OP I bor_masked(I a, I b, I m) { return bor(a, band(b, m)); }              // a | (b & m)
template <int S> OP I shr16(I a) { for (int i = 0; i < 32; ++i) a.h[i] = static_cast<uint16_t>(a.h[i] >> S); return a; }
template <int S> OP I shl16(I a) { for (int i = 0; i < 32; ++i) a.h[i] = static_cast<uint16_t>(a.h[i] << S); return a; }
template <int S> OP I shl32(I a) { LANES a.v[i] = static_cast<int32_t>(static_cast<uint32_t>(a.v[i]) << S); return a; }
OP I quad(const int8_t* p) { int32_t x; memcpy(&x, p, 4); return iset(x); }
OP I dot4_full(I acc, I w, I x) {
  LANES for (int j = 0; j < 4; ++j) acc.v[i] += static_cast<int>(w.b[4 * i + j]) * static_cast<int8_t>(x.b[4 * i + j]);
  return acc;
}
OP I dot4(I acc, I w, I x) { return dot4_full(acc, w, x); }
OP I sums16(const int8_t* q) {     // of sixteen runs of sixteen int8
  I r = izero();
  for (int i = 0; i < 256; ++i) r.v[i / 16] += q[i];
  return r;
}
OP I dot2(I acc, I a, I b) {
  LANES for (int j = 0; j < 2; ++j) acc.v[i] += static_cast<int16_t>(a.h[2 * i + j]) * static_cast<int16_t>(b.h[2 * i + j]);
  return acc;
}
constexpr int kChains = 16, kDotsAtOnce = 1;
constexpr int kGemmTile = 4;
constexpr int kGemmRows = 2 * kTileTokens;
OP void prefetch(const void*) {}

#include "broadcast.h"
#include "quad_dots.inl"

}  // namespace fh::scalar
