// A causal convolution of each channel over its last inputs, which the layer's state keeps.
// The only convolution of the plan: gated (LFM2), before a delta rule, before Mamba-2's scan.
#include "kernels/short_conv.h"
#include "ops/record.h"

namespace fh {
namespace {

// One item: some channels of one sequence, through its pieces in order.
struct ShortConv final : Op {
  int layer, x, out, gate_in = -1, gate_out = -1, taps; bool silu;
  int64_t channels, at;                       // at: floats of the layer's inputs before this op's
  std::vector<float> weight;                  // [taps][channels]
  MaybeVector bias;
  void run(Run& r, int) override {
    const int64_t blocks = (channels + kConvChannels - 1) / kConvChannels;
    each_row(r, first, static_cast<int64_t>(r.chains.size()) * blocks, [&](int64_t i) {
      const Chain& chain = r.chains[static_cast<size_t>(i / blocks)];
      for (size_t p = chain.first; p < chain.end; ++p) conv_kernels(*r.k).convolve(args(r, r.pieces[p], i % blocks * kConvChannels));
    });
  }
  ConvArgs args(const Run& r, const Piece& p, int64_t c) const {
    const auto rows = [&](int buffer) { return buffer < 0 ? nullptr : r.buffer[buffer] + p.row * channels + c; };
    const auto state = [&](int64_t slot) { return slot < 0 ? nullptr : r.cache->state(layer, slot) + at + c; };
    return {rows(x), rows(gate_in), rows(gate_out), channels, weight.data() + c, channels, bias ? bias->data() + c : nullptr,
            state(p.read), state(p.write), channels, rows(out), p.rows, taps, static_cast<int>(std::min<int64_t>(kConvChannels, channels - c)), silu};
  }
};

int short_conv(Plan& plan, int layer, int x, Vector weight, MaybeVector bias, const std::string& act, std::optional<int> gate_in,
               std::optional<int> gate_out, int64_t at) {
  const int64_t channels = plan.width_of(x), taps = channels ? weight.size() / channels : 0;
  if (act != "none" && act != "silu") refuse("act must be 'none' or 'silu', got '" + act + "'");
  if (channels % 16) refuse("a convolution of " + std::to_string(channels) + " channels; expected a multiple of 16");
  if (weight.size() != taps * channels || taps < 2 || taps > kConvTaps)
    refuse(std::to_string(weight.size()) + " weights for " + std::to_string(channels) + " channels; expected 2 to " + std::to_string(kConvTaps) + " each");
  if (bias && bias->size() != channels) refuse("a bias of " + std::to_string(bias->size()) + " for " + std::to_string(channels) + " channels");
  const StateLayer& kept = plan.want_state(layer, -1, -1);
  if (at < 0 || at % 16 || at > kept.conv - (taps - 1) * channels)
    refuse("layer " + std::to_string(layer) + " keeps " + std::to_string(kept.conv) + " inputs; the convolution needs " + std::to_string((taps - 1) * channels) + " from " + std::to_string(at) + " on");
  auto op = std::make_unique<ShortConv>();
  op->layer = layer;
  op->x = x;
  op->taps = static_cast<int>(taps);
  op->silu = act == "silu";
  op->channels = channels;
  op->at = at;
  op->weight.resize(weight.values.size());
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t j = 0; j < taps; ++j) op->weight[static_cast<size_t>(j * channels + c)] = weight.values[static_cast<size_t>(c * taps + j)];
  op->bias = std::move(bias);
  op->reads = {x};
  for (const auto& [gate, own] : {std::pair{gate_in, &op->gate_in}, std::pair{gate_out, &op->gate_out}}) {
    if (!gate) continue;
    plan.want_width(*gate, channels, "a gate");
    *own = *gate;
    op->reads.push_back(*gate);
  }
  op->out = plan.buffer(channels);
  op->writes = {op->out};
  op->persists = true;
  return plan.add(std::move(op)).out;
}
FREEHOLD_OP(short_conv, R"(gate_out * act(bias + sum of each channel's last inputs gate_in * x times its weights), causal.

The layer's state keeps the inputs that the next tokens need, from float `at` of its convolution's on.
`weight` is float32 [channels * taps], of a channel its oldest input's first; act is "none" or "silu".)", "layer"_a, "x"_a, "weight"_a, "bias"_a = nanobind::none(),
            "act"_a = "none", "gate_in"_a = nanobind::none(), "gate_out"_a = nanobind::none(), "at"_a = 0)

}  // namespace
}  // namespace fh
