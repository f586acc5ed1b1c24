// Force-included for x86-64 by tools/zig.py. zig's runtime answers every __builtin_cpu_supports with no (its compiler_rt/fmv
// is a stub), which would leave the scalar table on every machine. This asks the processor instead, and the system whether
// it saves the registers; a name that is not here does not compile.
#pragma once
#if defined(__x86_64__) && __cplusplus >= 202002L  // less: CMake asking what the compiler can
#include <cpuid.h>

namespace zig_x86 {

enum Register { B = 1, C = 2 };
struct Feature { unsigned leaf; Register in; int bit; unsigned saved; };      // saved: bits of XCR0
constexpr unsigned kYmm = 0x06, kZmm = 0xe6;

constexpr bool same(const char* a, const char* b) {
  for (; *a && *a == *b; ++a, ++b) {}
  return *a == *b;
}
consteval Feature feature(const char* name) {
  if (same(name, "fma")) return {1, C, 12, kYmm};
  if (same(name, "f16c")) return {1, C, 29, kYmm};
  if (same(name, "avx2")) return {7, B, 5, kYmm};
  if (same(name, "avx512f")) return {7, B, 16, kZmm};
  if (same(name, "avx512dq")) return {7, B, 17, kZmm};
  if (same(name, "avx512bw")) return {7, B, 30, kZmm};
  if (same(name, "avx512vl")) return {7, B, 31, kZmm};
  if (same(name, "avx512vnni")) return {7, C, 11, kZmm};
  if (same(name, "avx512vbmi")) return {7, C, 1, kZmm};
  if (same(name, "avx512vbmi2")) return {7, C, 6, kZmm};
  throw "a feature that this header does not know";
}
inline bool supports(Feature wanted) {
  constexpr unsigned kOsxsave = 1u << 27;
  unsigned found[4];                                                           // a, b, c, d
  if (!__get_cpuid(1, &found[0], &found[1], &found[2], &found[3]) || !(found[2] & kOsxsave)) return false;
  unsigned low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  if ((low & wanted.saved) != wanted.saved) return false;
  return __get_cpuid_count(wanted.leaf, 0, &found[0], &found[1], &found[2], &found[3]) && (found[wanted.in] >> wanted.bit & 1);
}

}  // namespace zig_x86

#define __builtin_cpu_supports(name) zig_x86::supports(zig_x86::feature(name))
#endif
