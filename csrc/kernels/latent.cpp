// Which latent kernels belong to which kernel table.
#include "kernels/latent.h"

#include "kernels/vectors.h"

namespace fh {

const LatentKernels& latent_kernels(const Kernels& k) {
  switch (vectors_of(k)) {
    case Vectors::kNeon: return *latent_neon();
    case Vectors::kYmm: return *latent_avx2();
    case Vectors::kZmm: return *latent_avx512();
    case Vectors::kNone: break;
  }
  return *latent_scalar();
}

}  // namespace fh
