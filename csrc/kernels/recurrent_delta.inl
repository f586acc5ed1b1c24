// The gated delta rule for every ISA; see recurrent_delta.h. Needs functions.inl, kDeltaBlocks and kDeltaSums.
//
// What bounds a scan. Written as the formula has it, a token goes over a state three times, and a state of Qwen3.5's heads
// (128 x 128 floats) is 64 KB. Two changes leave one pass, over 16 KB that stay in an L1 for all tokens of a piece:
// - o = S'q after the update is (g S)'q + (k'q) d, so one pass over g S gives both sums;
// - the update is made in the next token's pass, as its elements are read: S + k d, then times the next g, then both sums.
// An element then costs four operations (two at a time: two cycles for sixteen columns), a load, a store, and the broadcasts
// of two keys and a query, which two blocks share. So multiply-adds bound it. A chunk of C tokens as matrix products needs
// three operations and C/64 more; what it would save is less than the bits' independence of chunks is worth.

// Sums of both kinds of a row's sixteen columns; kDeltaSums of each, as one addition must end before the next begins.
struct DeltaSums { F seen[kDeltaBlocks][kDeltaSums], out[kDeltaBlocks][kDeltaSums]; };

OP F delta_sum(const F* s) {
  F sum = s[0];
  for (int j = 1; j < kDeltaSums; ++j) sum = add(sum, s[j]);
  return sum;
}

// One pass over a slab of NB blocks. Update: what `last` left to do, S += k d. Sum: S = g S, and S'k and S'q, of `next`.
template <int NB, bool ByKey, bool Update, bool Sum>
OP void delta_pass(const DeltaScan& s, const float* from, const float* last, const F* d, const float* next, F decay, DeltaSums& sums) {
  const int keys = s.keys;
  const int64_t block = int64_t{16} * keys;
  for (int b = 0; Sum && b < NB; ++b)
    for (int j = 0; j < kDeltaSums; ++j) sums.seen[b][j] = sums.out[b][j] = fzero();
  for (int i = 0; i < keys; i += kDeltaSums)
    for (int j = 0; j < kDeltaSums; ++j) {
      const int key = i + j;
      const int64_t at = int64_t{16} * key;
      F state[NB];
      for (int b = 0; b < NB; ++b) state[b] = fload(from + b * block + at);
      if (Update) {
        const F k = fset(last[key]);
        for (int b = 0; b < NB; ++b) state[b] = fma(k, d[b], state[b]);
      }
      if (Sum) {
        const F g = ByKey ? fset(next[2 * keys + key]) : decay, k = fset(next[key]), q = fset(next[keys + key]);
        for (int b = 0; b < NB; ++b) {
          state[b] = mul(g, state[b]);
          sums.seen[b][j] = fma(state[b], k, sums.seen[b][j]);
          sums.out[b][j] = fma(state[b], q, sums.out[b][j]);
        }
      }
      for (int b = 0; b < NB; ++b) fstore(s.to + b * block + at, state[b]);
    }
}

// What the sums of a token give: d, and its output.
template <int NB> OP void delta_token(const DeltaScan& s, int64_t t, const DeltaSums& sums, F* d) {
  const F beta = fset(s.beta[t * s.gate_stride]), kq = fset(s.kq[t * s.kq_stride]);
  const float* v = s.v + t * s.v_stride;
  float* out = s.out + t * s.out_stride;
  for (int b = 0; b < NB; ++b, v += 16, out += 16) {
    const int n = s.columns - 16 * b;
    d[b] = mul(beta, sub(n < 16 ? fload_n(v, n) : fload(v), delta_sum(sums.seen[b])));
    const F o = fma(kq, d[b], delta_sum(sums.out[b]));
    n < 16 ? fstore_n(out, o, n) : fstore(out, o);
  }
}

template <int NB, bool ByKey> static void delta_blocks(const DeltaScan& s) {
  DeltaSums sums;
  F d[NB];
  const auto decay = [&s](int64_t t) { return ByKey ? fzero() : fset(s.decay[t * s.gate_stride]); };
  delta_pass<NB, ByKey, false, true>(s, s.from, nullptr, d, s.rows, decay(0), sums);
  delta_token<NB>(s, 0, sums, d);
  const float* last = s.rows;
  for (int64_t t = 1; t < s.tokens; ++t, last += s.stride) {
    // Rows of v are kilobytes apart, which no prefetcher follows.
    if (t + 1 < s.tokens) for (int b = 0; b < NB; ++b) prefetch(s.v + (t + 1) * s.v_stride + 16 * b);
    delta_pass<NB, ByKey, true, true>(s, s.to, last, d, last + s.stride, decay(t), sums);
    delta_token<NB>(s, t, sums, d);
  }
  delta_pass<NB, ByKey, true, false>(s, s.to, last, d, nullptr, fzero(), sums);
}

static void delta_scan(const DeltaScan& s) {
  const int64_t block = int64_t{16} * s.keys;
  DeltaScan part = s;
  if (!s.from) {                              // zeros are read once where they will be written
    const int blocks = (s.columns + 15) / 16;
    for (int64_t i = 0; i < blocks * block; i += 16) fstore(s.to + i, fzero());
    part.from = s.to;
  }
  for (int c = 0; c < s.columns; c += 16 * kDeltaBlocks) {
    const int left = s.columns - c;
    part.columns = left < 16 * kDeltaBlocks ? left : 16 * kDeltaBlocks;
    if (left > 16 * (kDeltaBlocks - 1)) s.decay ? delta_blocks<kDeltaBlocks, false>(part) : delta_blocks<kDeltaBlocks, true>(part);
    else s.decay ? delta_blocks<1, false>(part) : delta_blocks<1, true>(part);
    part.from += kDeltaBlocks * block;
    part.to += kDeltaBlocks * block;
    part.v += 16 * kDeltaBlocks;
    part.out += 16 * kDeltaBlocks;
  }
}

// ---- what a token is prepared to ----------------------------------------------------------------------------------

OP F delta_load(const float* p, int64_t left) { return left < 16 ? fload_n(p, static_cast<int>(left)) : fload(p); }
OP void delta_store(float* p, F x, int64_t left) { left < 16 ? fstore_n(p, x, static_cast<int>(left)) : fstore(p, x); }

OP F delta_unit(const float* x, int64_t n) {
  F sum = fzero();
  for (int64_t i = 0; i < n; i += 16) { const F a = delta_load(x + i, n - i); sum = fma(a, a, sum); }
  return fset(1.0f / std::sqrt(hsum(sum) + kDeltaEps));
}

static float delta_prepare(const float* q, const float* k, int64_t keys, float scale, float* row) {
  const F ks = delta_unit(k, keys), qs = mul(delta_unit(q, keys), fset(scale));
  F sum = fzero();
  for (int64_t i = 0; i < keys; i += 16) {
    const F a = mul(delta_load(k + i, keys - i), ks), b = mul(delta_load(q + i, keys - i), qs);
    delta_store(row + i, a, keys - i);
    delta_store(row + keys + i, b, keys - i);
    sum = fma(a, b, sum);
  }
  return hsum(sum);
}

static void delta_decays(const float* x, const float* a, const float* bias, int64_t n, float* out) {
  for (int64_t i = 0; i < n; i += 16) {
    const F soft = fsoftplus(add(delta_load(x + i, n - i), delta_load(bias + i, n - i)));
    delta_store(out + i, fexp(mul(delta_load(a + i, n - i), soft)), n - i);
  }
}

static void delta_bounded(const float* x, const float* a, const float* bias, float bound, int64_t n, float* out) {
  for (int64_t i = 0; i < n; i += 16) {
    const F y = mul(delta_load(a + i, n - i), add(delta_load(x + i, n - i), delta_load(bias + i, n - i)));
    delta_store(out + i, fexp(div(fset(bound), add(fset(1.0f), fexp(sub(fzero(), y))))), n - i);
  }
}

static void delta_betas(float* x, float scale, int64_t n) {
  for (int64_t i = 0; i < n; i += 16) {
    const F y = div(fset(scale), add(fset(1.0f), fexp(sub(fzero(), delta_load(x + i, n - i)))));
    delta_store(x + i, y, n - i);
  }
}

static void delta_gate(const float* gate, bool silu, int64_t n, float* y) {
  for (int64_t i = 0; i < n; i += 16) {
    const F z = delta_load(gate + i, n - i), x = delta_load(y + i, n - i);
    delta_store(y + i, fswish(silu ? mul(x, z) : x, z), n - i);
  }
}

constexpr DeltaKernels kDeltaTable{delta_prepare, delta_decays, delta_bounded, delta_betas, delta_scan, delta_gate};
