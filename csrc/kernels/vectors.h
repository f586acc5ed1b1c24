// Which vectors a kernel table computes with: what has no table of its own for a processor's extras is chosen by them.
#pragma once
#include <string_view>

#include "kernels/kernels.h"

namespace fh {

enum class Vectors { kNone, kYmm, kZmm, kNeon };

inline Vectors vectors_of(const Kernels& table) {
  const std::string_view name = table.name;
  if (name == "neon" || name == "i8mm") return Vectors::kNeon;
  if (name == "avx2" || name == "avxvnni") return Vectors::kYmm;
  return name == "avx512" || name == "vbmi" || name == "amx" ? Vectors::kZmm : Vectors::kNone;   // vbmi and amx compute the rest as avx512 does
}

}  // namespace fh
