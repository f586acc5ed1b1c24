// The table of ARMv8.2 with dot products.
#include "neon.h"

#if defined(__aarch64__)

namespace fh::neon {

#include "../families.inl"
#include "neon_floats.inl"

static Kernels make_neon() {
  Kernels t = make_table("neon");
  fill_floats(t);
  return t;
}
// Filled on first use, never at load: filling runs code of this target region.
static const Kernels* table() { static const Kernels t = make_neon(); return &t; }

}  // namespace fh::neon

#include "end.h"

namespace fh { const Kernels* kernels_neon() { return neon::table(); } }
#else
namespace fh { const Kernels* kernels_neon() { return nullptr; } }
#endif
