// The face of products in bfloat16.
#include "bind.h"

#include <nanobind/stl/string.h>

#include "kernels/bf16.h"

#include <string>

namespace fh {
namespace {

Bf16Product product_of(const std::string& isa) {
  const Bf16Product found = bf16_product(isa.empty() ? *kernels() : *kernels_named(isa));
  if (!found) throw Error(ErrorKind::Usage, "this processor has no products of bfloat16");
  return found;
}

}  // namespace

void bind_bf16(nb::module_& m) {
  m.def("has_bf16_products", [](const std::string& isa) { return bf16_product(isa.empty() ? *kernels() : *kernels_named(isa)) != nullptr; },
        "isa"_a = "", "Whether bf16_product and add_bf16_moments run by this table of kernels; empty: the machine's.");
  m.def("bf16_product",
        [](In<float, 2> x, In<float, 2> w, const std::string& isa) {
          const auto rows = static_cast<int64_t>(x.shape(0)), n = static_cast<int64_t>(w.shape(0)), k = static_cast<int64_t>(x.shape(1));
          if (x.shape(1) != w.shape(1)) throw Error(ErrorKind::Usage, "x [M, K] and w [N, K] differ in K: " + std::to_string(k) + ", " + std::to_string(w.shape(1)));
          const Bf16Product product = product_of(isa);
          Out<float> out = array<float>({x.shape(0), w.shape(0)});
          nb::gil_scoped_release free;
          if (k == 0) std::fill_n(out.data(), rows * n, 0.0f);
          product({{x.data(), rows, k, 1}, {w.data(), n, k, 1}, k, out.data(), n, false, false});
          return out;
        },
        "x"_a, "w"_a, "isa"_a = "",
        "Multiply float32 x [M, K] by w [N, K], both rounded to bfloat16: float32 [M, N], sums in float32. One thread.");
  m.def("add_bf16_moments",
        [](In<float, 2> x, int64_t first, InOut<float, 2> moments, const std::string& isa) {
          const auto rows = static_cast<int64_t>(x.shape(0)), columns = static_cast<int64_t>(x.shape(1)), width = static_cast<int64_t>(moments.shape(0));
          if (moments.shape(1) != moments.shape(0) || first < 0 || first + width > columns)
            throw Error(ErrorKind::Usage, "moments [W, W] are of columns first to first + W of x, which has " + std::to_string(columns));
          const Bf16Product product = product_of(isa);
          nb::gil_scoped_release free;
          const FloatRows own{x.data() + first, width, 1, columns};
          product({own, own, rows, moments.data(), width, true, true});
        },
        "x"_a, "first"_a, "moments"_a, "isa"_a = "",
        R"(Add x^T x to float32 moments [W, W], of columns first to first + W of x [T, K] rounded to bfloat16. One thread.

The diagonal and what is below it are right; above it some are.)");
}

}  // namespace fh
