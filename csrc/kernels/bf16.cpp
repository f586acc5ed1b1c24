// Which products of bfloat16 go with a table.
#include "kernels/bf16.h"

#include <string_view>

namespace fh {

Bf16Product bf16_product(const Kernels& table) {
  return std::string_view(table.name) == "amx" ? bf16_amx() : nullptr;
}

}  // namespace fh
