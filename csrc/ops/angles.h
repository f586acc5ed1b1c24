// Cosines and sines of a step's positions, once for each rope in use, which the ops that rotate share.
#pragma once
#include <memory>
#include <vector>

#include "plan.h"

namespace fh {

// In double: at position 100,000 a float angle is off by 0.004 already.
struct Angles final : Op {
  std::shared_ptr<const Rope> rope;
  std::vector<float> cos, sin;                // [max_rows][rot/2]
  void allocate(int64_t max_rows, int threads) override;
  void run(Run& r, int thread) override;
  // Row t's heads at x, n of them, d wide.
  void turn(const Run& r, float* x, int n, int d, int64_t t) const;
};

// The plan's op for a rope, recorded before the first op that rotates by it.
const Angles* angles(Plan& plan, std::shared_ptr<const Rope> rope);
void check_rope(const Rope& rope, int width);   // throws Usage unless it fits heads of `width`

}  // namespace fh
