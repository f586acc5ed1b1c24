// The gated delta rule's kernels, for tests.
#include <algorithm>
#include <cmath>

#include "bind/testing.h"
#include "kernels/recurrent_delta.h"

namespace fh {
namespace testing {
namespace {

using Row = In<float, 1>;
using Rows = In<float, 2>;

Out<float> delta_decays(const std::string& isa, Row x, Row a, Row bias) {
  const int64_t n = dim(x, 0);
  expect(dim(a, 0) == n && dim(bias, 0) == n, "x, a and bias need one length");
  Out<float> out = zeros<float>({n});
  const Kernels* k = table(isa);
  (k ? delta_kernels(*k).decays : reference::delta_decays)(x.data(), a.data(), bias.data(), n, out.data());
  return out;
}

Out<float> delta_bounded(const std::string& isa, Row x, Row a, Row bias, float bound) {
  const int64_t n = dim(x, 0);
  expect(dim(a, 0) == n && dim(bias, 0) == n, "x, a and bias need one length");
  Out<float> out = zeros<float>({n});
  const Kernels* k = table(isa);
  (k ? delta_kernels(*k).bounded : reference::delta_bounded)(x.data(), a.data(), bias.data(), bound, n, out.data());
  return out;
}

Out<float> delta_betas(const std::string& isa, Row x, float scale) {
  Out<float> out = copy<1>(x, {dim(x, 0)});
  const Kernels* k = table(isa);
  (k ? delta_kernels(*k).betas : reference::delta_betas)(out.data(), scale, dim(x, 0));
  return out;
}

// One head: its outputs [tokens, columns] and the state [columns / 16, keys, 16] after them. `decay` is [tokens, 1] or [tokens,
// keys]; `in_place`: the state is written where it was read; `apart`: every block of columns has a call of its own.
nb::tuple delta_scan(const std::string& isa, Rows q, Rows k, Rows v, Rows decay, Row beta, std::optional<In<float, 3>> state, bool in_place, bool apart) {
  const int64_t tokens = dim(q, 0), keys = dim(q, 1), columns = dim(v, 1), blocks = (columns + 15) / 16;
  const bool by_key = dim(decay, 1) == keys;
  expect(tokens > 0 && keys > 0 && keys % 2 == 0, "there must be tokens, and keys must be even");
  expect(dim(k, 0) == tokens && dim(k, 1) == keys && dim(v, 0) == tokens && dim(beta, 0) == tokens, "q, k, v and beta need a row for each token");
  expect(dim(decay, 0) == tokens && (by_key || dim(decay, 1) == 1), "decay is [tokens, 1] or [tokens, keys]");
  expect(!state || (dim(*state, 0) == blocks && dim(*state, 1) == keys && dim(*state, 2) == 16), "the state is [blocks, keys, 16]");
  const Kernels* t = table(isa);
  const DeltaKernels* own = t ? &delta_kernels(*t) : nullptr;
  const int64_t width = delta_width(keys, by_key);
  std::vector<float> rows(static_cast<size_t>(tokens * width)), kq(static_cast<size_t>(tokens));
  for (int64_t i = 0; i < tokens; ++i) {
    float* row = rows.data() + i * width;
    const float scale = 1.0f / std::sqrt(static_cast<float>(keys));
    kq[static_cast<size_t>(i)] = (own ? own->prepare : reference::delta_prepare)(q.data() + i * keys, k.data() + i * keys, keys, scale, row);
    if (by_key) std::copy_n(decay.data() + i * keys, keys, row + 2 * keys);
  }
  Out<float> out = zeros<float>({tokens, columns}), to = zeros<float>({blocks, keys, 16});
  const float* from = state ? state->data() : nullptr;
  if (in_place && state) from = std::copy_n(from, blocks * keys * 16, to.data()) - blocks * keys * 16;
  const int64_t step = apart ? 16 : kDeltaColumns;
  for (int64_t c = 0; c < columns; c += step) {
    const DeltaScan s{rows.data(), width, beta.data(), by_key ? nullptr : decay.data(), 1, kq.data(), 1, v.data() + c, columns,
                      from ? from + c * keys : nullptr, to.data() + c * keys, out.data() + c, columns, tokens, static_cast<int>(keys),
                      static_cast<int>(std::min(step, columns - c))};
    (own ? own->scan : reference::delta_scan)(s);
  }
  return nb::make_tuple(out, to);
}

}  // namespace
}  // namespace testing

void bind_testing_delta(nb::module_& t) {
  using namespace testing;
  t.def("delta_decays", &delta_decays, "isa"_a, "x"_a, "a"_a, "bias"_a);
  t.def("delta_bounded", &delta_bounded, "isa"_a, "x"_a, "a"_a, "bias"_a, "bound"_a);
  t.def("delta_betas", &delta_betas, "isa"_a, "x"_a, "scale"_a = 1.0f);
  t.def("delta_scan", &delta_scan, "isa"_a, "q"_a, "k"_a, "v"_a, "decay"_a, "beta"_a, "state"_a.none(), "in_place"_a = false, "apart"_a = false);
}

}  // namespace fh
