// What adapters (LoRA) add to a matmul op's products, as one more phase of the op.
// Knows pairs of low-rank matrices and rows; knows no adapter file.
#pragma once
#include <vector>

#include "ops/matmul.h"

namespace fh {

// A x is computed once for all panels, between the op's two phases and by every thread that arrives, and costs no phase
// where no row has an adapter; B (A x) joins a panel's sums as soon as they are made.
struct LowRank {
  static constexpr int64_t kRows = 16;         // a claim: 16 rows of one panel of A
  // Rows of the step that a pair changes in matrix number `matrix`; their A x, `rank` floats each, begin at `at`.
  struct Part { size_t matrix; const Adapter::Pair* pair; int64_t row, rows, at; };
  struct Item { size_t part; int64_t row, rows, panel; };
  struct Deal { std::vector<Part> parts; std::vector<Item> items; };   // a step's work, by seat
  Deal deals[Threads::kSeats];
  Phase phase;

  void prepare(const Run& r, const Input& in, const std::vector<MatrixPtr>& weights);
  // scale * A x, from rows that are normalised already.
  void reduce(const Run& r, const Input& in);
  // Adds to y [p1-p0][nt][16] what adapters change in panels [p0, p1) of a matrix, for rows [t0, t0 + nt).
  void expand(const Run& r, const Input& in, size_t matrix, int64_t p0, int64_t p1, int64_t t0, int64_t nt, float* y) const;
};

}  // namespace fh
