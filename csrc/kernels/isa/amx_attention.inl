// Attention over f16 pages by bf16 tiles: the amx table's attend_span, for one row as for a prompt. Included by amx.inl.
//
// A half is the sum of two bf16 exactly (8 + 3 bits of its 11); a query or a probability keeps 16 bits in two. Of the four
// products of such sums three are taken, high * high + low * high + high * low: what is left out and what was rounded is 2^-16 of
// a product, where the cache's half has lost up to 2^-12. So the multiply-adds of floats, 64 operations a cycle, become 340.
//
// A tile's row is a query and depends on no other, a step of its sum is a page of 32 positions (or 32 inputs of a head), and
// what a row cannot see has probability 0, which adds nothing to a sum that began with +0: a query's bits are its own.
// What then bounds a prompt is softmax; one row, splitting the pages, which goes as fast as memory brings them.
//
// Both factors lie in pairs of 16 apart: lane l of a row holds elements l and 16 + l of its 32, so that two vectors are woven by a
// shift and a logical operation, and no permutation.

constexpr int kPairs = 16, kStep = 32;                        // rows of a B tile, and the products it sums
constexpr int kTileHalves = kPairs * 16 * 2;                  // bf16 in a B tile
constexpr int kMostWidth = 256;                               // of a head
constexpr int kMostSteps = kMostWidth / kStep;                // of a query's inputs, and of a span's pages
static_assert(kMostSteps == kSpanPages);

// The first of two parts: of a half's 11 bits the upper 8, cut off (and of a probability,
// whose second part is cut off too); of a query, the nearest of 8 bits, for the parts' signs to differ (Veltkamp's way, which keeps NaN).
OP F upper_bits(F x) { return {_mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(x.v), _mm512_set1_epi32(static_cast<int>(0xffff0000u))))}; }
OP F nearest_bits(F x) {
  const F c = mul(x, fset(65537.0f));                         // 2^16 + 1
  return sub(c, sub(c, x));
}
// Two vectors' upper halves in pairs: (x >> 16) | (y & top).
OP __m512i woven(F x, F y) {
  const __m512i a = _mm512_srli_epi32(_mm512_castps_si512(x.v), 16);
  return _mm512_ternarylogic_epi32(a, _mm512_castps_si512(y.v), _mm512_set1_epi32(static_cast<int>(0xffff0000u)), 0xf8);
}
OP void weave(F x, F y, uint16_t* to) { _mm512_store_si512(to, woven(x, y)); }
template <bool Cut> OP void weave(F x, F y, uint16_t* high, uint16_t* low) {
  const F a = Cut ? upper_bits(x) : nearest_bits(x), b = Cut ? upper_bits(y) : nearest_bits(y);
  weave(a, b, high);
  weave(sub(x, a), sub(y, b), low);
}

// Queries or probabilities as A tiles in two parts: step s of row i at row_at(i) + s * kTileHalves. A last tile's other rows may hold anything.
struct Rows { alignas(64) uint16_t high[kPassQueries * kStep * kMostSteps], low[kPassQueries * kStep * kMostSteps]; };
OP int row_at(int i) { return i / 16 * kMostSteps * kTileHalves + i % 16 * kStep; }
// Sixteen B tiles in two parts, 32 KB: a page's keys, of two columns and up to eight steps, or two columns of eight pages' values. They
// are multiplied from L1: a span's 128 KB took twice as long to write.
struct Woven { alignas(64) uint16_t high[16 * kTileHalves], low[16 * kTileHalves]; };
OP void weave_halves(const uint16_t* x, const uint16_t* y, Woven& to, int64_t at) { weave<true>(load_f16(x), load_f16(y), to.high + at, to.low + at); }

static void weave_queries(const Pass& s, Rows& to) {
  for (int i = 0; i < s.n; ++i)
    for (int e = 0, at = row_at(i); e < s.a.d; e += kStep, at += kTileHalves)
      weave<false>(fload(s.q[i] + e), fload(s.q[i] + e + 16), to.high + at, to.low + at);
}
// A page's keys are two columns, sixteen positions each; a step is 32 inputs.
static void weave_keys(const Pass& s, int page, Woven& to) {
  const uint16_t* x = reinterpret_cast<const uint16_t*>(s.page(page));
  const int64_t ahead = s.keys_ahead(page);
  for (int e = 0, at = 0; e < s.a.d; e += kStep, x += kPairs * kBlockTokens, at += kTileHalves)
    for (int i = 0; i < kPairs; ++i, x += kBlockTokens, at += 32) {
      const uint16_t* y = x + kPairs * kBlockTokens;
      prefetch(reinterpret_cast<const char*>(x) + ahead);
      prefetch(reinterpret_cast<const char*>(y) + ahead);
      weave_halves(x, y, to, at);
      weave_halves(x + 16, y + 16, to, at + kTileHalves);
    }
}
// A page's values are one step; N columns of sixteen outputs, from c0 on. Positions that no row of the pass sees count as zeros.
template <int N> static void weave_values(const Pass& s, int page, Range seen, int c0, Woven& to, int64_t at) {
  alignas(64) static const uint16_t kNone[16 * N] = {};
  const uint16_t* values = reinterpret_cast<const uint16_t*>(s.values(page)) + c0;
  const int64_t ahead = s.values_ahead(page);
  const Range r = clip(seen, page * kBlockTokens, kBlockTokens);
  for (int j = 0; j < kPairs; ++j, at += 32) {
    const uint16_t *x = values + j * s.a.dv, *y = x + kPairs * s.a.dv;
    for (int n = 0; n < N; n += 2) {
      prefetch(reinterpret_cast<const char*>(x + 16 * n) + ahead);
      prefetch(reinterpret_cast<const char*>(y + 16 * n) + ahead);
    }
    if (j < r.lo || j >= r.hi) x = kNone;
    if (j + kPairs < r.lo || j + kPairs >= r.hi) y = kNone;
    UNROLL for (int n = 0; n < N; ++n) weave_halves(x + 16 * n, y + 16 * n, to, at + n * kTileHalves);
  }
}

// R tiles of rows times N of columns: R * N sums, C 0 to 3. The order of a sum's products is the same for every R and N.
template <int R, int N> OP void tile_part(const uint16_t* a, const uint16_t* b) {
  _tile_loadd(4, a, 64);
  if constexpr (R == 2) _tile_loadd(5, a + kMostSteps * kTileHalves, 64);
  _tile_loadd(6, b, 64);
  _tile_dpbf16ps(0, 4, 6);
  if constexpr (R == 2) _tile_dpbf16ps(2, 5, 6);
  if constexpr (N >= 2) {
    _tile_loadd(7, b + kTileHalves, 64);
    _tile_dpbf16ps(1, 4, 7);
    if constexpr (R == 2) _tile_dpbf16ps(3, 5, 7);
  }
  if constexpr (N >= 3) { _tile_loadd(6, b + 2 * kTileHalves, 64); _tile_dpbf16ps(2, 4, 6); }
  if constexpr (N >= 4) { _tile_loadd(7, b + 3 * kTileHalves, 64); _tile_dpbf16ps(3, 4, 7); }
}
template <int R, int N> OP void tile_step(const Rows& a, int64_t x, const Woven& b, int64_t y) {
  tile_part<R, N>(a.high + x, b.high + y);
  tile_part<R, N>(a.low + x, b.high + y);
  tile_part<R, N>(a.high + x, b.low + y);
}
OP void tile_zeros() { _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3); }
template <int R, int N> OP void tile_store(float* out) {
  constexpr int kBytes = 4 * kScoreStride;
  _tile_stored(0, out, kBytes);
  if constexpr (N >= 2) _tile_stored(1, out + 16, kBytes);
  if constexpr (R == 2) _tile_stored(2, out + 16 * kScoreStride, kBytes);
  if constexpr (R == 2 && N == 2) _tile_stored(3, out + 16 * kScoreStride + 16, kBytes);
  if constexpr (N >= 3) _tile_stored(2, out + 32, kBytes);
  if constexpr (N >= 4) _tile_stored(3, out + 48, kBytes);
}
// Row tiles from `row` on times N columns of `steps` steps; the rows' steps count from `from`.
template <int R, int N> static void tile_sums(const Rows& a, int row, int from, const Woven& b, int steps, float* out) {
  tile_zeros();
  for (int s = 0; s < steps; ++s) tile_step<R, N>(a, row_at(row) + (from + s) * kTileHalves, b, int64_t{s} * N * kTileHalves);
  tile_store<R, N>(out + row * kScoreStride);
}
// All rows, in pairs of tiles so that four products are under way.
template <int N> static void all_rows(const Rows& a, int n, int from, const Woven& b, int steps, float* out) {
  settle();
  int row = 0;
  for (; row + 16 < n; row += 32) tile_sums<2, N>(a, row, from, b, steps, out);
  if (row < n) tile_sums<1, N>(a, row, from, b, steps, out);
  settle();
}

// Columns [c0, c0 + 16N) of the outputs. Up to sixteen rows' sums stay in tiles from page to page, beside the splitting of the next.
template <int N> static void few_outputs(const Pass& s, Range seen, int c0, const Rows& a, Woven& b, float* out) {
  tile_zeros();
  for (int page = s.pages.lo; page < s.pages.hi; ++page) {
    weave_values<N>(s, page, seen, c0, b, 0);
    settle();
    tile_step<1, N>(a, page * kTileHalves, b, 0);
  }
  tile_store<1, N>(out + c0);
  settle();
}
template <int N> static void many_outputs(const Pass& s, Range seen, int c0, const Rows& a, Woven& b, float* out) {
  for (int page = s.pages.lo; page < s.pages.hi; ++page) weave_values<N>(s, page, seen, c0, b, int64_t{page - s.pages.lo} * N * kTileHalves);
  all_rows<N>(a, s.n, s.pages.lo, b, s.pages.hi - s.pages.lo, out + c0);
}
static void outputs(const Pass& s, Range seen, const Rows& a, Woven& b, float* out) {
  int c = 0;
  if (s.n > 16) {
    for (; c + 32 <= s.a.dv; c += 32) many_outputs<2>(s, seen, c, a, b, out);
    if (c < s.a.dv) many_outputs<1>(s, seen, c, a, b, out);
    return;
  }
  for (; c + 64 <= s.a.dv; c += 64) few_outputs<4>(s, seen, c, a, b, out);
  for (; c < s.a.dv; c += 16) few_outputs<1>(s, seen, c, a, b, out);
}

// The second half of soften(), for rows of tiles: probabilities of the pass's pages, zeros where this row does not look.
static void soften_woven(Softmax x, Range r, Range pages, const float* scores, uint16_t* high, uint16_t* low, float* out) {
  const int v0 = r.lo / 16, v1 = (r.hi + 15) / 16;
  F sum[4] = {fzero(), fzero(), fzero(), fzero()};
  for (int v = pages.lo / 2 * 4; v < 2 * pages.hi; v += 4) {
    F p[4];
    if (v >= v0 && v + 4 <= v1) UNROLL for (int i = 0; i < 4; ++i) p[i] = soft(x, scores + 16 * (v + i));
    else UNROLL for (int i = 0; i < 4; ++i) p[i] = v + i >= v0 && v + i < v1 ? soft(x, scores + 16 * (v + i)) : fzero();
    UNROLL for (int i = 0; i < 4; ++i) sum[i] = add(sum[i], p[i]);
    const int at = v / 2 * kTileHalves;
    weave<true>(p[0], p[1], high + at, low + at);
    weave<true>(p[2], p[3], high + at + kTileHalves, low + at + kTileHalves);
  }
  out[0] = x.max;
  out[1] = hsum(add(add(sum[0], sum[1]), add(sum[2], sum[3])));
}
// All maxima first: a row's wait for its own is longer than its work.
static Range soften_rows(const Pass& s, float* scores, Rows& to) {
  Softmax x[kPassQueries];
  Range seen{kSpanTokens, 0};
  for (int i = 0; i < s.n; ++i) {
    const Range r = s.seen[i];
    x[i] = r.lo < r.hi ? hide(s.a, r, scores + i * kScoreStride) : Softmax{0.0f, -__builtin_inff()};
    if (r.lo == r.hi) continue;
    seen.lo = r.lo < seen.lo ? r.lo : seen.lo;
    seen.hi = r.hi > seen.hi ? r.hi : seen.hi;
  }
  for (int i = 0; i < s.n; ++i)
    soften_woven(x[i], s.seen[i], s.pages, scores + i * kScoreStride, to.high + row_at(i), to.low + row_at(i), s.out(i));
  return seen;
}

static void attend_woven(const Pass& s) {
  if (s.pages.lo >= s.pages.hi) return s.clear();
  alignas(64) float sums[kPassQueries * kScoreStride];        // scores, then outputs
  Rows rows;
  Woven woven;
  use_tiles(64, s.n < 16 ? s.n : 16);
  weave_queries(s, rows);
  for (int page = s.pages.lo; page < s.pages.hi; ++page) {
    weave_keys(s, page, woven);
    all_rows<2>(rows, s.n, 0, woven, s.a.d / kStep, sums + page * kBlockTokens);
  }
  outputs(s, soften_rows(s, sums, rows), rows, woven, sums);
  _tile_release();
  for (int i = 0; i < s.n; ++i) memcpy(s.out(i) + 2, sums + i * kScoreStride, sizeof(float) * static_cast<size_t>(s.a.dv));
}

// Other pages, widths and models take the way of all tables, whatever the number of rows. A span of 256 keys 64 wide costs one row
// 2.7 us and 0.1 for each head of the group by tiles, 0.6 and 0.45 by floats (in cache): they meet between six and seven.
constexpr int kFewestHeads = 6;
static void attend_span_tiles(const AttnArgs& a, int kv_head, int row0, int rows, int span, float* partial) {
  const bool fits = a.type == KvType::F16 && a.d % kStep == 0 && a.dv % 16 == 0 && a.d <= kMostWidth && a.dv <= kMostWidth;
  if (!fits || a.heads < kFewestHeads * a.kv_heads) return attend_span(a, kv_head, row0, rows, span, partial);
  each_pass(a, kv_head, row0, rows, span, partial, attend_woven);
}
