// The AVX-VNNI table: avx2's but for dots of bytes and of int16 pairs, and the same bits.
#include "avxvnni.h"

#if defined(__x86_64__)

namespace fh::avxvnni {

#include "../families.inl"

// Filled on first use, never at load: filling runs code of this target region.
static const Kernels* table() { static const Kernels t = make_table("avxvnni"); return &t; }

}  // namespace fh::avxvnni

#include "end.h"

namespace fh { const Kernels* kernels_avxvnni() { return avxvnni::table(); } }
#else
namespace fh { const Kernels* kernels_avxvnni() { return nullptr; } }
#endif
