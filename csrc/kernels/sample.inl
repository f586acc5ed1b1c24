// Whole-vocabulary reductions over one row of logits: log-sum-exp and the greatest.
// Knows floats only; filters and noise are sample.cpp's.

// 1024 logits a block: its maximum tells argmax where to look, its sum is short enough for floats
// (sixteen adds a lane), and the blocks' sums add up in double, so the logarithm errs by about 1e-6 at any n.
constexpr int64_t kLogitBlock = 1024;
constexpr float kMinusInf = -__builtin_inff();

// The greatest of n <= kLogitBlock logits; NaN never wins. *poison turns NaN if one of them is not finite.
static float block_max(const float* x, int64_t n, F* poison) {
  F m = fset(kMinusInf), z = *poison;
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const F v = fload(x + i);
    m = fmax(v, m);
    z = fma(v, fzero(), z);
  }
  if (i < n) {
    float last[16];
    for (int j = 0; j < 16; ++j) last[j] = i + j < n ? x[i + j] : x[i];
    m = fmax(fload(last), m);
    z = fma(fload(last), fzero(), z);
  }
  *poison = z;
  return hmax(m);
}

static float block_exp_sum(const float* x, int64_t n, F max) {
  F s0 = fzero(), s1 = fzero(), s2 = fzero(), s3 = fzero();
  int64_t i = 0;
  for (; i + 64 <= n; i += 64) {
    s0 = add(s0, fexp(sub(fload(x + i), max)));
    s1 = add(s1, fexp(sub(fload(x + i + 16), max)));
    s2 = add(s2, fexp(sub(fload(x + i + 32), max)));
    s3 = add(s3, fexp(sub(fload(x + i + 48), max)));
  }
  float rest = 0.0f;
  for (; i < n; i += 16) {
    const int lanes = n - i < 16 ? static_cast<int>(n - i) : 16;
    float e[16];
    fstore(e, fexp(sub(fload_n(x + i, lanes), max)));
    for (int j = 0; j < lanes; ++j) rest += e[j];
  }
  return hsum(add(add(s0, s1), add(s2, s3))) + rest;
}

static float log_sum_exp(const float* x, int64_t n) {
  F poison = fzero();
  float max = kMinusInf;
  for (int64_t b = 0; b < n; b += kLogitBlock) {
    const float m = block_max(x + b, n - b < kLogitBlock ? n - b : kLogitBlock, &poison);
    max = m > max ? m : max;
  }
  if (n < 1 || hsum(poison) != 0.0f) return __builtin_nanf("");
  double sum = 0.0;
  for (int64_t b = 0; b < n; b += kLogitBlock)
    sum += static_cast<double>(block_exp_sum(x + b, n - b < kLogitBlock ? n - b : kLogitBlock, fset(max)));
  return static_cast<float>(max + __builtin_log(sum));
}

// NaN never wins; with nothing above minus infinity the first index.
static int64_t argmax(const float* x, int64_t n) {
  F poison = fzero();
  float best = kMinusInf;
  int64_t where = 0;
  for (int64_t b = 0; b < n; b += kLogitBlock) {
    const float m = block_max(x + b, n - b < kLogitBlock ? n - b : kLogitBlock, &poison);
    if (m > best) { best = m; where = b; }
  }
  for (int64_t i = where; i < n; ++i) if (x[i] == best) return i;
  return 0;
}

static void fill_sample(Kernels& t) {
  t.log_sum_exp = log_sum_exp;
  t.argmax = argmax;
}
