// A head's screen by AMX tiles, for nine rows or more: Q8_0H's other `screen`. Its bounds are not avx512's to the bit, and need not
// be. Included by amx.inl.
//
// Unpacked once for all rows of a call. Sums of four groups share an activation scale, so a token and group cost two float
// operations where a product's cost three. A step of 64 guesses of qwen2.5-coder:0.5b takes 0.95 of the time it took with
// sixteen rows at a time, each with a scale for 32 inputs; one of sixteen rows as long as it did.

// Q8_0H's high plane as 8 * (2 * high - 15), a signed byte.
struct Top8 {
  template <int J> OP I quad_at(const uint8_t* p) {
    const I h = bload(p + 64 * (J / 2));
    return band(J % 2 ? h : shl16<4>(h), bset(240));
  }
};
constexpr int64_t kScreenGroups = 32;              // unpacked at a time: 16 KB of codes in an L1
struct ScreenPart {
  alignas(64) uint8_t codes[kScreenGroups * 512];
  alignas(64) float d[kScreenGroups * kPanelRows];
  const uint8_t* base;
  Ahead ahead;
  int64_t first, groups;                           // of the row's; a last four's missing groups count nothing

  void unpack(int64_t n) {
    for (int64_t j = 4 * n; j < 4 * n + 4; ++j) {
      if (j >= groups) {
        fstore(d + 16 * j, fzero());
        continue;
      }
      const uint8_t* p = Groups<Nibble, false>::codes(base, first + j);
      ahead.ask<Nibble::kBytes / 64>(p);
      if (j % 2) ahead.ask<1>(p + Nibble::kBytes);
      sign_group<Top8, 120>(p, codes + 512 * j);
      fstore(d + 16 * j, load_f16(Groups<Nibble, false>::aux(base, first + j)));
    }
    settle();
  }
  // Adds these groups' sums with sixteen rows to y; the first to come unpack them.
  template <bool Fresh> void sixteen(const Few& x, F* y) {
    alignas(64) int32_t c[2][4 * kTile];           // in turn: one step's tiles run beside the last one's floats
    const int64_t steps = (groups + 3) / 4;
    const auto fold = [&](int64_t n) __attribute__((always_inline)) {
      const int32_t* at = c[n % 2];
      const F d0 = fload(d + 64 * n), d1 = fload(d + 64 * n + 16), d2 = fload(d + 64 * n + 32), d3 = fload(d + 64 * n + 48);
      const float* scale = x.scale + first / 4 + n;
      UNROLL for (int i = 0; i < kFew; ++i, at += 16) {
        F four = mul(to_float({_mm512_load_si512(at)}), d0);
        four = fma(to_float({_mm512_load_si512(at + kTile)}), d1, four);
        four = fma(to_float({_mm512_load_si512(at + 2 * kTile)}), d2, four);
        four = fma(to_float({_mm512_load_si512(at + 3 * kTile)}), d3, four);
        y[i] = fma(four, fset(scale[i * x.scales]), y[i]);
      }
    };
    for (int64_t n = 0; n < steps; ++n) {
      if (Fresh) unpack(n);
      few_tiles(x, 32 * first + 128 * n, groups - 1 - 4 * n, codes + 2048 * n, c[n % 2]);
      if (n) fold(n - 1);
    }
    fold(steps - 1);
  }
};
static void screen_tiles(const Panels& w, int64_t panel, const Acts& x, const float* reach, int64_t t0, int64_t nt, float* upper) {
  if (nt < kFewFrom) return head_screen<Head32>(w, panel, x, reach, t0, nt, upper);
  const uint8_t* base = w.high(panel);
  const int64_t all = w.k / 32;
  ScreenPart part;
  part.base = base;
  part.ahead = Ahead::at(w, base, x);
  use_tiles(32);
  for (part.first = 0; part.first < all; part.first += kScreenGroups) {
    part.groups = all - part.first < kScreenGroups ? all - part.first : kScreenGroups;
    for (int64_t t = 0; t < nt; t += kFew) {
      const int64_t rows = nt - t < kFew ? nt - t : kFew;
      F y[kFew];
      UNROLL for (int i = 0; i < kFew; ++i) y[i] = part.first && i < rows ? fload(upper + (t + i) * kPanelRows) : fzero();
      const Few few = Few::of(x, screen_inputs(WeightType::Q8_0H), t0 + t, kFew);
      if (t) part.sixteen<false>(few, y);
      else part.sixteen<true>(few, y);
      const bool last = part.first + kScreenGroups >= all;
      UNROLL for (int i = 0; i < kFew; ++i)
        if (i < rows) fstore(upper + (t + i) * kPanelRows, last ? bounded(y[i], reach[t0 + t + i], w, base) : y[i]);
    }
  }
  _tile_release();
}
