// Which latent kernels belong to which kernel table.
#include "kernels/latent.h"

#include <string_view>

namespace fh {

const LatentKernels& latent_kernels(const Kernels& k) {
  const std::string_view name = k.name;
  if (name == "neon" || name == "i8mm") return *latent_neon();
  const LatentKernels* found = name == "avx2" || name == "avxvnni" ? latent_avx2() : name == "avx512" || name == "amx" ? latent_avx512() : nullptr;
  return found ? *found : *latent_scalar();
}

}  // namespace fh
