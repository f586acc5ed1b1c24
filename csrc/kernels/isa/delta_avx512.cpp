// The gated delta rule for AVX-512.
#include "../recurrent_delta.h"
#include "avx512.h"

#if defined(__x86_64__)
namespace fh::avx512 {

// Two blocks share broadcasts: with one, loads and not multiply-adds would bound it. Two sums each, so that none waits.
constexpr int kDeltaBlocks = 2, kDeltaSums = 2;
#include "../functions.inl"
#include "../recurrent_delta.inl"

}  // namespace fh::avx512

#include "end.h"

namespace fh { const DeltaKernels& delta_avx512() { return avx512::kDeltaTable; } }
#else
namespace fh { const DeltaKernels& delta_avx512() { return delta_scalar(); } }
#endif
