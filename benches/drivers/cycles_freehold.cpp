// One product of Freehold's ARM kernels between two marks, for a trace: benches/engine/cycles.py TYPE TOKENS TABLE.
// Weights and activations are arbitrary bytes; no instruction that runs depends on them.
#include <cstdlib>
#include <cstring>

#include "kernels/kernels.h"

namespace fh { const Kernels* kernels_neon(); const Kernels* kernels_i8mm(); }

extern "C" __attribute__((noinline)) void trace_begin() { asm volatile(""); }
extern "C" __attribute__((noinline)) void trace_end() { asm volatile(""); }

namespace {

constexpr int64_t kInputs = 2048, kPanels = 4, kTokensMost = 48;   // a unit's readers may take 32 rows past the last

template <typename T> const T* room(int64_t count) {
  void* p = aligned_alloc(64, (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64);
  memset(p, 1, static_cast<size_t>(count) * sizeof(T));
  return static_cast<T*>(p);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  const fh::Kernels* table = argv[3][0] == 'n' ? fh::kernels_neon() : fh::kernels_i8mm();
  int type = 0;
  while (type < fh::kWeightTypeCount && strcmp(fh::kWeightTypes[type].name, argv[1])) ++type;
  const int tokens = atoi(argv[2]);
  if (!table || type == fh::kWeightTypeCount || tokens < 1 || tokens > 16) return 2;
  const fh::WeightTraits& t = fh::kWeightTypes[type];
  const int64_t bytes = (kInputs / t.unit() * (t.unit_bytes() + t.aux_bytes()) + 63) / 64 * 64;
  const fh::Panels w{static_cast<fh::WeightType>(type), fh::kPanelRows * kPanels, kInputs, bytes, room<uint8_t>(bytes * kPanels)};
  fh::Acts x;
  x.k = kInputs, x.rows = tokens;
  x.q = room<int8_t>(kInputs * kTokensMost);
  x.scale = room<float>(kInputs / 32 * kTokensMost);
  x.sum16 = room<int32_t>(kInputs / 16 * kTokensMost);
  x.fsum32 = room<float>(kInputs / 32 * kTokensMost);
  float* y = const_cast<float*>(room<float>(fh::kPanelRows * kPanels * kTokensMost));
  const bool whole = tokens >= table->gemm_rows;
  for (int round = 0; round < 2; ++round) {            // the first fills tables that are made on first use
    if (round) trace_begin();
    if (whole)
      for (int64_t u = 0; u < kInputs / 256; ++u) table->gemm[type](w, 0, kPanels, u, x, 0, tokens, y);
    else
      for (int64_t p = 0; p < kPanels; ++p) table->panel[type](w, p, x, 0, tokens, y + fh::kPanelRows * p, fh::kPanelRows * kPanels);
    if (round) trace_end();
  }
  return 0;
}
