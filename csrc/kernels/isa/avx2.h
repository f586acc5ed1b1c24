// AVX2 with FMA and F16C: the vector vocabulary as pairs of 256-bit registers.
// Included once by each file of kernels for it, which ends the target region with isa/end.h. Empty for other processors.
#pragma once
#include "../kernels.h"

#include <cmath>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

namespace fh::avx2 {

#include "ymm.inl"

// Codes below 128: a pair's products stay under 2*127*127 = 32258, so maddubs' int16 sums are exact.
OP I pairs(I w, I x) { return EACH2(_mm256_maddubs_epi16, w, x); }         // int16 sums of two products
OP I dot2(I acc, I x, I y) { return iadd(acc, I EACH2(_mm256_madd_epi16, x, y)); }   // acc + dot of two int16 a lane
OP I ones16() { const __m256i one = _mm256_set1_epi16(1); return {one, one}; }
OP I dot4(I acc, I w, I x) { return dot2(acc, pairs(w, x), ones16()); }
// Any byte: even and odd bytes widened to 16 bits first.
OP __m256i dot8_full(__m256i acc, __m256i w, __m256i x) {
  const __m256i we = _mm256_and_si256(w, _mm256_set1_epi16(255)), wo = _mm256_srli_epi16(w, 8);
  const __m256i xe = _mm256_srai_epi16(_mm256_slli_epi16(x, 8), 8), xo = _mm256_srai_epi16(x, 8);
  return _mm256_add_epi32(acc, _mm256_add_epi32(_mm256_madd_epi16(we, xe), _mm256_madd_epi16(wo, xo)));
}
OP I dot4_full(I acc, I w, I x) { return {dot8_full(acc.a, w.a, x.a), dot8_full(acc.b, w.b, x.b)}; }

constexpr int kChains = 3, kDotsAtOnce = 4;
constexpr int kGemmTile = 4;             // 16 registers: four tokens' sums, two for the quad, the rest for products
constexpr int kGemmRows = 8;             // Zen 5, in cache: 1.07 (Q5_0) to 1.33 (Q6_K) times the panels' speed at 8 rows, 0.92 to 1.12 at 4
#include "broadcast.h"
#include "pair_dots.inl"

}  // namespace fh::avx2
#endif
