// 16 by 16 lanes of AVX-512, rows for columns: blocks of 1, 2, 4 and 8 are exchanged in turn. Included by what packs tiles.
static void transpose(__m512i* v) {
  const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  for (int s = 1; s < 16; s *= 2) {
    const __m512i by = _mm512_set1_epi32(s);
    const __mmask16 upper = _mm512_test_epi32_mask(lane, by);
    const __m512i other = _mm512_set1_epi32(16);   // the second operand's lanes
    const __m512i low = _mm512_mask_add_epi32(lane, upper, _mm512_sub_epi32(lane, by), other);
    const __m512i high = _mm512_mask_add_epi32(_mm512_add_epi32(lane, by), upper, lane, other);
    for (int i = 0; i < 16; ++i)
      if (!(i & s)) {
        const __m512i a = v[i], b = v[i + s];
        v[i] = _mm512_permutex2var_epi32(a, low, b);
        v[i + s] = _mm512_permutex2var_epi32(a, high, b);
      }
  }
}
