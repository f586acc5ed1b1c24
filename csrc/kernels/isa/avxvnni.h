// AVX-VNNI: avx2's vectors, with the dot of four bytes that CPUs without AVX-512 have in a form of its own.
// Included once by each file of kernels for it, which ends the target region with isa/end.h. Empty for other processors.
#pragma once
#include "../kernels.h"

#include <cmath>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avxvnni"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avxvnni")
#endif

namespace fh::avxvnni {

#include "ymm.inl"

OP __m256i dot8(__m256i acc, __m256i w, __m256i x) { return _mm256_dpbusd_avx_epi32(acc, w, x); }
OP __m256i pair8(__m256i acc, __m256i x, __m256i y) { return _mm256_dpwssd_avx_epi32(acc, x, y); }
OP I dot4_full(I acc, I w, I x) { return {dot8(acc.a, w.a, x.a), dot8(acc.b, w.b, x.b)}; }
OP I dot4(I acc, I w, I x) { return dot4_full(acc, w, x); }
OP I dot2(I acc, I x, I y) { return {pair8(acc.a, x.a, y.a), pair8(acc.b, x.b, y.b)}; }   // acc + dot of two int16 a lane

constexpr int kChains = 6, kDotsAtOnce = 1;
constexpr int kGemmTile = 6;             // 16 registers: six tokens' sums, two for the quad, one for activations
constexpr int kGemmRows = 12;            // Zen 5, in cache: 1.04 to 1.15 times the panels' speed at 12 rows (Q8_0 0.85), 0.84 to 0.96 at 8
#include "broadcast.h"
#include "quad_dots.inl"

}  // namespace fh::avxvnni
#endif
