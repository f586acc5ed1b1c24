// The thread tuner: how many threads to offer a step to. Knows the reported costs; knows no clock, no pool and no machine.
//
// Tokens do not depend on threads, so live steps are the probe: now and then a few run with half as many threads or
// twice as many, and the faster number stays. A probe at start-up would choose for the load of that second, and the
// topology that guests see says too little: another guest's load made two vCPUs look like one core.
#pragma once
#include <algorithm>

namespace fh {

class ThreadTuner {
 public:
  explicit ThreadTuner(int most) : most_(most), now_(most) {}
  int threads() const { return trying_ ? trying_ : now_; }     // for the next step
  int settled() const { return now_; }                         // for a step outside any trial: no report() afterwards
  bool trying() const { return trying_ > 0; }                  // an unusual step: no measure of anything else
  // A step by threads() threads took `seconds`; `cost` compares it with others like it (seconds a row, say).
  void report(double cost, double seconds) {
    if (most_ == 1) return;
    if (trying_) return judge(cost);
    recent_[steps_++ % kRecent] = cost;
    since_ += seconds;
    odd_ = cost > settled_ * kChange || cost * kChange < settled_ ? odd_ + 1 : 0;
    if (steps_ < kRecent) return;
    if (settled_ == 0) settle(mean());
    else if (due()) start();
  }

 private:
  // Beside another process a step's time varies by a fifth; the mean of four by a tenth, half of what makes odd steps.
  static constexpr int kRecent = 4;
  static constexpr double kChange = 1.4;       // four steps in a row this far off: other load has started or ended
  static constexpr double kBetter = 0.93;      // of the cost before: less would flip between equals
  static constexpr double kHopeless = 1.5;     // a trial ends after two steps at this much more
  static constexpr int kTrial = 6;
  // A hopeless trial on a quiet machine takes two steps at about double cost: 2 of 300 is under 1 %.
  static constexpr int kCalmSteps = 300;
  static constexpr double kFirstPause = 0.25, kLongestPause = 4;   // seconds between trials while not all are in use

  bool due() const {
    if (odd_ >= kRecent) return true;
    return now_ < most_ ? since_ >= pause_ : steps_ >= kCalmSteps;
  }
  void start() {
    reference_ = mean();
    const int fewer = std::max(1, now_ / 2), more = std::min(most_, now_ * 2);
    up_ = now_ == 1 || (now_ < most_ && !up_);
    trying_ = up_ ? more : fewer;
    sum_ = 0;
    tried_ = 0;
  }
  void judge(double cost) {
    sum_ += cost;
    const double average = sum_ / ++tried_;
    if (tried_ >= 2 && average > kHopeless * reference_) end(false, average);
    else if (tried_ == kTrial) end(average < kBetter * reference_, average);
  }
  void end(bool better, double average) {
    pause_ = better ? kFirstPause : std::min(2 * pause_, kLongestPause);
    if (better) now_ = trying_;
    trying_ = 0;
    settle(better ? average : reference_);
  }
  void settle(double cost) {
    settled_ = cost;
    steps_ = odd_ = 0;
    since_ = 0;
  }
  double mean() const {
    double sum = 0;
    for (double c : recent_) sum += c;
    return sum / kRecent;
  }

  int most_, now_, trying_ = 0, tried_ = 0, steps_ = 0, odd_ = 0;
  bool up_ = false;                            // the direction of the newest trial
  double recent_[kRecent] = {}, settled_ = 0, since_ = 0, pause_ = kFirstPause, reference_ = 0, sum_ = 0;
};

}  // namespace fh
