// Writers of weight blocks for AVX2.
#include "../writers.h"
#include "avx2.h"

#if defined(__x86_64__)
namespace fh::avx2 {

constexpr int kLanes = 8;
#include "../writers_lanes.inl"
#include "../writers_scales.inl"
#include "../writers_32.inl"
#include "../writers_k.inl"
#include "../writers_iq4.inl"
#include "../writers_table.inl"

}  // namespace fh::avx2

#include "end.h"

namespace fh { const WriterKernels& writers_avx2() { return avx2::kWriterTable; } }
#else
namespace fh { const WriterKernels& writers_avx2() { return writers_scalar(); } }
#endif
