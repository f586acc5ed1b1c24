// The gated delta rule for machines with nothing better.
#include "../recurrent_delta.h"
#include "scalar.h"

namespace fh::scalar {

constexpr int kDeltaBlocks = 1, kDeltaSums = 1;
#include "../functions.inl"
#include "../recurrent_delta.inl"

}  // namespace fh::scalar

namespace fh { const DeltaKernels& delta_scalar() { return scalar::kDeltaTable; } }
