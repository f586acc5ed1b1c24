// The 256-bit vector vocabulary but for dots: vectors as pairs of registers. Included by avx2.h and avxvnni.h, each in its own namespace and
// target region, so that neither's functions are the other's.
struct F { __m256 a, b; };                 // 16 floats
struct I { __m256i a, b; };                // 16 int32, or 64 bytes

#define OP static inline __attribute__((always_inline))
#define EACH(f, x) {f((x).a), f((x).b)}
#define EACH2(f, x, y) {f((x).a, (y).a), f((x).b, (y).b)}
OP __m256i mload(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
OP __m128i mload16(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
OP __m128i mload8(const void* p) { return _mm_loadl_epi64(static_cast<const __m128i*>(p)); }
OP F fset(float x) { const __m256 v = _mm256_set1_ps(x); return {v, v}; }
OP F fzero() { return fset(0.0f); }
OP F fload(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
OP void fstore(float* p, F x) { _mm256_storeu_ps(p, x.a); _mm256_storeu_ps(p + 8, x.b); }
OP F fload_n(const float* p, int n) { alignas(32) float t[16] = {}; memcpy(t, p, 4 * static_cast<size_t>(n)); return fload(t); }
OP void fstore_n(float* p, F x, int n) { alignas(32) float t[16]; fstore(t, x); memcpy(p, t, 4 * static_cast<size_t>(n)); }
OP F add(F x, F y) { return EACH2(_mm256_add_ps, x, y); }
OP F sub(F x, F y) { return EACH2(_mm256_sub_ps, x, y); }
OP F mul(F x, F y) { return EACH2(_mm256_mul_ps, x, y); }
OP F div(F x, F y) { return EACH2(_mm256_div_ps, x, y); }
OP F fma(F x, F y, F z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }       // x*y + z
OP F fnma(F x, F y, F z) { return {_mm256_fnmadd_ps(x.a, y.a, z.a), _mm256_fnmadd_ps(x.b, y.b, z.b)}; }    // z - x*y
OP F fmax(F x, F y) { return EACH2(_mm256_max_ps, x, y); }                 // y where either is NaN
OP F fmin(F x, F y) { return EACH2(_mm256_min_ps, x, y); }
OP F fabs(F x) { const __m256 s = _mm256_set1_ps(-0.0f); return {_mm256_andnot_ps(s, x.a), _mm256_andnot_ps(s, x.b)}; }
OP __m256 round8(__m256 v) { return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
OP F fround(F x) { return EACH(round8, x); }
OP F to_float(I x) { return EACH(_mm256_cvtepi32_ps, x); }
OP I to_int(F x) { return EACH(_mm256_cvtps_epi32, x); }                   // nearest even
// x * 2^n in two exact steps, so that n down to -250 neither wraps nor loses the result.
OP __m256 pow2(__m256i n) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23)); }
OP __m256 scale8(__m256 v, __m256i n) {
  const __m256i h = _mm256_srai_epi32(n, 1);
  return _mm256_mul_ps(_mm256_mul_ps(v, pow2(h)), pow2(_mm256_sub_epi32(n, h)));
}
OP F scale_exp(F x, I n) { return EACH2(scale8, x, n); }
OP F scale_exp(F x, F n) { return scale_exp(x, to_int(n)); }
OP __m256 lt8(__m256 a, __m256 b, __m256 x, __m256 y) { return _mm256_blendv_ps(y, x, _mm256_cmp_ps(a, b, _CMP_LT_OQ)); }
OP F select_lt(F a, F b, F x, F y) { return {lt8(a.a, b.a, x.a, y.a), lt8(a.b, b.b, x.b, y.b)}; }          // a<b ? x : y
OP F load_f16(const uint16_t* p) { return {_mm256_cvtph_ps(mload16(p)), _mm256_cvtph_ps(mload16(p + 8))}; }
OP void store_f16(uint16_t* p, F x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x.a, _MM_FROUND_TO_NEAREST_INT));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8), _mm256_cvtps_ph(x.b, _MM_FROUND_TO_NEAREST_INT));
}
OP __m256 bf16x8(__m128i v) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(v), 16)); }
OP F load_bf16(const uint16_t* p) { return {bf16x8(mload16(p)), bf16x8(mload16(p + 8))}; }
// Sums in one fixed tree: lanes i and i+8, then +4, +2, +1.
OP float hsum(F x) {
  const __m256 h = _mm256_add_ps(x.a, x.b);
  const __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
  const __m128 d = _mm_add_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_add_ss(d, _mm_shuffle_ps(d, d, 1)));
}
OP float hmax(F x) {
  const __m256 h = _mm256_max_ps(x.a, x.b);
  const __m128 q = _mm_max_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
  const __m128 d = _mm_max_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_max_ss(d, _mm_shuffle_ps(d, d, 1)));
}
// The greater of floats >= 0 by their bits, so that NaN is above infinity and both stay. Of a vector; and of eight, in lanes 0 to 7.
OP __m256 most8(__m256 a, __m256 b) { return _mm256_castsi256_ps(_mm256_max_epi32(_mm256_castps_si256(a), _mm256_castps_si256(b))); }
OP F fmost(F x, F y) { return EACH2(most8, x, y); }
OP float hmost(F x) {
  const __m256i h = _mm256_castps_si256(most8(x.a, x.b));
  const __m128i q = _mm_max_epi32(_mm256_castsi256_si128(h), _mm256_extracti128_si256(h, 1));
  const __m128i d = _mm_max_epi32(q, _mm_shuffle_epi32(q, 0x4e));
  return _mm_cvtss_f32(_mm_castsi128_ps(_mm_max_epi32(d, _mm_shuffle_epi32(d, 0xb1))));
}
OP F hmost8(const F* v) { float t[16] = {}; for (int i = 0; i < 8; ++i) t[i] = hmost(v[i]); return fload(t); }
OP int32_t hsum(I x) {
  const __m256i h = _mm256_add_epi32(x.a, x.b);
  const __m128i q = _mm_add_epi32(_mm256_castsi256_si128(h), _mm256_extracti128_si256(h, 1));
  const __m128i d = _mm_add_epi32(q, _mm_shuffle_epi32(q, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(d, _mm_shuffle_epi32(d, 0xb1)));
}
OP I iset(int32_t x) { const __m256i v = _mm256_set1_epi32(x); return {v, v}; }
OP I izero() { return iset(0); }
OP I iadd(I x, I y) { return EACH2(_mm256_add_epi32, x, y); }
OP I imul(I x, I y) { return EACH2(_mm256_mullo_epi32, x, y); }
OP I load_u8(const uint8_t* p) { return {_mm256_cvtepu8_epi32(mload8(p)), _mm256_cvtepu8_epi32(mload8(p + 8))}; }
OP I load_i8(const int8_t* p) { return {_mm256_cvtepi8_epi32(mload8(p)), _mm256_cvtepi8_epi32(mload8(p + 8))}; }
OP void store_i8(int8_t* p, I x) {                                          // saturates
  alignas(32) int32_t t[16];
  _mm256_store_si256(reinterpret_cast<__m256i*>(t), x.a);
  _mm256_store_si256(reinterpret_cast<__m256i*>(t + 8), x.b);
  for (int i = 0; i < 16; ++i) p[i] = static_cast<int8_t>(t[i] > 127 ? 127 : t[i] < -128 ? -128 : t[i]);
}
OP void store_i16(int16_t* p, I x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(_mm256_packs_epi32(x.a, x.b), 0xd8)); }   // saturates
OP I bload(const uint8_t* p) { return {mload(p), mload(p + 32)}; }
OP void bstore(uint8_t* p, I x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x.a); _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 32), x.b); }
OP I bset(int x) { const __m256i v = _mm256_set1_epi8(static_cast<char>(x)); return {v, v}; }
OP I band(I x, I y) { return EACH2(_mm256_and_si256, x, y); }
OP I blookup(const uint8_t* table, I n) {                      // of sixteen bytes, byte n for each n below 16
  const __m256i t = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
  return {_mm256_shuffle_epi8(t, n.a), _mm256_shuffle_epi8(t, n.b)};
}
OP I bor(I x, I y) { return EACH2(_mm256_or_si256, x, y); }
OP I bor_masked(I x, I y, I m) { return bor(x, band(y, m)); }             // x | (y & m)
template <int S> OP I shr16(I x) { return {_mm256_srli_epi16(x.a, S), _mm256_srli_epi16(x.b, S)}; }
template <int S> OP I shl16(I x) { return {_mm256_slli_epi16(x.a, S), _mm256_slli_epi16(x.b, S)}; }
template <int S> OP I shl32(I x) { return {_mm256_slli_epi32(x.a, S), _mm256_slli_epi32(x.b, S)}; }
OP I quad(const int8_t* p) { int32_t x; memcpy(&x, p, 4); return iset(x); }
// Sums of sixteen runs of sixteen int8.
OP I sums16(const int8_t* q) {
  alignas(32) int32_t t[16];
  for (int i = 0; i < 16; ++i) {
    const __m128i d = _mm_madd_epi16(_mm_maddubs_epi16(_mm_set1_epi8(1), mload16(q + 16 * i)), _mm_set1_epi16(1));
    const __m128i h = _mm_add_epi32(d, _mm_shuffle_epi32(d, 0x4e));
    t[i] = _mm_cvtsi128_si32(_mm_add_epi32(h, _mm_shuffle_epi32(h, 0xb1)));
  }
  return {mload(t), mload(t + 8)};
}
OP void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }
