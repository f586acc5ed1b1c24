// The prefetch tuner: chooses on live steps how far ahead of their use weights are prefetched. Results do not depend on it.
//
// One machine's hardware prefetcher keeps up with the stream of weights, and requests slow it (Zen 4: up to 40 % lost);
// another's loses the stream between two panels (an Intel guest: 0.5b decode 19.4 ms without, 14.5 with). A probe at
// start-up would add to the start and measure that second's load; so pairs of like steps try both, now and again.
#pragma once
#include <cstdint>

namespace fh {

class PrefetchTuner {
 public:
  // 2 KB: half a page ahead. Measured on that Intel guest, Q5_0 / Q8_0 / Q4_K / Q6_K at K = 1536, two threads, GB/s:
  // none 26 / 27 / 28 / 23, 512 bytes 31 / 32 / 29 / 26, 2 KB 31 / 34 / 32 / 28, 4 KB 23-29 / 30 / 26 / 26.
  static constexpr int64_t kAhead = 2048;

  // Bytes ahead for a step of `rows`; call took() with its time afterwards.
  int64_t ahead(int64_t rows) {
    if (rows != rows_) half_ = 0;                   // only steps of as many rows compare
    rows_ = rows;
    asking_ = trying() ? (pair_ + half_) % 2 == 1 : ask_;      // which goes first alternates: early steps touch new pages
    return asking_ ? kAhead : 0;
  }
  // For a step unlike the others: the best so far. No took() afterwards.
  int64_t settled() const { return ask_ ? kAhead : 0; }
  void took(double seconds) {
    if (!trying()) {
      if (++quiet_ == kQuiet) quiet_ = pair_ = wins_ = 0;
      return;
    }
    seconds_[asking_] = seconds;
    if (half_++ == 0) return;
    half_ = 0;
    wins_ += seconds_[1] < seconds_[0];
    if (++pair_ == kPairs) ask_ = wins_ > kPairs / 2;
  }

 private:
  static constexpr int kPairs = 5, kQuiet = 1000;   // a few wrong steps in a thousand, in case the load changes
  bool trying() const { return pair_ < kPairs; }
  bool ask_ = false, asking_ = false;
  int pair_ = 0, half_ = 0, wins_ = 0, quiet_ = 0;
  int64_t rows_ = 0;
  double seconds_[2] = {0, 0};
};

}  // namespace fh
