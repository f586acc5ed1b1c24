// The trellis encoder by the name of its table, for tests.
#include "bind/testing.h"

namespace fh {
namespace testing {
namespace {

// Rows and what they stand for; every column counts alike and no error is pushed.
nb::tuple encode(const std::string& isa, In<float, 2> weights, In<int8_t, 1> table, float unit, int bits, int ahead) {
  const int64_t rows = dim(weights, 0), cols = dim(weights, 1);
  expect(dim(table, 0) == 128 && cols % 32 == 0, "a table has 128 values, and rows have a multiple of 32");
  const std::vector<float> alike(static_cast<size_t>(cols), 1.0f);
  Out<uint8_t> out = zeros<uint8_t>({rows, trellis_row_bytes(bits, cols)});
  Out<float> values = zeros<float>({rows, cols});
  Threads one(1);
  trellis_encode({weights.data(), rows, cols, alike.data(), nullptr, cols, table.data(), unit, bits, 8, ahead, 2, kernels_named(isa)}, one, out.data(), values.data());
  return nb::make_tuple(out, values);
}

}  // namespace
}  // namespace testing

void bind_testing_trellis(nb::module_& t) {
  t.def("trellis_encode", &testing::encode, "isa"_a, "weights"_a, "table"_a, "unit"_a, "bits"_a, "ahead"_a = 16);
}

}  // namespace fh
