// Chooses the kernel table: the processor's features once, FREEHOLD_ISA to force one. The only place that asks what the CPU can do.
#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

#include <cstdlib>

#include "freehold.h"

namespace fh {
namespace {

bool runs_avx2() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#else
  return false;
#endif
}
bool runs_avx512() {
#if defined(__x86_64__)
  return runs_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
#else
  return false;
#endif
}

// AMX needs CPU support and OS permission (ARCH_REQ_XCOMP_PERM): Linux saves its 8 KB of state per thread only on request.
bool runs_amx() {
#if defined(__x86_64__) && defined(__linux__) && defined(SYS_arch_prctl)
  constexpr long kAskPermission = 0x1023, kTileData = 18;      // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24, kInt8 = 1u << 25, kAll = kBf16 | kTile | kInt8;
  unsigned a, b, c, d;
  if (!runs_avx512() || !__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & kAll) != kAll) return false;
  return syscall(SYS_arch_prctl, kAskPermission, kTileData) == 0;
#else
  return false;
#endif
}

// ARMv8.2's dot products, and the int8 matrix extension, which implies them. Processors with neither (ARMv8.0: Cortex-A53, A72)
// run the scalar table, whose loops the compiler turns into the NEON that they have.
#if defined(__aarch64__) && defined(__linux__)
constexpr unsigned long kDotProduct = 1ul << 20, kInt8Matrix = 1ul << 13;      // HWCAP_ASIMDDP, HWCAP2_I8MM
bool runs_neon() { return (getauxval(AT_HWCAP) & kDotProduct) != 0; }
bool runs_i8mm() { return runs_neon() && (getauxval(AT_HWCAP2) & kInt8Matrix) != 0; }
#elif defined(__aarch64__) && defined(__APPLE__)
bool has_feature(const char* name) {
  int value = 0;
  size_t size = sizeof(value);
  return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value != 0;
}
bool runs_neon() { return true; }      // every Mac with such a processor; macOS 11 has no name for it
bool runs_i8mm() { return has_feature("hw.optional.arm.FEAT_I8MM"); }
#else
bool runs_neon() { return false; }
bool runs_i8mm() { return false; }
#endif

std::vector<const Kernels*> detect() {
  std::vector<const Kernels*> found;
  if (runs_i8mm()) found.push_back(kernels_i8mm());
  if (runs_neon()) found.push_back(kernels_neon());
  if (runs_amx()) found.push_back(kernels_amx());
  if (runs_avx512()) found.push_back(kernels_avx512());
  if (runs_avx2()) found.push_back(kernels_avx2());
  found.push_back(kernels_scalar());
  return found;
}

}  // namespace

const std::vector<const Kernels*>& runnable_kernels() {
  static const std::vector<const Kernels*> found = detect();
  return found;
}

const Kernels* kernels_named(std::string_view name) {
  std::string known;
  for (const Kernels* k : runnable_kernels()) {
    if (name == k->name) return k;
    known += known.empty() ? k->name : std::string(", ") + k->name;
  }
  throw Error(ErrorKind::Usage, "no kernels named '" + std::string(name) + "' run on this machine\nset FREEHOLD_ISA to one of these, or leave it out: " + known);
}

const Kernels* kernels() {
  static const Kernels* chosen = [] {
    const char* forced = std::getenv("FREEHOLD_ISA");
    return forced && *forced ? kernels_named(forced) : runnable_kernels().front();
  }();
  return chosen;
}

}  // namespace fh
