// Encodes float rows as a table trellis: K bits a weight, whose value is table[the newest seven bits of the row's stream].
// Its own table of kernels, filled by a translation unit for each ISA. Knows 64 rows of one matrix; no file, no thread.
//
//   state[i] = state[i - 1] >> K | code[i] << (7 - K),  state[0] free
//   weight[i] = table[state[i]] * scale of the row's group of 32
//
// A row's codes are the path of least weighted squared error. Columns are committed by blocks; a block's path is chosen with
// `ahead` more columns in view, and its error, against the weights themselves, is then pushed onto the columns to come (LDLQ), so
// that it cancels in the output.
//
// The path is found from its end: cost_to_go(i, r) = min over codes e of (target - value)^2 + cost_to_go(i + 1, next's r), where
// r are the bits of a state that the next one keeps. Only 2^(7 - K) costs a column exist, columns ahead need no trace, and the
// state that a block starts from is known when its path is followed. 128 states of three operations a column for sixteen rows:
// arithmetic bounds it, not bytes. Every row is computed alike, so neither threads nor a row's neighbours change its bits.
#pragma once
#include <cstdint>

#include "kernels.h"

namespace fh {

constexpr int kTrellisStates = 128, kTrellisGroup = 32;
constexpr int kTrellisRows = 64;          // of a call: four vectors of sixteen, so that a feedback coefficient serves 64 rows
constexpr int kTrellisBatch = 128;        // columns whose errors are pushed onto far columns at once, as a matrix product
constexpr int kTrellisBlockMost = 32, kTrellisAheadMost = 32;
constexpr int kTrellisNear = kTrellisAheadMost + kTrellisGroup;   // columns past a batch that a window or a scale choice inside it may look at
constexpr int kTrellisScales = 16;        // of a group: the row's times one of kFactors

struct TrellisArgs {
  const float* weights; int64_t rows, cols;     // cols: a multiple of 32
  const float* importance;                      // [cols], > 0: how much a column's squared error counts
  const float* feedback; int64_t width;         // [cols][width], or null: what one unit of error of column i adds to the target of
                                                // column i / width * width + j; width is cols or a multiple of 128
  const float* table;                           // [128]
  float unit;                                   // of a group of root mean square 1, the scale that the search begins at
  int bits, block, ahead, spread;               // spread: scales tried on each side of the first
};

// What a call needs beside its arguments; sizes in trellis_encode.cpp.
struct TrellisScratch {
  float *target, *error;                        // [cols][64], [128][64]
  float *scale, *root;                          // [cols / 32][64], [cols]: the square root of importance
};

// Rows `first` to first + n, n <= 64, of args: states [cols][64], scale codes [cols / 32][64], and row scales [64] as the bits of
// a float16 whose lowest 7 - K are 0.
struct TrellisOut { uint8_t* states; uint8_t* scale_codes; uint16_t* row_scales; };

struct TrellisKernels { void (*encode)(const TrellisArgs& a, int64_t first, int n, const TrellisScratch& s, const TrellisOut& out); };

const TrellisKernels& trellis_scalar();
const TrellisKernels& trellis_avx2();
const TrellisKernels& trellis_avx512();
const TrellisKernels& trellis_neon();
const TrellisKernels& trellis_kernels(const Kernels& table);       // those that go with a table

}  // namespace fh
