// The one kernel header: panel formats, activation rows, and the table of kernels each ISA fills.
// Knows no model, no thread, no Python. Everything here is plain data; SIMD lives in kernels/isa/.
//
// Key to the letters: M rows of activations (tokens), N rows of a weight matrix (outputs),
// K columns (inputs), B sequences, T tokens of one sequence, H heads, D width of a head.
//
// Determinism: a kernel's result for one token depends on that token's row alone. Integer dots are exact,
// and every float sum runs in an order fixed by position, so tile size, batch and threads change no bit.
#pragma once
#include <cstddef>
#include <cstdint>

#include "trellis.h"
#include "weight_types.h"

namespace fh {

// Sixteen weight rows make a panel: one 512-bit register holds four inputs of each row as bytes,
// so one broadcast of four activations feeds all sixteen dots without a horizontal sum.
constexpr int kPanelRows = 16;
// Eight tokens a tile: eight int32 accumulators, the unpacked codes, scales and sums fit 32 registers; twelve spill.
constexpr int kTileTokens = 8;
// From an ISA's gemm_rows tokens on, a panel is unpacked once for all of a call's tokens (gemm.inl), at most 512 of them:
// their int8 inputs of one unit, 128 KB, stay in a 1 MB L2 beside the sums of eight panels (256 KB).
constexpr int kGemmTokens = 512;

// A panel's unit of wide codes: codes, then sixteen scales.
constexpr int kWideUnitBytes = 32 * kWideUnit + 64;

// Weights in panels. Rows beyond n in the last panel are zero. Owned by freehold.h's Matrix.
// A weight type in two planes keeps the low plane's panels, low_bytes each, after all panels of the high one.
struct Panels {
  WeightType type;
  int64_t n, k;
  int64_t panel_bytes;      // a multiple of 64
  const uint8_t* data;      // 64-byte aligned
  int64_t low_bytes = 0;    // a multiple of 64
  int64_t count() const { return (n + kPanelRows - 1) / kPanelRows; }
  int64_t table_bytes() const { return traits(type).form == Form::Trellis ? kTableBytes : 0; }
  int64_t bytes() const { return (panel_bytes + low_bytes) * count() + table_bytes(); }
  const uint8_t* high(int64_t panel) const { return data + panel * panel_bytes; }
  const uint8_t* low(int64_t panel) const { return data + count() * panel_bytes + panel * low_bytes; }
  const uint8_t* table() const { return data + count() * panel_bytes; }      // of T2 and T3
};
// What the planes of a head stand for: code = 16 * high + low (Q8_0H), 4 * high + low (Q6_KH). The screen takes low for
// its middle, 8 or 1.5; `reach` is how far the rest can move a row's product for each unit of the activations' reach:
// float32 [16] at the end of a panel of the high plane.
constexpr float kRestShare = 12.0f;           // what rounding left of a row counts so much: codes are about so much longer than low parts.
                                              // Packed files hold norms by it: see kLayout
constexpr int64_t screen_inputs(WeightType type) { return traits(type).form == Form::Head32 ? 128 : 256; }   // that share a scale in a screen's rows

// M rows of activations, ready to multiply. The int8 forms: x ~ scale * q, one scale per 32 or 256 inputs.
// For `gemm` the same by units of 256 inputs: q [K/256][M][256], scale [K/256][M][8] or [K/256][M], sum16 [K/256][M][16],
// fsum32 [K/256][M][8]; a last unit of fewer inputs takes the same room. Vector units may read 32 rows past the last.
struct Acts {
  int64_t k = 0, rows = 0;           // rows: M, by units only
  const float* f32 = nullptr;        // [M][k]
  const int8_t* q = nullptr;         // [M][k]
  const int16_t* wide = nullptr;     // [k/128][M][128], always by units; its scale is [k/128][M]
  const float* scale = nullptr;      // [M][k/32] or [M][k/256]; for a screen [M][k/128 rounded up] or [M][k/256]
  const int32_t* sum16 = nullptr;    // [M][k/16]: sums of q, which turn weight offsets and minima into one term
  const float* fsum32 = nullptr;     // [M][k/32]: scale * sum of q over 32 (kAct32 only)
  // Where weights are read as a stream: the panel this thread reads next, and how many bytes ahead of the one in hand
  // lines are asked for (0: the machine's own prefetcher does better). They change no result.
  const uint8_t* next = nullptr;
  int64_t ahead = 0;
  const uint16_t* rounded = nullptr; // [K/256][M][256] as round_row writes them, always by units
};

// One layer's keys and values for one sequence: pages of kBlockTokens positions, found through the block table.
// A page of one layer holds, for each kv head, keys, then values. As f16 (or float32, for judging everything else
// without the cache's rounding): keys transposed [D][32], values [32][Dv]. Transposed keys let sixteen positions share
// one broadcast of a query element.
// As codes (Q8): keys [D/4][32][4], values [32/4][Dv][4], so that one dot takes four inputs, or four positions, of
// sixteen lanes; D/4 is rounded up, Dv to sixteen, and what that adds is zero or never stored. A code is
// round(x / scale) + 128; after the codes lie the scales, [32] floats for keys and [32] for values: one per position
// and head, max|x| / 127, so that what a position holds never depends on another.
constexpr int kBlockTokens = 32;
enum class KvType : uint8_t { F16, F32, Q8 };
// The widest head that is kept as codes: 512 products of a byte and a code stay below 2^24, exact as int32 and as float.
constexpr int kMaxCodeWidth = 512;
constexpr int64_t kv_values_at(KvType type, int64_t d) {
  return kBlockTokens * (type == KvType::Q8 ? (d + 3) / 4 * 4 : d * (type == KvType::F32 ? 4 : 2));
}
constexpr int64_t kv_scales_at(int64_t d, int64_t dv) { return kv_values_at(KvType::Q8, d) + kBlockTokens * ((dv + 15) / 16 * 16); }
constexpr int64_t kv_head_bytes(KvType type, int64_t d, int64_t dv) {
  return type == KvType::Q8 ? kv_scales_at(d, dv) + int64_t{2 * 4} * kBlockTokens : kv_values_at(type, d + dv);
}
// Softmax partials span 256 positions, counted from position 0, and merge in order, in prefill and decode alike.
constexpr int kSpanTokens = 256;
struct AttnArgs {
  const float* q; int64_t q_stride;      // row r: q + r*q_stride, [heads][d], rotated already
  float* out; int64_t out_stride;        // row r: [heads][dv]
  uint8_t* pages; int64_t block_bytes;   // this layer's pages; the one of block b at pages + b*block_bytes
  const int32_t* block_table;            // of this sequence
  int heads, kv_heads, d, dv;
  float scale, softcap;                  // scale > 0; softcap 0: none; else cap*tanh(x/cap), before the mask
  int window;                            // 0: none; else a query at i sees keys j with i-window < j <= i
  int first_position;                    // rows are consecutive positions of one sequence
  const int32_t* ends;                   // [rows]: a row sees keys before this position; null: those up to its own
  KvType type;                           // what the pages hold
};
// Queries (rows x the heads that share a kv head) that are computed together against one span: their scores, 70 KB, and
// a widened page part, 16 KB, stay in an L2.
constexpr int kAttnTileQueries = 64;

// One head of one sequence whose rows all see each other: rows of q, k, v and out lie `stride` floats apart. d is
// 16 or more.
struct BothArgs { const float *q, *k, *v; float* out; int64_t stride, rows; int d; float scale; };
constexpr int kBothPacked = 256;              // keys and values that are packed at a time
constexpr int kBothMost = 256;                // queries that `attend` takes at once
// Attention both ways in two halves: keys and values are packed once for all of a head's queries. Memory is the caller's, on
// a boundary of 64 bytes. A query's bits depend on no other query of its call.
struct BothKernel {
  int64_t (*packed)(int64_t rows, int64_t d);        // floats that a head takes packed
  int64_t (*scratch)(int64_t rows, int64_t d);       // floats for a call of `attend`
  void (*pack)(const BothArgs& a, int64_t begin, int64_t end, float* packed);   // rows [begin, end), begin a multiple of kBothPacked
  // out = softmax(q k' scale) v of queries [row, row + count).
  void (*attend)(const BothArgs& a, const float* packed, int64_t row, int64_t count, float* scratch);
};

struct SampleParams {
  float temperature, top_p, min_p, typical_p;
  int32_t top_k;
  uint64_t seed;
  int64_t position;
};

// What an ISA provides. Chosen once (dispatch.cpp); every member but tile_loop is filled in every table.
struct Kernels {
  const char* name;
  bool trellis;                 // whether T2 and T3 are decoded at speed; else packing makes T8 of them
  int gemm_rows;                // rows of a step from which `gemm` beats `panel`; 17 at most, see ActScratch's tiles

  // out[t*ld + r] = dot(row panel*16+r of w, activation row t0+t), t in [0, nt), any nt; r in [0,16).
  using Panel = void (*)(const Panels& w, int64_t panel, const Acts& x, int64_t t0, int64_t nt, float* out, int64_t ld);
  Panel panel[kWeightTypeCount];
  // upper[t*16 + r] >= the greatest that row's product with row t can be before it was rounded for the screen, read from the
  // high plane alone; infinite where it may not be finite. x, reach: see screen.h. Null but for heads in two planes.
  using Screen = void (*)(const Panels& w, int64_t panel, const Acts& x, const float* reach, int64_t t0, int64_t nt, float* upper);
  Screen screen[kWeightTypeCount];
  // The same bits for a prompt: panels [p0, p1), tokens [t0, t0+nt), nt <= kGemmTokens, inputs [256u, 256u + 256), from
  // activations by units. y [p1-p0][nt][16] begins at unit 0 and grows with every further one, in order. Integer types only.
  using Gemm = void (*)(const Panels& w, int64_t p0, int64_t p1, int64_t u, const Acts& x, int64_t t0, int64_t nt, float* y);
  Gemm gemm[kWeightTypeCount];
  using Gate = void (*)(const float* g, const float* u, int64_t width, int64_t nt, float* y, int64_t ld);
  // Where products may round to bfloat16: weights and rows rounded so, sums in float32. Other bits than gemm's and panel's, for any
  // number of rows. Null for types, and tables, whose integer dots do better.
  Gemm gemm_rounded[kWeightTypeCount];
  void (*round_row)(const float* x, int64_t k, uint16_t* to);   // a unit of a row for that, k a multiple of 32; null with it
  // What follows such products, within 2^-12 of itself: gates as silu_rows and gelu_rows, and y = gelu_tanh(sums + bias), bias may be
  // null. Null with it.
  Gate silu_rounded, gelu_rounded;
  void (*gelu_bias_rounded)(const float* sums, int64_t width, int64_t nt, const float* bias, float* y, int64_t ld);

  // One activation row to int8. k a multiple of 32 (of 256 for q256). NaN or infinity in x give scale NaN: never UB.
  void (*quantize32)(const float* x, int64_t k, int8_t* q, float* scale, int32_t* sum16, float* fsum32);
  void (*quantize256)(const float* x, int64_t k, int8_t* q, float* scale, int32_t* sum16);

  // The same to wide codes, k a multiple of 128; unit u goes to q + u*stride*128, its scale to scale + u*stride.
  void (*quantize_wide)(const float* x, int64_t k, int64_t stride, int16_t* q, float* scale);

  // y = x / sqrt(mean(x^2) + eps) * w. In place allowed.
  void (*rms_norm)(const float* x, const float* w, float eps, int64_t n, float* y);
  void (*add)(float* y, const float* x, int64_t n);                 // y += x
  void (*scale)(float* y, float s, int64_t n);                      // y *= s
  // Panels' sums [panels][nt][16], `width` columns of them, to the rows they belong to, ld apart: y = sums (+ bias), or y += that.
  void (*store_rows)(const float* sums, int64_t width, int64_t nt, const float* bias, bool grow, float* y, int64_t ld);
  // y[rows[t]] += scale[t] * that, by one multiply-add; rows null: row t. Rows differ.
  void (*add_scaled_rows)(const float* sums, int64_t width, int64_t nt, const int32_t* rows, const float* scale, float* y, int64_t ld);
  // The same of gates and what they let through: y = silu(g) * u, or gelu_tanh(g) * u.
  Gate silu_rows, gelu_rows;
  void (*softcap)(float* y, float cap, int64_t n);                  // y = cap * tanh(y / cap)

  void (*layer_norm)(const float* x, const float* w, const float* b, float eps, int64_t n, float* y);   // n % 16 == 0; in place allowed
  void (*gelu_erf)(float* y, int64_t n);                            // y = y * P(normal < y); n % 16 == 0
  // Attention both ways in floats; and where products may round to bfloat16 (floats too, where that is no faster).
  BothKernel both, both_rounded;

  // Rotates `heads` heads of d floats in place by cos/sin [rot/2]; rot <= d inputs turn, the rest stay.
  // adjacent: pairs (2i, 2i+1); else halves (i, i + rot/2).
  void (*rope)(float* x, int heads, int d, int rot, const float* cos, const float* sin, bool adjacent);
  // Writes one position's keys [kv_heads][d] and values [kv_heads][dv] into a page, slot in [0, 32).
  void (*kv_store)(const float* k, const float* v, int kv_heads, int d, int dv, KvType type, uint8_t* page, int slot);

  // Partial softmax of rows [row0, row0+rows) x the heads of one kv head over span number `span`.
  // partial: for each (row, head in group): m (in bits: base 2), l, then dv floats; a span a row cannot see leaves
  // m = -inf, l = 0.
  void (*attend_span)(const AttnArgs& a, int kv_head, int row0, int rows, int span, float* partial);
  // Folds one span's partial into the running one, both [count][2+dv]; spans must come in order.
  void (*attend_merge)(float* running, const float* partial, int count, int dv);
  // out[h] = running / l, for the group heads of one row.
  void (*attend_finish)(const AttnArgs& a, int kv_head, int row, const float* running);

  // log(sum(exp(x))) over n logits; NaN when any is not finite. And the index of the greatest (lowest index on ties).
  float (*log_sum_exp)(const float* x, int64_t n);
  int64_t (*argmax)(const float* x, int64_t n);

  // Loops for the machine's ceilings: bytes read (returns a checksum), and int8 multiply-adds without memory.
  uint64_t (*read_loop)(const uint8_t* p, size_t n, int streams, size_t ahead);
  int32_t (*dot_loop)(int64_t iterations);      // performs iterations * kDotLoopOps int8 operations
  int32_t (*tile_loop)(int64_t iterations);     // iterations * kTileLoopOps of them by a matrix unit; null where `gemm` uses none
};
constexpr int64_t kDotLoopOps = 16 * 64 * 2;    // sixteen independent 64-byte dots, a multiply and an add each
constexpr int64_t kTileLoopOps = 4 * 16 * 16 * 64 * 2;   // four products of sixteen by sixteen by 64

const Kernels* kernels_scalar();
const Kernels* kernels_avx2();      // null where the compiler cannot build it
const Kernels* kernels_avxvnni();   // avx2's, but for products of bytes
const Kernels* kernels_avx512();
const Kernels* kernels_vbmi();      // avx512's, but for T2 and T3
const Kernels* kernels_neon();      // ARMv8.2 with dot products
const Kernels* kernels_i8mm();      // neon's, to the same bits, with the dots of ARM's int8 matrix extension
const Kernels* kernels_amx();       // vbmi's, but for gemm and gemm_rows, for panels and a screen of nine tokens or more, and for attention over f16 pages and both_rounded

// Half precision in plain C++: exact to float, round to nearest even from it.
inline float f16_to_f32(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
  uint32_t exp = (h >> 10) & 31u, man = h & 1023u, bits;
  if (exp == 31) bits = sign | 0x7f800000u | (man << 13);
  else if (exp) bits = sign | ((exp + 112) << 23) | (man << 13);
  else if (!man) bits = sign;
  else {
    exp = 113;
    while (!(man & 1024u)) { man <<= 1; --exp; }
    bits = sign | (exp << 23) | ((man & 1023u) << 13);
  }
  float f;
  __builtin_memcpy(&f, &bits, 4);
  return f;
}
inline uint16_t f32_to_f16(float f) {
  uint32_t x;
  __builtin_memcpy(&x, &f, 4);
  const uint32_t sign = (x >> 16) & 0x8000u;
  x &= 0x7fffffffu;
  if (x > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (x >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);   // rounds to 65536 or more
  if (x < 0x38800000u) {                                               // a half subnormal or zero
    if (x < 0x33000000u) return static_cast<uint16_t>(sign);
    const int shift = 126 - static_cast<int>(x >> 23);                 // 14..24
    const uint32_t man = (x & 0x7fffffu) | 0x800000u;
    const uint32_t half = man >> shift, rest = man & ((1u << shift) - 1), mid = 1u << (shift - 1);
    return static_cast<uint16_t>(sign | (half + (rest > mid || (rest == mid && (half & 1)))));
  }
  const uint32_t half = (x - 0x38000000u) >> 13, rest = x & 0x1fffu;
  return static_cast<uint16_t>(sign | (half + (rest > 0x1000u || (rest == 0x1000u && (half & 1)))));
}
inline float bf16_to_f32(uint16_t h) {
  const uint32_t bits = static_cast<uint32_t>(h) << 16;
  float f;
  __builtin_memcpy(&f, &bits, 4);
  return f;
}

}  // namespace fh
