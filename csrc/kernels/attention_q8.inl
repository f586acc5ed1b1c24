// Attention over pages of codes: scores and values as integer dots, four inputs or four positions of sixteen lanes each.
// Included by attention.inl, whose passes, softmax and partials it shares; knows the layout of codes in kernels.h.
//
// Only what the cache rounded is coarse. A query, and a row's probabilities times the values' scales, become two int8
// rows: high * 254 + low, 15 bits. The second dot of a byte is cheap beside fetching it.
// Integer sums are exact, so no order of positions or blocks matters; the float steps take one row, one span.

// Queries whose two rows of sums stay in registers: of AVX-512's 32, 16 sums + 1 of the page + 1; of AVX2's 16, where a
// vector takes two, 4 pairs leave room for the halves a full dot splits into. Two vectors of the page at once would halve
// the broadcasts, but GCC then keeps a copy of every sum in memory (106 GFLOPS a core at
// width 64 where this gives 133).
constexpr int kCodeBlock = kWideRegisters ? 8 : 2;
constexpr float kHigh = 254.0f, kCodeMax = 127.0f * kHigh;

// n floats as codes: x ~ scale * (254 * high + low).
struct Codes { const int8_t *high, *low; int32_t high_sum, low_sum; float scale; };

// Quantises n (a multiple of 16) floats. NaN or infinity makes the scale NaN.
OP Codes split_codes(const float* x, int n, int8_t* high, int8_t* low) {
  F top = fzero(), bad = fzero();                            // x * 0 is NaN for NaN and infinity
  for (int i = 0; i < n; i += 16) {
    const F v = fload(x + i);
    top = fmax(top, fabs(v));
    bad = fma(v, fzero(), bad);
  }
  const float most = hmax(top), nan = hsum(bad);
  const bool zero = !(most > 1e-30f) || nan != nan;          // the inverse must stay finite
  const F inverse = fset(zero ? 0.0f : kCodeMax / most);
  I high_sum = izero(), low_sum = izero();
  for (int i = 0; i < n; i += 16) {
    const F v = zero ? fzero() : mul(fload(x + i), inverse);
    const F h = fround(mul(v, fset(1.0f / kHigh)));
    const I hi = to_int(h), lo = to_int(fnma(h, fset(kHigh), v));
    store_i8(high + i, hi);
    store_i8(low + i, lo);
    high_sum = iadd(high_sum, hi);
    low_sum = iadd(low_sum, lo);
  }
  return {high, low, hsum(high_sum), hsum(low_sum), nan != nan ? nan : zero ? 0.0f : most / kCodeMax};
}

// A stretch of a page's codes: a vector's quads [0, n), `stride` bytes apart, for the rows' codes from `at` on.
struct Stretch { const uint8_t* codes; int64_t stride; int n, at; int64_t ahead; };

// Sums + kCodeQuads quads' dots, of the codes from `at` on with those at w.
template <int J, int Q> OP void code_quad(I* high, I* low, const Sixteen* h, const Sixteen* l, const uint8_t* w, const Stretch& t) {
  if constexpr (J < kCodeQuads) {
    const I c = byte_codes(bload(w));
    prefetch(w + t.ahead);
    UNROLL for (int i = 0; i < Q; ++i) {
      high[i] = dot4_full_of<J>(high[i], c, h[i]);
      low[i] = dot4_full_of<J>(low[i], c, l[i]);
    }
    code_quad<J + 1, Q>(high, low, h, l, w + t.stride, t);
  }
}
template <int Q> OP void code_quads(I* high, I* low, const Codes* x, int at, const uint8_t* w, const Stretch& t) {
  Sixteen h[Q], l[Q];
  UNROLL for (int i = 0; i < Q; ++i) { h[i] = sixteen(x[i].high + at); l[i] = sixteen(x[i].low + at); }
  code_quad<0, Q>(high, low, h, l, w, t);
}

// Dots of Q queries' codes with one vector of the page's, over all of `count` stretches; store(i, f) takes query i's.
template <int Q, class Next, class Store>
OP void code_dots(const Codes* x, int count, Next next, Store store) {
  I high[Q], low[Q];
  UNROLL for (int i = 0; i < Q; ++i) high[i] = low[i] = izero();
  for (int s = 0; s < count; ++s) {
    const Stretch t = next(s);
    const uint8_t* w = t.codes;
    const int end = t.at + 4 * t.n;
    int at = t.at;
    for (; at + 4 * kCodeQuads <= end; at += 4 * kCodeQuads, w += kCodeQuads * t.stride) code_quads<Q>(high, low, x, at, w, t);
    for (; kCodeQuads > 1 && at < end; at += 4, w += t.stride) {
      const I c = byte_codes(bload(w));
      UNROLL for (int i = 0; i < Q; ++i) {
        high[i] = dot4_full(high[i], c, quad(x[i].high + at));
        low[i] = dot4_full(low[i], c, quad(x[i].low + at));
      }
    }
  }
  constexpr int kOffset = 128 - kByteBias;                   // of the page's codes
  UNROLL for (int i = 0; i < Q; ++i) {
    const F h = to_float(iadd(high[i], iset(-kOffset * x[i].high_sum))), l = to_float(iadd(low[i], iset(-kOffset * x[i].low_sum)));
    store(i, mul(fma(h, fset(kHigh), l), fset(x[i].scale)));
  }
}

// scores[i][0..32) of a page: dots of its keys' codes times both scales.
template <int Q> struct CodeScore {
  static void run(const Codes* q, const uint8_t* keys, const float* scales, int quads, int64_t ahead, float* scores) {
    for (int v = 0; v < kPageVectors; ++v) {
      const F scale = fload(scales + 16 * v);
      code_dots<Q>(
          q, 1, [=](int) { return Stretch{keys + 64 * v, 64 * kPageVectors, quads, 0, ahead}; },
          [=](int i, F s) { fstore(scores + i * kScoreStride + 16 * v, mul(s, scale)); });
    }
  }
};

// out[i][0..width) = sum over the span of p_i[j] * value[j], up to sixteen columns; what a row cannot see has codes 0.
template <int Q> struct CodeValue {
  static void run(const Pass& s, const Codes* p, int column, float* out) {
    const int64_t quad_bytes = static_cast<int64_t>(s.a.dv + 15) / 16 * 64, stride = 2 + s.a.dv;
    const int width = s.a.dv - column < 16 ? s.a.dv - column : 16;
    code_dots<Q>(
        p, s.pages.hi - s.pages.lo,
        [&s, column, quad_bytes](int i) {
          const int page = s.pages.lo + i;
          return Stretch{s.values(page) + 4 * column, quad_bytes, kBlockTokens / 4, page * kBlockTokens, s.values_ahead(page)};
        },
        [out, stride, width](int i, F y) { width < 16 ? fstore_n(out + i * stride, y, width) : fstore(out + i * stride, y); });
  }
};

static void code_values(const Pass& s, int n, const Codes* p, float* out) {
  for (int c = 0; c < s.a.dv; c += 16) by_count<CodeValue, kCodeBlock>(n, s, p, c, out + c);
}

// A row's probabilities times the scales of their values, as codes; 0 for what it cannot see. The pages' scales are
// gathered already.
OP Codes weight_codes(const Pass& s, int query, const float* scales, float* p, int8_t* high, int8_t* low) {
  const Range r = s.seen[query];
  for (int at = s.pages.lo * kBlockTokens; at < s.pages.hi * kBlockTokens; at += 16) {
    const bool any = at + 16 > r.lo && at < r.hi;
    fstore(p + at, any ? select_seen(r, at, mul(fload(p + at), fload(scales + at)), fzero()) : fzero());
  }
  const int first = s.pages.lo * kBlockTokens;
  Codes c = split_codes(p + first, s.pages.hi * kBlockTokens - first, high + first, low + first);
  c.high = high;
  c.low = low;
  return c;
}

OP Codes query_codes(const float* q, int d, int8_t* high, int8_t* low) {
  float x[kMaxCodeWidth];
  for (int i = d; i % 16; ++i) x[i] = 0.0f;
  memcpy(x, q, sizeof(float) * static_cast<size_t>(d));
  return split_codes(x, (d + 15) / 16 * 16, high, low);
}

// Queries [i, i+n) of a pass from their codes to their partials. values: the scales of the span's values.
static void attend_code_block(const Pass& s, int i, int n, const float* values, float* scores, int8_t* codes) {
  const int quads = (s.a.d + 3) / 4;
  Codes x[kCodeBlock];
  for (int j = 0; j < n; ++j) x[j] = query_codes(s.q[i + j], s.a.d, codes + 2 * j * kMaxCodeWidth, codes + (2 * j + 1) * kMaxCodeWidth);
  for (int page = s.pages.lo; page < s.pages.hi; ++page) {
    const float* scales = reinterpret_cast<const float*>(s.page(page) + kv_scales_at(s.a.d, s.a.dv));
    by_count<CodeScore, kCodeBlock>(n, static_cast<const Codes*>(x), s.page(page), scales, quads, s.keys_ahead(page), scores + page * kBlockTokens);
  }
  for (int j = 0; j < n; ++j) {
    float* p = scores + j * kScoreStride;
    if (s.seen[i + j].lo < s.seen[i + j].hi) soften(s.a, s.seen[i + j], p, s.out(i + j), s.out(i + j) + 1);
    x[j] = weight_codes(s, i + j, values, p, codes + 2 * j * kMaxCodeWidth, codes + (2 * j + 1) * kMaxCodeWidth);
  }
  code_values(s, n, x, s.out(i) + 2);
}

static void attend_codes(const Pass& s) {
  static_assert(kMaxCodeWidth >= kSpanTokens);
  alignas(64) float scores[kCodeBlock * kScoreStride];
  alignas(64) float values[kSpanTokens];
  alignas(64) int8_t codes[2 * kCodeBlock * kMaxCodeWidth];
  const int64_t at = kv_scales_at(s.a.d, s.a.dv) + int64_t{sizeof(float)} * kBlockTokens;
  for (int page = s.pages.lo; page < s.pages.hi; ++page)
    memcpy(values + page * kBlockTokens, s.page(page) + at, sizeof(float) * kBlockTokens);
  for (int i = 0; i < s.n; i += kCodeBlock) attend_code_block(s, i, s.n - i < kCodeBlock ? s.n - i : kCodeBlock, values, scores, codes);
}
