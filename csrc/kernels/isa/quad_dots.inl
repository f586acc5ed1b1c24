// Sums of codes times activations for tables whose dot takes four bytes a lane at once. Included by their vocabularies; avx2.h has its own.
// Offsets start a sum, where codes are not signed: -Offset * the sum of the activations.

// Where the sums of a token's unit of 256 inputs begin, for each `Sub` of them; sum16: sums of sixteen activations.
template <int Sub, int Offset> OP void starts_of(const int8_t*, const int32_t* sum16, int32_t* out) {
  for (int i = 0; i < 256 / Sub; ++i) out[i] = -Offset * (Sub == 16 ? sum16[i] : sum16[2 * i] + sum16[2 * i + 1]);
}
// acc[b] = dot of Inputs inputs' codes at w, Offset taken off, with token b's activations, `stride` after the last token's; Most: the greatest code.
template <int Most, int Offset, int Inputs, int NB>
OP void sum_codes(I* acc, const uint8_t* w, const int8_t* q, int64_t stride, const int32_t* start, int64_t step) {
  for (int b = 0; b < NB; ++b) acc[b] = Offset && !kSignedCodes ? iset(start[b * step]) : izero();
  dots<Most, Inputs / 4, NB>(acc, w, q, stride);
}
// The same times the rows' integer sub-scales, added to `dots`; `sub` as sub_factor makes it.
OP I sub_factor(I sub) { return sub; }
template <int Most, int Offset, int Inputs, int NB>
OP void add_scaled(I* dots, I sub, const uint8_t* w, const int8_t* q, int64_t stride, const int32_t* start, int64_t step) {
  I acc[NB];
  sum_codes<Most, Offset, Inputs, NB>(acc, w, q, stride, start, step);
  for (int b = 0; b < NB; ++b) dots[b] = iadd(dots[b], imul(acc[b], sub));
}
// acc + dot of four quads in registers.
template <int Most> OP I dot16(I acc, const I* w, const int8_t* x) {
  for (int j = 0; j < 4; ++j) acc = Most > 127 ? dot4_full(acc, w[j], quad(x + 4 * j)) : dot4(acc, w[j], quad(x + 4 * j));
  return acc;
}
