// Choosing a token from a row of logits.
#include "bind/bind.h"
#include "sample.h"

namespace fh {

void bind_sampling(nb::module_& m) {
  m.def("sample", [](In<float, 1> logits, float temperature, int top_k, float top_p, float min_p, float typical_p, uint64_t seed, int64_t position) {
    nb::gil_scoped_release free;
    return sample_token(logits.data(), static_cast<int64_t>(logits.size()), {temperature, top_p, min_p, typical_p, top_k, seed, position});
  }, "logits"_a, "temperature"_a, "top_k"_a, "top_p"_a, "min_p"_a, "typical_p"_a, "seed"_a, "position"_a,
        R"(Choose a token from float32 logits [V] (penalties and bias applied already). -1 if any logit is not finite.

Order: temperature, top-k, typical, top-p, min-p; then the greatest logit/temperature + Gumbel(seed, position, id)
among the survivors. Temperature 0: the greatest logit, lowest id on ties.)");
  m.def("log_sum_exp", [](In<float, 1> x) { return kernels()->log_sum_exp(x.data(), static_cast<int64_t>(x.size())); }, "logits"_a, "log(sum(exp(logits))); NaN when any logit is not finite.");
  m.def("penalize", [](InOut<float, 1> logits, In<int32_t, 1> ids, In<int32_t, 1> counts, float repetition, float presence, float frequency) {
    if (ids.size() != counts.size()) throw Error(ErrorKind::Usage, "one count for each id");
    penalize(logits.data(), static_cast<int64_t>(logits.size()), ids.data(), counts.data(), static_cast<int64_t>(ids.size()), repetition, presence, frequency);
  }, "logits"_a, "ids"_a, "counts"_a, "repetition"_a, "presence"_a, "frequency"_a,
        "In place, for each id seen `counts` times: divide by repetition (multiply, if negative); subtract the rest.");
}

}  // namespace fh
