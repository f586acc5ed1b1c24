// Mamba-1's recurrence over the rows of a step, from the state before them to the state after.
#include "kernels/recurrent_mamba.h"
#include "ops/record.h"

namespace fh {
namespace {

// Items are a chain of pieces and some channels: a thread takes one through all its tokens, as in ssm_scan.cpp.
struct Selective final : Op {
  int layer, x, dt, b, c, y; int64_t inner, states;
  Vector a, d, bias;                          // a: [states][inner]
  int64_t blocks() const { return (inner + kMambaChannels - 1) / kMambaChannels; }
  float* state(const Run& r, int64_t slot, int64_t channel) const {
    return r.cache->state(layer, slot) + r.cache->state_layer(layer).state_at() + channel;
  }
  void scan(const Run& r, const Piece& piece, int64_t channel) const {
    const int64_t at = piece.row * inner + channel, mixed = piece.row * states;
    const int channels = static_cast<int>(std::min<int64_t>(kMambaChannels, inner - channel));
    const SelectiveScan s{r.buffer[x] + at, r.buffer[dt] + at, inner, r.buffer[b] + mixed, r.buffer[c] + mixed,
                          a.data() + channel, d.data() + channel, bias.data() + channel, inner,
                          piece.read < 0 ? nullptr : state(r, piece.read, channel), state(r, piece.write, channel), inner,
                          r.buffer[y] + at, inner, piece.rows, static_cast<int>(states), channels};
    mamba_kernels(*r.k).selective(s);
  }
  void run(Run& r, int) override {
    share(r, first, static_cast<int64_t>(r.chains.size()) * blocks(), 1, [&](int64_t i, int64_t) {
      const Chain& chain = r.chains[static_cast<size_t>(i / blocks())];
      for (size_t p = chain.first; p < chain.end; ++p) scan(r, r.pieces[p], i % blocks() * kMambaChannels);
    });
  }
};

int selective_scan(Plan& plan, int layer, int x, int dt, int b, int c, Vector a, Vector d, Vector bias) {
  auto op = std::make_unique<Selective>();
  op->inner = plan.width_of(x);
  op->states = plan.width_of(b);
  if (op->inner % 16) refuse(std::to_string(op->inner) + " channels are no multiple of 16");
  if (op->states > kMambaStates) refuse("states must be 1 to " + std::to_string(kMambaStates) + ", got " + std::to_string(op->states));
  plan.want_width(dt, op->inner, "the step sizes");
  plan.want_width(c, op->states, "c");
  if (a.size() != op->inner * op->states) refuse("a needs a value for each state and channel");
  if (d.size() != op->inner || bias.size() != op->inner) refuse("d and bias need a value for each channel");
  plan.want_state(layer, -1, op->inner * op->states);
  op->layer = layer;
  op->x = x;
  op->dt = dt;
  op->b = b;
  op->c = c;
  op->a = std::move(a);
  op->d = std::move(d);
  op->bias = std::move(bias);
  op->y = plan.buffer(op->inner);
  op->reads = {x, dt, b, c};
  op->writes.push_back(op->y);
  op->persists = true;
  return plan.add(std::move(op)).y;
}
FREEHOLD_OP(selective_scan,
            "Mamba-1's recurrence; x and dt are [channels], b and c [states], a [states][channels].\n\n"
            "step = softplus(dt + bias), h = exp(step * a) * h + step * x b', y = h c + d x, for each channel; returns y.\n"
            "The layer's state is [states][channels]; channels are a multiple of 16.",
            "layer"_a, "x"_a, "dt"_a, "b"_a, "c"_a, "a"_a, "d"_a, "bias"_a)

}  // namespace
}  // namespace fh
