// The AVX2 table.
#include "avx2.h"

#if defined(__x86_64__)

namespace fh::avx2 {

#include "../families.inl"

// Filled on first use, never at load: filling runs code of this target region.
static const Kernels* table() { static const Kernels t = make_table("avx2"); return &t; }

}  // namespace fh::avx2

#include "end.h"

namespace fh { const Kernels* kernels_avx2() { return avx2::table(); } }
#else
namespace fh { const Kernels* kernels_avx2() { return nullptr; } }
#endif
