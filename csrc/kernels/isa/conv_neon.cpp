// The short convolution for ARMv8.2; i8mm's table has these too.
#include "../short_conv.h"
#include "neon.h"

#if defined(__aarch64__)
namespace fh::neon {

#include "../functions.inl"
#include "../short_conv.inl"

}  // namespace fh::neon

#include "end.h"

namespace fh { const ConvKernels& conv_neon() { return neon::kConvTable; } }
#else
namespace fh { const ConvKernels& conv_neon() { return conv_scalar(); } }
#endif
