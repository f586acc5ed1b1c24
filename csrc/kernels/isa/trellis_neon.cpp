// The trellis encoder for ARMv8.2; i8mm's table has these too.
#include "../trellis_encode.h"
#include "neon.h"

#if defined(__aarch64__)
namespace fh::neon {

#include "../trellis_encode.inl"

}  // namespace fh::neon

#include "end.h"

namespace fh { const TrellisKernels& trellis_neon() { return neon::kTrellisTable; } }
#else
namespace fh { const TrellisKernels& trellis_neon() { return trellis_scalar(); } }
#endif
