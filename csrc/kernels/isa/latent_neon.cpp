// Latent attention for ARMv8.2; i8mm's table has these too.
#include "kernels/latent.h"

#include "neon.h"

#if defined(__aarch64__)

namespace fh::neon {

#include "../latent.inl"

}  // namespace fh::neon

#include "end.h"

namespace fh { const LatentKernels* latent_neon() { return &neon::kLatent; } }
#else
namespace fh { const LatentKernels* latent_neon() { return nullptr; } }
#endif
