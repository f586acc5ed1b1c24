// Which trellis encoder goes with a table of kernels, and the factors of a group's scale.
#include "kernels/trellis_encode.h"

#include "kernels/vectors.h"

namespace fh {

// float16(8^(-c/15)), rounded to nearest: what a file's four bits stand for.
const float kTrellisFactors[kTrellisScales] = {
    1.0f, 0.87060546875f, 0.7578125f, 0.65966796875f, 0.57421875f, 0.5f, 0.435302734375f, 0.37890625f,
    0.329833984375f, 0.287109375f, 0.25f, 0.2176513671875f, 0.189453125f, 0.1649169921875f, 0.1435546875f, 0.125f};

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
