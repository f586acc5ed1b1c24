// Products of weights in blocks of 32 by bf16 tiles: the amx table's gemm_rounded. Included by amx.inl, after amx_both.inl, whose
// rounding and pairs of 16 apart it shares.
//
// A scale for 32 inputs costs int8 tiles a store, a load and three float operations of each sum for sixteen cycles of products: they
// reach a tenth of what tiles can do. Weights that are decoded, scaled and rounded to bf16 sum over all of K in one C: half the
// rate, and nothing beside it but the decoding, which 512 tokens share. Rounding moves a weight and an activation by 2^-9 of
// themselves, where int8 activations move by 2^-8 of the greatest of 32.
//
// Two panels' units, 16 KB in L1, meet a call's tokens in pairs of tiles: four products for two tiles of A, from an L2, and two of B.

constexpr int kUnitTiles = kUnitK / kStep;

static void round_row(const float* x, int64_t k, uint16_t* to) {
  for (int64_t s = 0; s < k / kStep; ++s) _mm512_store_si512(to + s * kStep, woven_inputs(x, s, k));
}

// Input `Byte` of each lane's four: its weight.
template <int Byte, int Offset, bool Min> OP F weight_at(I quad, F d, F least) {
  const __m512i code = _mm512_and_si512(_mm512_srli_epi32(quad.v, 8 * Byte), _mm512_set1_epi32(255));
  const F x = to_float({_mm512_sub_epi32(code, _mm512_set1_epi32(Offset))});
  return to_nearest(Min ? fma(x, d, least) : mul(x, d));
}
template <class Code, int Offset, bool Min, int J = 0> OP void decode_group(const uint8_t* p, F d, F least, uint16_t* to) {
  if constexpr (J < 4) {
    const I a = Code::template quad_at<J>(p), b = Code::template quad_at<J + 4>(p);
    weave(weight_at<0, Offset, Min>(a, d, least), weight_at<0, Offset, Min>(b, d, least), to);
    weave(weight_at<1, Offset, Min>(a, d, least), weight_at<1, Offset, Min>(b, d, least), to + 32);
    weave(weight_at<2, Offset, Min>(a, d, least), weight_at<2, Offset, Min>(b, d, least), to + 64);
    weave(weight_at<3, Offset, Min>(a, d, least), weight_at<3, Offset, Min>(b, d, least), to + 96);
    decode_group<Code, Offset, Min, J + 1>(p, d, least, to + 128);
  }
}
// The one NaN that rounding by addition keeps.
OP F plain_nan(F x) { return {_mm512_mask_mov_ps(x.v, _mm512_cmp_ps_mask(x.v, x.v, _CMP_UNORD_Q), _mm512_set1_ps(__builtin_nanf("")))}; }
template <class Code, int Offset, bool Min> static void decode_unit(const Panels& w, int64_t panel, int64_t u, uint16_t* to) {
  const uint8_t* base = w.data + panel * w.panel_bytes;
  for (int64_t g = 0; g < groups_in(w, u); ++g) {
    const uint16_t* aux = Groups<Code, Min>::aux(base, 8 * u + g);
    const F least = Min ? plain_nan(load_f16(aux + 16)) : fzero();
    decode_group<Code, Offset, Min>(Groups<Code, Min>::codes(base, 8 * u + g), plain_nan(load_f16(aux)), least, to + g * kTileHalves);
  }
}

// R tiles of tokens from a, N panels of B; sums at y, the second panel's `panel` floats on.
template <int R, int N> OP void unit_products(const uint16_t* a, const uint16_t* b, int64_t steps, float* y, int64_t panel, bool first) {
  if (first) tile_zeros();
  else {
    _tile_loadd(0, y, 64);
    if constexpr (N == 2) _tile_loadd(1, y + panel, 64);
    if constexpr (R == 2) _tile_loadd(2, y + kTileFloats, 64);
    if constexpr (R == 2 && N == 2) _tile_loadd(3, y + panel + kTileFloats, 64);
  }
  for (int64_t s = 0; s < steps; ++s, a += kStep, b += kTileHalves) {
    _tile_loadd(4, a, 2 * kUnitK);
    _tile_loadd(6, b, 64);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (N == 2) {
      _tile_loadd(7, b + kUnitTiles * kTileHalves, 64);
      _tile_dpbf16ps(1, 4, 7);
    }
    if constexpr (R == 2) {
      _tile_loadd(5, a + 16 * kUnitK, 2 * kUnitK);
      _tile_dpbf16ps(2, 5, 6);
      if constexpr (N == 2) _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, y, 64);
  if constexpr (N == 2) _tile_stored(1, y + panel, 64);
  if constexpr (R == 2) _tile_stored(2, y + kTileFloats, 64);
  if constexpr (R == 2 && N == 2) _tile_stored(3, y + panel + kTileFloats, 64);
}
// All of a call's tokens; `ask(t)` asks for the weights after these.
template <int N, class Ask> OP void unit_rows(const uint16_t* a, const uint16_t* b, int64_t steps, float* y, int64_t nt, bool first, Ask ask) {
  const int64_t panel = nt * kPanelRows;
  settle();
  int64_t t = 0;
  for (; t + 32 <= nt; t += 32) {
    ask(t);
    unit_products<2, N>(a + t * kUnitK, b, steps, y + t * kPanelRows, panel, first);
  }
  if (t < nt) ask(t);
  if (t + 16 <= nt) {
    unit_products<1, N>(a + t * kUnitK, b, steps, y + t * kPanelRows, panel, first);
    t += 16;
  }
  if (t < nt) {
    use_tiles(64, static_cast<int>(nt - t));
    unit_products<1, N>(a + t * kUnitK, b, steps, y + t * kPanelRows, panel, first);
    use_tiles(64);
  }
  settle();
}
template <class Code, int Offset, bool Min>
static void rounded_32(const Panels& w, int64_t p0, int64_t p1, int64_t u, const Acts& x, int64_t t0, int64_t nt, float* y) {
  alignas(64) uint16_t b[2 * kUnitTiles * kTileHalves];
  const uint16_t* a = x.rounded + (u * x.rows + t0) * kUnitK;
  const int64_t steps = groups_in(w, u);
  use_tiles(64);
  for (int64_t p = p0; p < p1; p += 2, y += 2 * nt * kPanelRows) {
    const bool both = p + 1 < p1;
    decode_unit<Code, Offset, Min>(w, p, u, b);
    if (both) decode_unit<Code, Offset, Min>(w, p + 1, u, b + kUnitTiles * kTileHalves);
    const Next next = next_32<Code, Min>(w, p0, p1, p, u, x), after = next_32<Code, Min>(w, p0, p1, both ? p + 1 : p, u, x);
    const auto ask = [&](int64_t t) {
      next.ask(t, 32, nt);
      after.ask(t, 32, nt);
    };
    both ? unit_rows<2>(a, b, steps, y, nt, u == 0, ask) : unit_rows<1>(a, b, steps, y, nt, u == 0, ask);
  }
  _tile_release();
}

// ---- what follows them -----------------------------------------------------------------------------------------
// In float32's own precision a gate took longer than the product before it: its division alone sixteen cycles.
// 1 / (1 + 2^t) for t within 100, where no step leaves the normal numbers, which would take a hundred cycles; NaN stays.
OP F sigmoid_of(F t) { return {_mm512_rcp14_ps(add(fset(1.0f), weight_of(fmax(fset(-100.0f), fmin(fset(100.0f), t)))).v)}; }
constexpr float kLogE2 = 1.44269504f;
OP F near_silu(F x) { return mul(x, sigmoid_of(mul(x, fset(-kLogE2)))); }
// As fgelu: sigmoid(sqrt(8/pi) (x + 0.044715 x^3)).
OP F near_gelu(F x) {
  constexpr float kUnit = -1.59576912f * kLogE2;
  return mul(x, sigmoid_of(mul(x, fma(mul(x, x), fset(0.044715f * kUnit), fset(kUnit)))));
}
static void silu_rounded(const float* g, const float* u, int64_t width, int64_t nt, float* y, int64_t ld) {
  each_sum(width, nt, y, ld, [=](int64_t at, const float*, int64_t, int) { return mul(near_silu(fload(g + at)), fload(u + at)); });
}
static void gelu_rounded(const float* g, const float* u, int64_t width, int64_t nt, float* y, int64_t ld) {
  each_sum(width, nt, y, ld, [=](int64_t at, const float*, int64_t, int) { return mul(near_gelu(fload(g + at)), fload(u + at)); });
}
static void gelu_bias_rounded(const float* sums, int64_t width, int64_t nt, const float* bias, float* y, int64_t ld) {
  if (!bias) return each_sum(width, nt, y, ld, [=](int64_t at, const float*, int64_t, int) { return near_gelu(fload(sums + at)); });
  each_sum(width, nt, y, ld, [=](int64_t at, const float*, int64_t c, int n) {
    return near_gelu(add(fload(sums + at), n < 16 ? fload_n(bias + c, n) : fload(bias + c)));
  });
}

template <int T> constexpr Kernels::Gemm rounded_of() {
  constexpr WeightTraits w = kWeightTypes[T];
  if constexpr (w.form == Form::Blocks32) return rounded_32<typename Of<w.planes>::Code, w.offset, w.min>;
  else return nullptr;
}
