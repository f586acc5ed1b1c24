// The trellis encoder for AVX2.
#include "../trellis_encode.h"
#include "avx2.h"

#if defined(__x86_64__)
namespace fh::avx2 {

#include "../trellis_encode.inl"

}  // namespace fh::avx2

#include "end.h"

namespace fh { const TrellisKernels& trellis_avx2() { return avx2::kTrellisTable; } }
#else
namespace fh { const TrellisKernels& trellis_avx2() { return trellis_scalar(); } }
#endif
