// The AMX table: avx512's with gemm (this file, the same bits), the few-row panel (amx_few.inl), the screen
// (amx_screen.inl) and attention (amx_attention.inl, amx_both.inl, whose bits differ from avx512's) replaced. Included by avx512.cpp, in
// its namespace.
//
// A tile multiply takes sixteen tokens by sixteen weight rows by 64 inputs in sixteen cycles, eight times dpbusd's rate:
// A: sixteen rows of activations as they lie in a unit; B: sixteen quads of a panel, as gemm.inl unpacks them, but signed;
// C: int32 sums, [token][row]. What bounds it is what follows each C: a store, a load, and float operations a token.
//
// 32 inputs a scale: a C for each group (K = 32). 256 inputs a scale: sub-scale * code is at most 13 bits and a sign, so
// B holds it in two planes, low bytes unsigned and high bytes signed, and C_low + 256 * C_high is the block's exact sum.

// Of two regions around a function clang takes the outer one's features, so the outer one ends where this begins.
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("amx-tile,amx-int8,amx-bf16,avx512vbmi,avx512vbmi2,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("amx-tile,amx-int8,amx-bf16,avx512vbmi,avx512vbmi2,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")
#endif

// The eight tiles, set by each call: C 0-3, A 4-5 of `bytes` inputs a token, B 6-7 of as many inputs.
struct Shape {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};
static inline void use_tiles(int bytes, int tokens = 16) {
  Shape s;
  for (int i = 0; i < 8; ++i) {
    s.row_bytes[i] = static_cast<uint16_t>(i == 4 || i == 5 ? bytes : 64);
    s.rows[i] = static_cast<uint8_t>(i >= 6 ? bytes / 4 : tokens);
  }
  __asm__ volatile("" ::"m"(s));
  _tile_loadconfig(&s);
}
// The compiler's tile intrinsics do not say that they touch memory.
static inline void settle() { __asm__ volatile("" ::: "memory"); }
constexpr int kTile = 256;                         // int32s of a C

// ---- 256 inputs a scale ----------------------------------------------------------------------------------------
// sub * (code - Offset) of one quad, to both planes. A lane's two 16-bit halves hold bytes 0, 2 and 1, 3 in turn.
template <int Offset> OP void split_quad(I code, I sub2, I offset2, uint8_t* low, uint8_t* high) {
  const __m512i byte = _mm512_set1_epi16(255);
  __m512i even = _mm512_mullo_epi16(_mm512_and_si512(code.v, byte), sub2.v), odd = _mm512_mullo_epi16(_mm512_srli_epi16(code.v, 8), sub2.v);
  if (Offset) even = _mm512_sub_epi16(even, offset2.v), odd = _mm512_sub_epi16(odd, offset2.v);
  bstore(low, {_mm512_or_si512(_mm512_and_si512(even, byte), _mm512_slli_epi16(odd, 8))});
  bstore(high, {_mm512_or_si512(_mm512_srli_epi16(even, 8), _mm512_andnot_si512(byte, odd))});
}
template <class Code, int Sub, int Offset, int J = 0> OP void split_group(const uint8_t* p, const I* sub2, uint8_t* low, uint8_t* high) {
  if constexpr (J < 8) {
    const I s = sub2[Sub == 16 ? J / 4 : 0];
    split_quad<Offset>(Code::template quad_at<J>(p), s, {_mm512_mullo_epi16(s.v, _mm512_set1_epi16(Offset))}, low + 64 * J, high + 64 * J);
    split_group<Code, Sub, Offset, J + 1>(p, sub2, low, high);
  }
}
OP I twice(I a) { return {_mm512_or_si512(_mm512_and_si512(a.v, _mm512_set1_epi32(0xffff)), _mm512_slli_epi32(a.v, 16))}; }

// C of 32 tokens: tiles 0, 1 the first sixteen (low, high), 2, 3 the others. Two A and two B feed four multiplies.
template <int K> OP void tile_step(const int8_t* q, const uint8_t* low, const uint8_t* high) {
  _tile_loadd(6, low + 1024 * K, 64);
  _tile_loadd(4, q + 64 * K, kUnitK);
  _tile_dpbsud(0, 4, 6);
  _tile_loadd(7, high + 1024 * K, 64);
  _tile_dpbssd(1, 4, 7);
  _tile_loadd(5, q + 16 * kUnitK + 64 * K, kUnitK);
  _tile_dpbsud(2, 5, 6);
  _tile_dpbssd(3, 5, 7);
}
template <int Subs, bool Min> struct Ends {        // what follows a block's C
  const uint8_t* mins;
  const uint16_t* aux;
  const float* xs;
  const int32_t* pairs;
  float* y;
  bool first;
  // Tokens t + [from, to) of the 32 whose C begin with token t.
  void run(const int32_t* c, int64_t t, int64_t from, int64_t to) const {
    const F d = load_f16(aux), dmin = Min ? load_f16(aux + 16) : fzero();
    t += from;
    for (int64_t i = from; i < to; ++i, ++t) {
      const int32_t* at = c + i / 16 * 2 * kTile + i % 16 * 16;
      const I dots = {_mm512_add_epi32(_mm512_load_si512(at), _mm512_slli_epi32(_mm512_load_si512(at + kTile), 8))};
      float* out = y + t * kPanelRows;
      const I low = Min ? low_of<Subs>(mins, pairs + t * Subs / 2) : izero();
      fstore(out, block_end<Min>(first ? fzero() : fload(out), d, dmin, dots, low, xs[t]));
    }
  }
};
template <class Code, int Sub, int Offset, bool Signed, bool Min>
static void tiles_256(const Panels& w, int64_t p0, int64_t p1, int64_t u, const Acts& x, int64_t t0, int64_t nt, float* y) {
  using B = Block<Code, Sub, Offset, Signed, Min>;
  constexpr int kSubs = 256 / Sub;
  alignas(64) uint8_t low[kUnitBytes], high[kUnitBytes], mins[64 * kSubs / 2];
  alignas(64) int32_t c[2][4 * kTile];             // in turn: one block's products run beside the last one's floats
  Terms pairs;
  if (Min) pairs_of<Sub>(x, u, t0, nt, pairs);
  const int64_t at = u * x.rows + t0;
  use_tiles(64);
  for (int64_t p = p0; p < p1; ++p, y += nt * kPanelRows) {
    const uint8_t* unit = B::at(w, p, u);
    for (int g = 0; g < 8; ++g) {
      const I subs[2] = {twice(B::sub(unit, Sub == 16 ? 2 * g : g)), Sub == 16 ? twice(B::sub(unit, 2 * g + 1)) : izero()};
      split_group<Code, Sub, Offset>(B::codes(unit, g), subs, low + 512 * g, high + 512 * g);
    }
    if (Min) for (int j = 0; j < kSubs / 2; ++j) bstore(mins + 64 * j, B::min_pair(unit, j));
    settle();
    const Next next = next_256<typename B::S>(w, p0, p1, p, u, x);
    const Ends<kSubs, Min> ends{mins, B::aux(unit), x.scale + at, pairs.at, y, u == 0};
    for (int64_t t = 0; t < nt; t += 32) {
      const int8_t* q = x.q + (at + t) * kUnitK;
      int32_t *now = c[t / 32 % 2], *last = c[(t / 32 + 1) % 2];
      const int64_t some = t ? 8 : 0;
      next.ask(t, 32, nt);
      _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
      tile_step<0>(q, low, high);
      ends.run(last, t - 32, 0, some);
      tile_step<1>(q, low, high);
      ends.run(last, t - 32, 8, 8 + some);
      tile_step<2>(q, low, high);
      ends.run(last, t - 32, 16, 16 + some);
      tile_step<3>(q, low, high);
      ends.run(last, t - 32, 24, 24 + some);
      _tile_stored(0, now, 64); _tile_stored(1, now + kTile, 64); _tile_stored(2, now + 2 * kTile, 64); _tile_stored(3, now + 3 * kTile, 64);
      settle();
    }
    const int64_t end = (nt - 1) / 32 * 32;
    ends.run(c[end / 32 % 2], end, 0, nt - end);
  }
  _tile_release();
}

// ---- 32 inputs a scale -----------------------------------------------------------------------------------------
template <class Code, int Offset, int J = 0> OP void sign_group(const uint8_t* p, uint8_t* out) {
  if constexpr (J < 8) {
    bstore(out + 64 * J, {_mm512_sub_epi8(Code::template quad_at<J>(p).v, _mm512_set1_epi8(static_cast<char>(Offset)))});
    sign_group<Code, Offset, J + 1>(p, out);
  }
}
// Four groups' C of sixteen tokens; Bytes: inputs a C sums, 32 or (int8 codes) 16.
template <int Bytes> OP void four_tiles(const int8_t* q, const uint8_t* w, int32_t* c) {
  _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
  _tile_loadd(4, q, kUnitK); _tile_loadd(6, w, 64); _tile_dpbssd(0, 4, 6);
  _tile_loadd(5, q + Bytes, kUnitK); _tile_loadd(7, w + 16 * Bytes, 64); _tile_dpbssd(1, 5, 7);
  _tile_loadd(4, q + 2 * Bytes, kUnitK); _tile_loadd(6, w + 32 * Bytes, 64); _tile_dpbssd(2, 4, 6);
  _tile_loadd(5, q + 3 * Bytes, kUnitK); _tile_loadd(7, w + 48 * Bytes, 64); _tile_dpbssd(3, 5, 7);
  _tile_stored(0, c, 64); _tile_stored(1, c + kTile, 64); _tile_stored(2, c + 2 * kTile, 64); _tile_stored(3, c + 3 * kTile, 64);
  settle();
}
// A unit's C in turn: parts of Bytes inputs, one float scale each (and minimum), `parts` of them here, in fours.
// `rows`: where weights have row scales, those, at a panel's last unit; null before.
template <int Bytes, bool Min, bool Rows = false> struct Parts {
  const uint8_t* w;
  const float *d, *m;
  int64_t parts;
  const int8_t* q;
  const float *xs, *xf;
  float* y;
  bool first;
  const uint16_t* rows = nullptr;
  void run(int64_t nt, const Next& next) const {
    int64_t t = 0;
    for (; t + 16 <= nt; t += 16) {
      next.ask(t, 16, nt);
      sixteen(t);
    }
    if (t == nt) return;
    next.ask(t, 16, nt);
    alignas(64) int32_t c[4 * kTile];
    for (int64_t g = 0; g < parts; g += 4) {
      multiply(t, g, c);
      few(c, t, nt - t, g, parts - g < 4 ? parts - g : 4);
    }
  }
  // A last four beyond the unit multiplies what lies there and is not read.
  void multiply(int64_t t, int64_t g, int32_t* c) const { four_tiles<Bytes>(q + t * kUnitK + Bytes * g, w + 16 * Bytes * g, c); }
  // Sums of sixteen tokens stay in registers for the unit, and a part's floats are loaded once for all of them.
  void sixteen(int64_t t) const {
    alignas(64) int32_t c[4 * kTile];
    float* out = y + t * kPanelRows;
    F sums[16];
    UNROLL for (int i = 0; i < 16; ++i) sums[i] = first ? fzero() : fload(out + 16 * i);
    for (int64_t g = 0; g < parts; g += 4) {
      multiply(t, g, c);
      const int64_t count = parts - g < 4 ? parts - g : 4;
      for (int64_t j = 0; j < count; ++j) {
        const F scale = fload(d + 16 * (g + j)), least = Min ? fload(m + 16 * (g + j)) : fzero();
        const int64_t s = t * 8 + (g + j) * Bytes / 32;
        UNROLL for (int i = 0; i < 16; ++i) sums[i] = end(c + j * kTile + 16 * i, scale, least, s + 8 * i, sums[i]);
      }
    }
    UNROLL for (int i = 0; i < 16; ++i) fstore(out + 16 * i, last(sums[i]));
  }
  // A prompt's last tokens, fewer than a tile has rows.
  void few(const int32_t* c, int64_t t, int64_t n, int64_t g, int64_t count) const {
    for (int64_t i = 0; i < n; ++i) {
      float* out = y + (t + i) * kPanelRows;
      F sum = first && g == 0 ? fzero() : fload(out);
      for (int64_t j = 0; j < count; ++j)
        sum = end(c + j * kTile + 16 * i, fload(d + 16 * (g + j)), Min ? fload(m + 16 * (g + j)) : fzero(), (t + i) * 8 + (g + j) * Bytes / 32, sum);
      fstore(out, g + count == parts ? last(sum) : sum);
    }
  }
  inline __attribute__((always_inline)) F end(const int32_t* c, F scale, F least, int64_t s, F sum) const {
    sum = add_group<Rows>(sum, {_mm512_load_si512(c)}, mul(scale, fset(xs[s])));
    return Min ? fma(least, fset(xf[s]), sum) : sum;
  }
  inline __attribute__((always_inline)) F last(F sum) const { return Rows && rows ? mul(sum, load_f16(rows)) : sum; }
};
template <class Code, int Offset, bool Min, bool Rows = false>
static void tiles_32(const Panels& w, int64_t p0, int64_t p1, int64_t u, const Acts& x, int64_t t0, int64_t nt, float* y) {
  alignas(64) uint8_t codes[kUnitBytes];
  alignas(64) float d[8 * kPanelRows], m[8 * kPanelRows];
  const int64_t at = u * x.rows + t0, groups = groups_in(w, u);
  use_tiles(32);
  for (int64_t p = p0; p < p1; ++p, y += nt * kPanelRows) {
    const uint8_t* base = w.data + p * w.panel_bytes;
    for (int64_t g = 0; g < groups; ++g) {
      const uint16_t* aux = Groups<Code, Min>::aux(base, 8 * u + g);
      sign_group<Code, Offset>(Groups<Code, Min>::codes(base, 8 * u + g), codes + 512 * g);
      fstore(d + 16 * g, load_f16(aux));
      if (Min) fstore(m + 16 * g, load_f16(aux + 16));
    }
    settle();
    const uint16_t* rows = Rows ? last_scales(w, base, u) : nullptr;
    Parts<32, Min, Rows>{codes, d, m, groups, x.q + at * kUnitK, x.scale + at * 8, x.fsum32 + at * 8, y, u == 0, rows}.run(nt, next_32<Code, Min>(w, p0, p1, p, u, x));
  }
  _tile_release();
}
template <int K> static void tiles_trellis(const Panels& w, int64_t p0, int64_t p1, int64_t u, const Acts& x, int64_t t0, int64_t nt, float* y) {
  alignas(64) uint8_t codes[kUnitBytes];
  alignas(64) float d[8 * kPanelRows];
  const int64_t at = u * x.rows + t0, groups = groups_in(w, u);
  use_tiles(32);
  for (int64_t p = p0; p < p1; ++p, y += nt * kPanelRows) {
    const uint8_t* base = w.data + p * w.panel_bytes;
    unpack_quickly<K, true>(w, base, u, codes, d);
    settle();
    Parts<32, false, true>{codes, d, nullptr, groups, x.q + at * kUnitK, x.scale + at * 8, nullptr, y, u == 0, last_scales(w, base, u)}
        .run(nt, next_trellis<K>(w, p0, p1, p, u, x));
  }
  _tile_release();
}
static void tiles_i8(const Panels& w, int64_t p0, int64_t p1, int64_t u, const Acts& x, int64_t t0, int64_t nt, float* y) {
  alignas(64) uint8_t codes[kUnitBytes];
  alignas(64) float d[16 * kPanelRows];
  const int64_t at = u * x.rows + t0, groups = groups_in(w, u);
  use_tiles(16);
  for (int64_t p = p0; p < p1; ++p, y += nt * kPanelRows) {
    const uint8_t* base = w.data + p * w.panel_bytes + 8 * u * (Byte::kBytes + 128);
    for (int64_t g = 0; g < groups; ++g, base += Byte::kBytes + 128) {
      sign_group<Byte, 128>(base, codes + 512 * g);
      for (int h = 0; h < 2; ++h) fstore(d + 32 * g + 16 * h, fload(reinterpret_cast<const float*>(base + Byte::kBytes) + 16 * h));
    }
    settle();
    Parts<16, false>{codes, d, nullptr, 2 * groups, x.q + at * kUnitK, x.scale + at * 8, nullptr, y, u == 0}.run(nt, next_i8(w, p0, p1, p, u, x));
  }
  _tile_release();
}

static int32_t tile_loop(int64_t iterations) {
  alignas(64) int32_t c[kTile];
  for (int i = 0; i < kTile; ++i) c[i] = 0x01020304 * (i & 1);
  settle();
  use_tiles(64);
  _tile_loadd(4, c, 64); _tile_loadd(5, c, 64); _tile_loadd(6, c, 64); _tile_loadd(7, c, 64);
  _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
  for (int64_t i = 0; i < iterations; ++i) {
    _tile_dpbssd(0, 4, 6); _tile_dpbssd(1, 4, 7); _tile_dpbssd(2, 5, 6); _tile_dpbssd(3, 5, 7);
  }
  _tile_stored(0, c, 64);
  _tile_release();
  settle();
  return c[0];
}

#include "amx_few.inl"
#include "amx_screen.inl"
#include "amx_attention.inl"
#include "amx_both.inl"
#include "amx_rounded.inl"

template <int T> constexpr Kernels::Gemm tiles_of() {
  constexpr WeightTraits w = kWeightTypes[T];
  if constexpr (w.form == Form::Blocks32) return tiles_32<typename Of<w.planes>::Code, w.offset, w.min>;
  else if constexpr (w.form == Form::Blocks256) return tiles_256<typename Of<w.planes>::Code, w.sub, w.offset, w.signed_sub, w.min>;
  else if constexpr (w.form == Form::Scales16) return tiles_i8;
  else if constexpr (w.form == Form::Rows32) return tiles_32<typename Of<w.planes>::Code, w.offset, false, true>;
  else if constexpr (w.form == Form::Trellis) return tiles_trellis<w.trellis_bits()>;
  else return nullptr;
}
template <int T = 0> static void fill_tiles(Kernels& t) {
  t.gemm[T] = tiles_of<T>();
  t.gemm_rounded[T] = rounded_of<T>();
  if constexpr (T + 1 < kWeightTypeCount) fill_tiles<T + 1>(t);
}
static Kernels make_amx() {
  Kernels t = make_table("amx");
  t.gemm_rows = kFew + 1;                            // sixteen rows fill one tile
  fill_windows(t);
  fill_few(t);
  fill_tiles(t);
  t.screen[static_cast<int>(WeightType::Q8_0H)] = screen_tiles;
  t.attend_span = attend_span_tiles;
  t.round_row = round_row;
  t.silu_rounded = silu_rounded;
  t.gelu_rounded = gelu_rounded;
  t.gelu_bias_rounded = gelu_bias_rounded;
  t.both_rounded = {tiled_packed, tiled_scratch, pack_tiled, attend_tiled};
  t.tile_loop = tile_loop;
  return t;
}
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC pop_options
#endif

static const Kernels* amx_table() { static const Kernels t = make_amx(); return &t; }
