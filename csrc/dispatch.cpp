// Chooses the kernel table: cpuid once, FREEHOLD_ISA to force one. The only place that asks what the CPU can do.
#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
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

std::vector<const Kernels*> detect() {
  std::vector<const Kernels*> found;
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
