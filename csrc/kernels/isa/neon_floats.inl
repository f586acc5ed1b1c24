// Float panels for several tokens on ARM: other `panel` entries than matmul.inl's, the same bits. Included after the families.
//
// A token has four sums by k mod 4, of sixteen rows: sixteen registers. Eight rows at a time leave room for three tokens, so a
// load and a widening serve three; the panel's other half is read from L1 or L2 afterwards.

struct Eight { float32x4_t a, b; };
OP Eight eight(const float* p, Float32) { return {vld1q_f32(p), vld1q_f32(p + 4)}; }
OP Eight eight(const uint16_t* p, Half) {
  const float16x8_t v = vreinterpretq_f16_u16(vld1q_u16(p));
  return {vcvt_f32_f16(vget_low_f16(v)), vcvt_high_f32_f16(v)};
}
OP Eight eight(const uint16_t* p, BFloat) {
  const uint16x8_t v = vld1q_u16(p);
  return {bf16_low(v), bf16_high(v)};
}

// Input J of four: its weights times each token's activation.
template <class E, int J, int NB> OP void eight_products(Eight (&acc)[NB][4], const typename E::T* p, const float32x4_t* x) {
  if constexpr (J < 4) {
    const Eight v = eight(p + kPanelRows * J, E{});
    for (int b = 0; b < NB; ++b) acc[b][J] = {vfmaq_laneq_f32(acc[b][J].a, v.a, x[b], J), vfmaq_laneq_f32(acc[b][J].b, v.b, x[b], J)};
    eight_products<E, J + 1, NB>(acc, p, x);
  }
}
template <class E, int NB> static void eight_rows(const typename E::T* p, const Acts& x, int64_t t0, float* out, int64_t ld) {
  const float* q = x.f32 + t0 * x.k;
  Eight acc[NB][4];
  for (int b = 0; b < NB; ++b) for (int j = 0; j < 4; ++j) acc[b][j] = {vdupq_n_f32(0.0f), vdupq_n_f32(0.0f)};
  int64_t k = 0;
  for (; k + 4 <= x.k; k += 4, p += 4 * kPanelRows) {
    float32x4_t v[NB];
    for (int b = 0; b < NB; ++b) v[b] = vld1q_f32(q + b * x.k + k);
    eight_products<E, 0, NB>(acc, p, v);
  }
  UNROLL for (int j = 0; j < 3; ++j) {
    if (k + j >= x.k) break;
    const Eight v = eight(p + kPanelRows * j, E{});
    for (int b = 0; b < NB; ++b) acc[b][j] = {vfmaq_n_f32(acc[b][j].a, v.a, q[b * x.k + k + j]), vfmaq_n_f32(acc[b][j].b, v.b, q[b * x.k + k + j])};
  }
  for (int b = 0; b < NB; ++b) {
    const Eight* s = acc[b];
    vst1q_f32(out + b * ld, vaddq_f32(vaddq_f32(s[0].a, s[1].a), vaddq_f32(s[2].a, s[3].a)));
    vst1q_f32(out + b * ld + 4, vaddq_f32(vaddq_f32(s[0].b, s[1].b), vaddq_f32(s[2].b, s[3].b)));
  }
}
template <class E, int NB> OP void both_halves(const Panels& w, int64_t panel, const Acts& x, int64_t t, float* out, int64_t ld) {
  const auto* p = reinterpret_cast<const typename E::T*>(w.high(panel));
  eight_rows<E, NB>(p, x, t, out, ld);
  eight_rows<E, NB>(p + 8, x, t, out + 8, ld);
}
template <class E> static void panel_floats(const Panels& w, int64_t panel, const Acts& x, int64_t t0, int64_t nt, float* out, int64_t ld) {
  for (; nt >= 3; nt -= 3, t0 += 3, out += 3 * ld) both_halves<E, 3>(w, panel, x, t0, out, ld);
  if (nt == 2) both_halves<E, 2>(w, panel, x, t0, out, ld);
  if (nt == 1) panel_rows<RowsFloat<E>>(w, panel, x, t0, nt, out, ld);
}
static void fill_floats(Kernels& t) {
  t.panel[static_cast<int>(WeightType::F32)] = panel_floats<Float32>;
  t.panel[static_cast<int>(WeightType::F16)] = panel_floats<Half>;
  t.panel[static_cast<int>(WeightType::BF16)] = panel_floats<BFloat>;
}
