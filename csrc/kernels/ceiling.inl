// The two walls of the machine: how fast bytes come in, and how fast int8 multiplies go, with nothing else to do.

constexpr size_t kAhead = 8192;

// Reads n bytes (rounded down to 256) in order and returns a checksum of them.
static uint64_t read_loop(const uint8_t* p, size_t n) {
  I a = izero(), b = izero(), c = izero(), d = izero();
  // A plain reader waits on its own cache misses (35 GB/s where the panels stream at 50), so lines are asked for early.
  for (size_t i = 0; i + 256 <= n; i += 256) {
    for (size_t j = 0; j < 256; j += 64) prefetch(p + i + kAhead + j);
    a = iadd(a, bload(p + i));
    b = iadd(b, bload(p + i + 64));
    c = iadd(c, bload(p + i + 128));
    d = iadd(d, bload(p + i + 192));
  }
  return static_cast<uint64_t>(static_cast<uint32_t>(hsum(iadd(iadd(a, b), iadd(c, d)))));
}

// Sixteen independent dots hide the latency of one (4-5 cycles at one or two a cycle).
static int32_t dot_loop(int64_t iterations) {
  I acc[16];
  for (int i = 0; i < 16; ++i) acc[i] = iset(i);
  I w = bset(3), x = bset(1);
  for (int64_t n = 0; n < iterations; ++n)
    for (int i = 0; i < 16; ++i) acc[i] = dot4(acc[i], w, x);
  int32_t sum = 0;
  for (int i = 0; i < 16; ++i) sum += hsum(acc[i]);
  return sum;
}

static void fill_ceiling(Kernels& t) {
  t.read_loop = read_loop;
  t.dot_loop = dot_loop;
}
