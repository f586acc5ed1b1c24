// Writers of weight blocks for AVX-512.
#include "../writers.h"
#include "avx512.h"

#if defined(__x86_64__)
namespace fh::avx512 {

constexpr int kLanes = 16;
#include "../writers_lanes.inl"
#include "../writers_scales.inl"
#include "../writers_32.inl"
#include "../writers_k.inl"
#include "../writers_iq4.inl"
#include "../writers_table.inl"

}  // namespace fh::avx512

#include "end.h"

namespace fh { const WriterKernels& writers_avx512() { return avx512::kWriterTable; } }
#else
namespace fh { const WriterKernels& writers_avx512() { return writers_scalar(); } }
#endif
