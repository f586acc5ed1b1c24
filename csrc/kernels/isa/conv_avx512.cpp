// The short convolution for AVX-512.
#include "../short_conv.h"
#include "avx512.h"

#if defined(__x86_64__)
namespace fh::avx512 {

#include "../functions.inl"
#include "../short_conv.inl"

}  // namespace fh::avx512

#include "end.h"

namespace fh { const ConvKernels& conv_avx512() { return avx512::kConvTable; } }
#else
namespace fh { const ConvKernels& conv_avx512() { return conv_scalar(); } }
#endif
