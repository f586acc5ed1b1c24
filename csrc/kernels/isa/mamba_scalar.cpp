// Mamba-2's kernels for machines with nothing better.
#include "scalar.h"
#include "../recurrent_mamba.h"

namespace fh::scalar {

constexpr int kScanStates = 1, kScanVectors = 1;
#include "../functions.inl"
#include "../recurrent_mamba.inl"

}  // namespace fh::scalar

namespace fh { const MambaKernels& mamba_scalar() { return scalar::kMambaTable; } }
