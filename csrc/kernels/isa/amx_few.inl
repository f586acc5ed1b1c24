// AMX tiles for nine to sixteen tokens: other `panel` entries than avx512's, the same bits. Included by amx.inl.
//
// Weights are read as matmul.inl reads them, panel by panel and in order, so the stream and what is asked for ahead of it
// stay; activations lie by rows, which a tile load takes at any stride. Four groups of 32 inputs make a step: unpacked to
// signed bytes, multiplied to four C, and while those are on their way the floats of the four before are done.
//
// A token more costs its floats and a tile row, 28 ns a panel of Q5_0 (K = 896) where the vector tile takes 65; but a step
// costs about 50 ns before its first token, so eight tokens are the vector tile's. Sixteen inputs a scale need twice
// the steps and win nothing below fifteen tokens: Q6_K and Q6_KH stay, and Q2_K, which was not timed.

// Where a call's activation rows lie.
struct Few {
  const int8_t* q;
  const float* scale;
  const int32_t* sum16;
  const float* fsum32;
  int64_t k, scales;                               // inputs a row, scales a row
  int tokens;
  OP Few of(const Acts& x, int64_t unit, int64_t t0, int tokens) {
    const int64_t scales = (x.k + unit - 1) / unit;
    return {x.q + t0 * x.k, x.scale + t0 * scales, x.sum16 + t0 * (x.k / 16), x.fsum32 ? x.fsum32 + t0 * scales : nullptr, x.k, scales, tokens};
  }
};
constexpr int kFew = 16;                           // rows of a tile
// Four C of the rows, [4][16 tokens][16]: groups whose B lie at w, one after the other, and whose A begin with input `at`.
// Groups beyond `last` multiply its inputs once more and are not read.
OP void few_tiles(const Few& x, int64_t at, int64_t last, const uint8_t* w, int32_t* c) {
  const int64_t stride = x.k;
  const int8_t* q = x.q + at;
  const int64_t one = last < 1 ? last : 1, two = last < 2 ? last : 2, three = last < 3 ? last : 3;
  _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
  _tile_loadd(4, q, stride); _tile_loadd(6, w, 64); _tile_dpbssd(0, 4, 6);
  _tile_loadd(5, q + 32 * one, stride); _tile_loadd(7, w + 512, 64); _tile_dpbssd(1, 5, 7);
  _tile_loadd(4, q + 32 * two, stride); _tile_loadd(6, w + 1024, 64); _tile_dpbssd(2, 4, 6);
  _tile_loadd(5, q + 32 * three, stride); _tile_loadd(7, w + 1536, 64); _tile_dpbssd(3, 5, 7);
  _tile_stored(0, c, 64); _tile_stored(1, c + kTile, 64); _tile_stored(2, c + 2 * kTile, 64); _tile_stored(3, c + 3 * kTile, 64);
  settle();
}

// ---- 32 inputs a scale -----------------------------------------------------------------------------------------
// The floats of `count` groups from g on; d and m are the same for all tokens, and lie in registers meanwhile.
template <bool Min> OP void few_ends(const Few& x, const int32_t* c, const float* d, const float* m, int64_t g, int count, float* y) {
  F scale[4], low[4];
  for (int j = 0; j < count; ++j) {
    scale[j] = fload(d + 16 * j);
    if (Min) low[j] = fload(m + 16 * j);
  }
  for (int i = 0; i < x.tokens; ++i) {
    const int64_t s = i * x.scales + g;
    F sum = fload(y + 16 * i);
    for (int j = 0; j < count; ++j) {
      sum = fma(to_float({_mm512_load_si512(c + j * kTile + 16 * i)}), mul(scale[j], fset(x.scale[s + j])), sum);
      if (Min) sum = fma(low[j], fset(x.fsum32[s + j]), sum);
    }
    fstore(y + 16 * i, sum);
  }
}
template <class Code, int Offset, bool Min>
static void few_32(const Panels& w, const uint8_t* base, const Acts& acts, const Few& x, float* out, int64_t ld) {
  alignas(64) uint8_t codes[4 * 512];
  alignas(64) float d[2][4 * kPanelRows], m[2][4 * kPanelRows], y[kFew * kPanelRows];
  alignas(64) int32_t c[2][4 * kTile];
  const int64_t groups = w.k / 32, steps = (groups + 3) / 4;
  const Ahead ahead = Ahead::at(w, base, acts);
  const auto ends = [&](int64_t n, int count) __attribute__((always_inline)) {
    few_ends<Min>(x, c[n % 2], d[n % 2], m[n % 2], 4 * n, count, y);
  };
  use_tiles(32, x.tokens);
  for (int i = 0; i < x.tokens; ++i) fstore(y + 16 * i, fzero());
  for (int64_t n = 0; n < steps; ++n) {
    for (int64_t j = 0, g = 4 * n; j < 4 && g < groups; ++j, ++g) {
      const uint8_t* p = Groups<Code, Min>::codes(base, g);
      const uint16_t* aux = Groups<Code, Min>::aux(base, g);
      ahead.ask<Code::kBytes / 64>(p);
      if (Min || j % 2) ahead.ask<1>(p + Code::kBytes);
      sign_group<Code, Offset>(p, codes + 512 * j);
      fstore(d[n % 2] + 16 * j, load_f16(aux));
      if (Min) fstore(m[n % 2] + 16 * j, load_f16(aux + 16));
    }
    settle();
    few_tiles(x, 128 * n, groups - 1 - 4 * n, codes, c[n % 2]);
    if (n) ends(n - 1, 4);
  }
  ends(steps - 1, static_cast<int>(groups - 4 * (steps - 1)));
  _tile_release();
  for (int i = 0; i < x.tokens; ++i) fstore(out + i * ld, fload(y + 16 * i));
}

// ---- 256 inputs a scale, integer scales of 32 --------------------------------------------------------------------
// A row's sums of 256 inputs in pairs of int16, as matmul.inl pairs them for minima.
OP void pair_sums(const int32_t* sum16, int32_t* pairs) {
  const __m512i s = _mm512_loadu_si512(sum16);
  _mm_store_si128(reinterpret_cast<__m128i*>(pairs), _mm512_cvtepi64_epi16(_mm512_add_epi32(s, _mm512_srli_epi64(s, 32))));
}
// dots += sub-scale * C of four groups; the first four of a block begin them.
template <class B> OP void few_fold(const Few& x, const int32_t* c, const uint8_t* unit, int s, int32_t* dots) {
  const I s0 = B::sub(unit, s), s1 = B::sub(unit, s + 1), s2 = B::sub(unit, s + 2), s3 = B::sub(unit, s + 3);
  for (int i = 0; i < x.tokens; ++i, c += 16, dots += 16) {
    const I a = iadd(imul({_mm512_load_si512(c)}, s0), imul({_mm512_load_si512(c + kTile)}, s1));
    const I b = iadd(imul({_mm512_load_si512(c + 2 * kTile)}, s2), imul({_mm512_load_si512(c + 3 * kTile)}, s3));
    const I sum = iadd(a, b);
    _mm512_store_si512(dots, s ? iadd(sum, {_mm512_load_si512(dots)}).v : sum.v);
  }
}
template <class B> OP void few_block(const Few& x, const uint8_t* unit, int64_t block, const int32_t* dots, float* y) {
  alignas(64) uint8_t mins[4 * 64];
  for (int j = 0; j < 4; ++j) bstore(mins + 64 * j, B::min_pair(unit, j));
  const F d = load_f16(B::aux(unit)), dmin = load_f16(B::aux(unit) + 16);
  for (int i = 0; i < x.tokens; ++i, dots += 16, y += 16) {
    alignas(16) int32_t pairs[4];
    pair_sums(x.sum16 + i * (x.k / 16) + 16 * block, pairs);
    const I low = low_of<8>(mins, pairs);
    fstore(y, block_end<true>(fload(y), d, dmin, {_mm512_load_si512(dots)}, low, x.scale[i * x.scales + block]));
  }
}
template <class Code>
static void few_256(const Panels& w, const uint8_t* base, const Acts& acts, const Few& x, float* out, int64_t ld) {
  using B = Block<Code, 32, 0, false, true>;
  using S = typename B::S;
  alignas(64) uint8_t codes[2][4 * 512];             // in turn: tile loads wait for stores, these are a step old
  alignas(64) float y[kFew * kPanelRows];
  alignas(64) int32_t c[2][4 * kTile], dots[kTile];
  const Ahead ahead = Ahead::at(w, base, acts);
  const int64_t steps = w.k / 128;
  const auto unpack = [&](int64_t n) __attribute__((always_inline)) {
    const uint8_t* unit = base + n / 2 * S::kUnit;
    if (n % 2 == 0) ahead.ask<(S::kUnit - 8 * Code::kBytes) / 64>(unit + 8 * Code::kBytes);
    for (int j = 0; j < 4; ++j) {
      const uint8_t* p = B::codes(unit, static_cast<int>(n % 2) * 4 + j);
      ahead.ask<Code::kBytes / 64>(p);
      sign_group<Code, 0>(p, codes[n % 2] + 512 * j);
    }
    settle();
  };
  const auto fold = [&](int64_t n) __attribute__((always_inline)) {
    const uint8_t* unit = base + n / 2 * S::kUnit;
    few_fold<B>(x, c[n % 2], unit, static_cast<int>(n % 2) * 4, dots);
    if (n % 2) few_block<B>(x, unit, n / 2, dots, y);
  };
  use_tiles(32, x.tokens);
  for (int i = 0; i < x.tokens; ++i) fstore(y + 16 * i, fzero());
  unpack(0);
  for (int64_t n = 0; n < steps; ++n) {
    if (n + 1 < steps) unpack(n + 1);
    few_tiles(x, 128 * n, 3, codes[n % 2], c[n % 2]);
    if (n) fold(n - 1);
  }
  fold(steps - 1);
  _tile_release();
  for (int i = 0; i < x.tokens; ++i) fstore(out + i * ld, fload(y + 16 * i));
}

// ---- entries ---------------------------------------------------------------------------------------------------
constexpr int kFewFrom = kTileTokens + 1;
using FewTile = void (*)(const Panels& w, const uint8_t* base, const Acts& acts, const Few& x, float* out, int64_t ld);
template <FewTile Tile, int Unit, Kernels::Panel Vector>
static void few_panel(const Panels& w, int64_t panel, const Acts& x, int64_t t0, int64_t nt, float* out, int64_t ld) {
  for (; nt >= kFewFrom; nt -= kFew, t0 += kFew, out += kFew * ld)
    Tile(w, w.high(panel), x, Few::of(x, Unit, t0, static_cast<int>(nt < kFew ? nt : kFew)), out, ld);
  if (nt > 0) Vector(w, panel, x, t0, nt, out, ld);
}
template <class Code, int Offset, bool Min> static Kernels::Panel few_of_32() {
  return few_panel<few_32<Code, Offset, Min>, 32, panel_rows<Rows32<Code, Offset, Min>>>;
}
template <class Code> static Kernels::Panel few_of_256() {
  return few_panel<few_256<Code>, 256, panel_rows<Rows256<Code, 32, 0, false, true>>>;
}
template <int T = 0> static void fill_few(Kernels& t) {
  constexpr WeightTraits w = kWeightTypes[T];
  if constexpr (w.form == Form::Blocks32) t.panel[T] = few_of_32<typename Of<w.planes>::Code, w.offset, w.min>();
  if constexpr (w.form == Form::Blocks256 && w.sub == 32 && w.min && !w.signed_sub && !w.offset) t.panel[T] = few_of_256<typename Of<w.planes>::Code>();
  if constexpr (T + 1 < kWeightTypeCount) fill_few<T + 1>(t);
}
