// The AVX-VNNI table: avx2's but for products of bytes, and the same bits.
#include "avxvnni.h"

#if defined(__x86_64__)

namespace fh::avxvnni {

#include "../matmul.inl"
#include "../screen.inl"
#include "../gemm.inl"
#include "../quant.inl"
#include "../functions.inl"
#include "../norm.inl"
#include "../encoder.inl"
#include "../attention.inl"
#include "../ceiling.inl"

static Kernels make_table() {
  Kernels t = *kernels_avx2();
  t.name = "avxvnni";
  t.gemm_rows = kGemmRows;
  fill_matmul(t);
  fill_screen(t);
  fill_gemm(t);
  fill_encoder(t);
  fill_attention(t);
  fill_ceiling(t);
  return t;
}
// Filled on first use, never at load: filling runs code of this target region.
static const Kernels* table() { static const Kernels t = make_table(); return &t; }

}  // namespace fh::avxvnni

#include "end.h"

namespace fh { const Kernels* kernels_avxvnni() { return avxvnni::table(); } }
#else
namespace fh { const Kernels* kernels_avxvnni() { return nullptr; } }
#endif
