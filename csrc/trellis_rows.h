// A row of T2 or T3 as a file holds it: the scale with the stream's last bits in its low ones, nibbles, the stream.
// Knows a row's bytes; lays no panel and multiplies nothing. formats/trellis.py has the layout in words.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>

#include "trellis.h"

namespace fh {

template <int K> struct FileRow {
  static constexpr uint16_t kTail = (1 << (kWindowBits - K)) - 1;
  const uint8_t* at;
  int64_t k;
  static int64_t bytes(int64_t k) { return 2 + (k / 32 + 1) / 2 + k / 8 * K; }
  uint16_t word() const { uint16_t w; memcpy(&w, at, 2); return w; }
  uint16_t scale() const { return word() & static_cast<uint16_t>(~kTail); }
  uint8_t tail() const { return static_cast<uint8_t>(word() & kTail); }
  const uint8_t* nibbles() const { return at + 2; }
  const uint8_t* stream() const { return nibbles() + (k / 32 + 1) / 2; }
  int nibble(int64_t g) const { return nibbles()[g / 2] >> (g % 2 ? 4 : 0) & 15; }
  // Words of run r and the first of the next, zeros after the tail.
  void words(int64_t r, uint64_t (&word)[K + 1]) const {
    const int64_t all = k / 8 * K, from = 8 * K * r, some = std::min<int64_t>(all - from, 8 * (K + 1));
    uint8_t bytes[8 * (K + 1)] = {};
    memcpy(bytes, stream() + from, static_cast<size_t>(some));
    if (some < static_cast<int64_t>(sizeof bytes)) bytes[some] = tail();
    memcpy(word, bytes, sizeof bytes);
  }
};

}  // namespace fh
