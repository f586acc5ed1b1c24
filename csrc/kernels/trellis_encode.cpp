// Which trellis encoder goes with a table of kernels.
#include "kernels/trellis_encode.h"

#include "kernels/vectors.h"

namespace fh {

const TrellisKernels& trellis_kernels(const Kernels& table) {
  switch (vectors_of(table)) {
    case Vectors::kNeon: return trellis_neon();
    case Vectors::kYmm: return trellis_avx2();
    case Vectors::kZmm: return trellis_avx512();
    case Vectors::kNone: break;
  }
  return trellis_scalar();
}

}  // namespace fh
