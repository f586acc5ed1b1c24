// The trellis encoder for AVX-512.
#include "../trellis_encode.h"
#include "avx512.h"

#if defined(__x86_64__)
namespace fh::avx512 {

#include "../trellis_encode.inl"

}  // namespace fh::avx512

#include "end.h"

namespace fh { const TrellisKernels& trellis_avx512() { return avx512::kTrellisTable; } }
#else
namespace fh { const TrellisKernels& trellis_avx512() { return trellis_scalar(); } }
#endif
