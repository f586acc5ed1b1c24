// The table of ARM processors with int8 matrix products: neon's, with unsigned bytes and other prompts.
#define FREEHOLD_I8MM
#include "neon.h"

#if defined(__aarch64__)

namespace fh::i8mm {

#include "../families.inl"
#include "neon_floats.inl"
#include "i8mm.inl"

static Kernels make_i8mm() {
  Kernels t = make_table("i8mm");
  fill_floats(t);
  fill_mm(t);
  return t;
}
// Filled on first use, never at load: filling runs code of this target region.
static const Kernels* table() { static const Kernels t = make_i8mm(); return &t; }

}  // namespace fh::i8mm

#include "end.h"

namespace fh { const Kernels* kernels_i8mm() { return i8mm::table(); } }
#else
namespace fh { const Kernels* kernels_i8mm() { return nullptr; } }
#endif
