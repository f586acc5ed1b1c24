// The gated delta rule for ARMv8.2; i8mm's table has these too.
#include "../recurrent_delta.h"
#include "neon.h"

#if defined(__aarch64__)
namespace fh::neon {

// Of 32 registers a block takes four, its sums eight, d four, the decay and the broadcasts three.
constexpr int kDeltaBlocks = 1, kDeltaSums = 1;
#include "../functions.inl"
#include "../recurrent_delta.inl"

}  // namespace fh::neon

#include "end.h"

namespace fh { const DeltaKernels& delta_neon() { return neon::kDeltaTable; } }
#else
namespace fh { const DeltaKernels& delta_neon() { return delta_scalar(); } }
#endif
