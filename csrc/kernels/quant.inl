// Activations to int8: q = round(x / s), s = max|x| / 127 over 32 or 256 inputs, and the sums of q that turn
// weight offsets and minima into one term a block. Rounding is to nearest even; a row's result depends on it alone.
//
// 256 inputs go together, eight scales of 32 or one: maxima, quotients and sums are then taken for all of them at once,
// where a reduction for each 32 inputs cost two cycles an input.

// Scales and their inverses, from the greatest |x|. A NaN or infinity makes the scale NaN, so the row's outputs are NaN and
// the sampler names the damage. Below 1e-30 the inverse would overflow: such a block is zero beside anything a norm lets through.
template <int Greatest = 127> OP F scale_of(F most) {
  const F sound = select_lt(fset(1e-30f), most, div(most, fset(static_cast<float>(Greatest))), fzero());
  return select_lt(most, fset(__builtin_inff()), sound, fset(__builtin_nanf("")));
}
template <int Greatest = 127> OP F inverse_of(F most) {
  const F sound = select_lt(fset(1e-30f), most, div(fset(static_cast<float>(Greatest)), most), fzero());
  return select_lt(most, fset(__builtin_inff()), sound, fzero());
}
OP F magnitude(const float* x) { return fabs(fload(x)); }
// Two vectors' codes. x * 0 is NaN where x is: the least int, which saturates, under a scale that is NaN.
OP void codes32(const float* x, F inverse, int8_t* q) {
  store_i8(q, to_int(mul(fload(x), inverse)));
  store_i8(q + 16, to_int(mul(fload(x + 16), inverse)));
}

OP void octet32(const float* x, int8_t* q, float* scale, int32_t* sum16, float* fsum32) {
  F top[8];
  for (int g = 0; g < 8; ++g) top[g] = fmost(magnitude(x + 32 * g), magnitude(x + 32 * g + 16));
  const F most = hmost8(top);
  alignas(64) float s[16], inverse[16];
  alignas(64) int32_t sums[16];
  fstore(s, scale_of(most));
  fstore(inverse, inverse_of(most));
  for (int g = 0; g < 8; ++g) codes32(x + 32 * g, fset(inverse[g]), q + 32 * g);
  bstore(reinterpret_cast<uint8_t*>(sums), sums16(q));
  for (int g = 0; g < 8; ++g) fsum32[g] = s[g] * static_cast<float>(sums[2 * g] + sums[2 * g + 1]);
  memcpy(scale, s, sizeof(float) * 8);
  memcpy(sum16, sums, sizeof(sums));
}

static void quantize32(const float* x, int64_t k, int8_t* q, float* scale, int32_t* sum16, float* fsum32) {
  for (; k >= 256; k -= 256, x += 256, q += 256, scale += 8, sum16 += 16, fsum32 += 8) octet32(x, q, scale, sum16, fsum32);
  if (!k) return;
  alignas(64) float rest[256] = {}, s[8], f[8];
  alignas(64) int8_t codes[256];
  int32_t sums[16];
  const auto n = static_cast<size_t>(k);
  memcpy(rest, x, sizeof(float) * n);
  octet32(rest, codes, s, sums, f);
  memcpy(q, codes, n);
  memcpy(scale, s, sizeof(float) * (n / 32));
  memcpy(sum16, sums, sizeof(int32_t) * (n / 16));
  memcpy(fsum32, f, sizeof(float) * (n / 32));
}

static void quantize256(const float* x, int64_t k, int8_t* q, float* scale, int32_t* sum16) {
  for (; k > 0; k -= 256, x += 256, q += 256, sum16 += 16) {
    F top = magnitude(x);
    for (int i = 16; i < 256; i += 16) top = fmost(top, magnitude(x + i));
    const F most = fset(hmost(top)), inverse = inverse_of(most);
    for (int g = 0; g < 8; ++g) codes32(x + 32 * g, inverse, q + 32 * g);
    bstore(reinterpret_cast<uint8_t*>(sum16), sums16(q));
    fstore_n(scale++, scale_of(most), 1);
  }
}

static void fill_quant(Kernels& t) {
  t.quantize32 = quantize32;
  t.quantize256 = quantize256;
}
