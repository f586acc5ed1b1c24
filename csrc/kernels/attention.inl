// Causal attention of a tile's queries over one span of the paged cache, and the folding of spans.
// Knows pages through the block table; knows no sequence, no scheduler, no thread. Pages of codes: attention_q8.inl.
//
// A tile's queries are its rows times the heads that share this kv head, flattened: query i is row i / group.
// Prefill is bound by multiply-adds, decode by reading the pages; both walk a page once per pass of queries.
//
// Every sum has one order: scores sequential over d (a lane is a key), a row's exponentials by their place in the
// span, values sequential over key positions (a lane is an output). Blocks of queries only share loads.
// Rows of a picture may see each other: a row's end is beyond its own position then (AttnArgs::ends).
// What a row cannot see never enters a product it keeps: key lanes are dropped before the maximum, and value rows
// outside a row's range are not read, for a page's other positions may hold anything, NaN included.

// Queries x vectors that accumulate in registers: of AVX-512's 32, 12*2 sums + 2 of the page + 1 broadcast; of AVX2's
// 16, where a vector takes two, 6*1 sums + 1 and a broadcast. Two vectors a query also make a page's 64-byte line.
constexpr bool kWideRegisters = alignof(F) == 64;
constexpr int kQueryBlock = kWideRegisters ? 12 : 6;
constexpr int kVectors = kWideRegisters ? 2 : 1;
constexpr int kPageVectors = kBlockTokens / 16;
constexpr int kSpanPages = kSpanTokens / kBlockTokens;
constexpr int kPassQueries = kAttnTileQueries;
// Sixteen floats more than a span: at a stride of 1 KB all queries' scores would share a handful of L1 sets.
constexpr int kScoreStride = kSpanTokens + 16;
// A page's keys, or 128 values' 32 columns, widened: 16 KB, half of a small L1, and a loop of 128 products.
constexpr int kWideFloats = 4096;
constexpr int kWideColumns = 16 * kVectors, kWideKeys = kWideFloats / kWideColumns;
// From two blocks of queries on, a page is widened to floats once instead of by every block.
constexpr int kWidenFrom = kQueryBlock + 1;
// Pages that are asked for ahead of the one being read: 4 to 8 KB, more than memory's latency takes. The machine's own
// prefetcher stops at every page's end, and pages lie anywhere.
constexpr int kPagesAhead = 2;

// Key positions [lo, hi) of a span, counted from its start; or pages of it.
struct Range { int lo, hi; };

// Up to kPassQueries queries of one kv head over one span.
struct Pass {
  const AttnArgs& a;
  int kv_head, span, n, last_page;            // last_page: of the sequence, as far as this tile may look
  Range pages{kSpanPages, 0};                 // that any query sees
  const float* q[kPassQueries];
  Range seen[kPassQueries];
  float* partial;                             // of the first query

  Pass(const AttnArgs& args, int head, int span_, int row0, int query0, int count, float* out)
      : a(args), kv_head(head), span(span_), n(count), partial(out) {
    const int group = a.heads / a.kv_heads;
    int row = row0 + query0 / group, g = query0 % group;
    for (int i = 0; i < n; ++i) {
      q[i] = a.q + row * a.q_stride + (static_cast<int64_t>(kv_head) * group + g) * a.d;
      seen[i] = visible(row);
      if (seen[i].lo < seen[i].hi) {
        pages.lo = seen[i].lo / kBlockTokens < pages.lo ? seen[i].lo / kBlockTokens : pages.lo;
        const int end = (seen[i].hi + kBlockTokens - 1) / kBlockTokens;
        pages.hi = end > pages.hi ? end : pages.hi;
      }
      const int page_seen = static_cast<int>((end_of(row) - 1) / kBlockTokens);
      last_page = i && last_page > page_seen ? last_page : page_seen;
      if (++g == group) { g = 0; ++row; }
    }
  }
  int64_t end_of(int row) const { return a.ends ? a.ends[row] : static_cast<int64_t>(a.first_position) + row + 1; }
  Range visible(int row) const {
    const int64_t start = static_cast<int64_t>(span) * kSpanTokens;
    const int64_t position = static_cast<int64_t>(a.first_position) + row;
    const int64_t first = a.window > 0 && position >= a.window ? position - a.window + 1 : 0;
    const int64_t lo = first > start ? first - start : 0;
    const int64_t end = end_of(row), hi = end - start < kSpanTokens ? end - start : kSpanTokens;
    return lo < hi ? Range{static_cast<int>(lo), static_cast<int>(hi)} : Range{0, 0};
  }
  float* out(int query) const { return partial + static_cast<int64_t>(query) * (2 + a.dv); }
  void clear() const {                        // partials that have seen nothing
    for (int i = 0; i < n; ++i) {
      out(i)[0] = -__builtin_inff();
      for (int c = 1; c < 2 + a.dv; ++c) out(i)[c] = 0.0f;
    }
  }
  // This kv head's part of a page, numbered from the span's start and perhaps beyond its end.
  const uint8_t* page(int i) const {
    const int64_t block = a.block_table[static_cast<int64_t>(span) * kSpanPages + i];
    return a.pages + block * a.block_bytes + kv_head * kv_head_bytes(a.type, a.d, a.dv);
  }
  const uint8_t* values(int i) const { return page(i) + kv_values_at(a.type, a.d); }
  // A span's memory goes by as the keys of its pages, then their values, then the next span's keys: how many bytes
  // beyond the page's keys, or values, lies what will be read kPagesAhead pages later. 0 at the sequence's end.
  int64_t keys_ahead(int i) const {
    const int to = i + kPagesAhead;
    return (to < pages.hi ? page(to) : values(pages.lo + (to - pages.hi < pages.hi - pages.lo ? to - pages.hi : 0))) - page(i);
  }
  int64_t values_ahead(int i) const {
    const int to = i + kPagesAhead;
    if (to < pages.hi) return values(to) - values(i);
    return span * kSpanPages + to <= last_page && pages.hi == kSpanPages ? page(to) - values(i) : 0;
  }
};

// Sums stay in registers only if every loop over them is unrolled before GCC decides where the array lives; left alone,
// it copies them through the stack at both ends of a block, 118 GFLOPS a core for 138.
#define UNROLL _Pragma("GCC unroll 16")

OP F widen(const uint16_t* p) { return load_f16(p); }
OP F widen(const float* p) { return fload(p); }

// Queries of a pass in blocks of nearly equal size: 14 as 7 + 7, which halves no register block.
OP int next_block(int left) {
  const int blocks = (left + kQueryBlock - 1) / kQueryBlock;
  return (left + blocks - 1) / blocks;
}

// Calls F<n>(args...) for n in 1..kQueryBlock.
template <template <int> class F, int N = kQueryBlock, class... Args>
OP void by_count(int n, Args... args) {
  if (n == N) return F<N>::run(args...);
  if constexpr (N > 1) by_count<F, N - 1>(n, args...);
}

// scores[i][0..32) of a page += sum over e < d of q_i[e] * key[e][.]; first: start from zero.
template <class K> struct Score {
  template <int Q> struct Block {
    static void run(const float* const* q, const K* keys, int d, int64_t ahead, bool first, float* const* scores) {
      for (int v = 0; v < kPageVectors; v += kVectors) {
        F acc[Q][kVectors];
        UNROLL for (int i = 0; i < Q; ++i)
          UNROLL for (int j = 0; j < kVectors; ++j) acc[i][j] = first ? fzero() : fload(scores[i] + 16 * (v + j));
        for (int e = 0; e < d; ++e) {
          F key[kVectors];
          UNROLL for (int j = 0; j < kVectors; ++j) key[j] = widen(keys + e * kBlockTokens + 16 * (v + j));
          if (sizeof(K) == 2) prefetch(reinterpret_cast<const char*>(keys + e * kBlockTokens) + ahead);
          UNROLL for (int i = 0; i < Q; ++i) {
            const F x = fset(q[i][e]);
            UNROLL for (int j = 0; j < kVectors; ++j) acc[i][j] = fma(x, key[j], acc[i][j]);
          }
        }
        UNROLL for (int i = 0; i < Q; ++i)
          UNROLL for (int j = 0; j < kVectors; ++j) fstore(scores[i] + 16 * (v + j), acc[i][j]);
      }
    }
  };
};

// Inputs [e0, e0+d) of every query against a page's keys, which are those inputs' rows.
template <class K>
static void score_part(const Pass& s, int page, const K* keys, int e0, int d, int64_t ahead, float* scores) {
  for (int i = 0; i < s.n;) {
    const int block = next_block(s.n - i);
    const float* q[kQueryBlock];
    float* to[kQueryBlock];
    for (int j = 0; j < block; ++j) {
      q[j] = s.q[i + j] + e0;
      to[j] = scores + (i + j) * kScoreStride + page * kBlockTokens;
    }
    by_count<Score<K>::template Block>(block, static_cast<const float* const*>(q), keys, d, ahead, e0 == 0, static_cast<float* const*>(to));
    i += block;
  }
}

template <class E>
static void score_page(const Pass& s, int page, float* scores, float* wide) {
  const E* keys = reinterpret_cast<const E*>(s.page(page));
  const int64_t ahead = s.keys_ahead(page);
  if (s.n < kWidenFrom || sizeof(E) == sizeof(float)) return score_part(s, page, keys, 0, s.a.d, ahead, scores);
  constexpr int kPart = kWideFloats / kBlockTokens;
  for (int e0 = 0; e0 < s.a.d; e0 += kPart) {
    const int d = s.a.d - e0 < kPart ? s.a.d - e0 : kPart;
    const E* part = keys + static_cast<int64_t>(e0) * kBlockTokens;
    for (int i = 0; i < d * kBlockTokens; i += 16) fstore(wide + i, widen(part + i));
    score_part(s, page, static_cast<const float*>(wide), e0, d, 0, scores);
  }
}

OP F capped(const AttnArgs& a, F s) { return a.softcap > 0.0f ? fsoftcap(mul(s, fset(a.scale)), fset(a.softcap)) : s; }

// x where lane `at` onwards lies in the range, else y.
OP F select_seen(Range r, int at, F x, F y) {
  alignas(64) static const float kLanes[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  if (at >= r.lo && at + 16 <= r.hi) return x;
  const F lane = add(fload(kLanes), fset(static_cast<float>(at)));
  return select_lt(lane, fset(static_cast<float>(r.hi)), select_lt(lane, fset(static_cast<float>(r.lo)), y, x), y);
}

// What a row's scores s become: 2^(s * unit - max). In base 2, so that scaling and the exponential's change of base are one multiply-add.
struct Softmax { float unit, max; };
OP F soft(Softmax x, const float* score) { return fexp2(fma(fload(score), fset(x.unit), fset(-x.max))); }

// Caps a row's scores, hides what it does not see, and finds the greatest.
OP Softmax hide(const AttnArgs& a, Range r, float* scores) {
  constexpr float kLog2E = 1.44269504f;
  const float unit = a.softcap > 0.0f ? kLog2E : a.scale * kLog2E;
  const F hidden = fset(-__builtin_inff());
  F top[2] = {hidden, hidden};
  int v = r.lo / 16;
  const int end = (r.hi + 15) / 16;
  auto at = [&](int i) {
    const F s = select_seen(r, 16 * i, capped(a, fload(scores + 16 * i)), hidden);
    fstore(scores + 16 * i, s);
    return s;
  };
  for (; v + 2 <= end; v += 2) top[0] = fmax(at(v), top[0]), top[1] = fmax(at(v + 1), top[1]);
  if (v < end) top[0] = fmax(at(v), top[0]);
  return {unit, hmax(fmax(top[0], top[1])) * unit};
}

// Turns a row's scores into what softmax sums, and reports max and sum. Four sums take vectors by their place in the span; a
// hidden lane gives 0.
static void soften(const AttnArgs& a, Range r, float* scores, float* max, float* sum) {
  const Softmax soft_max = hide(a, r, scores);
  F acc[4] = {fzero(), fzero(), fzero(), fzero()};
  for (int v = r.lo / 16; v < (r.hi + 15) / 16; ++v) {
    const F p = soft(soft_max, scores + 16 * v);
    fstore(scores + 16 * v, p);
    acc[v & 3] = add(acc[v & 3], p);
  }
  *max = soft_max.max;
  *sum = hsum(add(add(acc[0], acc[1]), add(acc[2], acc[3])));
}

#include "attention_values.inl"

template <class E>
static void attend_floats(const Pass& s) {
  alignas(64) float scores[kPassQueries * kScoreStride];
  alignas(64) float wide[kWideFloats];
  Range tile{kSpanTokens, 0};
  for (int page = s.pages.lo; page < s.pages.hi; ++page) score_page<E>(s, page, scores, wide);
  for (int i = 0; i < s.n; ++i) {
    const Range r = s.seen[i];
    if (r.lo == r.hi) continue;
    soften(s.a, r, scores + i * kScoreStride, s.out(i), s.out(i) + 1);
    tile.lo = r.lo < tile.lo ? r.lo : tile.lo;
    tile.hi = r.hi > tile.hi ? r.hi : tile.hi;
  }
  value_span<E>(s, tile, scores, wide);
}

#include "attention_q8.inl"

// Calls f(pass) for a tile's queries.
template <class F> OP void each_pass(const AttnArgs& a, int kv_head, int row0, int rows, int span, float* partial, F f) {
  const int queries = rows * (a.heads / a.kv_heads);
  for (int i = 0; i < queries; i += kPassQueries) {
    const Pass s(a, kv_head, span, row0, i, queries - i < kPassQueries ? queries - i : kPassQueries, partial + static_cast<int64_t>(i) * (2 + a.dv));
    f(s);
  }
}
static void attend_span(const AttnArgs& a, int kv_head, int row0, int rows, int span, float* partial) {
  each_pass(a, kv_head, row0, rows, span, partial, [](const Pass& s) {
    s.clear();
    switch (s.a.type) {
      case KvType::F16: return attend_floats<uint16_t>(s);
      case KvType::F32: return attend_floats<float>(s);
      case KvType::Q8: return attend_codes(s);
    }
  });
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
  for (int i = 0; i < count; i += 16) {
    const int n = count - i < 16 ? count - i : 16;
    float m[16] = {}, a[16] = {}, b[16] = {};
    for (int j = 0; j < n; ++j) {
      const float x = running[j * stride], y = partial[j * stride];
      m[j] = x > y ? x : y;
      a[j] = x - m[j];
      b[j] = y - m[j];
    }
    fstore(a, fexp2(fload(a)));
    fstore(b, fexp2(fload(b)));
    for (int j = 0; j < n; ++j, running += stride, partial += stride) {
      if (partial[0] == none && partial[1] == 0.0f) continue;
      if (running[0] == none && running[1] == 0.0f) {
        memcpy(running, partial, sizeof(float) * static_cast<size_t>(stride));
        continue;
      }
      running[0] = m[j];
      fold(running + 1, a[j], partial + 1, b[j], stride - 1);
    }
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
