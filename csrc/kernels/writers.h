// Float weights to blocks of GGUF's weight types: a table of writers for each ISA. quantize.cpp cuts a matrix into tiles.
// Knows a tile of sixteen blocks; knows no matrix, no thread.
//
// A block's bits are those of ggml's own reference quantisers, built as its released libraries for x86-64 are: without fused
// multiply-adds. So every float sum runs over a block's weights in their order, and what goes side by side in a register is
// blocks, each lane with sums of its own: a machine of any width makes the same bytes.
#pragma once
#include <cstdint>

#include "kernels.h"

namespace fh {

enum class Written : uint8_t { Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS, kCount };
constexpr int kWrittenCount = static_cast<int>(Written::kCount);

// Sixteen blocks: AVX-512's lanes, and a super-block's sixteen groups of sixteen weights.
constexpr int kTileBlocks = 16;

struct Tile {
  const float* x;              // [16][weights of a block]
  const float* importance;     // the same: how much each squared error counts; null: the type's own choice
  const float* mean_squares;   // [16]: of the row that each block lies in; types of 32 with importance only
  uint8_t* out;                // [16][bytes of a block]
};

struct WriterKernels {
  void (*write[kWrittenCount])(const Tile& t);
  // Of sixteen rows of k floats, k a multiple of 16: each summed in the order of its columns.
  void (*mean_squares)(const float* x, int64_t k, float* out);
  void (*write_f16)(const float* x, int64_t n, uint16_t* out);
  void (*write_bf16)(const float* x, int64_t n, uint16_t* out);
};

const WriterKernels& writers_scalar();
const WriterKernels& writers_avx2();
const WriterKernels& writers_avx512();
const WriterKernels& writers_neon();
const WriterKernels& writer_kernels(const Kernels& table);    // those that go with a table

}  // namespace fh
