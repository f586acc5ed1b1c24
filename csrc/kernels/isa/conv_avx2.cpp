// The short convolution for AVX2.
#include "../short_conv.h"
#include "avx2.h"

#if defined(__x86_64__)
namespace fh::avx2 {

#include "../functions.inl"
#include "../short_conv.inl"

}  // namespace fh::avx2

#include "end.h"

namespace fh { const ConvKernels& conv_avx2() { return avx2::kConvTable; } }
#else
namespace fh { const ConvKernels& conv_avx2() { return conv_scalar(); } }
#endif
