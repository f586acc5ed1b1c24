// The second half of attention over float pages: rows of probabilities times a span's values.
// Included by attention.inl, whose passes and ranges it takes; knows pages, no scores' meaning.

// out_i[0..16V) += sum over keys j in [lo, hi) of p_i[j] * value[j]; a vector alone may be `tail` lanes long.
template <class T, int V> struct Value {
  template <int Q> struct Block {
    static void run(const float* const* p, const T* values, int64_t stride, Range r, int64_t ahead, int tail, float* const* out) {
      F acc[Q][V];
      UNROLL for (int i = 0; i < Q; ++i)
        UNROLL for (int v = 0; v < V; ++v) acc[i][v] = V == 1 ? fload_n(out[i], tail) : fload(out[i] + 16 * v);
      for (int j = r.lo; j < r.hi; ++j) {
        F x[V];
        UNROLL for (int v = 0; v < V; ++v) x[v] = widen(values + j * stride + 16 * v);
        if (sizeof(T) == 2) prefetch(reinterpret_cast<const char*>(values + j * stride) + ahead);
        UNROLL for (int i = 0; i < Q; ++i) {
          const F w = fset(p[i][j]);
          UNROLL for (int v = 0; v < V; ++v) acc[i][v] = fma(w, x[v], acc[i][v]);
        }
      }
      UNROLL for (int i = 0; i < Q; ++i)
        UNROLL for (int v = 0; v < V; ++v) V == 1 ? fstore_n(out[i], acc[i][v], tail) : fstore(out[i] + 16 * v, acc[i][v]);
    }
  };
};

// Values of a page as they are multiplied: rows of `stride`, `width` columns of them; ahead as in Pass.
template <class T> struct Columns { const T* at; int64_t stride; int width; int64_t ahead; };

// A block's sums over keys [lo, hi); wide blocks of vectors first.
template <class T>
static void value_range(int n, const float* const* p, Columns<T> x, Range r, float* const* out) {
  float* o[kQueryBlock];
  int c = 0;
  for (; c + 16 * kVectors <= x.width; c += 16 * kVectors) {
    for (int i = 0; i < n; ++i) o[i] = out[i] + c;
    by_count<Value<T, kVectors>::template Block>(n, p, x.at + c, x.stride, r, x.ahead, 16, static_cast<float* const*>(o));
  }
  for (; c < x.width; c += 16) {
    for (int i = 0; i < n; ++i) o[i] = out[i] + c;
    const int tail = x.width - c < 16 ? x.width - c : 16;
    by_count<Value<T, 1>::template Block>(n, p, x.at + c, x.stride, r, x.ahead, tail, static_cast<float* const*>(o));
  }
}

// Part of a range that lies in positions [start, start+n), counted from there.
OP Range clip(Range r, int start, int n) {
  const int lo = r.lo > start ? r.lo - start : 0, hi = r.hi - start < n ? r.hi - start : n;
  return lo < hi ? Range{lo, hi} : Range{0, 0};
}

// A block of queries against some values. Keys that all of them see go together; before and after, each row alone.
template <class T>
static void value_rows(int n, const Range* seen, const float* const* p, Columns<T> x, float* const* out) {
  Range common = seen[0];
  for (int i = 1; i < n; ++i) {
    common.lo = seen[i].lo > common.lo ? seen[i].lo : common.lo;
    common.hi = seen[i].hi < common.hi ? seen[i].hi : common.hi;
  }
  if (common.lo >= common.hi) {
    for (int i = 0; i < n; ++i)
      if (seen[i].lo < seen[i].hi) value_range(1, p + i, x, seen[i], out + i);
    return;
  }
  for (int i = 0; i < n; ++i)
    if (seen[i].lo < common.lo) value_range(1, p + i, x, {seen[i].lo, common.lo}, out + i);
  value_range(n, p, x, common, out);
  for (int i = 0; i < n; ++i)
    if (common.hi < seen[i].hi) value_range(1, p + i, x, {common.hi, seen[i].hi}, out + i);
}

// Outputs [c0, c0+width) of every query += their probabilities times `keys` values from position `start` on; x starts
// at that position and column.
template <class T>
static void value_part(const Pass& s, int start, int keys, Columns<T> x, int c0, const float* scores) {
  for (int i = 0; i < s.n;) {
    const int block = next_block(s.n - i);
    const float* p[kQueryBlock];
    float* out[kQueryBlock];
    Range seen[kQueryBlock] = {};
    for (int j = 0; j < block; ++j) {
      p[j] = scores + (i + j) * kScoreStride + start;
      out[j] = s.out(i + j) + 2 + c0;
      seen[j] = clip(s.seen[i + j], start, keys);
    }
    value_rows(block, seen, p, x, out);
    i += block;
  }
}

// Positions [lo, hi) of the span, columns [c0, c0+width) of their values, as floats in rows of kWideColumns; zeros after.
template <class E>
static void widen_values(const Pass& s, Range r, int c0, int width, float* wide) {
  for (int j = r.lo; j < r.hi; ++j, wide += kWideColumns) {
    const E* row = reinterpret_cast<const E*>(s.values(j / kBlockTokens)) + static_cast<int64_t>(j % kBlockTokens) * s.a.dv + c0;
    int i = 0;
    for (; i + 16 <= width; i += 16) fstore(wide + i, widen(row + i));
    if (i == width) continue;
    E rest[16] = {};
    memcpy(rest, row + i, sizeof(E) * static_cast<size_t>(width - i));
    fstore(wide + i, widen(rest));
  }
}

template <class E>
static void value_wide(const Pass& s, Range tile, const float* scores, float* wide) {
  for (int start = tile.lo; start < tile.hi; start += kWideKeys) {
    const int keys = tile.hi - start < kWideKeys ? tile.hi - start : kWideKeys;
    for (int c = 0; c < s.a.dv; c += kWideColumns) {
      const int width = s.a.dv - c < kWideColumns ? s.a.dv - c : kWideColumns;
      widen_values<E>(s, {start, start + keys}, c, width, wide);
      value_part(s, start, keys, Columns<float>{wide, kWideColumns, width, 0}, c, scores);
    }
  }
}

// A width other than a multiple of 16 is always widened: its last vector would reach beyond the page.
template <class E>
static void value_span(const Pass& s, Range tile, const float* scores, float* wide) {
  if ((s.n >= kWidenFrom && sizeof(E) == 2) || s.a.dv % 16) return value_wide<E>(s, tile, scores, wide);
  for (int page = s.pages.lo; page < s.pages.hi; ++page) {
    const E* values = reinterpret_cast<const E*>(s.values(page));
    value_part(s, page * kBlockTokens, kBlockTokens, Columns<E>{values, s.a.dv, s.a.dv, s.values_ahead(page)}, 0, scores);
  }
}
