// Sums of codes times activations without a dot of four bytes: vpmaddubsw adds two products as int16, and vpmaddwd widens such sums,
// which costs a multiplier as the products do. So sums stay int16 for as long as they cannot overflow, and the widening multiplies
// by the rows' integer scales where there are any. Included by avx2.h.
//
// Codes with an offset: a lane's sum begins at -Offset * the activations it will meet. It may wrap on its way, but what it ends with is the
// sum of codes between -Offset and Most - Offset, and that fits. Whole bytes (Q8_0) keep their sign aside: |w| times the activation with w's
// sign, two products of which are 2 * 128 * 127 at most.

// An operation as written: in an order of its own GCC adds int16 as a tree, and keeps all products until then in memory.
OP void in_order(I& x) { asm("" : "+x"(x.a), "+x"(x.b)); }
OP I add16(I x, I y) { return EACH2(_mm256_add_epi16, x, y); }
OP __m128i low_half(__m256i v) { return _mm256_castsi256_si128(v); }
OP __m128i high_half(__m256i v) { return _mm256_extracti128_si256(v, 1); }

// int16 sums of four groups of 32 activations, as they fall into a lane's halves: lane 4i + g of group g's inputs 16i to 16i + 15.
OP __m256i lane_sums(const int8_t* q) {
  __m256i v[4];
  for (int g = 0; g < 4; ++g) v[g] = _mm256_maddubs_epi16(_mm256_set1_epi8(1), mload(q + 32 * g));
  const __m256i a = _mm256_add_epi16(_mm256_unpacklo_epi32(v[0], v[1]), _mm256_unpackhi_epi32(v[0], v[1]));
  const __m256i b = _mm256_add_epi16(_mm256_unpacklo_epi32(v[2], v[3]), _mm256_unpackhi_epi32(v[2], v[3]));
  return _mm256_add_epi16(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
}
// Where the sums of a token's unit of 256 inputs begin, for each `Sub` of them: a pair of int16.
template <int Sub, int Offset> OP void starts_of(const int8_t* q, const int32_t*, int32_t* out) {
  for (int i = 0; i < 2; ++i) {
    const __m256i v = _mm256_mullo_epi16(lane_sums(q + 128 * i), _mm256_set1_epi16(-Offset));
    __m128i* to = reinterpret_cast<__m128i*>(out + 128 / Sub * i);
    if (Sub == 32) _mm_storeu_si128(to, _mm_add_epi16(low_half(v), high_half(v)));
    else {
      _mm_storeu_si128(to, _mm_unpacklo_epi32(low_half(v), high_half(v)));
      _mm_storeu_si128(to + 1, _mm_unpackhi_epi32(low_half(v), high_half(v)));
    }
  }
}

// How many quads' products an int16 sum holds.
template <int Most, int Offset, int Quads> constexpr int held() {
  constexpr int most = Offset > Most - Offset ? Offset : Most - Offset, fits = 32767 / (2 * 127 * most);
  static_assert(!Offset || fits >= Quads, "an offset's sum is whole");
  return fits >= 8 ? Quads : fits >= 4 ? (Quads < 4 ? Quads : 4) : fits >= 2 ? 2 : 1;
}
// acc[b] (+)= factor * dots of Quads quads; Fresh: acc begins with them.
template <int Most, int Offset, int Quads, int NB, bool Fresh>
OP void sum_pairs(I* acc, I factor, const uint8_t* w, const int8_t* q, int64_t stride, const int32_t* start, int64_t step) {
  constexpr int kHeld = held<Most, Offset, Quads>();
#pragma GCC unroll 4
  for (int j0 = 0; j0 < Quads; j0 += kHeld) {
    I sum[NB];
#pragma GCC unroll 8
    for (int j = j0; j < j0 + kHeld; ++j) {
      const I v = bload(w + 64 * j);
      for (int b = 0; b < NB; ++b) {
        const I h = pairs(v, quad(q + b * stride + 4 * j));
        if (j > j0) sum[b] = add16(sum[b], h);
        else sum[b] = Offset ? add16(iset(start[b * step]), h) : h;
        in_order(sum[b]);
      }
    }
    for (int b = 0; b < NB; ++b) acc[b] = dot2(Fresh && !j0 ? izero() : acc[b], sum[b], factor);
  }
}
OP __m256i without_128(__m256i v) { return _mm256_xor_si256(v, _mm256_set1_epi8(-128)); }
OP I size_of(I v) { return EACH(_mm256_abs_epi8, v); }
OP I with_sign(I x, I v) { return EACH2(_mm256_sign_epi8, x, v); }
template <int Quads, int NB> OP void sum_bytes(I* acc, const uint8_t* w, const int8_t* q, int64_t stride) {
  for (int b = 0; b < NB; ++b) acc[b] = izero();
#pragma GCC unroll 8
  for (int j = 0; j < Quads; ++j) {
    const I v = EACH(without_128, bload(w + 64 * j)), size = size_of(v);
    for (int b = 0; b < NB; ++b) {
      acc[b] = dot4(acc[b], size, with_sign(quad(q + b * stride + 4 * j), v));
      in_order(acc[b]);
    }
  }
}

// acc[b] = dot of Inputs inputs' codes at w, Offset taken off, with token b's activations, `stride` after the last token's; Most: the greatest code.
template <int Most, int Offset, int Inputs, int NB>
OP void sum_codes(I* acc, const uint8_t* w, const int8_t* q, int64_t stride, const int32_t* start, int64_t step) {
  static_assert(Most < 128 || Offset == 128, "bytes are signed ones");
  if constexpr (Most > 127) sum_bytes<Inputs / 4, NB>(acc, w, q, stride);
  else sum_pairs<Most, Offset, Inputs / 4, NB, true>(acc, ones16(), w, q, stride, start, step);
}
// The same times the rows' integer sub-scales, added to `dots`; `sub` as sub_factor makes it: for both halves of a lane.
OP I sub_factor(I sub) { return bor(band(sub, iset(0xffff)), shl32<16>(sub)); }
template <int Most, int Offset, int Inputs, int NB>
OP void add_scaled(I* dots, I sub, const uint8_t* w, const int8_t* q, int64_t stride, const int32_t* start, int64_t step) {
  sum_pairs<Most, Offset, Inputs / 4, NB, false>(dots, sub, w, q, stride, start, step);
}
// acc + dot of four quads in registers.
template <int Most> OP I dot16(I acc, const I* w, const int8_t* x) {
  constexpr int kHeld = Most > 127 ? 1 : held<Most, 0, 4>();
  for (int j = 0; j < 4; j += kHeld) {
    if (Most > 127) {
      acc = dot4_full(acc, w[j], quad(x + 4 * j));
      continue;
    }
    I sum = pairs(w[j], quad(x + 4 * j));
    for (int i = j + 1; i < j + kHeld; ++i) sum = add16(sum, pairs(w[i], quad(x + 4 * i)));
    acc = dot2(acc, sum, ones16());
  }
  return acc;
}
