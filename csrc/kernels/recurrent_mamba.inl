// Mamba-2's kernels for every ISA; see recurrent_mamba.h. Needs functions.inl, kScanStates and kScanVectors.
//
// What bounds a scan. A token makes three operations on each element of the state (decay, input, output): for 64 channels
// and 128 states 1,536 vector operations of sixteen lanes, 768 cycles at two a cycle. The state of a head is 32 KB. Going
// over it once a token would move 64 KB through the L1 for that, so a slab of kScanStates x kScanVectors registers stays
// while a block of tokens passes, and then costs a load and a store in 3 * kScanTokens operations.
// The chunked form (matrix products within chunks) needs two operations an element and more for scores; in float32, with
// the same order of sums whatever the chunk, this does as well.

// Tokens of a block: their x, b, c and y for 128 states take 24 KB, which leaves half of an L1 of 48 KB for the slab's stream.
// They are copied together first: rows of the step's buffer lie a multiple of 4 KB apart, all in the same sets of an L1.
constexpr int kScanTokens = 16;

static void mamba_steps(const float* dt, const float* bias, const float* a, int64_t heads, float* step, float* decay) {
  for (int64_t h = 0; h < heads; h += 16) {
    const int n = heads - h < 16 ? static_cast<int>(heads - h) : 16;
    const F s = fsoftplus(add(fload_n(dt + h, n), fload_n(bias + h, n)));
    fstore_n(step + h, s, n);
    fstore_n(decay + h, fexp(mul(s, fload_n(a + h, n))), n);
  }
}

// A block of tokens, copied together.
struct ScanBlock {
  alignas(64) float x[kScanTokens * kMambaChannels];   // step * x
  alignas(64) float y[kScanTokens * kMambaChannels];
  alignas(64) float b[kScanTokens * kMambaStates], c[kScanTokens * kMambaStates];
  float decay[kScanTokens];
  int tokens, states;
};

static void scan_copy(float* to, const float* from, int n) {
  int i = 0;
  for (; i + 16 <= n; i += 16) fstore(to + i, fload(from + i));
  if (i < n) fstore_n(to + i, fload_n(from + i, n - i), n - i);
}

static void scan_begin(const MambaScan& s, int64_t t0, ScanBlock& k) {
  for (int t = 0; t < k.tokens; ++t) {
    const int64_t row = t0 + t;
    const F step = fset(s.step[row * s.step_stride]), d = fset(s.d);
    for (int p = 0; p < s.channels; p += 16) {
      const F x = fload(s.x + row * s.stride + p);
      fstore(k.x + t * kMambaChannels + p, mul(x, step));
      fstore(k.y + t * kMambaChannels + p, mul(x, d));
    }
    scan_copy(k.b + t * s.states, s.b + row * s.stride, s.states);
    scan_copy(k.c + t * s.states, s.c + row * s.stride, s.states);
    k.decay[t] = s.decay[row * s.step_stride];
  }
}

// `States` states from n on, of V vectors of channels from p on, over a block of tokens.
template <int States, int V> OP void scan_slab(const MambaScan& s, ScanBlock& k, const float* from, int n, int p) {
  F h[States][V];
  for (int i = 0; i < States; ++i)
    for (int v = 0; v < V; ++v) h[i][v] = from ? fload(from + (n + i) * s.state_stride + p + 16 * v) : fzero();
  for (int t = 0; t < k.tokens; ++t) {
    F x[V], y[V];
    for (int v = 0; v < V; ++v) x[v] = fload(k.x + t * kMambaChannels + p + 16 * v);
    for (int v = 0; v < V; ++v) y[v] = fload(k.y + t * kMambaChannels + p + 16 * v);
    const F g = fset(k.decay[t]);
    for (int i = 0; i < States; ++i) {
      const F b = fset(k.b[t * k.states + n + i]), c = fset(k.c[t * k.states + n + i]);
      for (int v = 0; v < V; ++v) {
        h[i][v] = fma(x[v], b, mul(h[i][v], g));
        y[v] = fma(h[i][v], c, y[v]);
      }
    }
    for (int v = 0; v < V; ++v) fstore(k.y + t * kMambaChannels + p + 16 * v, y[v]);
  }
  for (int i = 0; i < States; ++i)
    for (int v = 0; v < V; ++v) fstore(s.to + (n + i) * s.state_stride + p + 16 * v, h[i][v]);
}

template <int V> static void scan_states(const MambaScan& s, ScanBlock& k, const float* from, int p) {
  int n = 0;
  for (; n + kScanStates <= s.states; n += kScanStates) scan_slab<kScanStates, V>(s, k, from, n, p);
  for (; n < s.states; ++n) scan_slab<1, V>(s, k, from, n, p);
}

static void mamba_scan(const MambaScan& s) {
  ScanBlock k;
  k.states = s.states;
  const float* from = s.from;
  for (int64_t t0 = 0; t0 < s.tokens; t0 += kScanTokens, from = s.to) {
    k.tokens = s.tokens - t0 < kScanTokens ? static_cast<int>(s.tokens - t0) : kScanTokens;
    scan_begin(s, t0, k);
    int p = 0;
    for (; p + 16 * kScanVectors <= s.channels; p += 16 * kScanVectors) scan_states<kScanVectors>(s, k, from, p);
    for (; p < s.channels; p += 16) scan_states<1>(s, k, from, p);
    for (int t = 0; t < k.tokens; ++t) scan_copy(s.y + (t0 + t) * s.y_stride, k.y + t * kMambaChannels, s.channels);
  }
}

// ---- Mamba-1 -----------------------------------------------------------------------------------------------------
// Sixteen channels at a time. An exponential for each state and channel is what bounds it: some fifteen operations, of the
// eighteen an element takes; its latency is hidden by the states of a slab, which do not depend on one another.
struct SelectiveBlock {
  alignas(64) float step[kScanTokens * 16], x[kScanTokens * 16], y[kScanTokens * 16];   // x: step * x
  int tokens;
};

template <int States> OP void selective_slab(const SelectiveScan& s, SelectiveBlock& k, const float* from, int64_t t0, int n, int p) {
  F h[States], a[States];
  for (int i = 0; i < States; ++i) h[i] = from ? fload(from + (n + i) * s.state_stride + p) : fzero();
  for (int i = 0; i < States; ++i) a[i] = fload(s.a + (n + i) * s.a_stride + p);
  for (int t = 0; t < k.tokens; ++t) {
    const float *b = s.b + (t0 + t) * s.states + n, *c = s.c + (t0 + t) * s.states + n;
    const F step = fload(k.step + 16 * t), x = fload(k.x + 16 * t);
    F y = fload(k.y + 16 * t);
    for (int i = 0; i < States; ++i) {
      h[i] = fma(x, fset(b[i]), mul(h[i], fexp(mul(step, a[i]))));
      y = fma(h[i], fset(c[i]), y);
    }
    fstore(k.y + 16 * t, y);
  }
  for (int i = 0; i < States; ++i) fstore(s.to + (n + i) * s.state_stride + p, h[i]);
}

static void selective_scan(const SelectiveScan& s) {
  SelectiveBlock k;
  const float* from = s.from;
  for (int64_t t0 = 0; t0 < s.tokens; t0 += kScanTokens, from = s.to) {
    k.tokens = s.tokens - t0 < kScanTokens ? static_cast<int>(s.tokens - t0) : kScanTokens;
    for (int p = 0; p < s.channels; p += 16) {
      for (int t = 0; t < k.tokens; ++t) {
        const F x = fload(s.x + (t0 + t) * s.stride + p);
        const F step = fsoftplus(add(fload(s.dt + (t0 + t) * s.stride + p), fload(s.bias + p)));
        fstore(k.step + 16 * t, step);
        fstore(k.x + 16 * t, mul(step, x));
        fstore(k.y + 16 * t, mul(x, fload(s.d + p)));
      }
      int n = 0;
      for (; n + kScanStates <= s.states; n += kScanStates) selective_slab<kScanStates>(s, k, from, t0, n, p);
      for (; n < s.states; ++n) selective_slab<1>(s, k, from, t0, n, p);
      for (int t = 0; t < k.tokens; ++t) fstore(s.y + (t0 + t) * s.y_stride + p, fload(k.y + 16 * t));
    }
  }
}

static const MambaKernels kMambaTable{mamba_steps, mamba_scan, selective_scan};
