// Every kernel family, included by each ISA inside its namespace and target region, and the table they fill.
#include "matmul.inl"
#include "screen.inl"
#include "gemm.inl"
#include "trellis.inl"
#include "quant.inl"
#include "functions.inl"
#include "norm.inl"
#include "rope.inl"
#include "encoder.inl"
#include "attention.inl"
#include "sample.inl"
#include "ceiling.inl"

static Kernels make_table(const char* name) {
  Kernels t{};
  t.name = name;
  t.gemm_rows = kGemmRows;
  fill_matmul(t);
  fill_screen(t);
  fill_gemm(t);
  fill_trellis(t);
  fill_quant(t);
  fill_norm(t);
  fill_rope(t);
  fill_encoder(t);
  fill_attention(t);
  fill_sample(t);
  fill_ceiling(t);
  return t;
}
