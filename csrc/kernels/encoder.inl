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
// repeat it and are not stored, so a row's sums have one order, whatever the tile.
constexpr int kBothRows = 8;
struct Both {
  const BothArgs& a;
  float *keys, *scores, *queries;            // [d][wide], [8][wide], [d][8]
  int64_t wide;                              // rows, rounded up to 32: what that adds has weight 0
};
OP void transpose_keys(const Both& s) {
  for (int i = 0; i < s.a.d; ++i) {
    for (int64_t j = 0; j < s.a.rows; ++j) s.keys[i * s.wide + j] = s.a.k[j * s.a.stride + i];
    for (int64_t j = s.a.rows; j < s.wide; ++j) s.keys[i * s.wide + j] = 0.0f;
  }
}
OP void scores_of(const Both& s, int64_t row) {
  for (int b = 0; b < kBothRows; ++b) {
    const int64_t at = row + b < s.a.rows ? row + b : s.a.rows - 1;
    for (int i = 0; i < s.a.d; ++i) s.queries[i * kBothRows + b] = s.a.q[at * s.a.stride + i];
  }
  for (int64_t j = 0; j < s.wide; j += 32) {
    F acc[kBothRows][2];
    for (int b = 0; b < kBothRows; ++b) acc[b][0] = acc[b][1] = fzero();
    for (int i = 0; i < s.a.d; ++i) {
      const F k0 = fload(s.keys + i * s.wide + j), k1 = fload(s.keys + i * s.wide + j + 16);
      for (int b = 0; b < kBothRows; ++b) {
        const F q = fset(s.queries[i * kBothRows + b]);
        acc[b][0] = fma(q, k0, acc[b][0]);
        acc[b][1] = fma(q, k1, acc[b][1]);
      }
    }
    for (int b = 0; b < kBothRows; ++b) {
      fstore(s.scores + b * s.wide + j, acc[b][0]);
      fstore(s.scores + b * s.wide + j + 16, acc[b][1]);
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
// Columns [c, c + 16 * W) of eight rows' weighted values.
template <int W> OP void mix(const Both& s, int64_t row, int c, const float* sums) {
  F acc[kBothRows][W];
  for (int b = 0; b < kBothRows; ++b) for (int i = 0; i < W; ++i) acc[b][i] = fzero();
  for (int64_t j = 0; j < s.a.rows; ++j) {
    F v[W];
    for (int i = 0; i < W; ++i) v[i] = fload(s.a.v + j * s.a.stride + c + 16 * i);
    for (int b = 0; b < kBothRows; ++b) {
      const F p = fset(s.scores[b * s.wide + j]);
      for (int i = 0; i < W; ++i) acc[b][i] = fma(p, v[i], acc[b][i]);
    }
  }
  for (int b = 0; b < kBothRows && row + b < s.a.rows; ++b)
    for (int i = 0; i < W; ++i) fstore(s.a.out + (row + b) * s.a.stride + c + 16 * i, div(acc[b][i], fset(sums[b])));
}
static void attend_both(const BothArgs& a, float* scratch) {
  const int64_t wide = (a.rows + 31) / 32 * 32;
  const Both s{a, scratch, scratch + a.d * wide, scratch + (a.d + kBothRows) * wide, wide};
  transpose_keys(s);
  for (int64_t row = 0; row < a.rows; row += kBothRows) {
    scores_of(s, row);
    float sums[kBothRows];
    for (int b = 0; b < kBothRows; ++b) sums[b] = weigh(s, s.scores + b * wide);
    int c = 0;
    for (; c + 32 <= a.d; c += 32) mix<2>(s, row, c, sums);
    if (c < a.d) mix<1>(s, row, c, sums);
  }
}

static void fill_encoder(Kernels& t) {
  t.panel[static_cast<int>(WeightType::I16)] = panel_rows_wide;
  t.quantize_wide = quantize_wide;
  t.layer_norm = layer_norm;
  t.gelu_erf = gelu_erf;
  t.attend_both = attend_both;
}
