// T2 and T3 with AVX-512's byte permutes: windows are decoded in registers as they are multiplied. trellis.inl's sums, the same
// bits. Included by avx512.cpp, in its namespace: the table vbmi is avx512's with these entries, and amx's has them too.
//
// A word holds 64 bits of one row's stream, a vector the words of eight rows. vpmultishiftqb takes eight windows out of each
// word, eight inputs of eight rows, which vpermi2b looks up among 128 bytes: two instructions for 64 weights, and where
// windows reach into the next word a third. A dot of four bytes then leaves two sums a row side by side, which one fold of
// two vectors adds up in order of rows, once for 32 inputs.

#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512vbmi,avx512vbmi2,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512vbmi,avx512vbmi2,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")
#endif

// The table in registers: values + 128, or signed ones.
struct Table {
  __m512i low, high;
  OP Table of(const Panels& w, bool is_signed = false) {
    const __m512i flip = is_signed ? _mm512_set1_epi8(static_cast<char>(0x80)) : _mm512_setzero_si512();
    return {_mm512_xor_si512(_mm512_load_si512(w.table()), flip), _mm512_xor_si512(_mm512_load_si512(w.table() + 64), flip)};
  }
  OP __m512i at(const Table& t, __m512i windows) { return _mm512_permutex2var_epi8(t.low, windows, t.high); }
};

// Eight rows' words of a run, and the next one. `tail`: of a panel's last run, bytes instead.
template <int K> struct Words {
  __m512i word[K + 1];
  OP __m512i tails(const uint8_t* line, int half) {
    const __m128i rows = _mm_load_si128(reinterpret_cast<const __m128i*>(line + kTailsAt));
    const __m128i place = half ? _mm_setr_epi8(2, 3, 6, 7, 10, 11, 14, 15, 0, 0, 0, 0, 0, 0, 0, 0) : _mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 0, 0, 0, 0, 0, 0, 0, 0);
    return _mm512_cvtepu8_epi64(_mm_shuffle_epi8(rows, place));
  }
  // The run at p; `next`: where the next one's words begin, null after the last.
  OP Words load(const uint8_t* p, const uint8_t* next, const uint8_t* line, int half) {
    Words w;
    for (int j = 0; j < K; ++j) w.word[j] = _mm512_load_si512(p + 64 * (K * half + j));
    w.word[K] = next ? _mm512_load_si512(next + 64 * K * half) : tails(line, half);
    return w;
  }
};
// Windows of inputs 8*J to 8*J + 7 of a run, a byte each, whose highest bit is of the next window and not looked at.
template <int K, int J> OP __m512i windows(const Words<K>& w) {
  constexpr int bit = 8 * K * J, at = bit / 64, from = bit % 64, reach = from + 7 * K + kWindowBits;
  // Words are shifted by as much as leaves windows where other windows lie, so that few patterns do.
  constexpr int shift = reach <= 64 ? 0 : K == 2 ? 32 : at == 0 ? 48 : at == 1 ? 32 : 16;
  constexpr uint64_t steps = K == 2 ? 0x0e0c0a0806040200u : 0x15120f0c09060300u, first = 0x0101010101010101u * static_cast<unsigned>(from - shift);
  const __m512i word = shift ? _mm512_shrdi_epi64(w.word[at], w.word[at + 1], shift) : w.word[at];
  return _mm512_multishift_epi64_epi8(_mm512_set1_epi64(static_cast<int64_t>(first + steps)), word);
}
// Sums of two inputs' lanes, rows in order: see trellis.h.
OP __m512i fold_lanes(__m512i a, __m512i b) { return fold_quads(a, b); }
OP __m512i eight(const int8_t* q) { int64_t x; memcpy(&x, q, 8); return _mm512_set1_epi64(x); }
// Factors of group g, `line` being its unit's.
OP F factors_of(const uint8_t* line, int64_t g) {
  const __m512i pair = _mm512_cvtepu8_epi32(_mm_load_si128(reinterpret_cast<const __m128i*>(line + 16 * (g % 8 / 2))));
  return {_mm512_permutexvar_ps(g % 2 ? _mm512_srli_epi32(pair, 4) : pair, _mm512_loadu_ps(kFactors))};
}

template <int K, int J, int NB>
OP void dot_eight(__m512i* first, __m512i* second, const Table& table, const Words<K>& a, const Words<K>& b, const int8_t* const* q) {
  const __m512i u = Table::at(table, windows<K, J>(a)), v = Table::at(table, windows<K, J>(b));
  for (int i = 0; i < NB; ++i) {
    const __m512i x = eight(q[i] + 8 * J);
    first[i] = _mm512_dpbusd_epi32(first[i], u, x);
    second[i] = _mm512_dpbusd_epi32(second[i], v, x);
  }
}
// A group's dots, H 0 or 1 of a run.
template <int K, int H, int NB>
OP void dot_group(I* dots, const Table& table, const Words<K>& a, const Words<K>& b, const int8_t* const* q, const int32_t* const* sums) {
  __m512i first[NB], second[NB];
  for (int i = 0; i < NB; ++i) {      // of two lanes a row one takes the offset
    const auto start = static_cast<uint32_t>(-128 * (sums[i][2 * H] + sums[i][2 * H + 1]));
    first[i] = second[i] = _mm512_set1_epi64(start);
  }
  dot_eight<K, 4 * H, NB>(first, second, table, a, b, q);
  dot_eight<K, 4 * H + 1, NB>(first, second, table, a, b, q);
  dot_eight<K, 4 * H + 2, NB>(first, second, table, a, b, q);
  dot_eight<K, 4 * H + 3, NB>(first, second, table, a, b, q);
  for (int i = 0; i < NB; ++i) dots[i] = {fold_lanes(first[i], second[i])};
}

template <int K, int NB>
static void panel_windows(const Panels& w, const uint8_t* base, const Acts& x, int64_t t0, float* out, int64_t ld) {
  using P = TrellisPanel<K>;
  const int64_t groups = w.k / 32, runs = P::runs(w.k);
  const Ahead ahead = Ahead::at(w, base, x);
  const Table table = Table::of(w);
  const uint8_t* end = base + w.panel_bytes - kRowLine;
  const int8_t* q[NB];
  const int32_t* sums[NB];
  const float* xs[NB];
  F y[NB];
  for (int b = 0; b < NB; ++b) {
    q[b] = x.q + (t0 + b) * x.k;
    sums[b] = x.sum16 + (t0 + b) * 2 * groups;
    xs[b] = x.scale + (t0 + b) * groups;
    y[b] = fzero();
  }
  const uint8_t *p = base + 64, *line = base;
  for (int64_t r = 0; r < runs; ++r) {
    const bool over = r % kUnitRuns == kUnitRuns - 1;
    const uint8_t *next = p + P::kRun + (over ? 64 : 0), *after = r + 1 < runs ? next : nullptr;
    ahead.ask<2 * K>(p);
    if (over) ahead.ask<1>(p + P::kRun);
    const Words<K> a = Words<K>::load(p, after, end, 0), b = Words<K>::load(p, after, end, 1);
    const auto add_to = [&](const I* dots, int64_t g) __attribute__((always_inline)) {
      const F factors = factors_of(line, g);
      for (int i = 0; i < NB; ++i) y[i] = add_group<true>(y[i], dots[i], mul(factors, fset(xs[i][g])));
    };
    I dots[NB];
    dot_group<K, 0, NB>(dots, table, a, b, q, sums);
    add_to(dots, 2 * r);
    if (2 * r + 1 < groups) {
      dot_group<K, 1, NB>(dots, table, a, b, q, sums);
      add_to(dots, 2 * r + 1);
    }
    for (int i = 0; i < NB; ++i) q[i] += kRunInputs, sums[i] += 4;
    p = next;
    if (over) line = next - 64;
  }
  const F d = load_f16(row_scales(w, base));
  for (int b = 0; b < NB; ++b) fstore(out + b * ld, mul(y[b], d));
}
template <int K> struct RowsWindows {       // called from outside of this target region: not inlined
  static constexpr int kMax = kTileMost;
  template <int NB> static void tile(const Panels& w, const uint8_t* p, const Acts& x, int64_t t, float* o, int64_t ld) {
    panel_windows<K, NB>(w, p, x, t, o, ld);
  }
};

// As trellis.inl's unpack_windows; `Signed`: codes without an offset.
template <int K, int J> OP void unpack_eight(const Table& table, const Words<K>& a, const Words<K>& b, uint8_t* codes) {
  const __m512 u = _mm512_castsi512_ps(Table::at(table, windows<K, J>(a))), v = _mm512_castsi512_ps(Table::at(table, windows<K, J>(b)));
  bstore(codes + 128 * J, {_mm512_castps_si512(_mm512_shuffle_ps(u, v, 0x88))});
  bstore(codes + 128 * J + 64, {_mm512_castps_si512(_mm512_shuffle_ps(u, v, 0xdd))});
}
template <int K, bool Signed> static void unpack_quickly(const Panels& w, const uint8_t* panel, int64_t u, uint8_t* codes, float* factors) {
  using P = TrellisPanel<K>;
  const int64_t groups = groups_in(w, u), runs = P::runs(w.k);
  const Table table = Table::of(w, Signed);
  const uint8_t *line = panel + u * P::kUnit, *end = panel + w.panel_bytes - kRowLine;
  for (int64_t g = 0; g < groups; ++g) fstore(factors + 16 * g, factors_of(line, g));
  for (int64_t g = 0; g < groups; g += 2, codes += 1024) {
    const int64_t r = kUnitRuns * u + g / 2;
    const uint8_t *p = panel + P::run(r), *after = r + 1 < runs ? panel + P::run(r + 1) : nullptr;
    const Words<K> a = Words<K>::load(p, after, end, 0), b = Words<K>::load(p, after, end, 1);
    unpack_eight<K, 0>(table, a, b, codes);
    unpack_eight<K, 1>(table, a, b, codes);
    unpack_eight<K, 2>(table, a, b, codes);
    unpack_eight<K, 3>(table, a, b, codes);
    if (g + 1 == groups) break;
    unpack_eight<K, 4>(table, a, b, codes);
    unpack_eight<K, 5>(table, a, b, codes);
    unpack_eight<K, 6>(table, a, b, codes);
    unpack_eight<K, 7>(table, a, b, codes);
  }
}

// Prompts, two panels at once: a broadcast of four activations serves both, where a dot that loads its own makes loads the
// bound. Six tokens: twelve sums of a group and twelve of the panels, the quads, and a product beside them.
constexpr int kPairTile = 6;
struct UnitPair {
  const uint8_t* codes;                      // unpacked, of one panel and, kUnitBytes on, of the other
  const float* d;                            // [2][8][16]
  int64_t groups;
  const int8_t* q;
  const float* xs;
  const int32_t* start;
  float *y, *z;                              // sums of either
  bool first;
  const uint16_t *rows, *more;               // row scales, at the last unit
  template <int NB> OP void take(F* sum, const float* from, bool first) {
    for (int b = 0; b < NB; ++b) sum[b] = first ? fzero() : fload(from + b * kPanelRows);
  }
  template <int NB> OP void give(const F* sum, float* to, const uint16_t* rows) {
    for (int b = 0; b < NB; ++b) fstore(to + b * kPanelRows, rows ? mul(sum[b], load_f16(rows)) : sum[b]);
  }
  template <int NB> void run(int64_t t) const {
    const int8_t* xq = q + t * kUnitK;
    F a[NB], b[NB];
    take<NB>(a, y + t * kPanelRows, first);
    take<NB>(b, z + t * kPanelRows, first);
    for (int64_t g = 0; g < groups; ++g) {
      I u[NB], v[NB];
      for (int i = 0; i < NB; ++i) u[i] = v[i] = iset(start[(t + i) * 8 + g]);
      const uint8_t* w = codes + 512 * g;
      for (int j = 0; j < 8; ++j) {
        const I one = bload(w + 64 * j), two = bload(w + kUnitBytes + 64 * j);
        for (int i = 0; i < NB; ++i) {
          const I x = quad(xq + i * kUnitK + 32 * g + 4 * j);
          u[i] = dot4_full(u[i], one, x);
          v[i] = dot4_full(v[i], two, x);
        }
      }
      const F one = fload(d + 16 * g), two = fload(d + 8 * kPanelRows + 16 * g);
      for (int i = 0; i < NB; ++i) {
        const F scale = fset(xs[(t + i) * 8 + g]);
        a[i] = add_group<true>(a[i], u[i], mul(one, scale));
        b[i] = add_group<true>(b[i], v[i], mul(two, scale));
      }
    }
    give<NB>(a, y + t * kPanelRows, rows);
    give<NB>(b, z + t * kPanelRows, more);
  }
};
template <int K> static void gemm_windows(const Panels& w, int64_t p0, int64_t p1, int64_t u, const Acts& x, int64_t t0, int64_t nt, float* y) {
  alignas(64) uint8_t codes[2 * kUnitBytes];
  alignas(64) float d[2 * 8 * kPanelRows];
  Terms starts;
  starts_of<32, 128>(x, u, t0, nt, starts);
  const int64_t at = u * x.rows + t0, groups = groups_in(w, u), step = nt * kPanelRows;
  int64_t p = p0;
  for (; p + 2 <= p1; p += 2, y += 2 * step) {
    const uint8_t *one = w.high(p), *two = w.high(p + 1);
    unpack_quickly<K, false>(w, one, u, codes, d);
    unpack_quickly<K, false>(w, two, u, codes + kUnitBytes, d + 8 * kPanelRows);
    const Next next = next_trellis<K>(w, p0, p1, p, u, x), after = next_trellis<K>(w, p0, p1, p + 1, u, x);
    const UnitPair pair{codes, d, groups, x.q + at * kUnitK, x.scale + at * 8, starts.at, y, y + step, u == 0, last_scales(w, one, u), last_scales(w, two, u)};
    int64_t t = 0;
    for (; t + kPairTile <= nt; t += kPairTile) {
      next.ask(t, kPairTile, nt);
      after.ask(t, kPairTile, nt);
      pair.template run<kPairTile>(t);
    }
    next.ask(t, kPairTile, nt);
    after.ask(t, kPairTile, nt);
    tail_tile<kPairTile - 1>(pair, t, nt - t);
  }
  if (p < p1) gemm_trellis<K, unpack_quickly<K, false>>(w, p, p1, u, x, t0, nt, y);
}
static void fill_windows(Kernels& t) {
  constexpr int two = static_cast<int>(WeightType::T2), three = static_cast<int>(WeightType::T3);
  t.trellis = true;
  t.panel[two] = panel_rows<RowsWindows<2>>;
  t.panel[three] = panel_rows<RowsWindows<3>>;
  t.gemm[two] = gemm_windows<2>;
  t.gemm[three] = gemm_windows<3>;
}
static Kernels make_vbmi() {
  Kernels t = make_table("vbmi");
  fill_windows(t);
  return t;
}

#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC pop_options
#endif

// Filled on first use, never at load: filling runs code of this target region.
static const Kernels* vbmi_table() { static const Kernels t = make_vbmi(); return &t; }
