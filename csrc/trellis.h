// How panels of T2 and T3 lie, and what a window is: two or three bits a weight, read through the matrix's table of 128 values.
// Knows addresses and bits; multiplies nothing. formats/trellis.py has the file's layout.
//
// A row's bit stream is cut into runs of 64 inputs: K words of 64 bits, the first bit lowest. Window i of a run is its bits
// K*i to K*i + 6, so that the last windows reach into the next run, and of the row's last run into the row's tail byte.
//
//   panel   units of 256 inputs, the last one as long as it needs; then a line: row scales, f16 [16], and tail bytes, u8 [16]
//   unit    a line of group scales: byte 16*(g/2) + row holds group g's nibble, of even g the low one; then four runs
//   run     K words of rows 0 1 4 5 8 9 12 13, word by word, eight rows side by side; then those of rows 2 3 6 7 10 11 14 15
//
// So a vector of eight words is eight rows' inputs, and what two such vectors give folds into rows 0 to 15 in order.
// The table lies after all panels: values + 128.
#pragma once
#include <cstdint>
#include <cstring>

namespace fh {

constexpr int kRunInputs = 64, kUnitRuns = 4, kTableBytes = 128, kWindowBits = 7;
constexpr int kRowLine = 64;                       // row scales and tails, at a panel's end
constexpr int kTailsAt = 32;

// Of a group's nibble c, as f16: 2^(-c/5) to c = 7, then wider and wider steps down to 0.005, for rows where one weight is hundreds
// of times the others.
constexpr uint16_t kFactorHalves[16] = {0x3c00, 0x3af7, 0x3a10, 0x3947, 0x3898, 0x3800, 0x36f7, 0x3610,
                                        0x351f, 0x3429, 0x3266, 0x307b, 0x2dc3, 0x2a66, 0x25a2, 0x1d1f};
constexpr float kFactors[16] = {1.0f, 0.87060546875f, 0.7578125f, 0.65966796875f, 0.57421875f, 0.5f, 0.435302734375f, 0.37890625f,
                                0.320068359375f, 0.260009765625f, 0.199951171875f, 0.1400146484375f, 0.09002685546875f, 0.04998779296875f,
                                0.022003173828125f, 0.005001068115234375f};

template <int K> struct TrellisPanel {
  static constexpr int64_t kRun = 128 * K, kUnit = 64 + kUnitRuns * kRun;
  static constexpr int64_t runs(int64_t k) { return (k + kRunInputs - 1) / kRunInputs; }
  static constexpr int64_t run(int64_t r) { return r / kUnitRuns * kUnit + 64 + r % kUnitRuns * kRun; }
  static constexpr int64_t scales(int64_t g) { return g / 8 * kUnit + g % 8 / 2 * 16; }
  static constexpr int64_t bytes(int64_t k) { return (runs(k) + kUnitRuns - 1) / kUnitRuns * 64 + runs(k) * kRun + kRowLine; }
  static constexpr int64_t words(int row) { return (row >> 1 & 1) * 64 * K + 8 * (row / 4 * 2 + row % 2); }   // of a row in a run

  // The words of a row's run, and the one after it.
  static void load(const uint8_t* panel, int64_t panel_bytes, int64_t r, int64_t count, int row, uint64_t (&word)[K + 1]) {
    const uint8_t* at = panel + run(r) + words(row);
    for (int j = 0; j < K; ++j) memcpy(&word[j], at + 64 * j, 8);
    if (r + 1 < count) memcpy(&word[K], panel + run(r + 1) + words(row), 8);
    else word[K] = panel[panel_bytes - kRowLine + kTailsAt + row];
  }
  static int window(const uint64_t (&word)[K + 1], int i) {
    const int at = K * i % 64, w = K * i / 64;
    const uint64_t bits = at ? word[w] >> at | word[w + 1] << (64 - at) : word[w];
    return static_cast<int>(bits & 127);
  }
  static int nibble(const uint8_t* panel, int64_t g, int row) { return panel[scales(g) + row] >> (g % 2 ? 4 : 0) & 15; }
};

}  // namespace fh
