// Activations to int8: q = round(x / s), s = max|x| / 127 over 32 or 256 inputs, and the sums of q that turn
// weight offsets and minima into one term a block. Rounding is to nearest even; a row's result depends on it alone.

// Quantises n (a multiple of 16) inputs with one scale; writes q and a sum per 16, returns the scale.
// A NaN or infinity makes the scale NaN, so the row's outputs are NaN and the sampler names the damage.
OP float quantize_block(const float* x, int n, int8_t* q, int32_t* sum16) {
  F top = fzero();
  F bad = fzero();                                             // x * 0 is NaN for NaN and infinity, else 0
  for (int i = 0; i < n; i += 16) {
    const F v = fload(x + i);
    top = fmax(top, fabs(v));
    bad = fma(v, fzero(), bad);
  }
  const float most = hmax(top), nan = hsum(bad);
  // Below 1e-30 the inverse would overflow: the block is zero beside anything a norm lets through.
  const bool zero = !(most > 1e-30f) || nan != nan;
  const float inverse = zero ? 0.0f : 127.0f / most;
  for (int i = 0; i < n; i += 16) {
    const I v = zero ? izero() : to_int(mul(fload(x + i), fset(inverse)));
    store_i8(q + i, v);
    sum16[i / 16] = hsum(v);
  }
  return nan != nan ? nan : zero ? 0.0f : most / 127.0f;
}

static void quantize32(const float* x, int64_t k, int8_t* q, float* scale, int32_t* sum16, float* fsum32) {
  for (int64_t g = 0; g < k / 32; ++g) {
    scale[g] = quantize_block(x + 32 * g, 32, q + 32 * g, sum16 + 2 * g);
    fsum32[g] = scale[g] * static_cast<float>(sum16[2 * g] + sum16[2 * g + 1]);
  }
}

static void quantize256(const float* x, int64_t k, int8_t* q, float* scale, int32_t* sum16) {
  for (int64_t g = 0; g < k / 256; ++g) scale[g] = quantize_block(x + 256 * g, 256, q + 256 * g, sum16 + 16 * g);
}

static void fill_quant(Kernels& t) {
  t.quantize32 = quantize32;
  t.quantize256 = quantize256;
}
