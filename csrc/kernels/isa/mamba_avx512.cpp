// Mamba-2's kernels for AVX-512.
#include "../recurrent_mamba.h"
#include "avx512.h"

#if defined(__x86_64__)
namespace fh::avx512 {

// Of 32 registers a slab takes sixteen, x and y eight, b, c and the decay three.
constexpr int kScanStates = 4, kScanVectors = 4;
#include "../functions.inl"
#include "../recurrent_mamba.inl"

}  // namespace fh::avx512

#include "end.h"

namespace fh { const MambaKernels& mamba_avx512() { return avx512::kMambaTable; } }
#else
namespace fh { const MambaKernels& mamba_avx512() { return mamba_scalar(); } }
#endif
