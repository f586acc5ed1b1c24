// Attention both ways by bf16 tiles: the amx table's both_rounded. Included by amx.inl, after amx_attention.inl, whose pairs
// of 16 apart it shares.
//
// Everything lies on its side: scores are [key][query] = K (A) * Q' (B), outputs [column][query] = V' (A) * P' (B). So a lane is
// a query from the first product to the last: a softmax needs no sum across lanes, and two rows of scores, a shift and a
// logical operation are a row of the next product's B.
//
// Keys pass in spans of 128, counted from the sequence's first, with a running maximum and sum a query (arXiv 1805.02867).
// Scores are rescaled only where a maximum has grown by more than 8 bits: that changes no sum by more than float32 rounds,
// and after the first spans it hardly ever happens. Each lane decides for itself, and a factor of 1 changes no bit.
//
// Q, K and V round to the nearest bf16, 2^-9 of an element; weights, 2^-9 too, after their sum was taken. int8 panels round what they
// read by 2^-8 of the greatest of 32 inputs, so this adds less than they do. What bounds it is the exponential: some twelve
// vector operations for sixteen scores, about as long as their tile products for heads of 72 columns.

#include "transpose.inl"

constexpr int kBothSpan = 128;                     // 16 KB of scores of 32 queries
constexpr int kTileFloats = 256;                   // a C; and room for kTileHalves
constexpr float kSlack = 8.0f;                     // bits
constexpr float kUnseen = -1e30f;                  // a score whose weight is 0, and no infinity less itself

struct BothShape {
  int64_t blocks, steps, columns;                  // 32 keys each; 32 inputs of a key; 16 outputs
  BothShape(int64_t rows, int64_t d) : blocks((rows + 31) / 32), steps((d + 31) / 32), columns((d + 15) / 16) {}
  int64_t keys() const { return 2 * blocks * steps * kTileFloats; }
  int64_t values() const { return blocks * columns * kTileFloats; }
};
static int64_t tiled_packed(int64_t rows, int64_t d) {
  const BothShape s(rows, d);
  return s.keys() + s.values();
}
// Of a call's queries in tiles of sixteen: themselves, their outputs, maxima and sums; then the scores of two tiles.
constexpr int kQueryTiles = kBothMost / 16;
static int64_t tiled_scratch(int64_t rows, int64_t d) {
  const BothShape s(rows, d);
  return kQueryTiles * ((s.steps + s.columns) * kTileFloats + 32) + 2 * kBothSpan * 16;
}

// The first n of sixteen floats, zeros after them; n may be negative.
OP F first_floats(const float* p, int64_t n) { return n >= 16 ? fload(p) : n > 0 ? fload_n(p, static_cast<int>(n)) : fzero(); }
// Inputs [32 s, 32 s + 32) of a row, element l beside 16 + l.
OP __m512i woven_inputs(const float* row, int64_t s, int64_t d) {
  const float* p = row + 32 * s;
  return woven(nearest_bits(first_floats(p, d - 32 * s)), nearest_bits(first_floats(p + 16, d - 32 * s - 16)));
}
OP void store_tile(const __m512i* v, uint16_t* to) {
  for (int i = 0; i < 16; ++i) _mm512_store_si512(to + 32 * i, v[i]);
}

static void pack_tiled(const BothArgs& a, int64_t begin, int64_t end, float* packed) {
  const BothShape shape(a.rows, a.d);
  uint16_t* keys = reinterpret_cast<uint16_t*>(packed) + begin / 16 * shape.steps * kTileHalves;
  uint16_t* values = reinterpret_cast<uint16_t*>(packed + shape.keys()) + begin / 32 * shape.columns * kTileHalves;
  __m512i v[16];
  for (int64_t block = begin; block < end; block += 32) {
    for (int64_t j = block; j < block + 32; j += 16)
      for (int64_t s = 0; s < shape.steps; ++s, keys += kTileHalves) {
        for (int i = 0; i < 16; ++i) v[i] = j + i < a.rows ? woven_inputs(a.k + (j + i) * a.stride, s, a.d) : _mm512_setzero_si512();
        store_tile(v, keys);
      }
    for (int64_t c = 0; c < shape.columns; ++c, values += kTileHalves) {
      const auto value = [&](int64_t j) { return j < a.rows ? nearest_bits(first_floats(a.v + j * a.stride + 16 * c, a.d - 16 * c)) : fzero(); };
      for (int i = 0; i < 16; ++i) v[i] = woven(value(block + i), value(block + 16 + i));
      transpose(v);
      store_tile(v, values);
    }
  }
}

// 2^t, 0 far below; the polynomial errs by 2^-13. NaN stays NaN, and so does minus infinity: a maximum of them has no weights.
OP F weight_of(F t) {
  const F n = fround(t), r = sub(t, n);
  F p = fset(5.500893e-2f);                        // minimax fit of (2^r - 1) / r
  p = fma(p, r, fset(0.24221096f));
  p = fma(p, r, fset(0.69328293f));
  return scale_exp(fma(p, r, fset(1.0f)), n);
}
// To the nearest bf16 once the lower half is cut off; of weights, which are at most 2^kSlack.
OP F to_nearest(F p) { return {_mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p.v), _mm512_set1_epi32(0x8000)))}; }

// Two tiles of queries, which share every load of keys and values.
struct BothPair {
  const BothShape& shape;
  const uint16_t *keys, *values;                   // of the span's first
  const uint16_t* queries;                         // [2][steps] tiles
  float *out, *top, *sum, *scores;                 // [2][columns] tiles, [2][16], [2][16], [2][span / 16] tiles

  void score(int64_t n) const {
    const int64_t panel = shape.steps * kTileHalves;
    const uint16_t* a = keys;
    settle();
    for (int64_t t = 0; t < n / 16; t += 2, a += 2 * panel) {
      tile_zeros();
      for (int64_t s = 0; s < shape.steps; ++s) {
        _tile_loadd(4, a + s * kTileHalves, 64);
        _tile_loadd(6, queries + s * kTileHalves, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, queries + panel + s * kTileHalves, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, a + panel + s * kTileHalves, 64);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
      float* to = scores + t * kTileFloats;
      _tile_stored(0, to, 64);
      _tile_stored(1, to + kBothSpan * 16, 64);
      _tile_stored(2, to + kTileFloats, 64);
      _tile_stored(3, to + kTileFloats + kBothSpan * 16, 64);
    }
    settle();
  }
  // Tile q's scores become weights, two rows a row of B: block b at 2 b tiles.
  void weigh(int q, int64_t n, float unit) const {
    float* s = scores + q * kBothSpan * 16;
    F most[4];
    UNROLL for (int i = 0; i < 4; ++i) most[i] = fload(s + 16 * i);
    for (int64_t j = 4; j < n; j += 4) UNROLL for (int i = 0; i < 4; ++i) most[i] = fmax(fload(s + 16 * (j + i)), most[i]);
    const F max = rescaled(q, mul(fmax(fmax(most[0], most[1]), fmax(most[2], most[3])), fset(unit)));
    const F less = sub(fzero(), max), by = fset(unit);
    F total[4] = {fzero(), fzero(), fzero(), fzero()};
    for (int64_t j = 0; j < n; j += 32, s += 2 * kTileFloats)
      for (int i = 0; i < 16; i += 2) {
        F p[4];
        p[0] = weight_of(fma(fload(s + 16 * i), by, less));
        p[1] = weight_of(fma(fload(s + 16 * i + kTileFloats), by, less));
        p[2] = weight_of(fma(fload(s + 16 * i + 16), by, less));
        p[3] = weight_of(fma(fload(s + 16 * i + 16 + kTileFloats), by, less));
        UNROLL for (int k = 0; k < 4; ++k) total[k] = add(total[k], p[k]);
        _mm512_store_si512(s + 16 * i, woven(to_nearest(p[0]), to_nearest(p[1])));
        _mm512_store_si512(s + 16 * i + 16, woven(to_nearest(p[2]), to_nearest(p[3])));
      }
    fstore(sum + 16 * q, add(fload(sum + 16 * q), add(add(total[0], total[1]), add(total[2], total[3]))));
  }
  // Moves tile q's running maxima up to the span's `high` where that is far above, and returns them.
  F rescaled(int q, F high) const {
    const F old = fload(top + 16 * q), max = select_lt(add(old, fset(kSlack)), high, high, old);
    if (!_mm512_cmp_ps_mask(max.v, old.v, _CMP_NEQ_UQ)) return old;
    const F factor = fexp2(sub(old, max));
    fstore(top + 16 * q, max);
    fstore(sum + 16 * q, mul(fload(sum + 16 * q), factor));
    float* o = out + q * shape.columns * kTileFloats;
    for (int64_t i = 0; i < shape.columns * 16; ++i) fstore(o + 16 * i, mul(fload(o + 16 * i), factor));
    return max;
  }
  // N columns of both tiles; their sums lie in C from span to span.
  template <int N> void mix_columns(int64_t c, int64_t n) const {
    float *o = out + c * kTileFloats, *beside = o + shape.columns * kTileFloats;
    _tile_loadd(0, o, 64);
    _tile_loadd(1, beside, 64);
    if constexpr (N == 2) {
      _tile_loadd(2, o + kTileFloats, 64);
      _tile_loadd(3, beside + kTileFloats, 64);
    }
    const uint16_t* a = values + c * kTileHalves;
    for (int64_t b = 0; b < n / 32; ++b, a += shape.columns * kTileHalves) {
      const float* p = scores + 2 * b * kTileFloats;
      _tile_loadd(4, a, 64);
      _tile_loadd(6, p, 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(7, p + kBothSpan * 16, 64);
      _tile_dpbf16ps(1, 4, 7);
      if constexpr (N == 2) {
        _tile_loadd(5, a + kTileHalves, 64);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
    }
    _tile_stored(0, o, 64);
    _tile_stored(1, beside, 64);
    if constexpr (N == 2) {
      _tile_stored(2, o + kTileFloats, 64);
      _tile_stored(3, beside + kTileFloats, 64);
    }
  }
  void mix(int64_t n) const {
    settle();
    int64_t c = 0;
    for (; c + 2 <= shape.columns; c += 2) mix_columns<2>(c, n);
    if (c < shape.columns) mix_columns<1>(c, n);
    settle();
  }
  // Rows of keys [n, wide) of the span are behind the sequence's last.
  void hide(int64_t n, int64_t wide) const {
    for (int q = 0; q < 2; ++q)
      for (int64_t j = n; j < wide; ++j) fstore(scores + q * kBothSpan * 16 + 16 * j, fset(kUnseen));
  }
};

// Sixteen queries' outputs, divided by their sums, to their rows; `count` of them are rows.
static void put_outputs(const BothArgs& a, const float* o, F sum, int64_t row, int64_t count) {
  __m512i v[16];
  for (int c = 0; c < a.d; c += 16, o += kTileFloats) {
    for (int i = 0; i < 16; ++i) v[i] = _mm512_castps_si512(div(fload(o + 16 * i), sum).v);
    transpose(v);
    const int width = a.d - c;
    for (int64_t i = 0; i < count; ++i) {
      float* to = a.out + (row + i) * a.stride + c;
      const F y = {_mm512_castsi512_ps(v[i])};
      width < 16 ? fstore_n(to, y, width) : fstore(to, y);
    }
  }
}

static void attend_tiled(const BothArgs& a, const float* packed, int64_t row, int64_t count, float* scratch) {
  const BothShape shape(a.rows, a.d);
  const int64_t tiles = (count + 31) / 32 * 2, query = shape.steps * kTileHalves, output = shape.columns * kTileFloats;
  uint16_t* const queries = reinterpret_cast<uint16_t*>(scratch);
  float* const out = scratch + kQueryTiles * shape.steps * kTileFloats;
  float* const top = out + kQueryTiles * output;
  float* const sum = top + kQueryTiles * 16;
  float* const scores = sum + kQueryTiles * 16;
  const float unit = a.scale * 1.44269504f;
  __m512i v[16];
  for (int64_t t = 0; t < tiles; ++t) {
    for (int64_t s = 0; s < shape.steps; ++s) {
      for (int i = 0; i < 16; ++i)
        v[i] = 16 * t + i < count ? woven_inputs(a.q + (row + 16 * t + i) * a.stride, s, a.d) : _mm512_setzero_si512();
      transpose(v);
      store_tile(v, queries + t * query + s * kTileHalves);
    }
    fstore(top + 16 * t, fset(-__builtin_inff()));
    fstore(sum + 16 * t, fzero());
  }
  for (int64_t i = 0; i < tiles * output; i += 16) fstore(out + i, fzero());
  const uint16_t *keys = reinterpret_cast<const uint16_t*>(packed), *values = reinterpret_cast<const uint16_t*>(packed + shape.keys());
  use_tiles(64);
  for (int64_t j = 0; j < a.rows; j += kBothSpan) {
    const int64_t left = a.rows - j, n = left < kBothSpan ? left : kBothSpan, wide = (n + 31) / 32 * 32;
    for (int64_t t = 0; t < tiles; t += 2) {
      const BothPair pair{shape, keys + j / 16 * query, values + j / 32 * shape.columns * kTileHalves, queries + t * query,
                          out + t * output, top + 16 * t, sum + 16 * t, scores};
      pair.score(wide);
      pair.hide(n, wide);
      pair.weigh(0, wide, unit);
      pair.weigh(1, wide, unit);
      pair.mix(wide);
    }
  }
  _tile_release();
  for (int64_t t = 0; 16 * t < count; ++t)
    put_outputs(a, out + t * output, fload(sum + 16 * t), row + 16 * t, count - 16 * t < 16 ? count - 16 * t : 16);
}
