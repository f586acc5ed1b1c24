// The prefetch tuner: chooses on live steps how far ahead of their use weights are prefetched. Results do not depend on it.
//
// One machine's hardware prefetcher keeps up with the stream of weights, and requests slow it (Zen 4: up to 40 % lost);
// another's loses the stream between two panels (an Intel guest: 0.5b decode 19.4 ms without, 14.5 with). A probe at
// start-up would add to the start and measure that second's load; so rounds of like steps try all, now and again.
#pragma once
#include <algorithm>
#include <cstdint>
#include <iterator>

namespace fh {

class PrefetchTuner {
 public:
  // Bytes in flight are latency times rate (Little). An Intel guest, Q5_0 / Q8_0 / Q4_K / Q6_K at K = 1536, two threads, GB/s: none
  // 26 / 27 / 28 / 23, 512 bytes 31 / 32 / 29 / 26, 2 KB 31 / 34 / 32 / 28, 4 KB 23-29 / 30 / 26 / 26. A Zen 5 guest beside busy
  // neighbours, Q4_K at K = 2048, one thread, one row and three: none 18 and 12, 2 KB 27 and 14, 4 KB 29 and 21, 8 KB 29 and 32.
  static constexpr int64_t kAhead[] = {0, 2048, 8192};

  // Bytes ahead for a step of `rows`; call took() with its time afterwards.
  int64_t ahead(int64_t rows) {
    if (rows != rows_) tried_ = 0;                             // only steps of as many rows compare
    rows_ = rows;
    now_ = trying() ? (round_ + tried_) % kChoices : best_;    // which goes first changes: early steps touch new pages
    return kAhead[now_];
  }
  // For a step unlike the others: the best so far. No took() afterwards.
  int64_t settled() const { return kAhead[best_]; }
  void took(double seconds) {
    if (!trying()) {
      if (++quiet_ == kQuiet) quiet_ = round_ = 0;
      return;
    }
    if (round_ == 0 && tried_ == 0) std::fill_n(wins_, kChoices, 0);
    seconds_[now_] = seconds;
    if (++tried_ < kChoices) return;
    tried_ = 0;
    ++wins_[std::min_element(seconds_, seconds_ + kChoices) - seconds_];
    if (++round_ == kRounds) best_ = static_cast<int>(std::max_element(wins_, wins_ + kChoices) - wins_);
  }

 private:
  static constexpr int kChoices = std::size(kAhead), kRounds = 5, kQuiet = 1000;   // a few slow steps in a thousand, in case the load changes
  bool trying() const { return round_ < kRounds; }
  int best_ = 0, now_ = 0, round_ = 0, tried_ = 0, quiet_ = 0, wins_[kChoices] = {};
  int64_t rows_ = 0;
  double seconds_[kChoices] = {};
};

}  // namespace fh
