// Latent attention for AVX-512.
#include "kernels/latent.h"

#include "avx512.h"

#if defined(__x86_64__)

namespace fh::avx512 {

#include "../latent.inl"

}  // namespace fh::avx512

#include "end.h"

namespace fh { const LatentKernels* latent_avx512() { return &avx512::kLatent; } }
#else
namespace fh { const LatentKernels* latent_avx512() { return nullptr; } }
#endif
