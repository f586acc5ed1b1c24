// Multiplications bound it: 141 for an output sample from 44.1 kHz. One sum is a chain of additions of 4 cycles each, so
// eight outputs are summed at once.
#include "resample.h"

#include <algorithm>

#include "freehold.h"

namespace fh {

void resample(const double* input, int64_t count, int64_t begin, int64_t first, int64_t outputs, const ResampleFilter& filter,
              float* out) {
  constexpr int64_t kAtOnce = 8;
  for (int64_t i = 0; i < outputs; i += kAtOnce) {
    const double *x[kAtOnce], *w[kAtOnce];
    const int64_t present = std::min(kAtOnce, outputs - i);
    for (int64_t j = 0; j < kAtOnce; ++j) {
      const int64_t place = (first + i + std::min(j, present - 1)) * filter.down;
      const int64_t at = place / filter.up - filter.taps / 2 - begin;
      if (at < 0 || at + filter.taps > count) throw Error(ErrorKind::Usage, "an output sample needs input that is not there");
      x[j] = input + at;
      w[j] = filter.weights + place % filter.up * filter.taps;
    }
    double sums[kAtOnce] = {};
    for (int64_t t = 0; t < filter.taps; ++t)
      for (int64_t j = 0; j < kAtOnce; ++j) sums[j] += x[j][t] * w[j][t];
    for (int64_t j = 0; j < present; ++j) out[i + j] = static_cast<float>(sums[j]);
  }
}

}  // namespace fh
