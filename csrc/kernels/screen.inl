// A head in two planes: its exact products, and an upper bound of them from the high plane alone.
//
// code = 2^s * high + low, high a nibble. Where only the greatest product is wanted, a bound per row shows that most
// rows cannot be it, and the low plane of their panels is never read. The exact product unpacks both planes into the
// codes that the kind in one plane has and goes on in its order, so its bits are that kind's.
//
// The bound: with low's middle m, sum code*x = sum (2^s*high + m)*x + sum (low - m)*x, and the last is at most
// |low - m| * |x|, scales and all, over the whole row (Cauchy and Schwarz): one product a token and row, where block by
// block it were a tenth tighter and cost as much as the sums. x is rounded more coarsely here than for the products (see
// screen.h), and code * |what that lost| joins the bound. pack.cpp's reach_of has the norms and the room for float rounding.

// Quad J of 32 inputs as the codes themselves, from both planes.
struct Head8 {
  static constexpr int kLow = 256;                       // low plane: bytes of 32 inputs
  template <int J> OP I quad_at(const uint8_t* p, const uint8_t* low) {
    const I h = bload(p + 64 * (J / 2)), l = bload(low + 64 * (J / 2));
    return byte_codes(bor(band(J % 2 ? h : shl16<4>(h), bset(240)), J % 2 ? high_nibbles(l) : band(l, bset(15))));
  }
};
struct Head6 {
  static constexpr int kLow = 128;
  template <int J> OP I quad_at(const uint8_t* p, const uint8_t* low) {
    const I h = bload(p + 64 * (J / 2));
    return bor(band(J % 2 ? shr16<2>(h) : shl16<2>(h), bset(60)), band(shr16<2 * (J % 4)>(bload(low + 64 * (J / 4))), bset(3)));
  }
};
// Quad J of the high plane, times what makes code + middle - offset an integer: 8 * (2*high - 15) for Q8_0H,
// (8*high - 61) / 2 for Q6_KH. Below 128, so dot4 does on every ISA.
struct High8 {
  template <int J> OP I quad_at(const uint8_t* p, const uint8_t*) {
    const I h = bload(p + 64 * (J / 2));
    return band(J % 2 ? shr16<3>(h) : shl16<1>(h), bset(30));
  }
};
struct High6 {
  template <int J> OP I quad_at(const uint8_t* p, const uint8_t*) {
    const I h = bload(p + 64 * (J / 2));
    return band(J % 2 ? shr16<1>(h) : shl16<3>(h), bset(120));
  }
};

template <bool First, class A, class B> struct Pick { using T = A; };
template <class A, class B> struct Pick<false, A, B> { using T = B; };

template <class Code, bool Full, int J, int NB>
OP void plane_quad(I* acc, const uint8_t* p, const uint8_t* low, const Sixteen* x) {
  const I w = Code::template quad_at<J>(p, low);
  for (int b = 0; b < NB; ++b) acc[b] = Full ? dot4_full_of<J % 4>(acc[b], w, x[b]) : dot4_of<J % 4>(acc[b], w, x[b]);
}
template <class Code, bool Full, int H, int NB>
OP void plane_half(I* acc, const uint8_t* p, const uint8_t* low, const int8_t* const* q) {
  Sixteen x[NB];
  for (int b = 0; b < NB; ++b) x[b] = sixteen(q[b] + 16 * H);
  plane_quad<Code, Full, 4 * H, NB>(acc, p, low, x);
  plane_quad<Code, Full, 4 * H + 1, NB>(acc, p, low, x);
  plane_quad<Code, Full, 4 * H + 2, NB>(acc, p, low, x);
  plane_quad<Code, Full, 4 * H + 3, NB>(acc, p, low, x);
}

// Activation rows t0, t0 + 1, ... of a tile, with a scale for each `unit` inputs.
template <int NB> struct HeadRows {
  const int8_t* q[NB];
  const float* scale[NB];
  const int32_t* sum[NB];
  OP void take(HeadRows& r, const Acts& x, int64_t unit, int64_t t0) {
    for (int b = 0; b < NB; ++b) {
      const int64_t t = t0 + b;
      r.q[b] = x.q + t * x.k;
      r.scale[b] = x.scale + t * ((x.k + unit - 1) / unit);
      r.sum[b] = x.sum16 + t * (x.k / 16);
    }
  }
};

// Where a bound may not be finite nothing can be said: such a row is always looked at.
OP F bounded(F y, float reach, const Panels& w, const uint8_t* base) {
  const F far = mul(fset(reach), fload(reinterpret_cast<const float*>(base + w.panel_bytes - 64)));
  return select_lt(far, fset(1e30f), add(y, far), fset(__builtin_inff()));
}

// Q8_0H: rows t0, t0+1, ... into out[b*ld], products or bounds of them. Four groups of a screen share an activation scale.
template <bool Exact, int NB>
static void head_32(const Panels& w, int64_t panel, const Acts& x, const float* reach, int64_t t0, float* out, int64_t ld) {
  using Code = typename Pick<Exact, Head8, High8>::T;
  constexpr int kOffset = Exact ? 128 - kByteBias : 15, kUnit = 256, kPair = 2 * kUnit + 64;
  const int64_t groups = w.k / 32;
  const uint8_t *base = w.high(panel), *low = w.low(panel);
  const Ahead ahead = Ahead::at(w, base, x);
  HeadRows<NB> r;
  HeadRows<NB>::take(r, x, Exact ? 32 : screen_inputs(WeightType::Q8_0H), t0);
  F y[NB], four[NB];
  for (int b = 0; b < NB; ++b) y[b] = four[b] = fzero();
  for (int64_t g = 0; g < groups; ++g) {
    const uint8_t* p = base + g / 2 * kPair + g % 2 * kUnit;
    const uint16_t* aux = reinterpret_cast<const uint16_t*>(base + g / 2 * kPair + 2 * kUnit + g % 2 * 32);
    ahead.ask<kUnit / 64>(p);
    if (g % 2) ahead.ask<1>(p + kUnit);
    if (Exact) ahead.ask_low<Head8::kLow / 64>(low + g * Head8::kLow);
    I acc[NB];
    for (int b = 0; b < NB; ++b) acc[b] = iset(-kOffset * (r.sum[b][2 * g] + r.sum[b][2 * g + 1]));
    plane_half<Code, Exact, 0, NB>(acc, p, low + g * Head8::kLow, r.q);
    plane_half<Code, Exact, 1, NB>(acc, p, low + g * Head8::kLow, r.q);
    const F d = load_f16(aux);
    for (int b = 0; b < NB; ++b) {
      if (Exact) y[b] = fma(to_float(acc[b]), mul(d, fset(r.scale[b][g])), y[b]);
      else four[b] = fma(to_float(acc[b]), d, four[b]);
      r.q[b] += 32;
    }
    if (Exact || (g % 4 < 3 && g + 1 < groups)) continue;
    for (int b = 0; b < NB; ++b) {
      y[b] = fma(four[b], fset(8.0f * r.scale[b][g / 4]), y[b]);
      four[b] = fzero();
    }
  }
  for (int b = 0; b < NB; ++b) fstore(out + b * ld, Exact ? y[b] : bounded(y[b], reach[t0 + b], w, base));
}

// Q6_KH, likewise. Scales of sixteen inputs are integers.
template <bool Exact, int NB>
static void head_256(const Panels& w, int64_t panel, const Acts& x, const float* reach, int64_t t0, float* out, int64_t ld) {
  using Code = typename Pick<Exact, Head6, High6>::T;
  constexpr int kOffset = Exact ? 32 : 61, kGroup = 256, kUnit = 8 * kGroup + 256 + 64;
  const int64_t blocks = w.k / 256;
  const uint8_t *base = w.high(panel), *low = w.low(panel);
  const Ahead ahead = Ahead::at(w, base, x);
  HeadRows<NB> r;
  HeadRows<NB>::take(r, x, 256, t0);
  F y[NB];
  for (int b = 0; b < NB; ++b) y[b] = fzero();
  for (int64_t i = 0; i < blocks; ++i) {
    const uint8_t* p = base + i * kUnit;
    const int8_t* subs = reinterpret_cast<const int8_t*>(p + 8 * kGroup);
    const uint16_t* aux = reinterpret_cast<const uint16_t*>(p + 8 * kGroup + 256);
    ahead.ask<(kUnit - 8 * kGroup) / 64>(p + 8 * kGroup);
    I dots[NB];
    for (int b = 0; b < NB; ++b) dots[b] = izero();
    for (int g = 0; g < 8; ++g, p += kGroup, low += Head6::kLow) {
      ahead.ask<kGroup / 64>(p);
      if (Exact) ahead.ask_low<Head6::kLow / 64>(low);
      I acc[NB];
      for (int b = 0; b < NB; ++b) acc[b] = iset(-kOffset * r.sum[b][2 * g]);
      plane_half<Code, false, 0, NB>(acc, p, low, r.q);
      for (int b = 0; b < NB; ++b) dots[b] = iadd(dots[b], imul(acc[b], load_i8(subs + 32 * g)));
      for (int b = 0; b < NB; ++b) acc[b] = iset(-kOffset * r.sum[b][2 * g + 1]);
      plane_half<Code, false, 1, NB>(acc, p, low, r.q);
      for (int b = 0; b < NB; ++b) {
        dots[b] = iadd(dots[b], imul(acc[b], load_i8(subs + 32 * g + 16)));
        r.q[b] += 32;
      }
    }
    const F d = load_f16(aux);
    for (int b = 0; b < NB; ++b) {
      y[b] = fma(mul(d, to_float(dots[b])), fset(Exact ? r.scale[b][i] : 0.5f * r.scale[b][i]), y[b]);
      r.sum[b] += 16;
    }
  }
  for (int b = 0; b < NB; ++b) fstore(out + b * ld, Exact ? y[b] : bounded(y[b], reach[t0 + b], w, base));
}

template <bool Exact, int NB> struct Head32 {
  OP void run(const Panels& w, int64_t p, const Acts& x, const float* reach, int64_t t, float* o, int64_t ld) {
    head_32<Exact, NB>(w, p, x, reach, t, o, ld);
  }
};
template <bool Exact, int NB> struct Head256 {
  OP void run(const Panels& w, int64_t p, const Acts& x, const float* reach, int64_t t, float* o, int64_t ld) {
    head_256<Exact, NB>(w, p, x, reach, t, o, ld);
  }
};
template <template <bool, int> class R, bool Exact>
OP void head_tiles(const Panels& w, int64_t p, const Acts& x, const float* reach, int64_t t, int64_t nt, float* o, int64_t ld) {
  for (; nt >= kTileMost; nt -= kTileMost, t += kTileMost, o += kTileMost * ld) R<Exact, kTileMost>::run(w, p, x, reach, t, o, ld);
  switch (nt) {
    case 7: if constexpr (kTileMost > 7) R<Exact, 7>::run(w, p, x, reach, t, o, ld); break;
    case 6: if constexpr (kTileMost > 6) R<Exact, 6>::run(w, p, x, reach, t, o, ld); break;
    case 5: if constexpr (kTileMost > 5) R<Exact, 5>::run(w, p, x, reach, t, o, ld); break;
    case 4: if constexpr (kTileMost > 4) R<Exact, 4>::run(w, p, x, reach, t, o, ld); break;
    case 3: R<Exact, 3>::run(w, p, x, reach, t, o, ld); break;
    case 2: R<Exact, 2>::run(w, p, x, reach, t, o, ld); break;
    case 1: R<Exact, 1>::run(w, p, x, reach, t, o, ld); break;
    default: break;
  }
}
template <template <bool, int> class R>
static void head_panel(const Panels& w, int64_t panel, const Acts& x, int64_t t0, int64_t nt, float* out, int64_t ld) {
  head_tiles<R, true>(w, panel, x, nullptr, t0, nt, out, ld);
}
template <template <bool, int> class R>
static void head_screen(const Panels& w, int64_t panel, const Acts& x, const float* reach, int64_t t0, int64_t nt, float* upper) {
  head_tiles<R, false>(w, panel, x, reach, t0, nt, upper, kPanelRows);
}

static void fill_screen(Kernels& t) {
  constexpr int eight = static_cast<int>(WeightType::Q8_0H), six = static_cast<int>(WeightType::Q6_KH);
  t.panel[eight] = head_panel<Head32>;
  t.panel[six] = head_panel<Head256>;
  t.screen[eight] = head_screen<Head32>;
  t.screen[six] = head_screen<Head256>;
}
