// Float rows to rows of a GGUF weight type: cuts a matrix into tiles for the writers (kernels/writers.h) and gives each to a
// thread. Knows rows, blocks and what a type cannot hold; the writers know how a block is made.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "freehold.h"
#include "kernels/writers.h"

namespace fh {
namespace {

// `scales`: where a block's float16s lie, each of which must be finite. `by_row`: importance is taken with the row's mean square.
struct BlockType { const char* name; Written written; int weights, bytes; std::vector<int> scales; bool by_row = false; };
const std::vector<BlockType>& block_types() {
  static const std::vector<BlockType> all = {
      {"Q4_0", Written::Q4_0, 32, 18, {0}, true},
      {"Q4_1", Written::Q4_1, 32, 20, {0, 2}, true},
      {"Q5_0", Written::Q5_0, 32, 22, {0}, true},
      {"Q5_1", Written::Q5_1, 32, 24, {0, 2}, true},
      {"Q8_0", Written::Q8_0, 32, 34, {0}},
      {"Q2_K", Written::Q2_K, 256, 84, {80, 82}},
      {"Q3_K", Written::Q3_K, 256, 110, {108}},
      {"Q4_K", Written::Q4_K, 256, 144, {0, 2}},
      {"Q5_K", Written::Q5_K, 256, 176, {0, 2}},
      {"Q6_K", Written::Q6_K, 256, 210, {208}},
      {"IQ4_NL", Written::IQ4_NL, 32, 18, {0}},
      {"IQ4_XS", Written::IQ4_XS, 256, 136, {0}},
  };
  return all;
}
bool is_half(std::string_view type) { return type == "F16" || type == "BF16"; }
const BlockType& block_type(std::string_view type) {
  for (const BlockType& t : block_types())
    if (type == t.name) return t;
  throw Error(ErrorKind::Usage, "floats are not rounded to '" + std::string(type) + "'\ntake one of " + quantized_types());
}

// The first weight that a type cannot hold, whichever thread meets it.
class FirstBad {
 public:
  explicit FirstBad(const float* values) : values_(values) {}
  void meet(int64_t at) {
    int64_t seen = at_.load();
    while (at < seen && !at_.compare_exchange_weak(seen, at)) {}
  }
  void raise(int64_t k, std::string_view type) const {
    const int64_t at = at_.load();
    if (at == kNone) return;
    char value[32];
    std::snprintf(value, sizeof value, "%g", static_cast<double>(values_[at]));
    throw Error(ErrorKind::BadModelFile, "row " + std::to_string(at / k) + ", column " + std::to_string(at % k) + " is " + value + ", which " + std::string(type) + " cannot hold");
  }
 private:
  static constexpr int64_t kNone = INT64_MAX;
  const float* values_;
  std::atomic<int64_t> at_{kNone};
};

// Whether all are finite and below 2^30, which is past the reach of every type: 65504, times 128, times 32, is Q6_K's. Below it
// no sum of a search overflows.
bool within_reach(const float* x, int64_t n) {
  constexpr uint32_t kLimit = 0x4e800000u;        // 2^30 as a float
  uint32_t most = 0;
  for (int64_t i = 0; i < n; ++i) {
    uint32_t bits;
    memcpy(&bits, x + i, 4);
    most = std::max(most, bits & 0x7fffffffu);
  }
  return most < kLimit;
}
bool finite_f16(const uint8_t* at) {
  uint16_t half;
  memcpy(&half, at, 2);
  return (half & 0x7c00) != 0x7c00;
}
// The weight that is to blame for a block of n: the first not finite, or else the largest.
int64_t worst(const float* x, int64_t n) {
  int64_t at = 0;
  for (int64_t i = 0; i < n; ++i) {
    if (!std::isfinite(x[i])) return i;
    if (std::fabs(x[i]) > std::fabs(x[at])) at = i;
  }
  return at;
}

// One matrix on its way to blocks. Tiles run over the blocks of all rows, so that narrow rows fill them too.
class Quantization {
 public:
  Quantization(const float* values, int64_t n, int64_t k, const float* importance, const BlockType& type, const WriterKernels& writers, uint8_t* out)
      : values_(values), importance_(importance), n_(n), k_(k), per_row_(k / type.weights), type_(type), writers_(writers), bad_(values), out_(out) {}

  void run(Threads& threads) {
    if (importance_ && type_.by_row) {
      mean_squares_.resize(static_cast<size_t>(n_));
      each(threads, (n_ + kTileBlocks - 1) / kTileBlocks, [&](int64_t i) { mean_squares(i * kTileBlocks); });
    }
    each(threads, (n_ * per_row_ + kTileBlocks - 1) / kTileBlocks, [&](int64_t i) { tile(i * kTileBlocks); });
    bad_.raise(k_, type_.name);
  }

 private:
  template <class Piece> static void each(Threads& threads, int64_t pieces, Piece piece) {
    std::atomic<int64_t> next{0};
    threads.run([&](int) {
      for (int64_t i; (i = next.fetch_add(1)) < pieces;) piece(i);
    });
  }
  void mean_squares(int64_t row) {
    const int64_t count = std::min<int64_t>(kTileBlocks, n_ - row);
    float* out = mean_squares_.data() + row;
    if (count == kTileBlocks) return writers_.mean_squares(values_ + row * k_, k_, out);
    std::vector<float> rows(static_cast<size_t>(kTileBlocks * k_));
    std::copy_n(values_ + row * k_, count * k_, rows.begin());
    float all[kTileBlocks];
    writers_.mean_squares(rows.data(), k_, all);
    std::copy_n(all, count, out);
  }
  // The blocks from `first` on; a last tile is filled up with zeros.
  void tile(int64_t first) {
    const int64_t weights = type_.weights, count = std::min<int64_t>(kTileBlocks, n_ * per_row_ - first);
    const float* x = values_ + first * weights;
    if (!within_reach(x, count * weights)) return bad_.meet(first * weights + worst(x, count * weights));
    alignas(64) float filled[kTileBlocks * 256], importance[kTileBlocks * 256], mean_squares[kTileBlocks] = {};
    alignas(64) uint8_t blocks[kTileBlocks * 256];
    if (count < kTileBlocks) {
      std::copy_n(x, count * weights, filled);
      std::fill(filled + count * weights, filled + kTileBlocks * weights, 0.0f);
      x = filled;
    }
    for (int64_t b = 0; importance_ && b < kTileBlocks; ++b) {
      const int64_t block = std::min(first + b, first + count - 1);
      std::copy_n(importance_ + block % per_row_ * weights, weights, importance + b * weights);
      if (type_.by_row) mean_squares[b] = mean_squares_[static_cast<size_t>(block / per_row_)];
    }
    uint8_t* out = out_ + first * type_.bytes;
    uint8_t* to = count < kTileBlocks ? blocks : out;
    writers_.write[static_cast<int>(type_.written)]({x, importance_ ? importance : nullptr, mean_squares, to});
    if (to != out) std::copy_n(blocks, count * type_.bytes, out);
    for (int64_t b = 0; b < count; ++b)
      for (int at : type_.scales)
        if (!finite_f16(to + b * type_.bytes + at)) bad_.meet((first + b) * weights + worst(x + b * weights, weights));
  }

  const float *values_, *importance_;
  int64_t n_, k_, per_row_;
  const BlockType& type_;
  const WriterKernels& writers_;
  FirstBad bad_;
  uint8_t* out_;
  std::vector<float> mean_squares_;
};

void write_halves(const float* values, int64_t n, int64_t k, std::string_view type, const WriterKernels& writers, Threads& threads, uint8_t* out) {
  auto* to = reinterpret_cast<uint16_t*>(out);
  FirstBad bad(values);
  std::atomic<int64_t> next{0};
  threads.run([&](int) {
    for (int64_t row; (row = next.fetch_add(1)) < n;) {
      const float* x = values + row * k;
      (type == "F16" ? writers.write_f16 : writers.write_bf16)(x, k, to + row * k);
      const float most = type == "F16" ? 65520.0f : 3.3961775e38f;        // what rounds to infinity from here on
      for (int64_t i = 0; i < k; ++i)
        if (!(std::fabs(x[i]) < most)) bad.meet(row * k + i);
    }
  });
  bad.raise(k, type);
}

}  // namespace

std::string quantized_types() {
  std::string names;
  for (const BlockType& t : block_types()) names += std::string(t.name) + ", ";
  return names + "F16, BF16";
}

int64_t quantized_row_bytes(std::string_view type, int64_t k) {
  if (k < 1) throw Error(ErrorKind::Usage, "rows of " + std::to_string(k) + " hold no weights");
  if (is_half(type)) return 2 * k;
  const BlockType& t = block_type(type);
  if (k % t.weights) throw Error(ErrorKind::Usage, "rows of " + std::to_string(k) + " do not divide into blocks of " + std::to_string(t.weights) + ", which " + std::string(type) + " has");
  return k / t.weights * t.bytes;
}

void quantize_rows(const float* values, int64_t n, int64_t k, const float* importance, std::string_view type, Threads& threads, uint8_t* out, const Kernels& table) {
  const WriterKernels& writers = writer_kernels(table);
  if (importance)
    for (int64_t i = 0; i < k; ++i)
      if (!(importance[i] >= 0) || std::isinf(importance[i])) throw Error(ErrorKind::Usage, "the importance of column " + std::to_string(i) + " is not a finite number of at least 0");
  if (is_half(type)) return write_halves(values, n, k, type, writers, threads, out);
  Quantization(values, n, k, importance, block_type(type), writers, out).run(threads);
}

}  // namespace fh
