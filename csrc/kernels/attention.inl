// Causal attention of a tile's queries over one span of the paged cache, and the folding of spans.
// Knows pages through the block table; knows no sequence, no scheduler, no thread.
//
// A tile's queries are its rows times the heads that share this kv head, flattened: query i is row i / group.
// Prefill is bound by multiply-adds, decode by reading the pages; both walk a page once per pass of queries.
//
// Every sum has one order: scores sequential over d (a lane is a key), a row's exponentials by their place in the
// span, values sequential over key positions (a lane is an output). Blocks of queries only share loads.
// What a row cannot see never enters a product it keeps: key lanes are dropped before the maximum, and value rows
// outside a row's range are not read, for pages behind or beyond a sequence may hold anything, NaN included.

// Queries x vectors that accumulate in registers: of AVX-512's 32, 6*2 sums + 2 keys and 6*4 sums + 4 values;
// of AVX2's 16, where a vector takes two, 6*1 sums + 1 and a broadcast.
constexpr int kQueryBlock = 6;
constexpr bool kWideRegisters = alignof(F) == 64;
constexpr int kKeyVectors = kWideRegisters ? 2 : 1;
constexpr int kValueVectors = kWideRegisters ? 4 : 1;
constexpr int kPageVectors = kBlockTokens / 16;
constexpr int kSpanVectors = kSpanTokens / 16;
constexpr int kSpanPages = kSpanTokens / kBlockTokens;
// Queries of one pass: eight rows of eight heads. Their scores take 64 KiB of stack, a widened page part 16 KiB.
constexpr int kPassQueries = 64;
constexpr int kWideFloats = 4096;
// From three blocks of queries on, a page is widened to floats once instead of by every block.
constexpr int kWidenFrom = 2 * kQueryBlock + 1;

// Key positions [lo, hi) of a span, counted from its start.
struct Range { int lo, hi; };

// E: what the cache holds, uint16_t (f16) or float.
template <class E> struct Tile {
  const AttnArgs& a;
  int kv_head, row0, group, span;
  int row_of(int query) const { return row0 + query / group; }
  const float* q(int query) const {
    const int64_t head = static_cast<int64_t>(kv_head) * group + query % group;
    return a.q + row_of(query) * a.q_stride + head * a.d;
  }
  Range visible(int query) const {
    const int64_t start = static_cast<int64_t>(span) * kSpanTokens;
    const int64_t position = static_cast<int64_t>(a.first_position) + row_of(query);
    const int64_t first = a.window > 0 && position >= a.window ? position - a.window + 1 : 0;
    const int64_t lo = first > start ? first - start : 0;
    const int64_t hi = position + 1 - start < kSpanTokens ? position + 1 - start : kSpanTokens;
    return lo < hi ? Range{static_cast<int>(lo), static_cast<int>(hi)} : Range{0, 0};
  }
  const E* keys(int page) const {
    const int64_t block = a.block_table[static_cast<int64_t>(span) * kSpanPages + page];
    const int64_t head_elements = static_cast<int64_t>(a.d + a.dv) * kBlockTokens;
    return reinterpret_cast<const E*>(a.pages + block * a.page_bytes) + kv_head * head_elements;
  }
  const E* values(int page) const { return keys(page) + static_cast<int64_t>(a.d) * kBlockTokens; }
};

OP F widen(const uint16_t* p) { return load_f16(p); }
OP F widen(const float* p) { return fload(p); }

// Queries of a pass in blocks of nearly equal size: 7 as 4 + 3, which halves no register block.
OP int next_block(int left) {
  const int blocks = (left + kQueryBlock - 1) / kQueryBlock;
  return (left + blocks - 1) / blocks;
}

// scores[i][0..32) of a page += sum over e < d of q_i[e] * key[e][.]; first: start from zero.
template <int Q, class K>
static void score_block(const float* const* q, const K* keys, int d, bool first, float* const* scores) {
  for (int v = 0; v < kPageVectors; v += kKeyVectors) {
    F acc[Q][kKeyVectors];
    for (int i = 0; i < Q; ++i)
      for (int j = 0; j < kKeyVectors; ++j) acc[i][j] = first ? fzero() : fload(scores[i] + 16 * (v + j));
    for (int e = 0; e < d; ++e) {
      F key[kKeyVectors];
      for (int j = 0; j < kKeyVectors; ++j) key[j] = widen(keys + e * kBlockTokens + 16 * (v + j));
      for (int i = 0; i < Q; ++i) {
        const F x = fset(q[i][e]);
        for (int j = 0; j < kKeyVectors; ++j) acc[i][j] = fma(x, key[j], acc[i][j]);
      }
    }
    for (int i = 0; i < Q; ++i)
      for (int j = 0; j < kKeyVectors; ++j) fstore(scores[i] + 16 * (v + j), acc[i][j]);
  }
}

template <class K>
static void score_queries(int n, const float* const* q, const K* keys, int d, bool first, float* const* scores) {
  switch (n) {
    case 1: return score_block<1>(q, keys, d, first, scores);
    case 2: return score_block<2>(q, keys, d, first, scores);
    case 3: return score_block<3>(q, keys, d, first, scores);
    case 4: return score_block<4>(q, keys, d, first, scores);
    case 5: return score_block<5>(q, keys, d, first, scores);
    default: return score_block<6>(q, keys, d, first, scores);
  }
}

// Inputs [e0, e0+d) of every query against a page's keys, which are those inputs' rows.
template <class E, class K>
static void score_part(const Tile<E>& t, int query0, int n, int page, const K* keys, int e0, int d, float* scores) {
  for (int i = 0; i < n;) {
    const int block = next_block(n - i);
    const float* q[kQueryBlock];
    float* s[kQueryBlock];
    for (int j = 0; j < block; ++j) {
      q[j] = t.q(query0 + i + j) + e0;
      s[j] = scores + (i + j) * kSpanTokens + page * kBlockTokens;
    }
    score_queries(block, q, keys, d, e0 == 0, s);
    i += block;
  }
}

template <class E>
static void score_page(const Tile<E>& t, int query0, int n, int page, float* scores, float* wide) {
  const E* keys = t.keys(page);
  if (n < kWidenFrom || sizeof(E) == sizeof(float)) return score_part(t, query0, n, page, keys, 0, t.a.d, scores);
  constexpr int kPart = kWideFloats / kBlockTokens;
  for (int e0 = 0; e0 < t.a.d; e0 += kPart) {
    const int d = t.a.d - e0 < kPart ? t.a.d - e0 : kPart;
    const E* part = keys + static_cast<int64_t>(e0) * kBlockTokens;
    for (int i = 0; i < d * kBlockTokens; i += 16) fstore(wide + i, widen(part + i));
    score_part(t, query0, n, page, static_cast<const float*>(wide), e0, d, scores);
  }
}

// Scaled, capped scores of one vector, minus infinity where the row does not see.
OP F visible_scores(const AttnArgs& a, F s, int at, Range r) {
  alignas(64) static const float kLanes[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  s = mul(s, fset(a.scale));
  if (a.softcap > 0.0f) s = fsoftcap(s, fset(a.softcap));
  if (at >= r.lo && at + 16 <= r.hi) return s;
  const F lane = add(fload(kLanes), fset(static_cast<float>(at)));
  const F hidden = fset(-__builtin_inff());
  return select_lt(lane, fset(static_cast<float>(r.hi)), select_lt(lane, fset(static_cast<float>(r.lo)), hidden, s), hidden);
}

// Turns a row's scores into exp(score - max) and reports max and sum. Four sums take vectors by their place in the
// span; a hidden lane gives exp(-inf) = 0.
static void soften(const AttnArgs& a, Range r, float* scores, float* max, float* sum) {
  const int v0 = r.lo / 16, v1 = (r.hi + 15) / 16;
  F top = fset(-__builtin_inff());
  for (int v = v0; v < v1; ++v) {
    const F s = visible_scores(a, fload(scores + 16 * v), 16 * v, r);
    fstore(scores + 16 * v, s);
    top = fmax(s, top);
  }
  const float m = hmax(top);
  F acc[4] = {fzero(), fzero(), fzero(), fzero()};
  for (int v = v0; v < v1; ++v) {
    const F p = fexp(sub(fload(scores + 16 * v), fset(m)));
    fstore(scores + 16 * v, p);
    acc[v & 3] = add(acc[v & 3], p);
  }
  *max = m;
  *sum = hsum(add(add(acc[0], acc[1]), add(acc[2], acc[3])));
}

// out_i[0..16V) += sum over keys j in [lo, hi) of p_i[j] * value[j], the last vector `tail` lanes long.
template <int Q, int V, class T>
static void value_block(const float* const* p, const T* values, int64_t stride, Range r, int tail, float* const* out) {
  F acc[Q][V];
  for (int i = 0; i < Q; ++i)
    for (int v = 0; v < V; ++v) acc[i][v] = v == V - 1 && tail < 16 ? fload_n(out[i] + 16 * v, tail) : fload(out[i] + 16 * v);
  for (int j = r.lo; j < r.hi; ++j) {
    F x[V];
    for (int v = 0; v < V; ++v) x[v] = widen(values + j * stride + 16 * v);
    for (int i = 0; i < Q; ++i) {
      const F w = fset(p[i][j]);
      for (int v = 0; v < V; ++v) acc[i][v] = fma(w, x[v], acc[i][v]);
    }
  }
  for (int i = 0; i < Q; ++i)
    for (int v = 0; v < V; ++v) {
      if (v == V - 1 && tail < 16) fstore_n(out[i] + 16 * v, acc[i][v], tail);
      else fstore(out[i] + 16 * v, acc[i][v]);
    }
}

template <int V, class T>
static void value_queries(int n, const float* const* p, const T* values, int64_t stride, Range r, int tail, float* const* out) {
  switch (n) {
    case 1: return value_block<1, V>(p, values, stride, r, tail, out);
    case 2: return value_block<2, V>(p, values, stride, r, tail, out);
    case 3: return value_block<3, V>(p, values, stride, r, tail, out);
    case 4: return value_block<4, V>(p, values, stride, r, tail, out);
    case 5: return value_block<5, V>(p, values, stride, r, tail, out);
    default: return value_block<6, V>(p, values, stride, r, tail, out);
  }
}

// The same for `width` outputs, starting where out points; wide blocks of vectors first.
template <class T>
static void value_range(int n, const float* const* p, const T* values, int64_t stride, Range r, int width, float* const* out) {
  float* o[kQueryBlock];
  int c = 0;
  for (; c + 16 * kValueVectors <= width; c += 16 * kValueVectors) {
    for (int i = 0; i < n; ++i) o[i] = out[i] + c;
    value_queries<kValueVectors>(n, p, values + c, stride, r, 16, o);
  }
  for (; c < width; c += 16) {
    for (int i = 0; i < n; ++i) o[i] = out[i] + c;
    value_queries<1>(n, p, values + c, stride, r, width - c < 16 ? width - c : 16, o);
  }
}

OP Range clip(Range r, int page) {
  const int start = page * kBlockTokens;
  const int lo = r.lo > start ? r.lo - start : 0, hi = r.hi - start < kBlockTokens ? r.hi - start : kBlockTokens;
  return lo < hi ? Range{lo, hi} : Range{0, 0};
}

// A block of queries against one page. Keys that all of them see go together; before and after, each row alone.
template <class T>
static void value_rows(int n, const Range* seen, const float* const* p, const T* values, int64_t stride, int width, float* const* out) {
  Range common = seen[0];
  for (int i = 1; i < n; ++i) {
    common.lo = seen[i].lo > common.lo ? seen[i].lo : common.lo;
    common.hi = seen[i].hi < common.hi ? seen[i].hi : common.hi;
  }
  if (common.lo >= common.hi) {
    for (int i = 0; i < n; ++i)
      if (seen[i].lo < seen[i].hi) value_range(1, p + i, values, stride, seen[i], width, out + i);
    return;
  }
  for (int i = 0; i < n; ++i)
    if (seen[i].lo < common.lo) value_range(1, p + i, values, stride, {seen[i].lo, common.lo}, width, out + i);
  value_range(n, p, values, stride, common, width, out);
  for (int i = 0; i < n; ++i)
    if (common.hi < seen[i].hi) value_range(1, p + i, values, stride, {common.hi, seen[i].hi}, width, out + i);
}

// Outputs [c0, c0+width) of every query += their probabilities times a page's values, which start at that column.
template <class E, class T>
static void value_part(const Tile<E>& t, int query0, int n, int page, const T* values, int64_t stride, int c0, int width,
                       const float* scores, float* partial) {
  for (int i = 0; i < n;) {
    const int block = next_block(n - i);
    const float* p[kQueryBlock];
    float* out[kQueryBlock];
    Range seen[kQueryBlock] = {};
    for (int j = 0; j < block; ++j) {
      p[j] = scores + (i + j) * kSpanTokens + page * kBlockTokens;
      out[j] = partial + static_cast<int64_t>(i + j) * (2 + t.a.dv) + 2 + c0;
      seen[j] = clip(t.visible(query0 + i + j), page);
    }
    value_rows(block, seen, p, values, stride, width, out);
    i += block;
  }
}

// Rows [lo, hi) of a page's values, columns [c0, c0+width), as floats in rows of `stride`; zeros behind the last.
template <class E>
static void widen_values(const E* values, int dv, Range r, int c0, int width, int stride, float* wide) {
  for (int j = r.lo; j < r.hi; ++j) {
    const E* row = values + static_cast<int64_t>(j) * dv + c0;
    int i = 0;
    for (; i + 16 <= width; i += 16) fstore(wide + j * stride + i, widen(row + i));
    if (i == width) continue;
    E rest[16] = {};
    memcpy(rest, row + i, sizeof(E) * static_cast<size_t>(width - i));
    fstore(wide + j * stride + i, widen(rest));
  }
}

// A width that is no multiple of 16 is always widened: its last vector would reach beyond the page.
template <class E>
static void value_page(const Tile<E>& t, int query0, int n, Range tile, int page, const float* scores, float* partial, float* wide) {
  const E* values = t.values(page);
  const int dv = t.a.dv;
  if ((n < kWidenFrom || sizeof(E) == sizeof(float)) && dv % 16 == 0) return value_part(t, query0, n, page, values, dv, 0, dv, scores, partial);
  constexpr int kPart = kWideFloats / kBlockTokens;
  for (int c0 = 0; c0 < dv; c0 += kPart) {
    const int width = dv - c0 < kPart ? dv - c0 : kPart;
    widen_values(values, dv, clip(tile, page), c0, width, kPart, wide);
    value_part(t, query0, n, page, static_cast<const float*>(wide), kPart, c0, width, scores, partial);
  }
}

template <class E>
static void attend_pass(const Tile<E>& t, int query0, int n, float* partial) {
  alignas(64) float scores[kPassQueries * kSpanTokens];
  alignas(64) float wide[kWideFloats];
  const int64_t stride = 2 + t.a.dv;
  Range tile{kSpanTokens, 0};
  for (int i = 0; i < n; ++i) {
    float* out = partial + i * stride;
    out[0] = -__builtin_inff();
    for (int64_t c = 1; c < stride; ++c) out[c] = 0.0f;
    const Range r = t.visible(query0 + i);
    if (r.lo == r.hi) continue;
    tile.lo = r.lo < tile.lo ? r.lo : tile.lo;
    tile.hi = r.hi > tile.hi ? r.hi : tile.hi;
  }
  if (tile.lo >= tile.hi) return;
  const int page0 = tile.lo / kBlockTokens, page1 = (tile.hi + kBlockTokens - 1) / kBlockTokens;
  for (int page = page0; page < page1; ++page) score_page(t, query0, n, page, scores, wide);
  for (int i = 0; i < n; ++i) {
    const Range r = t.visible(query0 + i);
    float* out = partial + i * stride;
    if (r.lo < r.hi) soften(t.a, r, scores + i * kSpanTokens, out, out + 1);
  }
  for (int page = page0; page < page1; ++page) value_page(t, query0, n, tile, page, scores, partial, wide);
}

template <class E>
static void attend_rows(const AttnArgs& a, int kv_head, int row0, int rows, int span, float* partial) {
  const Tile<E> t{a, kv_head, row0, a.heads / a.kv_heads, span};
  const int queries = rows * t.group;
  for (int i = 0; i < queries; i += kPassQueries)
    attend_pass(t, i, queries - i < kPassQueries ? queries - i : kPassQueries, partial + static_cast<int64_t>(i) * (2 + a.dv));
}

static void attend_span(const AttnArgs& a, int kv_head, int row0, int rows, int span, float* partial) {
  (a.f32 ? attend_rows<float> : attend_rows<uint16_t>)(a, kv_head, row0, rows, span, partial);
}

// running = running * a + partial * b. One of a and b is 1 exactly, or either is NaN and so is all that follows.
static void fold(float* running, float a, const float* partial, float b, int64_t n) {
  const F fa = fset(a), fb = fset(b);
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) fstore(running + i, fma(fload(running + i), fa, mul(fload(partial + i), fb)));
  const int rest = static_cast<int>(n - i);
  if (rest) fstore_n(running + i, fma(fload_n(running + i, rest), fa, mul(fload_n(partial + i, rest), fb)), rest);
}

// A span that a row cannot see changes no bit, so callers may leave such spans out.
static void attend_merge(float* running, const float* partial, int count, int dv) {
  const int64_t stride = 2 + static_cast<int64_t>(dv);
  const float none = -__builtin_inff();
  for (int i = 0; i < count; ++i, running += stride, partial += stride) {
    if (partial[0] == none && partial[1] == 0.0f) continue;
    if (running[0] == none && running[1] == 0.0f) {
      memcpy(running, partial, sizeof(float) * static_cast<size_t>(stride));
      continue;
    }
    const float m = running[0] > partial[0] ? running[0] : partial[0];
    const float a = fexp1(running[0] - m), b = fexp1(partial[0] - m);
    running[0] = m;
    fold(running + 1, a, partial + 1, b, stride - 1);
  }
}

static void attend_finish(const AttnArgs& a, int kv_head, int row, const float* running) {
  const int group = a.heads / a.kv_heads;
  float* out = a.out + row * a.out_stride + static_cast<int64_t>(kv_head) * group * a.dv;
  for (int g = 0; g < group; ++g, out += a.dv, running += 2 + a.dv) {
    const F l = fset(running[1]);
    int i = 0;
    for (; i + 16 <= a.dv; i += 16) fstore(out + i, div(fload(running + 2 + i), l));
    const int rest = a.dv - i;
    if (rest) fstore_n(out + i, div(fload_n(running + 2 + i, rest), l), rest);
  }
}

static void fill_attention(Kernels& t) {
  t.attend_span = attend_span;
  t.attend_merge = attend_merge;
  t.attend_finish = attend_finish;
}
