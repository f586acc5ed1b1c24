// Writers of weight blocks for ARMv8.2; i8mm's table has these too.
#include "../writers.h"
#include "neon.h"

#if defined(__aarch64__)
namespace fh::neon {

constexpr int kLanes = 4;
#include "../writers_lanes.inl"
#include "../writers_scales.inl"
#include "../writers_32.inl"
#include "../writers_k.inl"
#include "../writers_iq4.inl"
#include "../writers_table.inl"

}  // namespace fh::neon

#include "end.h"

namespace fh { const WriterKernels& writers_neon() { return neon::kWriterTable; } }
#else
namespace fh { const WriterKernels& writers_neon() { return writers_scalar(); } }
#endif
