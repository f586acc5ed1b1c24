// The table of writers, with the halves and the mean squares of rows.

static void mean_squares(const float* x, int64_t k, float* out) {
  for (int row = 0; row < kTileBlocks; row += kLanes) {
    Floats sum = all(0.0f);
    for (int64_t c = 0; c < k; c += 16) {
      Floats v[16];
      gather<16>(x + row * k + c, k, v);
      for (int i = 0; i < 16; ++i) sum += v[i] * v[i];
    }
    store(out + row, sum / static_cast<float>(k));
  }
}
static void write_f16(const float* x, int64_t n, uint16_t* out) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) store_f16(out + i, fload(x + i));
  for (; i < n; ++i) out[i] = f32_to_f16(x[i]);
}
// To nearest, of halves the even one. x is finite: a NaN could become infinite here.
static void write_bf16(const float* x, int64_t n, uint16_t* out) {
  for (int64_t i = 0; i < n; ++i) {
    uint32_t bits;
    memcpy(&bits, x + i, 4);
    out[i] = static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  }
}

static const WriterKernels kWriterTable{
    {write_q4_0, write_q4_1, write_q5_0, write_q5_1, write_q8_0, write_q2_k, write_q3_k, write_q4_k, write_q5_k, write_q6_k, write_iq4_nl, write_iq4_xs},
    mean_squares, write_f16, write_bf16};
