// Mamba-2's kernels for ARMv8.2; i8mm's table has these too.
#include "../recurrent_mamba.h"
#include "neon.h"

#if defined(__aarch64__)
namespace fh::neon {

// Of 32 registers a slab takes sixteen (a vector is four), x and y eight, b, c and the decay three.
constexpr int kScanStates = 4, kScanVectors = 1;
#include "../functions.inl"
#include "../recurrent_mamba.inl"

}  // namespace fh::neon

#include "end.h"

namespace fh { const MambaKernels& mamba_neon() { return neon::kMambaTable; } }
#else
namespace fh { const MambaKernels& mamba_neon() { return mamba_scalar(); } }
#endif
