// The scalar table: every family in plain C++.
#include "scalar.h"

namespace fh::scalar {

#include "../families.inl"

// Filled on first use, never at load: filling runs code of this target region.
static const Kernels* table() { static const Kernels t = make_table("scalar"); return &t; }

}  // namespace fh::scalar

namespace fh { const Kernels* kernels_scalar() { return scalar::table(); } }
