// Weight panels times activation rows: one routine per form of weight types, for 1 to 8 tokens a tile.
//
//   out[t][r] = sum over k of W[r][k] * X[t][k],   r over the panel's sixteen rows
//
// One token reads every weight byte for two operations, so bytes bound it; from about ten tokens the int8 dots do.
// Codes are unpacked once a tile and multiplied with each of its tokens. Integer dots are exact; the float sum runs
// over blocks of 32 or 256 inputs in order, for every tile size alike, so a token's result has one value.
//
// A unit's codes: 32 inputs of 16 rows, as eight quads (four inputs of sixteen rows, 64 bytes as unpacked bytes).
//   4-bit plane: 4 x 64 bytes, low nibbles quad 2v, high nibbles quad 2v+1;
//   1-bit plane: 64 bytes, bit j of a byte belongs to quad j;  2-bit plane: 2 x 64 bytes, bits 2q of plane h: quad 4h+q;
//   8-bit: 8 x 64 bytes.

// Bytes of a 32-input group's planes, the greatest code, and quad j out of a group at p, less kBias (see isa/broadcast.h).
struct Nibble {
  static constexpr int kBytes = 256, kMost = 15, kBias = 0;
  template <int J> OP I quad_at(const uint8_t* p) {
    const I v = bload(p + 64 * (J / 2));
    return J % 2 ? high_nibbles(v) : band(v, bset(15));
  }
};
struct E2m1 {
  static constexpr int kBytes = 256, kMost = 24, kBias = 0;
  template <int J> OP I quad_at(const uint8_t* p) { return blookup(kE2m1Codes, Nibble::quad_at<J>(p)); }
};
struct Nibble1 {
  static constexpr int kBytes = 320, kMost = 31, kBias = 0;
  template <int J> OP I quad_at(const uint8_t* p) {
    const I plane = bload(p + 256);
    const I bit = J < 4 ? shl16<(J < 4 ? 4 - J : 0)>(plane) : shr16<(J > 4 ? J - 4 : 0)>(plane);
    return bor_masked(Nibble::quad_at<J>(p), bit, bset(16));
  }
};
struct Nibble2 {
  static constexpr int kBytes = 384, kMost = 63, kBias = 0;
  template <int J> OP I quad_at(const uint8_t* p) {
    constexpr int q = J % 4;
    const I plane = bload(p + 256 + 64 * (J / 4));
    const I bits = q < 2 ? shl16<(q < 2 ? 4 - 2 * q : 0)>(plane) : shr16<(q > 2 ? 2 : 0)>(plane);
    return bor_masked(Nibble::quad_at<J>(p), bits, bset(48));
  }
};
struct TwoBit {
  static constexpr int kBytes = 128, kMost = 3, kBias = 0;
  template <int J> OP I quad_at(const uint8_t* p) { return band(shr16<2 * (J % 4)>(bload(p + 64 * (J / 4))), bset(3)); }
};
struct Byte {
  static constexpr int kBytes = 512, kMost = 255, kBias = kByteBias;
  template <int J> OP I quad_at(const uint8_t* p) { return byte_codes(bload(p + 64 * J)); }
};

template <class Code, int J, int NB>
OP void dot_quad(I* acc, const uint8_t* p, const Sixteen* x) {
  const I w = Code::template quad_at<J>(p);
  for (int b = 0; b < NB; ++b)
    acc[b] = Code::kBytes == 512 ? dot4_full_of<J % 4>(acc[b], w, x[b]) : dot4_of<J % 4>(acc[b], w, x[b]);
}
// Quads [4*H, 4*H+4): sixteen inputs.
template <class Code, int H, int NB>
OP void dot_half(I* acc, const uint8_t* p, const int8_t* const* q) {
  if constexpr (kDotsAtOnce == 4) {                            // cheaper together than one after the other
    const I w[4] = {Code::template quad_at<4 * H>(p), Code::template quad_at<4 * H + 1>(p), Code::template quad_at<4 * H + 2>(p),
                    Code::template quad_at<4 * H + 3>(p)};
    for (int b = 0; b < NB; ++b) acc[b] = dot16<Code::kMost>(acc[b], w, q[b] + 16 * H);
  } else {
    Sixteen x[NB];
    for (int b = 0; b < NB; ++b) x[b] = sixteen(q[b] + 16 * H);
    dot_quad<Code, 4 * H, NB>(acc, p, x);
    dot_quad<Code, 4 * H + 1, NB>(acc, p, x);
    dot_quad<Code, 4 * H + 2, NB>(acc, p, x);
    dot_quad<Code, 4 * H + 3, NB>(acc, p, x);
  }
}

// The stream of weights: codes, scales and floats lie in one, and panels follow each other, here or where x.next says.
// On Zen 4 the machine's own prefetcher keeps up with it, and asking for lines by hand cost up to half (two threads:
// Q4_1 56, Q8_0 50, Q4_K 50, Q6_K 47 GB/s). On an Intel guest it is the other way: Q5_0 26 -> 31, Q8_0 27 -> 33 GB/s,
// 2 KB ahead. So the distance is measured (prefetch_tuner.h) and comes with the activations.
struct Ahead {
  const uint8_t* end;
  int64_t bytes, jump;
  OP Ahead at(const Panels& w, const uint8_t* panel, const Acts& x) {
    const uint8_t* end = panel + w.panel_bytes;
    return {end, x.ahead, x.next ? x.next - end : 0};
  }
  // Asks for as many lines, `bytes` further on, as are about to be read at p.
  template <int Lines> __attribute__((always_inline)) void ask(const uint8_t* p) const {
    if (!bytes) return;
    p += bytes;
    if (p >= end) p += jump;
    for (int i = 0; i < Lines; ++i) prefetch(p + 64 * i);
  }
  // The same for a low plane, whose panels always follow each other.
  template <int Lines> __attribute__((always_inline)) void ask_low(const uint8_t* p) const {
    if (bytes)
      for (int i = 0; i < Lines; ++i) prefetch(p + bytes + 64 * i);
  }
};

// Where a panel keeps its rows' scales, of types that have them.
OP const uint16_t* row_scales(const Panels& w, const uint8_t* panel) { return reinterpret_cast<const uint16_t*>(panel + w.panel_bytes - kRowLine); }
// Sum + a group's dots times its scale. Of weights with row scales by two roundings, as tables without multiply-add do it.
template <bool Rows> OP F add_group(F sum, I dots, F scale) {
  return Rows ? add(sum, mul(to_float(dots), scale)) : fma(to_float(dots), scale, sum);
}
// Types with a float scale per 32 inputs: value = d * (code - Offset), or d * code + m; with Rows times a row's scale.
template <class Code, int Offset, bool Min, bool Rows, int NB>
static void panel_32(const Panels& w, const uint8_t* base, const Acts& x, int64_t t0, float* out, int64_t ld) {
  const int64_t groups = w.k / 32;
  const int8_t* xq[NB];
  const float* xs[NB];
  const float* xf[NB];
  const int32_t* xsum[NB];
  for (int b = 0; b < NB; ++b) {
    xq[b] = x.q + (t0 + b) * x.k;
    xs[b] = x.scale + (t0 + b) * groups;
    xf[b] = x.fsum32 + (t0 + b) * groups;
    xsum[b] = x.sum16 + (t0 + b) * 2 * groups;
  }
  const Ahead ahead = Ahead::at(w, base, x);
  F y[NB];
  for (int b = 0; b < NB; ++b) y[b] = fzero();
  for (int64_t g = 0; g < groups; ++g) {
    const uint8_t* p = Min ? base + g * (Code::kBytes + 64) : base + g / 2 * (2 * Code::kBytes + 64) + g % 2 * Code::kBytes;
    const uint16_t* aux = reinterpret_cast<const uint16_t*>(Min ? p + Code::kBytes : base + g / 2 * (2 * Code::kBytes + 64) + 2 * Code::kBytes + g % 2 * 32);
    ahead.ask<Code::kBytes / 64>(p);
    if (Min || g % 2) ahead.ask<1>(p + Code::kBytes);
    I acc[NB];
    constexpr int kOffset = Offset - Code::kBias;
    for (int b = 0; b < NB; ++b) acc[b] = kOffset ? iset(-kOffset * (xsum[b][2 * g] + xsum[b][2 * g + 1])) : izero();
    dot_half<Code, 0, NB>(acc, p, xq);
    dot_half<Code, 1, NB>(acc, p, xq);
    const F d = load_f16(aux);
    for (int b = 0; b < NB; ++b) y[b] = add_group<Rows>(y[b], acc[b], mul(d, fset(xs[b][g])));
    if (Min) {
      const F m = load_f16(aux + 16);
      for (int b = 0; b < NB; ++b) y[b] = fma(m, fset(xf[b][g]), y[b]);
    }
    for (int b = 0; b < NB; ++b) xq[b] += 32;
  }
  if (Rows) {
    const F d = load_f16(row_scales(w, base));
    for (int b = 0; b < NB; ++b) y[b] = mul(y[b], d);
  }
  for (int b = 0; b < NB; ++b) fstore(out + b * ld, y[b]);
}

// Types with 256-input blocks: value = d * sub * (code - Offset) - dmin * min, sub and min integers per Sub inputs.
template <class Code, int Sub, int Offset, bool Signed, bool Min>
struct Super {
  static constexpr int kSubs = 256 / Sub;
  static constexpr int kScales = 8 * Code::kBytes + kSubs * 16 * (Min ? 2 : 1);     // where d and dmin lie in a unit
  static constexpr int kUnit = kScales + 64;
};
template <class Code, int Sub, int Offset, bool Signed, bool Min, int NB>
static void panel_256(const Panels& w, const uint8_t* base, const Acts& x, int64_t t0, float* out, int64_t ld) {
  using S = Super<Code, Sub, Offset, Signed, Min>;
  const int64_t blocks = w.k / 256;
  const Ahead ahead = Ahead::at(w, base, x);
  const int8_t* xq[NB];
  const float* xs[NB];
  const int32_t* xsum[NB];
  for (int b = 0; b < NB; ++b) {
    xq[b] = x.q + (t0 + b) * x.k;
    xs[b] = x.scale + (t0 + b) * blocks;
    xsum[b] = x.sum16 + (t0 + b) * 16 * blocks;
  }
  F y[NB];
  for (int b = 0; b < NB; ++b) y[b] = fzero();
  for (int64_t i = 0; i < blocks; ++i) {
    const uint8_t* p = base + i * S::kUnit;
    const uint16_t* aux = reinterpret_cast<const uint16_t*>(p + S::kScales);
    const uint8_t* subs = p + 8 * Code::kBytes;
    const uint8_t* mins = subs + S::kSubs * 16;
    ahead.ask<(S::kUnit - 8 * Code::kBytes) / 64>(subs);
    I dots[NB], low[NB];
    for (int b = 0; b < NB; ++b) dots[b] = low[b] = izero();
    auto fold = [&](const I* acc, int s) __attribute__((always_inline)) {
      const I sub = Signed ? load_i8(reinterpret_cast<const int8_t*>(subs) + 16 * s) : load_u8(subs + 16 * s);
      for (int b = 0; b < NB; ++b) dots[b] = iadd(dots[b], imul(acc[b], sub));
      if (Min && s % 2) {                        // two minima in one dot of 16-bit pairs: sums of 32 stay under 4065
        const I m = load_minima(mins + 16 * (s - 1));
        for (int b = 0; b < NB; ++b) {
          const int32_t* sum = xsum[b] + (Sub == 16 ? s - 1 : 2 * (s - 1));
          const uint32_t lo = static_cast<uint32_t>(Sub == 16 ? sum[0] : sum[0] + sum[1]);
          const uint32_t hi = static_cast<uint32_t>(Sub == 16 ? sum[1] : sum[2] + sum[3]);
          low[b] = dot_minima(low[b], m, static_cast<int32_t>((lo & 0xffffu) | hi << 16));
        }
      }
    };
    for (int g = 0; g < 8; ++g) {
      ahead.ask<Code::kBytes / 64>(p);
      I acc[NB];
      if (Sub == 32) {
        for (int b = 0; b < NB; ++b) acc[b] = Offset ? iset(-Offset * (xsum[b][2 * g] + xsum[b][2 * g + 1])) : izero();
        dot_half<Code, 0, NB>(acc, p, xq);
        dot_half<Code, 1, NB>(acc, p, xq);
        fold(acc, g);
      } else {
        for (int b = 0; b < NB; ++b) acc[b] = Offset ? iset(-Offset * xsum[b][2 * g]) : izero();
        dot_half<Code, 0, NB>(acc, p, xq);
        fold(acc, 2 * g);
        for (int b = 0; b < NB; ++b) acc[b] = Offset ? iset(-Offset * xsum[b][2 * g + 1]) : izero();
        dot_half<Code, 1, NB>(acc, p, xq);
        fold(acc, 2 * g + 1);
      }
      p += Code::kBytes;
      for (int b = 0; b < NB; ++b) xq[b] += 32;
    }
    const F d = load_f16(aux);
    for (int b = 0; b < NB; ++b) {
      F v = mul(d, to_float(dots[b]));
      if (Min) v = fnma(load_f16(aux + 16), to_float(low[b]), v);
      y[b] = fma(v, fset(xs[b][i]), y[b]);
      xsum[b] += 16;
    }
  }
  for (int b = 0; b < NB; ++b) fstore(out + b * ld, y[b]);
}

// int8 codes (stored + 128) with a float32 scale per 16 inputs: the home of every codebook type.
template <int NB>
static void panel_i8(const Panels& w, const uint8_t* base, const Acts& x, int64_t t0, float* out, int64_t ld) {
  constexpr int kOffset = 128 - Byte::kBias;
  const int64_t groups = w.k / 32;
  const Ahead ahead = Ahead::at(w, base, x);
  F y[NB];
  for (int b = 0; b < NB; ++b) y[b] = fzero();
  for (int64_t g = 0; g < groups; ++g) {
    const uint8_t* p = base + g * (Byte::kBytes + 128);
    const float* aux = reinterpret_cast<const float*>(p + Byte::kBytes);
    ahead.ask<(Byte::kBytes + 128) / 64>(p);
    const int8_t* xq[NB];
    for (int b = 0; b < NB; ++b) xq[b] = x.q + (t0 + b) * x.k + 32 * g;
    for (int h = 0; h < 2; ++h) {
      I acc[NB];
      for (int b = 0; b < NB; ++b) acc[b] = iset(-kOffset * x.sum16[(t0 + b) * 2 * groups + 2 * g + h]);
      if (h == 0) dot_half<Byte, 0, NB>(acc, p, xq);
      else dot_half<Byte, 1, NB>(acc, p, xq);
      const F d = fload(aux);
      for (int b = 0; b < NB; ++b) y[b] = fma(to_float(acc[b]), mul(d, fset(x.scale[(t0 + b) * groups + g])), y[b]);
      aux += 16;
    }
  }
  for (int b = 0; b < NB; ++b) fstore(out + b * ld, y[b]);
}

// Float panels [K][16]. Four accumulators a token by k mod 4, folded at the end: one chain of FMAs waits on its own
// latency, four overlap; and four tokens fill 16 registers. The order is the same for every tile size.
struct Float32 { using T = float; OP F at(const T* p) { return fload(p); } };
struct Half { using T = uint16_t; OP F at(const T* p) { return load_f16(p); } };
struct BFloat { using T = uint16_t; OP F at(const T* p) { return load_bf16(p); } };
template <class E, int NB>
static void panel_float(const Panels& w, const uint8_t* base, const Acts& x, int64_t t0, float* out, int64_t ld) {
  const typename E::T* p = reinterpret_cast<const typename E::T*>(base);
  const Ahead ahead = Ahead::at(w, base, x);
  F acc[NB][4];
  for (int b = 0; b < NB; ++b) for (int j = 0; j < 4; ++j) acc[b][j] = fzero();
  const float* xf[NB];
  for (int b = 0; b < NB; ++b) xf[b] = x.f32 + (t0 + b) * x.k;
  int64_t k = 0;
  for (; k + 4 <= w.k; k += 4, p += 64) {
    ahead.ask<sizeof(*p)>(reinterpret_cast<const uint8_t*>(p));
    for (int j = 0; j < 4; ++j) {
      const F v = E::at(p + 16 * j);
      for (int b = 0; b < NB; ++b) acc[b][j] = fma(v, fset(xf[b][k + j]), acc[b][j]);
    }
  }
  for (int j = 0; k < w.k; ++k, ++j, p += 16)
    for (int b = 0; b < NB; ++b) acc[b][j] = fma(E::at(p), fset(xf[b][k]), acc[b][j]);
  for (int b = 0; b < NB; ++b) fstore(out + b * ld, add(add(acc[b][0], acc[b][1]), add(acc[b][2], acc[b][3])));
}

// Each form as a family of tiles by token count.
template <class Code, int Offset, bool Min, bool Rows = false> struct Rows32 {
  static constexpr int kMax = kTileMost;
  template <int NB> OP void tile(const Panels& w, const uint8_t* p, const Acts& x, int64_t t, float* o, int64_t ld) {
    panel_32<Code, Offset, Min, Rows, NB>(w, p, x, t, o, ld);
  }
};
template <class Code, int Sub, int Offset, bool Signed, bool Min> struct Rows256 {
  static constexpr int kMax = kTileMost;
  template <int NB> OP void tile(const Panels& w, const uint8_t* p, const Acts& x, int64_t t, float* o, int64_t ld) {
    panel_256<Code, Sub, Offset, Signed, Min, NB>(w, p, x, t, o, ld);
  }
};
struct RowsI8 {
  static constexpr int kMax = kTileMost;
  template <int NB> OP void tile(const Panels& w, const uint8_t* p, const Acts& x, int64_t t, float* o, int64_t ld) {
    panel_i8<NB>(w, p, x, t, o, ld);
  }
};
template <class E> struct RowsFloat {
  static constexpr int kMax = kFloatTile;
  template <int NB> OP void tile(const Panels& w, const uint8_t* p, const Acts& x, int64_t t, float* o, int64_t ld) {
    panel_float<E, NB>(w, p, x, t, o, ld);
  }
};

template <class R>
static void panel_rows(const Panels& w, int64_t panel, const Acts& x, int64_t t0, int64_t nt, float* out, int64_t ld) {
  const uint8_t* p = w.data + panel * w.panel_bytes;
  constexpr int kMax = R::kMax;
  for (; nt >= kMax; nt -= kMax, t0 += kMax, out += kMax * ld) R::template tile<kMax>(w, p, x, t0, out, ld);
  switch (nt) {
    case 7: if constexpr (kMax > 7) R::template tile<7>(w, p, x, t0, out, ld); break;
    case 6: if constexpr (kMax > 6) R::template tile<6>(w, p, x, t0, out, ld); break;
    case 5: if constexpr (kMax > 5) R::template tile<5>(w, p, x, t0, out, ld); break;
    case 4: if constexpr (kMax > 4) R::template tile<4>(w, p, x, t0, out, ld); break;
    case 3: if constexpr (kMax > 3) R::template tile<3>(w, p, x, t0, out, ld); break;
    case 2: if constexpr (kMax > 2) R::template tile<2>(w, p, x, t0, out, ld); break;
    case 1: R::template tile<1>(w, p, x, t0, out, ld); break;
    default: break;
  }
}

// What unpacks a weight type's planes.
template <Planes> struct Of;
template <> struct Of<Planes::Float32> { using Code = Float32; };
template <> struct Of<Planes::Half> { using Code = Half; };
template <> struct Of<Planes::BFloat> { using Code = BFloat; };
template <> struct Of<Planes::Nibble> { using Code = Nibble; };
template <> struct Of<Planes::E2M1> { using Code = E2m1; };
template <> struct Of<Planes::Nibble1> { using Code = Nibble1; };
template <> struct Of<Planes::Nibble2> { using Code = Nibble2; };
template <> struct Of<Planes::TwoBit> { using Code = TwoBit; };
template <> struct Of<Planes::Byte> { using Code = Byte; };

// By the traits row. Heads have their routines in screen.inl, wide codes in encoder.inl, T2 and T3 in trellis.inl.
template <int T> constexpr Kernels::Panel panel_of() {
  constexpr WeightTraits w = kWeightTypes[T];
  if constexpr (w.form == Form::Floats) return panel_rows<RowsFloat<typename Of<w.planes>::Code>>;
  else if constexpr (w.form == Form::Blocks32) return panel_rows<Rows32<typename Of<w.planes>::Code, w.offset, w.min>>;
  else if constexpr (w.form == Form::Blocks256) return panel_rows<Rows256<typename Of<w.planes>::Code, w.sub, w.offset, w.signed_sub, w.min>>;
  else if constexpr (w.form == Form::Scales16) return panel_rows<RowsI8>;
  else if constexpr (w.form == Form::Rows32) return panel_rows<Rows32<typename Of<w.planes>::Code, w.offset, false, true>>;
  else return nullptr;
}
template <int T = 0> static void fill_matmul(Kernels& t) {
  t.panel[T] = panel_of<T>();
  if constexpr (T + 1 < kWeightTypeCount) fill_matmul<T + 1>(t);
}
