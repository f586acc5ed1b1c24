// What a vocabulary whose dots take whole vectors says of activations: each quad is broadcast as it is multiplied.
// Included inside the namespace of such an ISA, after its dots. ARM's take a quad out of sixteen by its number, and signed bytes: neon.h.

struct Sixteen { const int8_t* at; };                          // sixteen activations, or eight of int16
OP Sixteen sixteen(const int8_t* p) { return {p}; }
// acc + the dots of a quad's codes w and of quad J (pair J of int16).
template <int J> OP I dot4_of(I acc, I w, Sixteen x) { return dot4(acc, w, quad(x.at + 4 * J)); }
template <int J> OP I dot4_full_of(I acc, I w, Sixteen x) { return dot4_full(acc, w, quad(x.at + 4 * J)); }
template <int J> OP I dot2_of(I acc, I w, Sixteen x) { return dot2(acc, w, quad(x.at + 4 * J)); }
OP I load_pairs(const uint8_t* p) { return bload(p); }         // two int16 of each row, for dot2_of

// Whole bytes as dot4_full takes them: code - kByteBias.
constexpr int kByteBias = 0;
OP I byte_codes(I x) { return x; }
// Whether gemm's unpacked codes are signed, their offset taken off already.
constexpr bool kSignedCodes = false;
template <int N> OP I less(I x) { static_assert(N == 0); return x; }

OP I high_nibbles(I x) { return band(shr16<4>(x), bset(15)); }

// Minima of two runs of inputs, sixteen rows each, and their dot with both runs' sums: int16 low and high in `sums`.
OP I load_minima(const uint8_t* mins) { return bor(load_u8(mins), shl32<16>(load_u8(mins + 16))); }
OP I dot_minima(I acc, I pair, int32_t sums) { return dot2(acc, pair, iset(sums)); }

constexpr int kTileMost = kTileTokens, kFloatTile = 4;         // tokens of the largest tile, of integer codes and of floats
constexpr int kCodeQuads = 1;                                  // of a query's codes that attention takes with one load

// acc[b] += dots of `Quads` quads at w, codes up to Most, with NB tokens `stride` apart.
template <int Most, int Quads, int NB> OP void dots(I* acc, const uint8_t* w, const int8_t* q, int64_t stride) {
#pragma GCC unroll 8
  for (int j = 0; j < Quads; ++j) {
    const I v = bload(w + 64 * j);
    for (int b = 0; b < NB; ++b) acc[b] = dot4_full(acc[b], v, quad(q + b * stride + 4 * j));
  }
}
