// Mamba-2's kernels for AVX2.
#include "../recurrent_mamba.h"
#include "avx2.h"

#if defined(__x86_64__)
namespace fh::avx2 {

// Of sixteen registers a slab takes eight (a vector is two), x, y, b, c and the decay the rest.
constexpr int kScanStates = 4, kScanVectors = 1;
#include "../functions.inl"
#include "../recurrent_mamba.inl"

}  // namespace fh::avx2

#include "end.h"

namespace fh { const MambaKernels& mamba_avx2() { return avx2::kMambaTable; } }
#else
namespace fh { const MambaKernels& mamba_avx2() { return mamba_scalar(); } }
#endif
