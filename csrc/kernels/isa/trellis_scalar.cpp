// The trellis encoder for machines with nothing better.
#include "../trellis_encode.h"
#include "scalar.h"

namespace fh::scalar {

#include "../trellis_encode.inl"

}  // namespace fh::scalar

namespace fh { const TrellisKernels& trellis_scalar() { return scalar::kTrellisTable; } }
