// Mamba-2's kernels, for tests.
#include "bind/testing.h"
#include "kernels/recurrent_mamba.h"

namespace fh {
namespace testing {
namespace {

using Row = In<float, 1>;
using Rows = In<float, 2>;

nb::tuple mamba_steps(const std::string& isa, Row dt, Row bias, Row a) {
  const int64_t heads = dim(dt, 0);
  expect(dim(bias, 0) == heads && dim(a, 0) == heads, "dt, bias and a need one length");
  Out<float> step = zeros<float>({heads}), decay = zeros<float>({heads});
  const Kernels* k = table(isa);
  (k ? mamba_kernels(*k).steps : reference::mamba_steps)(dt.data(), bias.data(), a.data(), heads, step.data(), decay.data());
  return nb::make_tuple(step, decay);
}

// One head: its y [tokens, channels] and the state [states, channels] behind them; `in_place`: written where it was read.
nb::tuple mamba_scan(const std::string& isa, Rows x, Rows b, Rows c, Row step, Row decay, float d, std::optional<Rows> state, bool in_place) {
  const int64_t tokens = dim(x, 0), channels = dim(x, 1), states = dim(b, 1), width = channels + 2 * states;
  expect(channels > 0 && channels % 16 == 0 && channels <= kMambaChannels && states > 0 && states <= kMambaStates, "channels are 16 to 64, states 1 to 512");
  expect(dim(b, 0) == tokens && dim(c, 0) == tokens && dim(c, 1) == states && dim(step, 0) == tokens && dim(decay, 0) == tokens, "x, b, c, step and decay need a row for each token");
  expect(!state || (dim(*state, 0) == states && dim(*state, 1) == channels), "the state is [states, channels]");
  std::vector<float> rows(static_cast<size_t>(tokens * width));
  for (int64_t t = 0; t < tokens; ++t) {
    float* row = rows.data() + t * width;
    std::copy_n(x.data() + t * channels, channels, row);
    std::copy_n(b.data() + t * states, states, row + channels);
    std::copy_n(c.data() + t * states, states, row + channels + states);
  }
  Out<float> y = zeros<float>({tokens, channels}), to = zeros<float>({states, channels});
  const float* from = state ? state->data() : nullptr;
  if (in_place && state) {
    std::copy_n(from, states * channels, to.data());
    from = to.data();
  }
  const MambaScan s{rows.data(), rows.data() + channels, rows.data() + channels + states, width, step.data(), decay.data(), 1, d,
                    from, to.data(), channels, y.data(), channels, tokens, static_cast<int>(states), static_cast<int>(channels)};
  const Kernels* k = table(isa);
  (k ? mamba_kernels(*k).scan : reference::mamba_scan)(s);
  return nb::make_tuple(y, to);
}

// Mamba-1: y [tokens, channels] and the state [states, channels] behind them; a is [states, channels].
nb::tuple selective_scan(const std::string& isa, Rows x, Rows dt, Rows b, Rows c, Rows a, Row d, Row bias, std::optional<Rows> state, bool in_place) {
  const int64_t tokens = dim(x, 0), channels = dim(x, 1), states = dim(b, 1);
  expect(channels > 0 && channels % 16 == 0 && states > 0 && states <= kMambaStates, "channels are a multiple of 16, states 1 to 512");
  expect(dim(dt, 0) == tokens && dim(dt, 1) == channels && dim(b, 0) == tokens && dim(c, 0) == tokens && dim(c, 1) == states, "dt, b and c need a row for each token");
  expect(dim(a, 0) == states && dim(a, 1) == channels && dim(d, 0) == channels && dim(bias, 0) == channels, "a is [states, channels], d and bias [channels]");
  expect(!state || (dim(*state, 0) == states && dim(*state, 1) == channels), "the state is [states, channels]");
  Out<float> y = zeros<float>({tokens, channels}), to = zeros<float>({states, channels});
  const float* from = state ? state->data() : nullptr;
  if (in_place && state) {
    std::copy_n(from, states * channels, to.data());
    from = to.data();
  }
  const SelectiveScan s{x.data(), dt.data(), channels, b.data(), c.data(), a.data(), d.data(), bias.data(), channels, from, to.data(),
                        channels, y.data(), channels, tokens, static_cast<int>(states), static_cast<int>(channels)};
  const Kernels* k = table(isa);
  (k ? mamba_kernels(*k).selective : reference::selective_scan)(s);
  return nb::make_tuple(y, to);
}

}  // namespace
}  // namespace testing

void bind_testing_mamba(nb::module_& t) {
  using namespace testing;
  t.def("mamba_steps", &mamba_steps, "isa"_a, "dt"_a, "bias"_a, "a"_a);
  t.def("mamba_scan", &mamba_scan, "isa"_a, "x"_a, "b"_a, "c"_a, "step"_a, "decay"_a, "d"_a, "state"_a.none(), "in_place"_a = false);
  t.def("selective_scan", &selective_scan, "isa"_a, "x"_a, "dt"_a, "b"_a, "c"_a, "a"_a, "d"_a, "bias"_a, "state"_a.none(), "in_place"_a = false);
}

}  // namespace fh
