// The short convolution for machines with nothing better.
#include "../short_conv.h"
#include "scalar.h"

namespace fh::scalar {

#include "../functions.inl"
#include "../short_conv.inl"

}  // namespace fh::scalar

namespace fh { const ConvKernels& conv_scalar() { return scalar::kConvTable; } }
