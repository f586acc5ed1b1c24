// Codes of one row in and out of a panel's planes, and where a panel's units keep what they hold.
// Knows planes and units; knows no file and no arithmetic. kernels/matmul.inl draws the planes, and unpacks them.
#pragma once
#include <array>
#include <cstdint>
#include <cstring>

#include "weight_types.h"

namespace fh {

// Quads: four consecutive inputs' codes of one row as one 32-bit word, the panel's natural unit.
using Quads = std::array<uint32_t, 8>;       // 32 inputs of one row
inline Quads to_quads(const uint8_t* codes) {
  Quads q;
  memcpy(q.data(), codes, 32);
  return q;
}
inline void put(uint8_t* p, int index, int row, uint32_t value) { memcpy(p + 64 * index + 4 * row, &value, 4); }
inline uint32_t get(const uint8_t* p, int index, int row) { uint32_t q; memcpy(&q, p + 64 * index + 4 * row, 4); return q; }

inline void put_nibbles(uint8_t* p, int row, const Quads& q) {
  for (int v = 0; v < 4; ++v) put(p, v, row, (q[2 * v] & 0x0f0f0f0fu) | (q[2 * v + 1] & 0x0f0f0f0fu) << 4);
}
inline void get_nibbles(const uint8_t* p, int row, Quads& q) {
  for (int v = 0; v < 4; ++v) {
    const uint32_t w = get(p, v, row);
    q[2 * v] = w & 0x0f0f0f0fu;
    q[2 * v + 1] = (w >> 4) & 0x0f0f0f0fu;
  }
}
inline void put_bit(uint8_t* p, int row, const Quads& q) {      // bit 4 of each code
  uint32_t plane = 0;
  for (int j = 0; j < 8; ++j) plane |= ((q[j] >> 4) & 0x01010101u) << j;
  put(p, 4, row, plane);
}
inline void get_bit(const uint8_t* p, int row, Quads& q) {
  const uint32_t plane = get(p, 4, row);
  for (int j = 0; j < 8; ++j) q[j] |= ((plane >> j) & 0x01010101u) << 4;
}
// Two-bit planes number first, first+1: bits `shift`, `shift`+1 of each code.
inline void put_two(uint8_t* p, int first, int row, const Quads& q, int shift) {
  for (int h = 0; h < 2; ++h) {
    uint32_t plane = 0;
    for (int j = 0; j < 4; ++j) plane |= ((q[4 * h + j] >> shift) & 0x03030303u) << 2 * j;
    put(p, first + h, row, plane);
  }
}
inline void get_two(const uint8_t* p, int first, int row, Quads& q, int shift) {
  for (int j = 0; j < 8; ++j) q[j] |= ((get(p, first + j / 4, row) >> 2 * (j % 4)) & 0x03030303u) << shift;
}

inline void look_up(Quads& q) {
  for (uint32_t& four : q)
    four = uint32_t{kE2m1Codes[four & 15]} | uint32_t{kE2m1Codes[four >> 8 & 15]} << 8 | uint32_t{kE2m1Codes[four >> 16 & 15]} << 16 |
           uint32_t{kE2m1Codes[four >> 24 & 15]} << 24;
}

// Places 32 codes of one row into planes at p; and back. Of E2M1 it places nibbles, and codes come back.
inline void put_codes(Planes planes, uint8_t* p, int row, const Quads& q) {
  switch (planes) {
    case Planes::Nibble: case Planes::E2M1: put_nibbles(p, row, q); break;
    case Planes::Nibble1: put_nibbles(p, row, q); put_bit(p, row, q); break;
    case Planes::Nibble2: put_nibbles(p, row, q); put_two(p, 4, row, q, 4); break;
    case Planes::TwoBit: put_two(p, 0, row, q, 0); break;
    default: for (int j = 0; j < 8; ++j) put(p, j, row, q[j]);
  }
}
inline Quads get_codes(Planes planes, const uint8_t* p, int row) {
  Quads q{};
  switch (planes) {
    case Planes::Nibble: get_nibbles(p, row, q); break;
    case Planes::E2M1: get_nibbles(p, row, q); look_up(q); break;
    case Planes::Nibble1: get_nibbles(p, row, q); get_bit(p, row, q); break;
    case Planes::Nibble2: get_nibbles(p, row, q); get_two(p, 4, row, q, 4); break;
    case Planes::TwoBit: get_two(p, 0, row, q, 0); break;
    default: for (int j = 0; j < 8; ++j) q[j] = get(p, j, row);
  }
  return q;
}
// The same of a head: the upper four bits in p, the rest in `low`.
inline void put_head(const WeightTraits& t, uint8_t* p, uint8_t* low, int row, const Quads& q) {
  const int bits = t.low_bits();
  Quads top, rest;
  for (size_t j = 0; j < 8; ++j) {
    top[j] = (q[j] >> bits) & 0x0f0f0f0fu;
    rest[j] = q[j] & (bits == 4 ? 0x0f0f0f0fu : 0x03030303u);
  }
  put_codes(t.planes, p, row, top);
  put_codes(t.low, low, row, rest);
}
inline Quads get_head(const WeightTraits& t, const uint8_t* p, const uint8_t* low, int row) {
  const Quads top = get_codes(t.planes, p, row);
  Quads all = get_codes(t.low, low, row);
  for (size_t j = 0; j < 8; ++j) all[j] |= top[j] << t.low_bits();
  return all;
}

// Where unit u of a panel keeps its codes and its per-row floats. Floats of 32 bytes (a scale for each row) lie in pairs
// after two units' codes, so that every unit begins at a cache line.
struct UnitPlace { int64_t codes, aux; };
inline UnitPlace place(const WeightTraits& t, int64_t u) {
  const int codes = t.unit_bytes(), aux = t.aux_bytes();
  if (aux != 32) return {u * (codes + aux), u * (codes + aux) + codes};
  const int64_t pair = u / 2 * (2 * codes + 64);
  return {pair + u % 2 * codes, pair + 2 * codes + u % 2 * 32};
}

}  // namespace fh
