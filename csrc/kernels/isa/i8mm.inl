// Prompts by int8 matrix products: other `gemm` entries than neon's, the same bits. Included by i8mm.cpp after the families.
//
// One smmla multiplies eight inputs of two rows with those of two tokens, twice what a dot does. What bounds it then are the
// floats after each 32 inputs, so those are done where sums lie: lanes are [row 0 token 0, row 0 token 1, row 1 token 0,
// row 1 token 1], scales are laid out to that once (a panel's at unpacking, tokens' once a call), and nothing is put back
// into rows before a unit of 256 inputs ends. Activations are paired once a call too: [pair][32][two tokens of 8 inputs].
//
// Register tile: four pairs of rows by four pairs of tokens take sixteen registers of sums, four of weights, four of
// activations; what else is summed waits in L1, a load and a store to four products. Eight by three need a load less in ten,
// and 24 sums leave the compiler too few registers: it copied a third of them.

constexpr int kMmPairs = 4;                                     // of tokens, a tile
constexpr int kRowPairs = kPanelRows / 2, kHalf = kRowPairs / 2;
constexpr int kStep = 16 * kRowPairs;                           // bytes of eight inputs of a panel, unpacked
constexpr int kPairBytes = 2 * kUnitK;

// Quads 2J and 2J + 1 as pairs of rows with eight inputs each, signed.
OP void zip_store(uint8_t* out, int32x4_t x, int32x4_t y) {
  vst1q_u8(out, u8(vzip1q_s32(x, y)));
  vst1q_u8(out + 16, u8(vzip2q_s32(x, y)));
}
template <class Code, int Offset, int J = 0> OP void unpack_pairs(const uint8_t* p, uint8_t* out) {
  if constexpr (J < 4) {
    const I x = less<Offset - Code::kBias>(Code::template quad_at<2 * J>(p)), y = less<Offset - Code::kBias>(Code::template quad_at<2 * J + 1>(p));
    zip_store(out, x.a, y.a);
    zip_store(out + 32, x.b, y.b);
    zip_store(out + 64, x.c, y.c);
    zip_store(out + 96, x.d, y.d);
    unpack_pairs<Code, Offset, J + 1>(p, out + kStep);
  }
}
// Sixteen rows' values, each for both tokens of a pair: [8][4].
OP void spread(float* out, F x) {
  const float32x4_t v[4] = {x.a, x.b, x.c, x.d};
  for (int i = 0; i < 4; ++i) {
    vst1q_f32(out + 8 * i, vzip1q_f32(v[i], v[i]));
    vst1q_f32(out + 8 * i + 4, vzip2q_f32(v[i], v[i]));
  }
}
OP void spread(int32_t* out, I x) {
  const int32x4_t v[4] = {x.a, x.b, x.c, x.d};
  for (int i = 0; i < 4; ++i) {
    vst1q_s32(out + 8 * i, vzip1q_s32(v[i], v[i]));
    vst1q_s32(out + 8 * i + 4, vzip2q_s32(v[i], v[i]));
  }
}

// A call's tokens in pairs. An odd last one is paired with itself.
struct Paired {
  alignas(64) int8_t q[kGemmTokens / 2 * kPairBytes];
  alignas(64) float scale[kGemmTokens / 2 * 8 * 4], sum[kGemmTokens / 2 * 8 * 4];   // [pair][8 groups][4], of weights in blocks of 32
  int64_t pairs;
};
OP void pair_floats(const float* from, int64_t nt, float* out) {
  for (int64_t t = 0; t < nt; t += 2, out += 32) {
    const float *x = from + t * 8, *y = t + 1 < nt ? x + 8 : x;
    for (int g = 0; g < 8; ++g) out[4 * g] = out[4 * g + 2] = x[g], out[4 * g + 1] = out[4 * g + 3] = y[g];
  }
}
static void pair_tokens(const Acts& x, int64_t u, int64_t t0, int64_t nt, int64_t groups, Paired& out) {
  const int8_t* from = x.q + (u * x.rows + t0) * kUnitK;
  int8_t* to = out.q;
  out.pairs = (nt + 1) / 2;
  for (int64_t t = 0; t < nt; t += 2, to += kPairBytes) {
    const int8_t *a = from + t * kUnitK, *b = t + 1 < nt ? a + kUnitK : a;
    for (int64_t i = 0; i < 32 * groups; i += 16) {
      const int64x2_t v = vreinterpretq_s64_s8(vld1q_s8(a + i)), w = vreinterpretq_s64_s8(vld1q_s8(b + i));
      vst1q_s8(to + 2 * i, vreinterpretq_s8_s64(vzip1q_s64(v, w)));
      vst1q_s8(to + 2 * i + 16, vreinterpretq_s8_s64(vzip2q_s64(v, w)));
    }
  }
}

// acc[row pair][pair] of `Steps` times eight inputs, from codes at w and pairs at q: a half of the rows.
template <int Steps, int P> OP void products(int32x4_t (&acc)[kHalf][P], const uint8_t* w, const int8_t* q) {
  UNROLL for (int r = 0; r < kHalf; ++r)
    UNROLL for (int p = 0; p < P; ++p) acc[r][p] = vdupq_n_s32(0);
  UNROLL for (int s = 0; s < Steps; ++s) {
    int8x16_t x[P];
    UNROLL for (int p = 0; p < P; ++p) x[p] = vld1q_s8(q + p * kPairBytes + 16 * s);
    UNROLL for (int r = 0; r < kHalf; ++r) {
      const int8x16_t v = s8(load16(w + kStep * s + 16 * r));
      UNROLL for (int p = 0; p < P; ++p) acc[r][p] = vmmlaq_s32(acc[r][p], v, x[p]);
    }
    __asm__ volatile("" ::: "memory");                          // else the next steps' loads are brought forward and spilled
  }
}

// Rows of sums to pairs of tokens, and back; y holds the rows of tokens t, t + 1, ... of nt.
template <int P> OP void take_sums(float32x4_t (&sum)[kRowPairs][P], const float* y, int64_t t, int64_t nt, bool first) {
  for (int p = 0; p < P; ++p) {
    const float *a = y + (t + 2 * p) * kPanelRows, *b = t + 2 * p + 1 < nt ? a + kPanelRows : a;
    for (int r = 0; r < kRowPairs; r += 2) {
      const float32x4_t v = first ? vdupq_n_f32(0.0f) : vld1q_f32(a + 2 * r), w = first ? v : vld1q_f32(b + 2 * r);
      sum[r][p] = vzip1q_f32(v, w);
      sum[r + 1][p] = vzip2q_f32(v, w);
    }
  }
}
template <int P> OP void put_sums(const float32x4_t (&sum)[kRowPairs][P], float* y, int64_t t, int64_t nt) {
  for (int p = 0; p < P; ++p) {
    float* a = y + (t + 2 * p) * kPanelRows;
    for (int r = 0; r < kRowPairs; r += 2) {
      vst1q_f32(a + 2 * r, vuzp1q_f32(sum[r][p], sum[r + 1][p]));
      if (t + 2 * p + 1 < nt) vst1q_f32(a + kPanelRows + 2 * r, vuzp2q_f32(sum[r][p], sum[r + 1][p]));
    }
  }
}
// Calls f.run<pairs>(pair) over all pairs of a call.
template <class F> OP void each_pairs(const F& f, const Paired& x, int64_t nt, const Next& next) {
  int64_t i = 0;
  for (; i + kMmPairs <= x.pairs; i += kMmPairs) {
    next.ask(2 * i, 2 * kMmPairs, nt);
    f.template run<kMmPairs>(i);
  }
  next.ask(2 * i, 2 * kMmPairs, nt);
  if (x.pairs - i == 3) f.template run<3>(i);
  else if (x.pairs - i == 2) f.template run<2>(i);
  else if (x.pairs - i == 1) f.template run<1>(i);
}

// ---- a float scale per 32 inputs, or per 16 ----------------------------------------------------------------------
// Blocks of `Inputs` inputs with a scale of each row; activations have one per 32.
template <int Inputs, bool Min> struct MmFloats {
  const uint8_t* w;                                             // unpacked
  const float *d, *m;                                           // [blocks][8][4]
  int64_t blocks, nt;
  const Paired& x;
  float* y;
  bool first;
  template <int P> void run(int64_t pair) const {
    const int8_t* q = x.q + pair * kPairBytes;
    const float *scale = x.scale + pair * 32, *total = x.sum + pair * 32;
    float32x4_t sum[kRowPairs][P];
    take_sums<P>(sum, y, 2 * pair, nt, first);
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t at = b * Inputs / 32 * 4;
      UNROLL for (int half = 0; half < kRowPairs; half += kHalf) {
        int32x4_t acc[kHalf][P];
        products<Inputs / 8, P>(acc, w + kPanelRows * Inputs * b + 16 * half, q + 2 * Inputs * b);
        UNROLL for (int r = 0; r < kHalf; ++r) {
          const float32x4_t scales = vld1q_f32(d + 32 * b + 4 * (half + r));
          UNROLL for (int p = 0; p < P; ++p) {
            float32x4_t& to = sum[half + r][p];
            to = vfmaq_f32(to, vcvtq_f32_s32(acc[r][p]), vmulq_f32(scales, vld1q_f32(scale + 32 * p + at)));
            if (Min) to = vfmaq_f32(to, vld1q_f32(m + 32 * b + 4 * (half + r)), vld1q_f32(total + 32 * p + at));
          }
        }
      }
    }
    put_sums<P>(sum, y, 2 * pair, nt);
  }
};
template <class Code, int Offset, bool Min>
static void mm_32(const Panels& w, int64_t p0, int64_t p1, int64_t u, const Acts& x, int64_t t0, int64_t nt, float* y) {
  alignas(64) uint8_t codes[kUnitBytes];
  alignas(64) float d[8 * 32], m[8 * 32];
  const int64_t at = (u * x.rows + t0) * 8, groups = groups_in(w, u);
  Paired paired;
  pair_tokens(x, u, t0, nt, groups, paired);
  pair_floats(x.scale + at, nt, paired.scale);
  if (Min) pair_floats(x.fsum32 + at, nt, paired.sum);
  for (int64_t p = p0; p < p1; ++p, y += nt * kPanelRows) {
    const uint8_t* base = w.data + p * w.panel_bytes;
    for (int64_t g = 0; g < groups; ++g) {
      const uint16_t* aux = Groups<Code, Min>::aux(base, 8 * u + g);
      unpack_pairs<Code, Offset>(Groups<Code, Min>::codes(base, 8 * u + g), codes + 512 * g);
      spread(d + 32 * g, load_f16(aux));
      if (Min) spread(m + 32 * g, load_f16(aux + 16));
    }
    each_pairs(MmFloats<32, Min>{codes, d, m, groups, nt, paired, y, u == 0}, paired, nt, next_32<Code, Min>(w, p0, p1, p, u, x));
  }
}
static void mm_i8(const Panels& w, int64_t p0, int64_t p1, int64_t u, const Acts& x, int64_t t0, int64_t nt, float* y) {
  constexpr int64_t kGroup = Byte::kBytes + 128;
  alignas(64) uint8_t codes[kUnitBytes];
  alignas(64) float d[16 * 32];
  const int64_t groups = groups_in(w, u);
  Paired paired;
  pair_tokens(x, u, t0, nt, groups, paired);
  pair_floats(x.scale + (u * x.rows + t0) * 8, nt, paired.scale);
  for (int64_t p = p0; p < p1; ++p, y += nt * kPanelRows) {
    const uint8_t* base = w.data + p * w.panel_bytes + 8 * u * kGroup;
    for (int64_t g = 0; g < groups; ++g, base += kGroup) {
      unpack_pairs<Byte, 128>(base, codes + 512 * g);
      const float* aux = reinterpret_cast<const float*>(base + Byte::kBytes);
      spread(d + 64 * g, fload(aux));
      spread(d + 64 * g + 32, fload(aux + 16));
    }
    each_pairs(MmFloats<16, false>{codes, d, nullptr, 2 * groups, nt, paired, y, u == 0}, paired, nt, next_i8(w, p0, p1, p, u, x));
  }
}

// ---- 256-input blocks with integer sub-scales --------------------------------------------------------------------
template <int Sub, bool Min> struct MmInts {
  static constexpr int kSubs = 256 / Sub;
  const uint8_t *w, *mins;                                      // unpacked
  const int32_t* subs;                                          // [kSubs][8][4]
  const uint16_t* aux;
  const Paired& x;
  const float* xs;
  const int32_t* pairs;                                         // of sums, for minima: [token][kSubs / 2]
  float* y;
  int64_t nt;
  bool first;
  OP void end(const MmInts& u, I dots, int64_t t) {
    const F d = load_f16(u.aux), dmin = Min ? load_f16(u.aux + 16) : fzero();
    const I low = Min ? low_of<kSubs>(u.mins, u.pairs + t * kSubs / 2) : izero();
    float* out = u.y + t * kPanelRows;
    fstore(out, block_end<Min>(u.first ? fzero() : fload(out), d, dmin, dots, low, u.xs[t]));
  }
  template <int P> void run(int64_t pair) const {
    const int8_t* q = x.q + pair * kPairBytes;
    int32x4_t dots[kRowPairs][P];
    UNROLL for (int half = 0; half < kRowPairs; half += kHalf) {
      int32x4_t sum[kHalf][P];
      for (int s = 0; s < kSubs; ++s) {
        int32x4_t acc[kHalf][P];
        products<Sub / 8, P>(acc, w + kPanelRows * Sub * s + 16 * half, q + 2 * Sub * s);
        UNROLL for (int r = 0; r < kHalf; ++r) {
          const int32x4_t sub = vld1q_s32(subs + 32 * s + 4 * (half + r));
          UNROLL for (int p = 0; p < P; ++p) sum[r][p] = s ? vmlaq_s32(sum[r][p], acc[r][p], sub) : vmulq_s32(acc[r][p], sub);
        }
      }
      UNROLL for (int r = 0; r < kHalf; ++r)
        UNROLL for (int p = 0; p < P; ++p) dots[half + r][p] = sum[r][p];
    }
    for (int p = 0; p < P; ++p) {
      I rows[2];
      rows[0] = {vuzp1q_s32(dots[0][p], dots[1][p]), vuzp1q_s32(dots[2][p], dots[3][p]), vuzp1q_s32(dots[4][p], dots[5][p]), vuzp1q_s32(dots[6][p], dots[7][p])};
      rows[1] = {vuzp2q_s32(dots[0][p], dots[1][p]), vuzp2q_s32(dots[2][p], dots[3][p]), vuzp2q_s32(dots[4][p], dots[5][p]), vuzp2q_s32(dots[6][p], dots[7][p])};
      const int64_t t = 2 * (pair + p);
      end(*this, rows[0], t);
      if (t + 1 < nt) end(*this, rows[1], t + 1);
    }
  }
};
template <class Code, int Sub, int Offset, bool Signed, bool Min>
static void mm_256(const Panels& w, int64_t p0, int64_t p1, int64_t u, const Acts& x, int64_t t0, int64_t nt, float* y) {
  using B = Block<Code, Sub, Offset, Signed, Min>;
  constexpr int kSubs = 256 / Sub;
  alignas(64) uint8_t codes[kUnitBytes], mins[64 * kSubs / 2];
  alignas(64) int32_t subs[32 * kSubs];
  Terms pairs;
  if (Min) pairs_of<Sub>(x, u, t0, nt, pairs);
  Paired paired;
  pair_tokens(x, u, t0, nt, 8, paired);
  for (int64_t p = p0; p < p1; ++p, y += nt * kPanelRows) {
    const uint8_t* unit = B::at(w, p, u);
    for (int g = 0; g < 8; ++g) unpack_pairs<Code, Offset>(B::codes(unit, g), codes + 512 * g);
    for (int s = 0; s < kSubs; ++s) spread(subs + 32 * s, B::sub(unit, s));
    if (Min) for (int j = 0; j < kSubs / 2; ++j) bstore(mins + 64 * j, B::min_pair(unit, j));
    each_pairs(MmInts<Sub, Min>{codes, mins, subs, B::aux(unit), paired, x.scale + u * x.rows + t0, pairs.at, y, nt, u == 0}, paired, nt,
               next_256<typename B::S>(w, p0, p1, p, u, x));
  }
}

// By the traits row, as gemm_of; neon's where there is none.
template <int T> constexpr Kernels::Gemm mm_of() {
  constexpr WeightTraits w = kWeightTypes[T];
  if constexpr (w.form == Form::Blocks32) return mm_32<typename Of<w.planes>::Code, w.offset, w.min>;
  else if constexpr (w.form == Form::Blocks256) return mm_256<typename Of<w.planes>::Code, w.sub, w.offset, w.signed_sub, w.min>;
  else if constexpr (w.form == Form::Scales16) return mm_i8;
  else return nullptr;
}
template <int T = 0> static void fill_mm(Kernels& t) {
  if constexpr (mm_of<T>() != nullptr) t.gemm[T] = mm_of<T>();
  if constexpr (T + 1 < kWeightTypeCount) fill_mm<T + 1>(t);
}
