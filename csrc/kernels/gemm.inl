// Prompt GEMM: panels times sixteen tokens or more, one unit of 256 inputs at a time; the same bits as matmul.inl's tiles.
//
//   y[t][r] += sum over the unit's inputs of W[r][k] * X[t][k],   r over a panel's sixteen rows, t over the tokens
//
// Many tokens make int8 dots the bound, so a panel's unit is unpacked once (16 rows * 256 inputs = 4 KB, in L1) and all
// tokens pass over it. Sums wait in y between units (a load and a store for 64 dots), so no cache holds a whole row.
// Activations come by units, [K/256][M][256]: a unit of 512 tokens is 128 KB and stays in L2 for every panel of the
// call, and a tile's tokens lie at constant offsets from one pointer, where eight row pointers spilled registers.
//
// kGemmTile tokens share a loaded quad. With 32 registers: twelve sums of a group and twelve of a block (or y), and the
// quad, scales and a product beside them; each dot then loads its own broadcast, and twelve share a weight load.

constexpr int kUnitK = 256;                                     // inputs of a unit; the last one may be shorter
constexpr int kUnitBytes = kUnitK * kPanelRows;

// Codes of 32 inputs as `dots` takes them: less their offset where those are signed.
template <class Code, int Offset, int J = 0> OP void unpack_group(const uint8_t* p, uint8_t* out) {
  if constexpr (J < 8) {
    bstore(out + 64 * J, less<kSignedCodes ? Offset - Code::kBias : 0>(Code::template quad_at<J>(p)));
    unpack_group<Code, Offset, J + 1>(p, out);
  }
}

// What a unit's tokens add beside their dots, written once a call and read by every panel.
// starts: where a token's integer sums of `Sub` inputs begin, the ISA's way. pairs: sums of two such runs as int16, for minima.
struct Terms { alignas(64) int32_t at[kGemmTokens * 16]; };
OP const int32_t* sums_of(const Acts& x, int64_t u, int64_t t) { return x.sum16 + (u * x.rows + t) * 16; }
template <int Sub, int Offset> OP void starts_of(const Acts& x, int64_t u, int64_t t0, int64_t nt, Terms& out) {
  const int8_t* q = x.q + (u * x.rows + t0) * kUnitK;
  const int32_t* s = sums_of(x, u, t0);
  for (int64_t i = 0; i < nt; ++i) starts_of<Sub, Offset>(q + i * kUnitK, s + 16 * i, out.at + i * kUnitK / Sub);
}
template <int Sub> OP void pairs_of(const Acts& x, int64_t u, int64_t t0, int64_t nt, Terms& out) {
  const int32_t* s = sums_of(x, u, t0);                         // 32 int8 sum to 4,064 at most
  for (int64_t i = 0; i < nt * kUnitK / Sub / 2; ++i) {
    const int32_t a = Sub == 16 ? s[2 * i] : s[4 * i] + s[4 * i + 1], b = Sub == 16 ? s[2 * i + 1] : s[4 * i + 2] + s[4 * i + 3];
    out.at[i] = static_cast<int32_t>(static_cast<uint32_t>(a & 0xffff) | static_cast<uint32_t>(b) << 16);
  }
}

OP int64_t groups_in(const Panels& w, int64_t u) { return w.k - u * kUnitK < kUnitK ? (w.k - u * kUnitK) / 32 : 8; }
template <class Code, bool Min> struct Groups {                 // where group g of a panel keeps its codes and floats
  OP const uint8_t* codes(const uint8_t* base, int64_t g) {
    return Min ? base + g * (Code::kBytes + 64) : base + g / 2 * (2 * Code::kBytes + 64) + g % 2 * Code::kBytes;
  }
  OP const uint16_t* aux(const uint8_t* base, int64_t g) {
    return reinterpret_cast<const uint16_t*>(Min ? codes(base, g) + Code::kBytes
                                                 : base + g / 2 * (2 * Code::kBytes + 64) + 2 * Code::kBytes + g % 2 * 32);
  }
};

// The weights that are asked for while a panel's unit is multiplied: that unit two panels on, then the next unit of the first panels,
// then what the caller reads after this call. They come from memory, 2 KB at a time from places far apart, so no hardware sees
// them coming; one panel on, sixteen tokens are done before they are here. Tokens [t, t + n) of nt ask for their share.
struct Next {
  const uint8_t* at;
  int64_t bytes;
  void ask(int64_t t, int64_t n, int64_t nt) const {
    const int64_t end = t + n < nt ? t + n : nt;
    for (int64_t i = bytes * t / nt / 64; i < bytes * end / nt / 64; ++i) prefetch(at + 64 * i);
  }
};
// `of` gives a unit's bytes: of(panel, unit).
template <class Of> OP Next next_of(const Panels& w, int64_t p0, int64_t p1, int64_t p, int64_t u, const Acts& x, Of of) {
  constexpr int64_t kOn = 2;
  const int64_t n = p - p0 + kOn, panel = n % (p1 - p0), unit = u + n / (p1 - p0);
  if (unit * kUnitK < w.k) return of(w.data + (p0 + panel) * w.panel_bytes, unit);
  return x.next ? of(x.next + panel * w.panel_bytes, 0) : Next{nullptr, 0};
}
template <class Code, bool Min> OP Next next_32(const Panels& w, int64_t p0, int64_t p1, int64_t p, int64_t u, const Acts& x) {
  return next_of(w, p0, p1, p, u, x, [&](const uint8_t* panel, int64_t unit) {
    return Next{Groups<Code, Min>::codes(panel, 8 * unit), groups_in(w, unit) * (Code::kBytes + (Min ? 64 : 32))};
  });
}
OP Next next_i8(const Panels& w, int64_t p0, int64_t p1, int64_t p, int64_t u, const Acts& x) {
  constexpr int64_t kGroup = Byte::kBytes + 128;
  return next_of(w, p0, p1, p, u, x, [&](const uint8_t* panel, int64_t unit) {
    return Next{panel + 8 * unit * kGroup, groups_in(w, unit) * kGroup};
  });
}
template <class S> OP Next next_256(const Panels& w, int64_t p0, int64_t p1, int64_t p, int64_t u, const Acts& x) {
  return next_of(w, p0, p1, p, u, x, [](const uint8_t* panel, int64_t unit) { return Next{panel + unit * S::kUnit, S::kUnit}; });
}

// Calls f.run<tokens>(t) for tiles of kGemmTile tokens over [0, nt), and smaller ones at the end.
template <int NB, class F> OP void tail_tile(const F& f, int64_t t, int64_t nt) {
  if constexpr (NB > 0) {
    if (nt == NB) return f.template run<NB>(t);
    tail_tile<NB - 1>(f, t, nt);
  }
}
template <class F> OP void each_tile(const F& f, int64_t nt, const Next& next) {
  int64_t t = 0;
  for (; t + kGemmTile <= nt; t += kGemmTile) {
    next.ask(t, kGemmTile, nt);
    f.template run<kGemmTile>(t);
  }
  next.ask(t, kGemmTile, nt);
  tail_tile<kGemmTile - 1>(f, t, nt - t);
}

// ---- a float scale per 32 inputs -------------------------------------------------------------------------------
// `rows`: where weights have row scales, those, at a panel's last unit; null before.
template <class Code, int Offset, bool Min, bool Rows = false> struct Unit32 {
  const uint8_t* w;                                             // unpacked
  const float *d, *m;                                           // [groups][16]
  int64_t groups;
  const int8_t* q;
  const float *xs, *xf;
  const int32_t* start;
  float* y;
  bool first;
  const uint16_t* rows = nullptr;
  template <int NB> void run(int64_t t) const {
    const int8_t* xq = q + t * kUnitK;
    F sum[NB];
    for (int b = 0; b < NB; ++b) sum[b] = first ? fzero() : fload(y + (t + b) * kPanelRows);
    for (int64_t g = 0; g < groups; ++g) {
      I acc[NB];
      sum_codes<Code::kMost, Offset, 32, NB>(acc, w + 512 * g, xq + 32 * g, kUnitK, start + t * 8 + g, 8);
      const F scale = fload(d + 16 * g);
      for (int b = 0; b < NB; ++b) sum[b] = add_group<Rows>(sum[b], acc[b], mul(scale, fset(xs[(t + b) * 8 + g])));
      if (Min) {
        const F low = fload(m + 16 * g);
        for (int b = 0; b < NB; ++b) sum[b] = fma(low, fset(xf[(t + b) * 8 + g]), sum[b]);
      }
    }
    if (Rows && rows) {
      const F scale = load_f16(rows);
      for (int b = 0; b < NB; ++b) sum[b] = mul(sum[b], scale);
    }
    for (int b = 0; b < NB; ++b) fstore(y + (t + b) * kPanelRows, sum[b]);
  }
};
OP const uint16_t* last_scales(const Panels& w, const uint8_t* panel, int64_t u) { return (u + 1) * kUnitK >= w.k ? row_scales(w, panel) : nullptr; }
template <class Code, int Offset, bool Min, bool Rows = false>
static void gemm_32(const Panels& w, int64_t p0, int64_t p1, int64_t u, const Acts& x, int64_t t0, int64_t nt, float* y) {
  alignas(64) uint8_t codes[kUnitBytes];
  alignas(64) float d[8 * kPanelRows], m[8 * kPanelRows];
  Terms starts;
  if (Offset && !kSignedCodes) starts_of<32, Offset>(x, u, t0, nt, starts);
  const int64_t at = u * x.rows + t0, groups = groups_in(w, u);
  for (int64_t p = p0; p < p1; ++p, y += nt * kPanelRows) {
    const uint8_t* base = w.data + p * w.panel_bytes;
    for (int64_t g = 0; g < groups; ++g) {
      const uint16_t* aux = Groups<Code, Min>::aux(base, 8 * u + g);
      unpack_group<Code, Offset>(Groups<Code, Min>::codes(base, 8 * u + g), codes + 512 * g);
      fstore(d + 16 * g, load_f16(aux));
      if (Min) fstore(m + 16 * g, load_f16(aux + 16));
    }
    const uint16_t* rows = Rows ? last_scales(w, base, u) : nullptr;
    each_tile(Unit32<Code, Offset, Min, Rows>{codes, d, m, groups, x.q + at * kUnitK, x.scale + at * 8, x.fsum32 + at * 8, starts.at, y, u == 0, rows}, nt,
              next_32<Code, Min>(w, p0, p1, p, u, x));
  }
}

// ---- int8 codes with a float scale per 16 inputs ---------------------------------------------------------------
struct UnitI8 {
  const uint8_t *base, *codes;                                  // codes: unpacked, where they are not read as they lie
  int64_t groups;
  const int8_t* q;
  const float* xs;
  const int32_t* start;
  float* y;
  bool first;
  template <int NB> void run(int64_t t) const {
    F sum[NB];
    for (int b = 0; b < NB; ++b) sum[b] = first ? fzero() : fload(y + (t + b) * kPanelRows);
    for (int64_t h = 0; h < 2 * groups; ++h) {
      const uint8_t* p = base + h / 2 * (Byte::kBytes + 128);
      I acc[NB];
      sum_codes<Byte::kMost, 128, 16, NB>(acc, kSignedCodes ? codes + 256 * h : p + h % 2 * 256, q + t * kUnitK + 16 * h, kUnitK, start + t * 16 + h, 16);
      const F d = fload(reinterpret_cast<const float*>(p + Byte::kBytes) + h % 2 * 16);
      for (int b = 0; b < NB; ++b) sum[b] = fma(to_float(acc[b]), mul(d, fset(xs[(t + b) * 8 + h / 2])), sum[b]);
    }
    for (int b = 0; b < NB; ++b) fstore(y + (t + b) * kPanelRows, sum[b]);
  }
};
static void gemm_i8(const Panels& w, int64_t p0, int64_t p1, int64_t u, const Acts& x, int64_t t0, int64_t nt, float* y) {
  constexpr int64_t kGroup = Byte::kBytes + 128;
  alignas(64) uint8_t codes[kSignedCodes ? kUnitBytes : 64];
  Terms starts;
  if (!kSignedCodes) starts_of<16, 128>(x, u, t0, nt, starts);
  const int64_t at = u * x.rows + t0, groups = groups_in(w, u);
  for (int64_t p = p0; p < p1; ++p, y += nt * kPanelRows) {
    const uint8_t* unit = w.data + p * w.panel_bytes + 8 * u * kGroup;
    for (int64_t g = 0; kSignedCodes && g < groups; ++g) unpack_group<Byte, 128>(unit + g * kGroup, codes + 512 * g);
    each_tile(UnitI8{unit, codes, groups, x.q + at * kUnitK, x.scale + at * 8, starts.at, y, u == 0}, nt,
              next_i8(w, p0, p1, p, u, x));
  }
}

// ---- 256-input blocks with integer sub-scales ------------------------------------------------------------------
// A block's scales: sub-scales as int32 lanes, minima in pairs of int16 lanes, and the rows' floats.
template <class Code, int Sub, int Offset, bool Signed, bool Min> struct Block {
  using S = Super<Code, Sub, Offset, Signed, Min>;
  OP const uint8_t* at(const Panels& w, int64_t p, int64_t u) { return w.data + p * w.panel_bytes + u * S::kUnit; }
  OP const uint8_t* codes(const uint8_t* unit, int g) { return unit + g * Code::kBytes; }
  OP I sub(const uint8_t* unit, int s) {
    const uint8_t* subs = unit + 8 * Code::kBytes + 16 * s;
    return Signed ? load_i8(reinterpret_cast<const int8_t*>(subs)) : load_u8(subs);
  }
  OP I min_pair(const uint8_t* unit, int j) {
    return load_minima(unit + 8 * Code::kBytes + 16 * (S::kSubs + 2 * j));
  }
  OP const uint16_t* aux(const uint8_t* unit) { return reinterpret_cast<const uint16_t*>(unit + S::kScales); }
};
// One token's block, the way matmul.inl ends it.
template <bool Min> OP F block_end(F sum, F d, F dmin, I dots, I low, float xs) {
  F v = mul(d, to_float(dots));
  if (Min) v = fnma(dmin, to_float(low), v);
  return fma(v, fset(xs), sum);
}
template <int Subs> OP I low_of(const uint8_t* mins, const int32_t* pairs) {
  I low = izero();
  for (int j = 0; j < Subs / 2; ++j) low = dot_minima(low, bload(mins + 64 * j), pairs[j]);
  return low;
}

template <class Code, int Sub, int Offset, bool Signed, bool Min> struct Unit256 {
  static constexpr int kSubs = 256 / Sub;
  const uint8_t *w, *subs, *mins;                               // unpacked: codes, sub-scales as sub_factor makes them, int16 pairs of minima
  const uint16_t* aux;
  const int8_t* q;
  const float* xs;
  const int32_t *start, *pairs;
  float* y;
  bool first;
  template <int NB> void run(int64_t t) const {
    const int8_t* xq = q + t * kUnitK;
    I dots[NB];
    for (int b = 0; b < NB; ++b) dots[b] = izero();
    for (int s = 0; s < kSubs; ++s)
      add_scaled<Code::kMost, Offset, Sub, NB>(dots, bload(subs + 64 * s), w + 16 * Sub * s, xq + Sub * s, kUnitK, start + t * kSubs + s, kSubs);
    const F d = load_f16(aux), dmin = Min ? load_f16(aux + 16) : fzero();
    for (int b = 0; b < NB; ++b) {
      const I low = Min ? low_of<kSubs>(mins, pairs + (t + b) * kSubs / 2) : izero();
      float* out = y + (t + b) * kPanelRows;
      fstore(out, block_end<Min>(first ? fzero() : fload(out), d, dmin, dots[b], low, xs[t + b]));
    }
  }
};
template <class Code, int Sub, int Offset, bool Signed, bool Min>
static void gemm_256(const Panels& w, int64_t p0, int64_t p1, int64_t u, const Acts& x, int64_t t0, int64_t nt, float* y) {
  using B = Block<Code, Sub, Offset, Signed, Min>;
  constexpr int kSubs = 256 / Sub;
  alignas(64) uint8_t codes[kUnitBytes], subs[64 * kSubs], mins[64 * kSubs / 2];
  Terms starts, pairs;
  if (Offset && !kSignedCodes) starts_of<Sub, Offset>(x, u, t0, nt, starts);
  if (Min) pairs_of<Sub>(x, u, t0, nt, pairs);
  const int64_t at = u * x.rows + t0;
  for (int64_t p = p0; p < p1; ++p, y += nt * kPanelRows) {
    const uint8_t* unit = B::at(w, p, u);
    for (int g = 0; g < 8; ++g) unpack_group<Code, Offset>(B::codes(unit, g), codes + 512 * g);
    for (int s = 0; s < kSubs; ++s) bstore(subs + 64 * s, sub_factor(B::sub(unit, s)));
    if (Min) for (int j = 0; j < kSubs / 2; ++j) bstore(mins + 64 * j, B::min_pair(unit, j));
    each_tile(Unit256<Code, Sub, Offset, Signed, Min>{codes, subs, mins, B::aux(unit), x.q + at * kUnitK, x.scale + at, starts.at, pairs.at, y, u == 0}, nt,
              next_256<typename B::S>(w, p0, p1, p, u, x));
  }
}

// By the traits row; floats, heads and wide codes have none.
template <int T> constexpr Kernels::Gemm gemm_of() {
  constexpr WeightTraits w = kWeightTypes[T];
  if constexpr (w.form == Form::Blocks32) return gemm_32<typename Of<w.planes>::Code, w.offset, w.min>;
  else if constexpr (w.form == Form::Blocks256) return gemm_256<typename Of<w.planes>::Code, w.sub, w.offset, w.signed_sub, w.min>;
  else if constexpr (w.form == Form::Scales16) return gemm_i8;
  else if constexpr (w.form == Form::Rows32) return gemm_32<typename Of<w.planes>::Code, w.offset, false, true>;
  else return nullptr;
}
template <int T = 0> static void fill_gemm(Kernels& t) {
  t.gemm[T] = gemm_of<T>();
  if constexpr (T + 1 < kWeightTypeCount) fill_gemm<T + 1>(t);
}
