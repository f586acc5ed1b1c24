// Lanes for the writers: kLanes floats or ints, one of each block. The compiler's vectors, because their operators read as the
// arithmetic that they must match does; a register of the ISA each, so that no operation falls apart into scalars.
typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef uint8_t Bytes __attribute__((vector_size(kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));      // of a comparison: -1 where it holds

#define LANE static inline __attribute__((always_inline))
#define LANE_CALL __attribute__((always_inline))      // of a lambda
LANE Floats all(float x) { return x - Floats{}; }
LANE Ints all(int x) { return x - Ints{}; }
LANE Floats real(Ints a) { return __builtin_convertvector(a, Floats); }
LANE Ints whole(Floats a) { return __builtin_convertvector(a, Ints); }              // cut towards zero
LANE Floats size_of(Floats a) { return (Floats)((Ints)a & 0x7fffffff); }
LANE Floats load(const float* p) { Floats r; memcpy(&r, p, sizeof(r)); return r; }
LANE void store(float* p, Floats a) { memcpy(p, &a, sizeof(a)); }
LANE Ints clamped(Ints a, int low, int high) {
  a = a < all(low) ? all(low) : a;
  return a > all(high) ? all(high) : a;
}
LANE bool any(Ints mask) {
  int found = 0;
  for (int l = 0; l < kLanes; ++l) found |= mask[l];
  return found != 0;
}
LANE Floats root(Floats a) {
  float v[kLanes];
  store(v, a);
  for (int l = 0; l < kLanes; ++l) v[l] = __builtin_sqrtf(v[l]);
  return load(v);
}
// To the nearest integer, of halves the even one, by the bits of a sum with 1.5 * 2^23. Right for |x| < 2^22; beyond, and for
// NaN, the bits are what they are, and ggml's are the same.
LANE Ints nearest(Floats x) { return ((Ints)(x + 12582912.0f) & 0x7fffff) - 0x400000; }
// To the nearest integer, halves away from zero; |x| < 2^31.
LANE Ints nearest_away(Floats x) {
  const Ints cut = whole(x);
  const Ints up = size_of(x - real(cut)) >= all(0.5f);
  return cut + (up & ((Ints)x < 0 ? all(-1) : all(1)));
}

// The first halves of a and b interleaved, and the second halves.
template <int kHalf, class V> LANE V interleaved(V a, V b) {
  constexpr int n = sizeof(V) / 4, h = kHalf * n / 2;
  if constexpr (n == 4) return __builtin_shufflevector(a, b, h, n + h, h + 1, n + h + 1);
  else if constexpr (n == 8)
    return __builtin_shufflevector(a, b, h, n + h, h + 1, n + h + 1, h + 2, n + h + 2, h + 3, n + h + 3);
  else
    return __builtin_shufflevector(a, b, h, n + h, h + 1, n + h + 1, h + 2, n + h + 2, h + 3, n + h + 3, h + 4, n + h + 4, h + 5, n + h + 5, h + 6, n + h + 6, h + 7, n + h + 7);
}
// kLanes runs of N floats, each run `stride` after the last, to N vectors of kLanes. Squares of kLanes by kLanes are
// transposed by log2(kLanes) rounds of interleaving row i with row i + kLanes / 2.
template <int N> LANE void gather(const float* from, int64_t stride, Floats* to) {
  if constexpr (N % kLanes) {
    for (int i = 0; i < N; ++i)
      for (int l = 0; l < kLanes; ++l) to[i][l] = from[l * stride + i];
    return;
  }
  for (int c = 0; c + kLanes <= N; c += kLanes) {
    Floats rows[kLanes], mixed[kLanes];
    for (int l = 0; l < kLanes; ++l) rows[l] = load(from + l * stride + c);
    for (int round = 1; round < kLanes; round *= 2) {
      for (int i = 0; i < kLanes / 2; ++i) {
        mixed[2 * i] = interleaved<0>(rows[i], rows[i + kLanes / 2]);
        mixed[2 * i + 1] = interleaved<1>(rows[i], rows[i + kLanes / 2]);
      }
      for (int i = 0; i < kLanes; ++i) rows[i] = mixed[i];
    }
    for (int i = 0; i < kLanes; ++i) to[c + i] = rows[i];
  }
}
// Back, to bytes.
LANE void scatter(const Ints* from, int n, int64_t stride, uint8_t* to) {
  for (int l = 0; l < kLanes; ++l)
    for (int i = 0; i < n; ++i) to[l * stride + i] = static_cast<uint8_t>(from[i][l]);
}
