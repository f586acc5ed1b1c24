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

#include <algorithm>
#include <cstdlib>
#include <string>
#include <vector>

#include "freehold.h"

namespace fh {
namespace {

#if defined(__x86_64__) && defined(__linux__) && defined(SYS_arch_prctl)
// Leaf 7's bits that the compiler's own names do not reach.
bool leaf7(unsigned sub, unsigned want_a, unsigned want_d) {
  unsigned a, b, c, d;
  return __get_cpuid_count(7, sub, &a, &b, &c, &d) && (a & want_a) == want_a && (d & want_d) == want_d;
}
// AMX needs OS permission (ARCH_REQ_XCOMP_PERM): Linux saves its 8 KB of state per thread only on request.
bool may_use_tiles() {
  constexpr long kAskPermission = 0x1023, kTileData = 18;      // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24, kInt8 = 1u << 25;
  return leaf7(0, 0, kBf16 | kTile | kInt8) && syscall(SYS_arch_prctl, kAskPermission, kTileData) == 0;
}
bool has_avx_vnni() { return leaf7(1, 1u << 4, 0); }
#else
[[maybe_unused]] bool may_use_tiles() { return false; }
[[maybe_unused]] bool has_avx_vnni() { return false; }
#endif

// ARMv8.2's dot products, and the int8 matrix extension, which implies them. Processors with neither (ARMv8.0: Cortex-A53, A72)
// run the scalar table, whose loops the compiler turns into the NEON that they have.
#if defined(__aarch64__) && defined(__linux__)
constexpr unsigned long kDotProduct = 1ul << 20, kInt8Matrix = 1ul << 13;      // HWCAP_ASIMDDP, HWCAP2_I8MM
bool has_dot_product() { return (getauxval(AT_HWCAP) & kDotProduct) != 0; }
bool has_int8_matrix() { return (getauxval(AT_HWCAP2) & kInt8Matrix) != 0; }
#elif defined(__aarch64__) && defined(__APPLE__)
bool has_feature(const char* name) {
  int value = 0;
  size_t size = sizeof(value);
  return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value != 0;
}
bool has_dot_product() { return true; }      // every Mac with such a processor; macOS 11 has no name for it
bool has_int8_matrix() { return has_feature("hw.optional.arm.FEAT_I8MM"); }
#else
bool has_dot_product() { return false; }
bool has_int8_matrix() { return false; }
#endif

// What this processor and its operating system offer, by the names of /proc/cpuinfo.
std::vector<std::string> processor_flags() {
  std::vector<std::string> flags;
  if (has_dot_product()) flags.emplace_back("asimddp");
  if (has_int8_matrix()) flags.emplace_back("i8mm");
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2")) flags.emplace_back("avx2");
  if (__builtin_cpu_supports("fma")) flags.emplace_back("fma");
  if (__builtin_cpu_supports("f16c")) flags.emplace_back("f16c");
  if (__builtin_cpu_supports("avx512f")) flags.emplace_back("avx512f");
  if (__builtin_cpu_supports("avx512bw")) flags.emplace_back("avx512bw");
  if (__builtin_cpu_supports("avx512dq")) flags.emplace_back("avx512dq");
  if (__builtin_cpu_supports("avx512vl")) flags.emplace_back("avx512vl");
  if (__builtin_cpu_supports("avx512vnni")) flags.emplace_back("avx512_vnni");
  if (__builtin_cpu_supports("avx512vbmi")) flags.emplace_back("avx512vbmi");
  if (__builtin_cpu_supports("avx512vbmi2")) flags.emplace_back("avx512_vbmi2");
  if (flags.empty()) return flags;                               // no 256-bit registers: cpuid's other bits say nothing
  if (has_avx_vnni()) flags.emplace_back("avx_vnni");
  if (may_use_tiles()) for (const char* flag : {"amx_tile", "amx_int8", "amx_bf16"}) flags.emplace_back(flag);
#endif
  return flags;
}

struct Table {
  const char* name;
  const Kernels* (*kernels)();
  std::vector<std::string_view> needs;
};
// Best first. A processor with AVX-512 runs avxvnni too, but has twice its width.
const std::vector<Table>& tables() {
  static const std::vector<std::string_view> avx2 = {"avx2", "fma", "f16c"};
  static const std::vector<Table> all = [] {
    const auto with = [](std::vector<std::string_view> base, std::initializer_list<std::string_view> more) {
      base.insert(base.end(), more);
      return base;
    };
    const auto avx512 = with(avx2, {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"});
    const auto vbmi = with(avx512, {"avx512vbmi", "avx512_vbmi2"});
    return std::vector<Table>{{"i8mm", kernels_i8mm, {"asimddp", "i8mm"}},
                              {"neon", kernels_neon, {"asimddp"}},
                              {"amx", kernels_amx, with(vbmi, {"amx_tile", "amx_int8", "amx_bf16"})},
                              {"vbmi", kernels_vbmi, vbmi},
                              {"avx512", kernels_avx512, avx512},
                              {"avxvnni", kernels_avxvnni, with(avx2, {"avx_vnni"})},
                              {"avx2", kernels_avx2, avx2},
                              {"scalar", kernels_scalar, {}}};
  }();
  return all;
}
bool runs(const Table& table, const std::vector<std::string>& flags) {
  return std::ranges::all_of(table.needs, [&](std::string_view need) { return std::ranges::find(flags, need) != flags.end(); });
}

}  // namespace

std::vector<std::string> tables_for(const std::vector<std::string>& flags) {
  std::vector<std::string> names;
  for (const Table& table : tables())
    if (runs(table, flags)) names.emplace_back(table.name);
  return names;
}

const std::vector<const Kernels*>& runnable_kernels() {
  static const std::vector<const Kernels*> found = [] {
    std::vector<const Kernels*> all;
    const auto flags = processor_flags();
    for (const Table& table : tables())
      if (runs(table, flags)) all.push_back(table.kernels());
    return all;
  }();
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
