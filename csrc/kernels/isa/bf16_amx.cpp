// Products of bfloat16 by AMX tiles.
//
// Both operands are packed to tiles of 16 rows by 32 inputs, 1 KB: A by rows, [row][pair of inputs], B by pairs, [pair][row],
// as a tile multiply takes them. 512 rows of A by 1,024 inputs stay packed, 1 MB of a 2 MB L2, while panels of 32 rows of B (64 KB)
// pass: each packed input of B then meets 512 rows, so packing is some tenth of the work. A block of 32 by 32 sums takes two
// A and two B tiles a step, four multiplies of sixteen cycles for four loads; 1,024 inputs make its 4 KB of sums cheap.
#include "../bf16.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include <cstring>
#include <new>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("amx-tile,amx-bf16,avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("amx-tile,amx-bf16,avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#endif

namespace fh {
namespace {

constexpr int kSide = 16, kInputs = 32, kTileHalves = kSide * kInputs;
constexpr int kBlock = 32;                         // rows of A and of B whose sums are made together
constexpr int64_t kDepth = 1024, kResident = 512;  // inputs, and rows of A, that are packed at once

struct Halves {                                    // packed tiles, on a boundary of 64 bytes
  explicit Halves(int64_t rows) : at(static_cast<uint16_t*>(::operator new(static_cast<size_t>(rows * kDepth) * 2, std::align_val_t{64}))) {}
  ~Halves() { ::operator delete(at, std::align_val_t{64}); }
  Halves(const Halves&) = delete;
  Halves& operator=(const Halves&) = delete;
  uint16_t* at;
};

inline __mmask16 first_of(int64_t n) { return n >= 16 ? 0xffff : n <= 0 ? 0 : static_cast<__mmask16>((1u << n) - 1); }
inline __m512i rounded(__m512 low, __m512 high) { return (__m512i)_mm512_cvtne2ps_pbh(high, low); }

#include "transpose.inl"

// Inputs [k, end) of rows [row, row + 16) of m as a tile; what lies outside is zero.
void pack_tile(const FloatRows& m, int64_t row, int64_t k, int64_t end, bool by_rows, uint16_t* to) {
  __m512i v[kSide];
  if (m.step == 1) {
    for (int i = 0; i < kSide; ++i) {
      const float* at = m.at + (row + i) * m.row + k;
      const bool there = row + i < m.rows;
      v[i] = !there ? _mm512_setzero_si512() : rounded(_mm512_maskz_loadu_ps(first_of(end - k), at), _mm512_maskz_loadu_ps(first_of(end - k - 16), at + 16));
    }
  } else {
    const __m512i pairs = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    const __mmask16 rows = first_of(m.rows - row);
    for (int i = 0; i < kSide; ++i, k += 2) {
      const float* at = m.at + k * m.step + row;
      const __m512 first = k < end ? _mm512_maskz_loadu_ps(rows, at) : _mm512_setzero_ps();
      const __m512 second = k + 1 < end ? _mm512_maskz_loadu_ps(rows, at + m.step) : _mm512_setzero_ps();
      v[i] = _mm512_permutexvar_epi16(pairs, rounded(first, second));
    }
  }
  if (by_rows != (m.step == 1)) transpose(v);
  for (int i = 0; i < kSide; ++i) _mm512_store_si512(to + i * kInputs, v[i]);
}
// Rows [row, row + n) of m, n a multiple of 16: [n / 16][steps] tiles.
void pack(const FloatRows& m, int64_t row, int64_t n, int64_t k, int64_t end, bool by_rows, uint16_t* to) {
  for (int64_t r = row; r < row + n; r += kSide)
    for (int64_t at = k; at < end; at += kInputs, to += kTileHalves) pack_tile(m, r, at, end, by_rows, to);
}

// Sums [32][32] of two A and two B panels of `steps` tiles each.
struct Tiles {
  Tiles() {
    struct { uint8_t palette = 1, start = 0, reserved[14] = {}; uint16_t row_bytes[16] = {}; uint8_t rows[16] = {}; } shape;
    for (int i = 0; i < 8; ++i) shape.row_bytes[i] = 64, shape.rows[i] = kSide;
    __asm__ volatile("" ::"m"(shape));
    _tile_loadconfig(&shape);
  }
  ~Tiles() { _tile_release(); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
  void sums(const uint16_t* a, const uint16_t* b, int64_t steps, float* c) const {
    __asm__ volatile("" ::: "memory");             // the compiler's tile intrinsics do not say that they touch memory
    const int64_t panel = steps * kTileHalves;
    _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
    for (int64_t s = 0; s < steps; ++s, a += kTileHalves, b += kTileHalves) {
      _tile_loadd(4, a, 64);
      _tile_loadd(6, b, 64);
      _tile_loadd(5, a + panel, 64);
      _tile_loadd(7, b + panel, 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, c, 128); _tile_stored(1, c + 16, 128);
    _tile_stored(2, c + 16 * kBlock, 128); _tile_stored(3, c + 16 * kBlock + 16, 128);
    __asm__ volatile("" ::: "memory");
  }
};
// A block of sums to where it belongs; rows and columns beyond the operands are left out.
void put(const Bf16Args& q, const float* c, int64_t i, int64_t j, bool grow) {
  const int64_t rows = q.a.rows - i < kBlock ? q.a.rows - i : kBlock;
  const __mmask16 low = first_of(q.b.rows - j), high = first_of(q.b.rows - j - 16);
  for (int64_t r = 0; r < rows; ++r, c += kBlock) {
    float* to = q.out + (i + r) * q.stride + j;
    __m512 x = _mm512_load_ps(c), y = _mm512_load_ps(c + 16);
    if (grow) {
      x = _mm512_add_ps(x, _mm512_maskz_loadu_ps(low, to));
      y = _mm512_add_ps(y, _mm512_maskz_loadu_ps(high, to + 16));
    }
    _mm512_mask_storeu_ps(to, low, x);
    _mm512_mask_storeu_ps(to + 16, high, y);
  }
}

void product(const Bf16Args& q) {
  const Halves resident(kResident), passing(kBlock);
  const Tiles tiles;
  alignas(64) float c[kBlock * kBlock];
  for (int64_t k = 0; k < q.k; k += kDepth) {
    const int64_t end = q.k < k + kDepth ? q.k : k + kDepth, steps = (end - k + kInputs - 1) / kInputs;
    for (int64_t first = 0; first < q.a.rows; first += kResident) {
      const int64_t last = q.a.rows < first + kResident ? q.a.rows : first + kResident, own = (last - first + kBlock - 1) / kBlock * kBlock;
      pack(q.a, first, own, k, end, true, resident.at);
      for (int64_t j = 0; j < q.b.rows && !(q.lower && j >= last); j += kBlock) {
        pack(q.b, j, kBlock, k, end, false, passing.at);
        for (int64_t i = first; i < last; i += kBlock) {
          if (q.lower && j >= i + kBlock) continue;
          tiles.sums(resident.at + (i - first) * steps * kInputs, passing.at, steps, c);
          put(q, c, i, j, q.grow || k > 0);
        }
      }
    }
  }
}

}  // namespace
}  // namespace fh

#include "end.h"

namespace fh { Bf16Product bf16_amx() { return product; } }
#else
namespace fh { Bf16Product bf16_amx() { return nullptr; } }
#endif
