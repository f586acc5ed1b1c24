// Latent attention in plain C++.
#include "kernels/latent.h"

#include "scalar.h"

namespace fh::scalar {

#include "../latent.inl"

}  // namespace fh::scalar

namespace fh { const LatentKernels* latent_scalar() { return &scalar::kLatent; } }
