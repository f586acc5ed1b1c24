// The two walls of the machine: how fast bytes come in, and how fast int8 multiplies go, with nothing else to do.

// Reads n bytes (rounded down to a page for each stream) as `streams` runs side by side, asking for lines `ahead` bytes
// early (0: not), and returns a checksum of them. Which is fastest differs by machine (Zen 4: one stream, 8 KB ahead;
// an Intel guest: four, 512 bytes), so the measurement tries several.
static uint64_t read_loop(const uint8_t* p, size_t n, int streams, size_t ahead) {
  I a = izero(), b = izero(), c = izero(), d = izero();
  const size_t each = n / static_cast<size_t>(streams) / 4096 * 4096;
  for (size_t i = 0; i < each; i += 256)
    for (int s = 0; s < streams; ++s) {
      const uint8_t* q = p + static_cast<size_t>(s) * each + i;
      if (ahead) for (size_t j = 0; j < 256; j += 64) prefetch(q + ahead + j);
      a = iadd(a, bload(q));
      b = iadd(b, bload(q + 64));
      c = iadd(c, bload(q + 128));
      d = iadd(d, bload(q + 192));
    }
  return static_cast<uint64_t>(static_cast<uint32_t>(hsum(iadd(iadd(a, b), iadd(c, d)))));
}

// Sixteen dots, kChains of them at a time: as many as hide the latency of one (4-5 cycles at one or two a cycle) and lie in registers.
template <int N> OP void sixteen_dots(I* acc, const I* w, const int8_t* x) {
  if constexpr (N < 16) {
    I& sum = acc[N / kDotsAtOnce % kChains];
    if constexpr (kDotsAtOnce == 4) sum = dot16<3>(sum, w, x + 4 * N);
    else sum = dot4(sum, w[0], w[1]);
    sixteen_dots<N + kDotsAtOnce>(acc, w, x);
  }
}
// By number and not in loops, or the sums lie in memory: GCC keeps an array in registers where all its indices are constants.
template <int N> OP void start_chains(I* acc) {
  if constexpr (N < kChains) { acc[N] = iset(N); start_chains<N + 1>(acc); }
}
template <int N> OP I sum_chains(const I* acc) {
  if constexpr (N + 1 < kChains) return iadd(acc[N], sum_chains<N + 1>(acc));
  else return acc[N];
}
static int32_t dot_loop(int64_t iterations) {
  alignas(64) int8_t x[64];
  alignas(64) uint8_t codes[64];
  for (int i = 0; i < 64; ++i) x[i] = 1, codes[i] = 3;
  asm volatile("" : : "r"(codes) : "memory");                  // no two codes are known to be the same
  I acc[kChains], w[4];
  start_chains<0>(acc);
  w[0] = bload(codes), w[1] = bload(codes), w[2] = bload(codes), w[3] = bload(codes);
  for (int64_t n = 0; n < iterations; ++n) {
    asm volatile("" : : "r"(x) : "memory");                    // as if these were others now: products are computed anew
    sixteen_dots<0>(acc, w, x);
  }
  return hsum(sum_chains<0>(acc));
}

static void fill_ceiling(Kernels& t) {
  t.read_loop = read_loop;
  t.dot_loop = dot_loop;
}
