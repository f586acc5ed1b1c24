// The table of ARMv8.2 with dot products.
#include "neon.h"

#if defined(__aarch64__)

namespace fh::neon {

#include "../families.inl"

// Filled on first use, never at load: filling runs code of this target region.
static const Kernels* table() { static const Kernels t = make_table("neon"); return &t; }

}  // namespace fh::neon

#include "end.h"

namespace fh { const Kernels* kernels_neon() { return neon::table(); } }
#else
namespace fh { const Kernels* kernels_neon() { return nullptr; } }
#endif
