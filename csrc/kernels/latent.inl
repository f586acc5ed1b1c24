// Attention in latent space: a tile's queries over one span of pages, and the folding of spans. latent.h says what lies where.
//
// Both products are bound by multiply-adds: 16 heads do 34,816 for the 1,152 bytes of a position. A register tile is V vectors
// of queries by J page elements; each element is broadcast once for V multiply-adds.
// Every sum has one order: scores over d, exponentials and values over positions, ascending, whatever the tile.
// What a query cannot see never enters its sums: positions beyond the tile's last row are not computed with, for a page's
// other positions may hold anything, NaN included, and between its first row and its last lanes are chosen one by one.

#include "functions.inl"

#define UNROLL _Pragma("GCC unroll 16")

constexpr bool kWideRegisters = alignof(F) == 64;
// Of 32 registers: 16 by 1, 8 by 2, 8 by 3 or 4 by 4 sums, the queries' vectors and a broadcast. Of 16 half as wide: 4 by 1.
constexpr int kMostVectors = kWideRegisters ? 4 : 1;
template <int V> constexpr int kElements = !kWideRegisters ? 4 : V == 1 ? 16 : V == 4 ? 4 : 8;
// Inputs of a page that are widened at a time: 8 KB beside 16 KB of queries. Of values 64 positions by 64 columns: 16 KB,
// beside 16 KB of weights.
constexpr int kInputs = 64, kColumns = 64, kPositions = 64;

OP F widen(const uint16_t* p) { return load_f16(p); }
OP F widen(const float* p) { return fload(p); }

// A tile's lanes, and which positions of the span they see: lane i those below seen[i]; all lanes those below `all`, some `any`.
struct LatentTile {
  const LatentArgs& a;
  int span, vectors, lanes, all, any;
  alignas(64) float seen[kLatentQueries];

  LatentTile(const LatentArgs& args, int64_t first, int n, int span_) : a(args), span(span_), vectors((n + 15) / 16), lanes(16 * vectors) {
    const int64_t start = static_cast<int64_t>(span) * kSpanTokens;
    for (int i = 0; i < lanes; ++i) {
      const int64_t row = (first + (i < n ? i : n - 1)) / a.heads, end = a.first_position + row + 1 - start;
      any = static_cast<int>(end < 0 ? 0 : end < kSpanTokens ? end : kSpanTokens);      // grows with the row
      if (!i) all = any;
      seen[i] = static_cast<float>(any);
    }
  }
  int pages() const { return (any + kBlockTokens - 1) / kBlockTokens; }
  template <class E> const E* page(int i) const {
    const int64_t block = a.block_table[static_cast<int64_t>(span) * (kSpanTokens / kBlockTokens) + i];
    return reinterpret_cast<const E*>(a.pages + block * a.block_bytes);
  }
  F select_seen(int position, int vector, F x, F y) const { return select_lt(fset(static_cast<float>(position)), fload(seen + 16 * vector), x, y); }
};

// to[j][V vectors] (+)= sum over e < n of q[e][V vectors] * keys[e][j], for J positions. Both q and `to` are `lanes` wide.
template <int V, int J>
OP void score_block(const float* q, const float* keys, int n, int lanes, bool first, float* to) {
  F acc[J][V];
  UNROLL for (int j = 0; j < J; ++j)
    UNROLL for (int v = 0; v < V; ++v) acc[j][v] = first ? fzero() : fload(to + j * lanes + 16 * v);
  for (int e = 0; e < n; ++e) {
    F x[V];
    UNROLL for (int v = 0; v < V; ++v) x[v] = fload(q + e * lanes + 16 * v);
    UNROLL for (int j = 0; j < J; ++j) {
      const F key = fset(keys[e * kBlockTokens + j]);
      UNROLL for (int v = 0; v < V; ++v) acc[j][v] = fma(x[v], key, acc[j][v]);
    }
  }
  UNROLL for (int j = 0; j < J; ++j)
    UNROLL for (int v = 0; v < V; ++v) fstore(to + j * lanes + 16 * v, acc[j][v]);
}
template <int V> static void score_page(const float* q, const float* keys, int n, int lanes, bool first, float* to) {
  constexpr int J = kElements<V>;
  for (int j = 0; j < kBlockTokens; j += J) score_block<V, J>(q, keys + j, n, lanes, first, to + j * lanes);
}

// Calls f with each group of vectors that a register tile takes: where it begins and, as a type, how many.
template <int V> struct Vectors { static constexpr int count = V; };
template <class Body> OP void by_vectors(int vectors, Body f) {
  int v = 0;
  for (; v + kMostVectors <= vectors; v += kMostVectors) f(v, Vectors<kMostVectors>{});
  if constexpr (kMostVectors > 1) {
    if (vectors - v == 3) f(v, Vectors<3>{});
    else if (vectors - v == 2) f(v, Vectors<2>{});
    else if (vectors - v == 1) f(v, Vectors<1>{});
  }
}

template <class E> static void score_span(const LatentTile& t, const float* packed, float* scores, float* wide) {
  for (int e = 0; e < t.a.d; e += kInputs) {
    const int n = t.a.d - e < kInputs ? t.a.d - e : kInputs;
    for (int page = 0; page < t.pages(); ++page) {
      const E* keys = t.page<E>(page) + static_cast<int64_t>(e) * kBlockTokens;
      for (int i = 0; i < n * kBlockTokens; i += 16) fstore(wide + i, widen(keys + i));
      by_vectors(t.vectors, [&](int v, auto count) {
        score_page<decltype(count)::count>(packed + static_cast<int64_t>(e) * t.lanes + 16 * v, wide, n, t.lanes, e == 0,
                                           scores + page * kBlockTokens * t.lanes + 16 * v);
      });
    }
  }
}

// Scores to what the softmax sums, 0 for what a lane does not see; each lane's maximum and sum. Four sums take positions in turn.
static void soften(const LatentTile& t, float* scores, float* max, float* sum) {
  const F unit = fset(t.a.scale * 1.44269504f), none = fset(-__builtin_inff()), zero = fzero();
  for (int v = 0; v < t.vectors; ++v) {
    float* column = scores + 16 * v;
    F top = none;
    for (int j = 0; j < t.any; ++j) {
      const F s = fload(column + j * t.lanes);
      top = fmax(j < t.all ? s : t.select_seen(j, v, s, none), top);
    }
    top = mul(top, unit);
    F acc[4] = {zero, zero, zero, zero};
    for (int j = 0; j < t.any; ++j) {
      F p = fexp2(sub(mul(fload(column + j * t.lanes), unit), top));
      if (j >= t.all) p = t.select_seen(j, v, p, zero);
      fstore(column + j * t.lanes, p);
      acc[j & 3] = add(acc[j & 3], p);
    }
    fstore(max + 16 * v, top);
    fstore(sum + 16 * v, add(add(acc[0], acc[1]), add(acc[2], acc[3])));
  }
}

// out[c][V vectors] += sum over positions j in [0, n) of values[c][j] * p[j][V vectors], for J columns c. Those from `all` on
// are only for lanes that see them; `at` is the first one's number in the span.
template <int V, int J>
OP void value_block(const LatentTile& t, int vector, const float* p, const float* values, int at, int all, int n, float* out) {
  F acc[J][V];
  UNROLL for (int c = 0; c < J; ++c)
    UNROLL for (int v = 0; v < V; ++v) acc[c][v] = fload(out + c * t.lanes + 16 * v);
  for (int j = 0; j < all; ++j) {
    F x[V];
    UNROLL for (int v = 0; v < V; ++v) x[v] = fload(p + j * t.lanes + 16 * v);
    UNROLL for (int c = 0; c < J; ++c) {
      const F value = fset(values[c * kPositions + j]);
      UNROLL for (int v = 0; v < V; ++v) acc[c][v] = fma(x[v], value, acc[c][v]);
    }
  }
  for (int j = all; j < n; ++j)
    UNROLL for (int c = 0; c < J; ++c) {
      const F value = fset(values[c * kPositions + j]);
      UNROLL for (int v = 0; v < V; ++v)
        acc[c][v] = t.select_seen(at + j, vector + v, fma(fload(p + j * t.lanes + 16 * v), value, acc[c][v]), acc[c][v]);
    }
  UNROLL for (int c = 0; c < J; ++c)
    UNROLL for (int v = 0; v < V; ++v) fstore(out + c * t.lanes + 16 * v, acc[c][v]);
}

// Positions [at, at + kPositions) of the span by columns [c, c + width) of their values, as floats in rows of kPositions.
template <class E> static void widen_values(const LatentTile& t, int at, int c, int width, float* wide) {
  for (int page = at / kBlockTokens; page < t.pages() && page * kBlockTokens < at + kPositions; ++page) {
    const E* from = t.page<E>(page) + static_cast<int64_t>(c) * kBlockTokens;
    float* to = wide + page * kBlockTokens - at;
    for (int i = 0; i < width; ++i)
      for (int j = 0; j < kBlockTokens; j += 16) fstore(to + i * kPositions + j, widen(from + i * kBlockTokens + j));
  }
}

template <class E> static void value_span(const LatentTile& t, const float* scores, float* wide, float* out) {
  const auto within = [](int x, int most) { return x < 0 ? 0 : x < most ? x : most; };
  for (int at = 0; at < t.any; at += kPositions)
    for (int c = 0; c < t.a.latent; c += kColumns) {
      const int width = within(t.a.latent - c, kColumns), n = within(t.any - at, kPositions), all = within(t.all - at, n);
      widen_values<E>(t, at, c, width, wide);
      by_vectors(t.vectors, [&](int v, auto count) {
        constexpr int V = decltype(count)::count, J = kElements<V>;
        for (int i = 0; i < width; i += J)
          value_block<V, J>(t, v, scores + at * t.lanes + 16 * v, wide + i * kPositions, at, all, n, out + (c + i) * t.lanes + 16 * v);
      });
    }
}

template <class E> static void latent_floats(const LatentTile& t, const float* packed, float* scratch, float* partial) {
  float *scores = scratch, *wide = scratch + kSpanTokens * kLatentQueries;
  score_span<E>(t, packed, scores, wide);
  soften(t, scores, partial, partial + t.lanes);
  value_span<E>(t, scores, wide, partial + 2 * t.lanes);
}

static void latent_span(const LatentArgs& a, int64_t first, int n, const float* packed, int span, float* scratch, float* partial) {
  const LatentTile t(a, first, n, span);
  for (int i = 0; i < t.lanes; ++i) partial[i] = -__builtin_inff();
  memset(partial + t.lanes, 0, sizeof(float) * static_cast<size_t>((1 + a.latent) * t.lanes));
  if (!t.any) return;
  if (a.type == KvType::F32) latent_floats<float>(t, packed, scratch, partial);
  else latent_floats<uint16_t>(t, packed, scratch, partial);
}

static void latent_pack(const LatentArgs& a, int64_t first, int n, float* packed) {
  const int lanes = static_cast<int>(latent_lanes(n));
  for (int i = 0; i < lanes; ++i) {
    const int64_t query = first + i;
    const float* q = a.q + query / a.heads * a.q_stride + query % a.heads * a.d;
    for (int e = 0; e < a.d; ++e) packed[e * lanes + i] = i < n ? q[e] : 0.0f;
  }
}

// running = running * x + partial * y, lane by lane; one of x and y is 1. A span that a lane cannot see changes no bit of it.
static void latent_merge(float* running, const float* partial, int n, int latent) {
  const int lanes = static_cast<int>(latent_lanes(n));
  const F one = fset(1.0f), least = fset(-3.4e38f);
  for (int v = 0; v < lanes; v += 16) {
    float* to = running + v;
    const float* from = partial + v;
    const F old = fload(to), fresh = fload(from), max = fmax(old, fresh);
    const F x = select_lt(old, max, fexp2(sub(old, max)), one), y = select_lt(fresh, max, fexp2(sub(fresh, max)), one);
    for (int c = 1; c < 2 + latent; ++c) {
      const F was = fload(to + c * lanes);
      fstore(to + c * lanes, select_lt(fresh, least, was, fma(was, x, mul(fload(from + c * lanes), y))));
    }
    fstore(to, max);
  }
}

static void latent_finish(const LatentArgs& a, int64_t first, int n, const float* running) {
  const int lanes = static_cast<int>(latent_lanes(n));
  alignas(64) float part[16 * kLatentQueries];
  for (int c = 0; c < a.latent; c += 16) {
    for (int i = 0; i < 16 * lanes; i += 16) fstore(part + i, div(fload(running + (2 + c) * lanes + i), fload(running + lanes + i % lanes)));
    for (int i = 0; i < n; ++i) {
      const int64_t query = first + i;
      float* out = a.out + query / a.heads * a.out_stride + query % a.heads * a.latent + c;
      for (int j = 0; j < 16; ++j) out[j] = part[j * lanes + i];
    }
  }
}

// H heads' scores of a page, added to sums[2] in order of heads. Eight heads are sixteen of 32 registers, two are four of 16.
template <int H> OP void index_heads(const IndexArgs& a, int head, const float* wide, F* sums) {
  F acc[H][2];
  UNROLL for (int h = 0; h < H; ++h) acc[h][0] = acc[h][1] = fzero();
  const float* q = a.q + static_cast<int64_t>(head) * a.d;
  for (int e = 0; e < a.d; ++e) {
    const F low = fload(wide + e * kBlockTokens), high = fload(wide + e * kBlockTokens + 16);
    UNROLL for (int h = 0; h < H; ++h) {
      const F x = fset(q[static_cast<int64_t>(h) * a.d + e]);
      acc[h][0] = fma(x, low, acc[h][0]);
      acc[h][1] = fma(x, high, acc[h][1]);
    }
  }
  UNROLL for (int h = 0; h < H; ++h) {
    const F weight = fset(a.weights[head + h]);
    UNROLL for (int i = 0; i < 2; ++i) sums[i] = fma(weight, fmax(acc[h][i], fzero()), sums[i]);
  }
}
template <class E> static void index_pages(const IndexArgs& a, int64_t pages, float* wide, float* to) {
  constexpr int H = kWideRegisters ? 8 : 2;
  for (int64_t page = 0; page < pages; ++page) {
    const E* keys = reinterpret_cast<const E*>(a.pages + a.block_table[page] * a.block_bytes);
    for (int i = 0; i < a.d * kBlockTokens; i += 16) fstore(wide + i, widen(keys + i));
    F sums[2] = {fzero(), fzero()};
    int head = 0;
    for (; head + H <= a.heads; head += H) index_heads<H>(a, head, wide, sums);
    for (; head < a.heads; ++head) index_heads<1>(a, head, wide, sums);
    fstore(to + page * kBlockTokens, sums[0]);
    fstore(to + page * kBlockTokens + 16, sums[1]);
  }
}
static void latent_index(const IndexArgs& a, int64_t pages, float* wide, float* to) {
  if (a.type == KvType::F32) index_pages<float>(a, pages, wide, to);
  else index_pages<uint16_t>(a, pages, wide, to);
}

static const LatentKernels kLatent = {latent_pack, latent_span, latent_merge, latent_finish, latent_index};
