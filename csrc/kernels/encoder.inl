// What an encoder computes beside a decoder: products of int16 codes, layer norm, the exact GELU, attention both ways.
//
// int8 rounds a sentence's embedding by 4e-4 (one minus cosine, the mean over texts), where an embedding is asked to be
// within 1e-4; sixteen bits leave 1e-6, and a dot of int16 pairs does twice the multiply-adds of a float one. Codes stay
// within 4095, so that the 128 products which share a scale add up to 2,146,435,200 at most: below 2^31, exact.

// One activation row to codes: q = round(x * 4095 / max|x|) over each 128 inputs. Unit u of row t lies at (u * stride + t),
// so that a tile's rows have constant offsets from one pointer.
static void quantize_wide(const float* x, int64_t k, int64_t stride, int16_t* q, float* scale) {
  for (; k > 0; k -= kWideUnit, x += kWideUnit, q += stride * kWideUnit, scale += stride) {
    F top = magnitude(x);
    for (int i = 16; i < kWideUnit; i += 16) top = fmost(top, magnitude(x + i));
    const F most = fset(hmost(top)), inverse = inverse_of<kWideCode>(most);
    // NaN becomes the least code, under a scale that is NaN: a dot must not overflow for any input.
    for (int i = 0; i < kWideUnit; i += 16)
      store_i16(q + i, to_int(fmin(fmax(mul(fload(x + i), inverse), fset(-kWideCode)), fset(kWideCode))));
    fstore_n(scale, scale_of<kWideCode>(most), 1);
  }
}

// A unit of a panel: 64 pairs of inputs of sixteen rows, 64 bytes each, then the rows' scales. Twelve tokens share each
// load of weights (four where there are sixteen registers); a scale for 64 pairs costs a twentieth of the dots.
template <int J, int NB> OP void dot_pairs(I* acc, const uint8_t* p, const Sixteen* x) {
  if constexpr (J < 4) {
    const I v = load_pairs(p + 64 * J);
    for (int b = 0; b < NB; ++b) acc[b] = dot2_of<J>(acc[b], v, x[b]);
    dot_pairs<J + 1, NB>(acc, p, x);
  }
}
template <int NB>
static void panel_wide(const Panels& w, const uint8_t* p, const Acts& a, int64_t t0, float* out, int64_t ld) {
  F y[NB];
  for (int b = 0; b < NB; ++b) y[b] = fzero();
  for (int64_t u = 0; u < w.k / kWideUnit; ++u, p += kWideUnitBytes) {
    const int8_t* q = reinterpret_cast<const int8_t*>(a.wide + (u * a.rows + t0) * kWideUnit);
    const float* s = a.scale + u * a.rows + t0;
    I acc[NB];
    for (int b = 0; b < NB; ++b) acc[b] = izero();
    for (int j = 0; j < kWideUnit / 2; j += 4) {
      Sixteen x[NB];
      for (int b = 0; b < NB; ++b) x[b] = sixteen(q + 2 * b * kWideUnit + 4 * j);
      dot_pairs<0, NB>(acc, p + 64 * j, x);
    }
    const F d = fload(reinterpret_cast<const float*>(p + 32 * kWideUnit));
    for (int b = 0; b < NB; ++b) y[b] = fma(to_float(acc[b]), mul(d, fset(s[b])), y[b]);
  }
  for (int b = 0; b < NB; ++b) fstore(out + b * ld, y[b]);
}
template <int NB> static void wide_tail(const Panels& w, const uint8_t* p, const Acts& x, int64_t t0, int64_t nt, float* out, int64_t ld) {
  if constexpr (NB > 0) {
    if (nt == NB) return panel_wide<NB>(w, p, x, t0, out, ld);
    wide_tail<NB - 1>(w, p, x, t0, nt, out, ld);
  }
}
static void panel_rows_wide(const Panels& w, int64_t panel, const Acts& x, int64_t t0, int64_t nt, float* out, int64_t ld) {
  const uint8_t* p = w.high(panel);
  for (; nt >= kGemmTile; nt -= kGemmTile, t0 += kGemmTile, out += kGemmTile * ld) panel_wide<kGemmTile>(w, p, x, t0, out, ld);
  wide_tail<kGemmTile - 1>(w, p, x, t0, nt, out, ld);
}

// y = (x - mean) / sqrt(mean((x - mean)^2) + eps) * w + b, in two passes over a row that lies in L1. n a multiple of 16.
static void layer_norm(const float* x, const float* w, const float* b, float eps, int64_t n, float* y) {
  F sum = fzero(), squares = fzero();
  for (int64_t i = 0; i < n; i += 16) sum = add(sum, fload(x + i));
  const F mean = fset(hsum(sum) / static_cast<float>(n));
  for (int64_t i = 0; i < n; i += 16) {
    const F c = sub(fload(x + i), mean);
    squares = fma(c, c, squares);
  }
  const F inv = fset(1.0f / __builtin_sqrtf(hsum(squares) / static_cast<float>(n) + eps));
  for (int64_t i = 0; i < n; i += 16) fstore(y + i, fma(mul(sub(fload(x + i), mean), inv), fload(w + i), fload(b + i)));
}

// x * P(a normal variable < x). The tail by Abramowitz and Stegun's 7.1.26 (erf within 1.5e-7), which is the small half on
// either side, so nothing cancels for x below 0.
OP F fgelu_erf(F x) {
  const F a = mul(fabs(x), fset(0.7071067812f));
  const F t = div(fset(1.0f), fma(a, fset(0.3275911f), fset(1.0f)));
  F p = fset(1.061405429f);
  p = fma(p, t, fset(-1.453152027f));
  p = fma(p, t, fset(1.421413741f));
  p = fma(p, t, fset(-0.284496736f));
  p = fma(p, t, fset(0.254829592f));
  const F tail = mul(mul(mul(p, t), fset(0.5f)), fexp(sub(fzero(), mul(a, a))));
  return mul(x, select_lt(x, fzero(), tail, sub(fset(1.0f), tail)));
}
// n a multiple of 16.
static void gelu_erf(float* y, int64_t n) {
  for (int64_t i = 0; i < n; i += 16) fstore(y + i, fgelu_erf(fload(y + i)));
}

// ---- attention both ways ----------------------------------------------------------------------------------------
// Eight queries share a load of keys or values; with keys transposed, scores need no horizontal sums. Rows past the last
// repeat it and are not stored, so a row's sums have one order, whatever the tile. A head's values are packed: in the buffer
// they lie a whole row apart, a page of memory each. Groups of queries walk a tile of keys, then of values, that stays in an
// L1 or L2: with eight queries at a time a picture of 4,096 patches reads both 512 times from further away.
constexpr int kBothRows = 8;
constexpr int kBothGroup = 64, kBothTile = 256;   // queries that walk together, and the keys or values they walk at a time
OP int64_t both_wide(int64_t rows) { return (rows + 31) / 32 * 32; }
static int64_t both_packed(int64_t rows, int64_t d) { return d * (both_wide(rows) + rows); }
static int64_t both_scratch(int64_t rows, int64_t d) { return kBothGroup * (both_wide(rows) + 3 * d); }
struct Both {
  const BothArgs& a;
  const float *keys, *values;                     // [d][wide], [rows][d]
  float *scores, *queries;                        // [kBothGroup][wide], [kBothGroup / 8][d][8]
  int64_t wide;                                   // rows, rounded up to 32: what that adds has weight 0
};
static void pack_both(const BothArgs& a, int64_t begin, int64_t end, float* packed) {
  const int64_t wide = both_wide(a.rows);
  float* const values = packed + a.d * wide;
  for (int64_t j = begin; j < end; ++j) {
    for (int i = 0; i < a.d; ++i) packed[i * wide + j] = a.k[j * a.stride + i];
    memcpy(values + j * a.d, a.v + j * a.stride, sizeof(float) * static_cast<size_t>(a.d));
  }
  if (end < a.rows) return;
  for (int i = 0; i < a.d; ++i)
    for (int64_t j = a.rows; j < wide; ++j) packed[i * wide + j] = 0.0f;
}
// Eight queries from `row` on, input by input.
OP void pack_queries(const Both& s, int64_t row, float* to) {
  for (int b = 0; b < kBothRows; ++b) {
    const int64_t at = row + b < s.a.rows ? row + b : s.a.rows - 1;
    for (int i = 0; i < s.a.d; ++i) to[i * kBothRows + b] = s.a.q[at * s.a.stride + i];
  }
}
// Scores of eight queries and keys [begin, end), both multiples of 32.
OP void scores_of(const Both& s, const float* queries, int64_t begin, int64_t end, float* scores) {
  for (int64_t j = begin; j < end; j += 32) {
    F acc[kBothRows][2];
    for (int b = 0; b < kBothRows; ++b) acc[b][0] = acc[b][1] = fzero();
    for (int i = 0; i < s.a.d; ++i) {
      const F k0 = fload(s.keys + i * s.wide + j), k1 = fload(s.keys + i * s.wide + j + 16);
      for (int b = 0; b < kBothRows; ++b) {
        const F q = fset(queries[i * kBothRows + b]);
        acc[b][0] = fma(q, k0, acc[b][0]);
        acc[b][1] = fma(q, k1, acc[b][1]);
      }
    }
    for (int b = 0; b < kBothRows; ++b) {
      fstore(scores + b * s.wide + j, acc[b][0]);
      fstore(scores + b * s.wide + j + 16, acc[b][1]);
    }
  }
}
// Scores to weights, not yet divided by their sum, which is returned.
OP float weigh(const Both& s, float* p) {
  for (int64_t j = s.a.rows; j < s.wide; ++j) p[j] = -__builtin_inff();
  F top = fload(p), sum = fzero();
  for (int64_t j = 16; j < s.wide; j += 16) top = fmax(top, fload(p + j));
  const F most = fset(hmax(top)), scale = fset(s.a.scale);
  for (int64_t j = 0; j < s.wide; j += 16) {
    const F e = fexp(mul(sub(fload(p + j), most), scale));
    fstore(p + j, e);
    sum = add(sum, e);
  }
  return hsum(sum);
}
// Adds values [begin, end) to columns [c, c + 16 * W) of eight rows at `out`, `ld` apart; from zero where begin is 0.
template <int W>
OP void mix(const Both& s, const float* scores, int64_t begin, int64_t end, int c, float* out) {
  F acc[kBothRows][W];
  for (int b = 0; b < kBothRows; ++b)
    for (int i = 0; i < W; ++i) acc[b][i] = begin ? fload(out + b * s.a.d + c + 16 * i) : fzero();
  for (int64_t j = begin; j < end; ++j) {
    F v[W];
    for (int i = 0; i < W; ++i) v[i] = fload(s.values + j * s.a.d + c + 16 * i);
    for (int b = 0; b < kBothRows; ++b) {
      const F p = fset(scores[b * s.wide + j]);
      for (int i = 0; i < W; ++i) acc[b][i] = fma(p, v[i], acc[b][i]);
    }
  }
  for (int b = 0; b < kBothRows; ++b)
    for (int i = 0; i < W; ++i) fstore(out + b * s.a.d + c + 16 * i, acc[b][i]);
}
// The last columns, where heads are no multiple of 16, with those before them, whose sums begin anew: they come first, and
// what they leave in the columns before is written over.
OP void mix_all(const Both& s, const float* scores, int64_t begin, int64_t end, float* out, float* tail) {
  const int d = s.a.d, even = d / 16 * 16;
  if (even < d) mix<1>(s, scores, begin, end, d - 16, tail);
  int c = 0;
  for (; c + 32 <= even; c += 32) mix<2>(s, scores, begin, end, c, out);
  if (c < even) mix<1>(s, scores, begin, end, c, out);
}
static void attend_both(const BothArgs& a, const float* packed, int64_t from, int64_t rows, float* scratch) {
  const int64_t wide = both_wide(a.rows), d = a.d, last = from + rows;
  float* const queries = scratch + kBothGroup * wide;
  float* const out = queries + kBothGroup * d;
  float* const tail = out + kBothGroup * d;
  const Both s{a, packed, packed + d * wide, scratch, queries, wide};
  float* const scores = scratch;
  for (int64_t row = from; row < last; row += kBothGroup) {
    const int64_t count = last - row < kBothGroup ? last - row : kBothGroup, blocks = (count + kBothRows - 1) / kBothRows;
    for (int64_t b = 0; b < blocks; ++b) pack_queries(s, row + b * kBothRows, queries + b * kBothRows * d);
    for (int64_t j = 0; j < wide; j += kBothTile) {
      const int64_t end = wide - j < kBothTile ? wide : j + kBothTile;
      for (int64_t b = 0; b < blocks; ++b) scores_of(s, queries + b * kBothRows * d, j, end, scores + b * kBothRows * wide);
    }
    float sums[kBothGroup];
    for (int64_t i = 0; i < blocks * kBothRows; ++i) sums[i] = weigh(s, scores + i * wide);
    for (int64_t j = 0; j < a.rows; j += kBothTile) {
      const int64_t end = a.rows - j < kBothTile ? a.rows : j + kBothTile;
      for (int64_t b = 0; b < blocks; ++b) mix_all(s, scores + b * kBothRows * wide, j, end, out + b * kBothRows * d, tail + b * kBothRows * d);
    }
    const int64_t even = d / 16 * 16;
    for (int64_t i = 0; i < count; ++i) {
      float* to = a.out + (row + i) * a.stride;
      const F sum = fset(sums[i]);
      for (int64_t c = 0; c < even; c += 16) fstore(to + c, div(fload(out + i * d + c), sum));
      if (even < d) fstore(to + d - 16, div(fload(tail + i * d + d - 16), sum));
    }
  }
}

static void fill_encoder(Kernels& t) {
  t.panel[static_cast<int>(WeightType::I16)] = panel_rows_wide;
  t.quantize_wide = quantize_wide;
  t.layer_norm = layer_norm;
  t.gelu_erf = gelu_erf;
  t.both = t.both_rounded = {both_packed, both_scratch, pack_both, attend_both};
}
