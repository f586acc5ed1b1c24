// The face of the trellis encoder.
#include "bind.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>

#include <cmath>
#include <optional>

namespace fh {

void bind_trellis(nb::module_& m) {
  m.def("trellis_encode",
        [](In<float, 2> weights, In<float, 1> importance, std::optional<In<float, 2>> feedback, In<int8_t, 1> table, float unit, int bits,
           Threads& threads, int block, int ahead, int spread) {
          const auto rows = static_cast<int64_t>(weights.shape(0)), cols = static_cast<int64_t>(weights.shape(1));
          const auto matches = [cols](size_t n) { return static_cast<int64_t>(n) == cols; };
          if (!matches(importance.shape(0)) || (feedback && !matches(feedback->shape(0))))
            throw Error(ErrorKind::Usage, "importance [K] and feedback [K, width] need the K of weights [N, K], " + std::to_string(cols));
          if (table.shape(0) != 128) throw Error(ErrorKind::Usage, "a trellis' table has 128 values, not " + std::to_string(table.shape(0)));
          for (size_t i = 0; i < importance.shape(0); ++i)
            if (!(importance.data()[i] > 0) || !std::isfinite(importance.data()[i])) throw Error(ErrorKind::Usage, "the importance of column " + std::to_string(i) + " is not a positive number");
          const TrellisRequest q{weights.data(), rows, cols, importance.data(), feedback ? feedback->data() : nullptr,
                                 feedback ? static_cast<int64_t>(feedback->shape(1)) : cols, table.data(), unit, bits, block, ahead, spread};
          Out<uint8_t> out = array<uint8_t>({weights.shape(0), static_cast<size_t>(trellis_row_bytes(bits, cols))});
          Out<float> values = array<float>({weights.shape(0), weights.shape(1)});
          nb::gil_scoped_release free;
          trellis_encode(q, threads, out.data(), values.data());
          return std::make_pair(out, values);
        },
        "weights"_a, "importance"_a, "feedback"_a.none(), "table"_a, "unit"_a, "bits"_a, "threads"_a, "block"_a = 8, "ahead"_a = 16, "spread"_a = 2,
        R"(Encode finite float32 [N, K] as rows of T2 or T3: uint8 [N, row bytes], and float32 [N, K] that they stand for.

`importance` [K] weighs a column's squared error; `feedback` [K, width] is what an error of column i adds to the
target of column i // width * width + j. `unit` is the first scale tried for a group of root mean square 1, with
`spread` more on each side. Columns are committed `block` at a time with `ahead` more in view.
Threads change no byte.)");
}

}  // namespace fh
