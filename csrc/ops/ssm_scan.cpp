// Mamba-2's recurrence over the rows of a step, from the state before them to the state after.
#include "kernels/recurrent_mamba.h"
#include "ops/record.h"

namespace fh {
namespace {

struct MambaSteps { std::vector<float> step, decay; };   // [rows][heads], of the op that runs

// Items are a chain of pieces, a head, and some of its channels: a thread takes one through all its tokens, so that every
// element of a state sees them in order.
struct SsmScan final : Op {
  int layer, x, dt, y; int64_t heads, groups, head_dim, states;
  Vector a, d, bias;
  MambaSteps* shared;
  int64_t inner() const { return heads * head_dim; }
  int64_t width() const { return inner() + 2 * groups * states; }
  int64_t blocks() const { return (head_dim + kMambaChannels - 1) / kMambaChannels; }
  void allocate(int64_t max_rows, int) override {
    const auto floats = std::max(shared->step.size(), static_cast<size_t>(max_rows * heads));
    shared->step.resize(floats);
    shared->decay.resize(floats);
  }
  float* state(const Run& r, int64_t slot, int64_t head, int64_t channel) const {
    return r.cache->state(layer, slot) + r.cache->state_layer(layer).state_at() + head * head_dim * states + channel;
  }
  void scan(const Run& r, const Piece& piece, int64_t head, int64_t channel) const {
    const float* row = r.buffer[x] + piece.row * width();
    const int64_t group = head / (heads / groups), at = piece.row * heads + head;
    const int channels = static_cast<int>(std::min<int64_t>(kMambaChannels, head_dim - channel));
    const MambaScan s{row + head * head_dim + channel, row + inner() + group * states, row + inner() + (groups + group) * states, width(),
                      shared->step.data() + at, shared->decay.data() + at, heads, d.values[static_cast<size_t>(head)],
                      piece.read < 0 ? nullptr : state(r, piece.read, head, channel), state(r, piece.write, head, channel), head_dim,
                      r.buffer[y] + piece.row * inner() + head * head_dim + channel, inner(), piece.rows, static_cast<int>(states), channels};
    mamba_kernels(*r.k).scan(s);
  }
  void run(Run& r, int) override {
    each_row(r, first, r.step->rows, [&](int64_t t) {
      mamba_kernels(*r.k).steps(r.buffer[dt] + t * heads, bias.data(), a.data(), heads, shared->step.data() + t * heads, shared->decay.data() + t * heads);
    });
    share(r, second, static_cast<int64_t>(r.chains.size()) * heads * blocks(), 1, [&](int64_t i, int64_t) {
      const Chain& chain = r.chains[static_cast<size_t>(i / (heads * blocks()))];
      for (size_t p = chain.first; p < chain.end; ++p) scan(r, r.pieces[p], i / blocks() % heads, i % blocks() * kMambaChannels);
    });
  }
};

void check(const Plan& plan, const SsmScan& op) {
  const auto text = [](int64_t n) { return std::to_string(n); };
  if (op.heads < 1 || op.d.size() != op.heads || op.bias.size() != op.heads) refuse("a, d and bias need a value for each head");
  if (op.groups < 1 || op.heads % op.groups) refuse(text(op.groups) + " groups do not divide " + text(op.heads) + " heads");
  if (op.states < 1 || op.states > kMambaStates) refuse("states must be 1 to " + text(kMambaStates) + ", got " + text(op.states));
  const int64_t inner = plan.width_of(op.x) - 2 * op.groups * op.states;
  if (inner < op.heads * 16 || inner % (op.heads * 16)) refuse(text(inner) + " channels are not heads of a multiple of 16, for " + text(op.heads) + " heads");
  plan.want_width(op.dt, op.heads, "the step sizes");
  plan.want_state(op.layer, -1, inner * op.states);
}

int ssm_scan(Plan& plan, int layer, int x, int dt, Vector a, Vector d, Vector bias, int groups, int states) {
  auto op = std::make_unique<SsmScan>();
  op->layer = layer;
  op->x = x;
  op->dt = dt;
  op->heads = a.size();
  op->groups = groups;
  op->states = states;
  op->a = std::move(a);
  op->d = std::move(d);
  op->bias = std::move(bias);
  check(plan, *op);
  op->head_dim = (plan.width_of(x) - 2 * op->groups * op->states) / op->heads;
  op->shared = &plan.shared<MambaSteps>();
  op->y = plan.buffer(op->inner());
  op->reads = {x, dt};
  op->writes.push_back(op->y);
  op->persists = true;
  return plan.add(std::move(op)).y;
}
FREEHOLD_OP(ssm_scan,
            "Mamba-2's recurrence; x is [heads * head_dim | groups * states of B | the same of C], dt [heads].\n\n"
            "step = softplus(dt + bias), h = exp(step * a) * h + step * x B', y = h C + d x; returns y [heads * head_dim].\n"
            "The layer's state is [heads][states][head_dim]; head_dim is a multiple of 16.",
            "layer"_a, "x"_a, "dt"_a, "a"_a, "d"_a, "bias"_a, "groups"_a, "states"_a)

}  // namespace
}  // namespace fh
