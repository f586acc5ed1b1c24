// The short convolution's kernels, for tests.
#include "bind/testing.h"
#include "kernels/short_conv.h"

namespace fh {
namespace testing {
namespace {

using Row = In<float, 1>;
using Rows = In<float, 2>;

// Up to 64 channels: out [tokens, channels] and the state [taps - 1, channels] after them; `in_place`: written where it was read.
nb::tuple short_conv(const std::string& isa, Rows x, Rows weight, std::optional<Row> bias, std::optional<Rows> gate_in, std::optional<Rows> gate_out,
                     std::optional<Rows> state, bool silu, bool in_place) {
  const int64_t tokens = dim(x, 0), channels = dim(x, 1), taps = dim(weight, 0);
  expect(channels > 0 && channels % 16 == 0 && channels <= kConvChannels && taps > 1 && taps <= kConvTaps, "channels are 16 to 64, taps 2 to 16");
  const auto fits = [&](const std::optional<Rows>& rows, int64_t n) { return !rows || (dim(*rows, 0) == n && dim(*rows, 1) == channels); };
  expect(dim(weight, 1) == channels && (!bias || dim(*bias, 0) == channels), "weight and bias need the channels of x");
  expect(fits(gate_in, tokens) && fits(gate_out, tokens) && fits(state, taps - 1), "gates are [tokens, channels], the state [taps - 1, channels]");
  Out<float> out = zeros<float>({tokens, channels}), to = zeros<float>({taps - 1, channels});
  const float* from = state ? state->data() : nullptr;
  if (in_place && state) {
    std::copy_n(from, (taps - 1) * channels, to.data());
    from = to.data();
  }
  const ConvArgs a{x.data(), gate_in ? gate_in->data() : nullptr, gate_out ? gate_out->data() : nullptr, channels, weight.data(), channels,
                   bias ? bias->data() : nullptr, from, to.data(), channels, out.data(), tokens, static_cast<int>(taps), static_cast<int>(channels), silu};
  const Kernels* k = table(isa);
  (k ? conv_kernels(*k).convolve : reference::convolve)(a);
  return nb::make_tuple(out, to);
}

}  // namespace
}  // namespace testing

void bind_testing_conv(nb::module_& t) {
  t.def("short_conv", &testing::short_conv, "isa"_a, "x"_a, "weight"_a, "bias"_a.none(), "gate_in"_a.none(), "gate_out"_a.none(), "state"_a.none(),
        "silu"_a = false, "in_place"_a = false);
}

}  // namespace fh
