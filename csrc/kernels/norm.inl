// Row arithmetic between matrix products: norm, sums, gates, softcap, and panels' sums put into rows.
// Knows one row of floats; memory bandwidth bounds all of it.

// Sixty-four running sums: at n = 16384 each adds 256 squares, so the mean errs by 1.6e-5 at worst, 1e-6 as a rule.
static float sum_squares(const float* x, int64_t n) {
  F s0 = fzero(), s1 = fzero(), s2 = fzero(), s3 = fzero();
  int64_t i = 0;
  for (; i + 64 <= n; i += 64) {
    const F a = fload(x + i), b = fload(x + i + 16), c = fload(x + i + 32), d = fload(x + i + 48);
    s0 = fma(a, a, s0);
    s1 = fma(b, b, s1);
    s2 = fma(c, c, s2);
    s3 = fma(d, d, s3);
  }
  for (; i + 16 <= n; i += 16) { const F a = fload(x + i); s0 = fma(a, a, s0); }
  if (i < n) { const F a = fload_n(x + i, static_cast<int>(n - i)); s1 = fma(a, a, s1); }
  return hsum(add(add(s0, s1), add(s2, s3)));
}

static void rms_norm(const float* x, const float* w, float eps, int64_t n, float* y) {
  const float mean = sum_squares(x, n) / static_cast<float>(n);
  const F inv = fset(1.0f / __builtin_sqrtf(mean + eps));
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) fstore(y + i, mul(mul(fload(x + i), inv), fload(w + i)));
  const int rest = static_cast<int>(n - i);
  if (rest) fstore_n(y + i, mul(mul(fload_n(x + i, rest), inv), fload_n(w + i, rest)), rest);
}

static void add_rows(float* y, const float* x, int64_t n) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) fstore(y + i, add(fload(y + i), fload(x + i)));
  const int rest = static_cast<int>(n - i);
  if (rest) fstore_n(y + i, add(fload_n(y + i, rest), fload_n(x + i, rest)), rest);
}

static void scale_row(float* y, float s, int64_t n) {
  const F f = fset(s);
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) fstore(y + i, mul(fload(y + i), f));
  const int rest = static_cast<int>(n - i);
  if (rest) fstore_n(y + i, mul(fload_n(y + i, rest), f), rest);
}

// Stores what sum(at, row, c, n) gives for columns [c, c + n) of each row, whose sums lie at `at`. Row by row: a row of y is
// a page of memory by itself, and one panel of 512 tokens would walk 512 pages.
template <class Sum> OP void row_sum(int64_t width, int64_t nt, int64_t t, float* y, Sum sum) {
  int64_t c = 0;
  for (; c + 16 <= width; c += 16) fstore(y + c, sum(c * nt + 16 * t, y + c, c, 16));
  const int rest = static_cast<int>(width - c);
  if (rest) fstore_n(y + c, sum(c * nt + 16 * t, y + c, c, rest), rest);
}
template <class Sum> OP void each_sum(int64_t width, int64_t nt, float* y, int64_t ld, Sum sum) {
  for (int64_t t = 0; t < nt; ++t, y += ld) row_sum(width, nt, t, y, sum);
}
template <bool Bias, bool Grow> static void store_as(const float* sums, int64_t width, int64_t nt, const float* bias, float* y, int64_t ld) {
  each_sum(width, nt, y, ld, [=](int64_t at, const float* row, int64_t c, int n) {
    const auto load = [n](const float* p) { return n < 16 ? fload_n(p, n) : fload(p); };
    F x = fload(sums + at);
    if (Bias) x = add(x, load(bias + c));
    return Grow ? add(load(row), x) : x;
  });
}
static void store_rows(const float* sums, int64_t width, int64_t nt, const float* bias, bool grow, float* y, int64_t ld) {
  if (bias) grow ? store_as<true, true>(sums, width, nt, bias, y, ld) : store_as<true, false>(sums, width, nt, bias, y, ld);
  else grow ? store_as<false, true>(sums, width, nt, bias, y, ld) : store_as<false, false>(sums, width, nt, bias, y, ld);
}
static void add_scaled_rows(const float* sums, int64_t width, int64_t nt, const int32_t* rows, const float* scale, float* y, int64_t ld) {
  for (int64_t t = 0; t < nt; ++t) {
    const F s = fset(scale[t]);
    row_sum(width, nt, t, y + (rows ? rows[t] : t) * ld, [=](int64_t at, const float* row, int64_t, int n) {
      return fma(s, fload(sums + at), n < 16 ? fload_n(row, n) : fload(row));
    });
  }
}
static void silu_rows(const float* g, const float* u, int64_t width, int64_t nt, float* y, int64_t ld) {
  each_sum(width, nt, y, ld, [=](int64_t at, const float*, int64_t, int) { return mul(fsilu(fload(g + at)), fload(u + at)); });
}
static void gelu_rows(const float* g, const float* u, int64_t width, int64_t nt, float* y, int64_t ld) {
  each_sum(width, nt, y, ld, [=](int64_t at, const float*, int64_t, int) { return mul(fgelu(fload(g + at)), fload(u + at)); });
}

// A division by the cap, not a product with its inverse: a second rounding would show in the last bit.
OP F fsoftcap(F x, F cap) { return mul(cap, ftanh(div(x, cap))); }

static void softcap_row(float* y, float cap, int64_t n) {
  const F c = fset(cap);
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) fstore(y + i, fsoftcap(fload(y + i), c));
  const int rest = static_cast<int>(n - i);
  if (rest) fstore_n(y + i, fsoftcap(fload_n(y + i, rest), c), rest);
}

static void fill_norm(Kernels& t) {
  t.rms_norm = rms_norm;
  t.add = add_rows;
  t.scale = scale_row;
  t.store_rows = store_rows;
  t.add_scaled_rows = add_scaled_rows;
  t.silu_rows = silu_rows;
  t.gelu_rows = gelu_rows;
  t.softcap = softcap_row;
}
