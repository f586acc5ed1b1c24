// The AVX-512 table; the one for byte permutes, the same but for T2 and T3; and AMX's, where tiles do better.
#include "avx512.h"

#if defined(__x86_64__)

namespace fh::avx512 {

#include "../families.inl"

// Filled on first use, never at load: filling runs code of this target region.
static const Kernels* table() { static const Kernels t = make_table("avx512"); return &t; }

#include "vbmi.inl"
#include "amx.inl"

}  // namespace fh::avx512

#include "end.h"

namespace fh {
const Kernels* kernels_avx512() { return avx512::table(); }
const Kernels* kernels_vbmi() { return avx512::vbmi_table(); }
const Kernels* kernels_amx() { return avx512::amx_table(); }
}
#else
namespace fh {
const Kernels* kernels_avx512() { return nullptr; }
const Kernels* kernels_vbmi() { return nullptr; }
const Kernels* kernels_amx() { return nullptr; }
}
#endif
