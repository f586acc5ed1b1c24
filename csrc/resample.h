// Samples at another rate, for sounds/opening.py, which makes the filter and is the oracle in NumPy.
#pragma once
#include <cstddef>
#include <cstdint>

namespace fh {

// The filter at each of `up` places between two samples: [up, taps]. A step of the output is down / up of the input's.
struct ResampleFilter {
  const double* weights;
  int64_t up, taps, down;
};

// out[i] = the sum over t of input[at + t] * weights[phase][t], in this order and in double, for the output samples of
// numbers first + i. `begin`: the number of the first input sample. Throws Usage where a sum leaves the input.
void resample(const double* input, int64_t count, int64_t begin, int64_t first, int64_t outputs, const ResampleFilter& filter,
              float* out);

}  // namespace fh
