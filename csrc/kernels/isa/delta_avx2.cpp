// The gated delta rule for AVX2.
#include "../recurrent_delta.h"
#include "avx2.h"

#if defined(__x86_64__)
namespace fh::avx2 {

// Of sixteen registers a block takes two, its two sums four, d two, the decay and the broadcasts the rest.
constexpr int kDeltaBlocks = 1, kDeltaSums = 1;
#include "../functions.inl"
#include "../recurrent_delta.inl"

}  // namespace fh::avx2

#include "end.h"

namespace fh { const DeltaKernels& delta_avx2() { return avx2::kDeltaTable; } }
#else
namespace fh { const DeltaKernels& delta_avx2() { return delta_scalar(); } }
#endif
