// Chooses a token from one row of logits, as a function of the logits, the parameters, the seed and the position alone.
#pragma once
#include <cstdint>

#include "kernels/kernels.h"

namespace fh {

// Order: temperature, top-k, typical, top-p, min-p, each over what the one before left, renormalised; then the greatest
// logit/temperature + gumbel(seed, position, id) among the survivors, of which there is always one. Ties go to the lower id.
// Off: temperature <= 0 means the greatest logit; top_k <= 0; typical_p, top_p >= 1; min_p <= 0.
// Returns -1 when n < 1 or any logit is not finite (so ban a token with a very low logit, never with -infinity).
int64_t sample_token(const float* logits, int64_t n, const SampleParams& params);

// The noise of one token: -log(-log(u)), u in (0, 1) open, from a counter-based hash. At most 36.8.
double gumbel(uint64_t seed, int64_t position, int64_t id);

// In place, for each of m ids seen counts[i] times: a positive logit is divided by repetition, a negative one multiplied;
// then presence and count * frequency are subtracted. An id never seen (count <= 0) is left alone; ids must be distinct.
// Throws Usage for an id outside [0, n), before anything changed.
void penalize(float* logits, int64_t n, const int32_t* ids, const int32_t* counts, int64_t m, float repetition, float presence,
              float frequency);

}  // namespace fh
