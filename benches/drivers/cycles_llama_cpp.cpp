// One product of llama.cpp's repacked ARM kernels between two marks, for a trace: benches/engine/cycles.py TYPE TOKENS WIDTH.
// WIDTH: the inputs of a row that lie together, 4 with dot products, 8 with i8mm. Built from the source in its Python package.
#include <cstdint>
#include <cstdlib>
#include <cstring>

extern "C" {
#define KERNEL(name) void name(int n, float* s, size_t bs, const void* vx, const void* vy, int nr, int nc)
#define KERNELS(type, act) \
  KERNEL(ggml_gemv_##type##_8x4_##act); KERNEL(ggml_gemv_##type##_8x8_##act); KERNEL(ggml_gemm_##type##_8x4_##act); KERNEL(ggml_gemm_##type##_8x8_##act)
KERNELS(q4_K, q8_K); KERNELS(q5_K, q8_K); KERNELS(q6_K, q8_K);
KERNEL(ggml_gemv_q8_0_4x4_q8_0); KERNEL(ggml_gemv_q8_0_4x8_q8_0); KERNEL(ggml_gemm_q8_0_4x4_q8_0); KERNEL(ggml_gemm_q8_0_4x8_q8_0);
KERNEL(ggml_gemv_q4_0_4x4_q8_0); KERNEL(ggml_gemv_q4_0_4x8_q8_0); KERNEL(ggml_gemm_q4_0_4x4_q8_0); KERNEL(ggml_gemm_q4_0_4x8_q8_0);
// The plain loops to which a kernel turns without its instructions: reaching one would be a wrong trace.
#define ABSENT(name) void name##_generic(int, float*, size_t, const void*, const void*, int, int) { abort(); }
#define ABSENT_ALL(type, low, high) ABSENT(ggml_gemv_##type##_##low) ABSENT(ggml_gemv_##type##_##high) ABSENT(ggml_gemm_##type##_##low) ABSENT(ggml_gemm_##type##_##high)
ABSENT_ALL(q4_K, 8x4_q8_K, 8x8_q8_K)
ABSENT_ALL(q5_K, 8x4_q8_K, 8x8_q8_K)
ABSENT_ALL(q6_K, 8x4_q8_K, 8x8_q8_K)
ABSENT_ALL(q8_0, 4x4_q8_0, 4x8_q8_0)
ABSENT_ALL(q4_0, 4x4_q8_0, 4x8_q8_0)
__attribute__((noinline)) void trace_begin() { asm volatile(""); }
__attribute__((noinline)) void trace_end() { asm volatile(""); }
}

using Kernel = decltype(&ggml_gemv_q4_K_8x4_q8_K);
struct Row { const char* type; Kernel gemv[2], gemm[2]; };
constexpr Row kRows[] = {
    {"Q4_K", {ggml_gemv_q4_K_8x4_q8_K, ggml_gemv_q4_K_8x8_q8_K}, {ggml_gemm_q4_K_8x4_q8_K, ggml_gemm_q4_K_8x8_q8_K}},
    {"Q5_K", {ggml_gemv_q5_K_8x4_q8_K, ggml_gemv_q5_K_8x8_q8_K}, {ggml_gemm_q5_K_8x4_q8_K, ggml_gemm_q5_K_8x8_q8_K}},
    {"Q6_K", {ggml_gemv_q6_K_8x4_q8_K, ggml_gemv_q6_K_8x8_q8_K}, {ggml_gemm_q6_K_8x4_q8_K, ggml_gemm_q6_K_8x8_q8_K}},
    {"Q8_0", {ggml_gemv_q8_0_4x4_q8_0, ggml_gemv_q8_0_4x8_q8_0}, {ggml_gemm_q8_0_4x4_q8_0, ggml_gemm_q8_0_4x8_q8_0}},
    {"Q4_0", {ggml_gemv_q4_0_4x4_q8_0, ggml_gemv_q4_0_4x8_q8_0}, {ggml_gemm_q4_0_4x4_q8_0, ggml_gemm_q4_0_4x8_q8_0}},
};

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  const int tokens = atoi(argv[2]), wide = argv[3][0] == '8';
  constexpr int kInputs = 2048, kRowsOut = 64;
  for (const Row& row : kRows) {
    if (strcmp(row.type, argv[1])) continue;
    void* w = calloc(kInputs, 2 * kRowsOut);
    void* x = calloc(kInputs, 2 * 16);
    float* y = static_cast<float*>(calloc(kRowsOut * 16, sizeof(float)));
    const Kernel kernel = tokens == 1 ? row.gemv[wide] : row.gemm[wide];
    kernel(kInputs, y, kRowsOut, w, x, tokens, kRowsOut);
    trace_begin();
    kernel(kInputs, y, kRowsOut, w, x, tokens, kRowsOut);
    trace_end();
    return 0;
  }
  return 2;
}
