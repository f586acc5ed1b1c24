// Which writers go with a table.
#include "kernels/writers.h"

#include "kernels/vectors.h"

namespace fh {

const WriterKernels& writer_kernels(const Kernels& table) {
  switch (vectors_of(table)) {
    case Vectors::kNeon: return writers_neon();
    case Vectors::kYmm: return writers_avx2();
    case Vectors::kZmm: return writers_avx512();
    case Vectors::kNone: break;
  }
  return writers_scalar();
}

}  // namespace fh
