// Chooses a token from one row of logits, as a function of the logits, the parameters, the seed and the position alone.
#pragma once
#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "freehold.h"

namespace fh {

// Order: temperature, top-k, typical, top-p, min-p, each over what the one before left, renormalised; then the greatest
// logit/temperature + gumbel(seed, position, id) among the survivors, of which there is always one. Ties go to the lower id.
// Off: temperature <= 0 means the greatest logit; top_k <= 0; typical_p, top_p >= 1; min_p <= 0.
// Returns -1 when n < 1 or any logit is not finite (so ban a token with a very low logit, never with -infinity).
int64_t sample_token(const float* logits, int64_t n, const SampleParams& params);

// The token with the greatest logit / temperature + gumbel (temperature <= 0: the greatest logit), among logits that come
// a piece at a time from several threads in any order: what sample_token would choose with every filter off.
class Contest {
 public:
  struct Best {
    double score;
    int64_t id;
    void offer(double s, int64_t i) {
      if (s > score || (s == score && i < id)) { score = s; id = i; }
    }
  };

  Contest(const Choice& choice, int threads);
  // Which of n <= 32 ids from first on may still win, their logits being at most `upper`: bit i for id first + i. An
  // upper bound of infinity is always able. Never rules out what could win; depends on what other threads have offered.
  uint32_t able(const float* upper, int64_t first, int n) const;
  // Takes the exact logits of ids first .. first + n; those without a bit in `able` may not win and only have to be finite.
  void offer(int thread, const float* logits, int64_t first, int n, uint32_t able);
  int64_t winner() const;                     // when all threads are done; -1 after a logit that was not finite

 private:
  double temperature_;
  uint64_t stream_;
  std::vector<Best> best_;                    // by thread
  std::unique_ptr<std::atomic<double>> mark_; // the greatest score any thread has seen
  std::unique_ptr<std::atomic<bool>> damaged_;
};

// The noise of one token: -log(-log(u)), u in (0, 1) open, from a counter-based hash. At most 36.8.
double gumbel(uint64_t seed, int64_t position, int64_t id);

// In place, for each of m ids seen counts[i] times: a positive logit is divided by repetition, a negative one multiplied;
// then presence and count * frequency are subtracted. An id never seen (count <= 0) is left alone; ids must be distinct.
// Throws Usage for an id outside [0, n), before anything changed.
void penalize(float* logits, int64_t n, const int32_t* ids, const int32_t* counts, int64_t m, float repetition, float presence,
              float frequency);

}  // namespace fh
