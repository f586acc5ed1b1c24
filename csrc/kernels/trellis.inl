// T2 and T3 for any table: a unit of 256 inputs is decoded to bytes, then multiplied as bytes are. Right and not fast: it
// serves packed files of another machine, as loading expands these types (T8) where isa/vbmi.inl does not decode them.
//
//   out[t][r] = d[r] * sum over groups g of factor[r][g] * scale[t][g] * (dot of 32 codes), sums in order, rounded at each step

// Codes of unit u of a panel as gemm.inl has them unpacked, [groups][512], and factors [groups][16].
template <int K> static void unpack_windows(const Panels& w, const uint8_t* panel, int64_t u, uint8_t* codes, float* factors) {
  using P = TrellisPanel<K>;
  const int64_t runs = P::runs(w.k), groups = groups_in(w, u);
  const uint8_t* table = w.table();
  for (int64_t g = 0; g < groups; ++g)
    for (int row = 0; row < kPanelRows; ++row) factors[16 * g + row] = kFactors[P::nibble(panel, 8 * u + g, row)];
  for (int64_t g = 0; g < groups; g += 2)
    for (int row = 0; row < kPanelRows; ++row) {
      uint64_t word[K + 1];
      P::load(panel, w.panel_bytes, kUnitRuns * u + g / 2, runs, row, word);
      const int inputs = g + 1 < groups ? 64 : 32;
      for (int i = 0; i < inputs; ++i) codes[512 * g + i / 4 * 64 + 4 * row + i % 4] = table[P::window(word, i)];
    }
  if constexpr (kSignedCodes)
    for (int64_t g = 0; g < groups; ++g) unpack_group<Byte, 128>(codes + 512 * g, codes + 512 * g);
}
using Unpack = void (*)(const Panels& w, const uint8_t* panel, int64_t u, uint8_t* codes, float* factors);

// Decoded codes have their offset taken off already where gemm's have.
template <int NB> OP void add_decoded(I* acc, const uint8_t* codes, const Acts& x, int64_t t0, int64_t g) {
  const int64_t groups = x.k / 32;
  int32_t start[NB];
  for (int b = 0; b < NB; ++b) {
    const int32_t* sum = x.sum16 + (t0 + b) * 2 * groups + 2 * g;
    start[b] = -128 * (sum[0] + sum[1]);
  }
  sum_codes<Byte::kMost, 128, 32, NB>(acc, codes, x.q + t0 * x.k + 32 * g, x.k, start, 1);
}
template <int K, int NB>
static void panel_trellis(const Panels& w, const uint8_t* base, const Acts& x, int64_t t0, float* out, int64_t ld) {
  alignas(64) uint8_t codes[kUnitBytes];
  alignas(64) float factors[8 * kPanelRows];
  F y[NB];
  for (int b = 0; b < NB; ++b) y[b] = fzero();
  for (int64_t u = 0; u * kUnitK < w.k; ++u) {
    unpack_windows<K>(w, base, u, codes, factors);
    for (int64_t g = 0; g < groups_in(w, u); ++g) {
      I acc[NB];
      add_decoded<NB>(acc, codes + 512 * g, x, t0, 8 * u + g);
      for (int b = 0; b < NB; ++b) y[b] = add_group<true>(y[b], acc[b], mul(fload(factors + 16 * g), fset(x.scale[(t0 + b) * (w.k / 32) + 8 * u + g])));
    }
  }
  const F d = load_f16(row_scales(w, base));
  for (int b = 0; b < NB; ++b) fstore(out + b * ld, mul(y[b], d));
}
template <int K> struct RowsTrellis {
  static constexpr int kMax = kTileMost;
  template <int NB> OP void tile(const Panels& w, const uint8_t* p, const Acts& x, int64_t t, float* o, int64_t ld) {
    panel_trellis<K, NB>(w, p, x, t, o, ld);
  }
};

template <int K> OP Next next_trellis(const Panels& w, int64_t p0, int64_t p1, int64_t p, int64_t u, const Acts& x) {
  using P = TrellisPanel<K>;
  return next_of(w, p0, p1, p, u, x, [&](const uint8_t* panel, int64_t unit) {
    const int64_t runs = P::runs(w.k) - kUnitRuns * unit;
    return Next{panel + unit * P::kUnit, 64 + (runs < kUnitRuns ? runs : kUnitRuns) * P::kRun};
  });
}
template <int K, Unpack Decode>
static void gemm_trellis(const Panels& w, int64_t p0, int64_t p1, int64_t u, const Acts& x, int64_t t0, int64_t nt, float* y) {
  alignas(64) uint8_t codes[kUnitBytes];
  alignas(64) float d[8 * kPanelRows];
  Terms starts;
  if (!kSignedCodes) starts_of<32, 128>(x, u, t0, nt, starts);
  const int64_t at = u * x.rows + t0, groups = groups_in(w, u);
  for (int64_t p = p0; p < p1; ++p, y += nt * kPanelRows) {
    const uint8_t* base = w.data + p * w.panel_bytes;
    Decode(w, base, u, codes, d);
    each_tile(Unit32<Byte, 128, false, true>{codes, d, nullptr, groups, x.q + at * kUnitK, x.scale + at * 8, nullptr, starts.at, y, u == 0, last_scales(w, base, u)},
              nt, next_trellis<K>(w, p0, p1, p, u, x));
  }
}
static void fill_trellis(Kernels& t) {
  constexpr int two = static_cast<int>(WeightType::T2), three = static_cast<int>(WeightType::T3);
  t.panel[two] = panel_rows<RowsTrellis<2>>;
  t.panel[three] = panel_rows<RowsTrellis<3>>;
  t.gemm[two] = gemm_trellis<2, unpack_windows<2>>;
  t.gemm[three] = gemm_trellis<3, unpack_windows<3>>;
}
