// Latent attention for AVX2.
#include "kernels/latent.h"

#include "avx2.h"

#if defined(__x86_64__)

namespace fh::avx2 {

#include "../latent.inl"

}  // namespace fh::avx2

#include "end.h"

namespace fh { const LatentKernels* latent_avx2() { return &avx2::kLatent; } }
#else
namespace fh { const LatentKernels* latent_avx2() { return nullptr; } }
#endif
