// The gated delta rule over the rows of a step, from the state before them to the state after.
#include <cmath>

#include "kernels/recurrent_delta.h"
#include "ops/record.h"

namespace fh {
namespace {

// Of the op that runs: tokens prepared once for all columns, head after head, so that a scan reads one stream.
struct DeltaTokens { std::vector<float> rows, kq; };     // [heads][rows][width], [heads][rows]

// Columns of a buffer from `at` on.
struct Part {
  int buffer; int64_t width, at;
  const float* row(const Run& r, int64_t t) const { return r.buffer[buffer] + t * width + at; }
};

// Items are a chain of pieces, a value head, and some of its columns: a thread takes one through all its tokens, so that
// every element of a state sees them in order.
struct GatedDelta final : Op {
  int layer, decay, beta, out; Part qkv[3]; int64_t key_heads, keys, heads, columns; bool by_key, tiled; float beta_scale, bound;
  Vector a, bias;                             // by the decay's columns
  DeltaTokens* shared;
  int64_t groups() const { return (columns + kDeltaColumns - 1) / kDeltaColumns; }
  int64_t row_width() const { return delta_width(keys, by_key); }
  void allocate(int64_t max_rows, int) override {
    shared->rows.resize(std::max(shared->rows.size(), static_cast<size_t>(max_rows * key_heads * row_width())));
    shared->kq.resize(std::max(shared->kq.size(), static_cast<size_t>(max_rows * key_heads)));
  }
  void decays(const DeltaKernels& own, const float* x, int64_t at, int64_t n, float* to) const {
    if (bound != 0) return own.bounded(x, a.data() + at, bias.data() + at, bound, n, to);
    own.decays(x, a.data() + at, bias.data() + at, n, to);
  }
  void prepare_token(const Run& r, int64_t t) const {
    const DeltaKernels& own = delta_kernels(*r.k);
    const float *q = qkv[0].row(r, t), *k = qkv[1].row(r, t);
    const float scale = 1.0f / std::sqrt(static_cast<float>(keys));
    own.betas(r.buffer[beta] + t * heads, beta_scale, heads);
    if (!by_key) decays(own, r.buffer[decay] + t * heads, 0, heads, r.buffer[decay] + t * heads);
    for (int64_t h = 0; h < key_heads; ++h) {
      const int64_t at = h * r.step->rows + t;
      float* to = shared->rows.data() + at * row_width();
      shared->kq[static_cast<size_t>(at)] = own.prepare(q + h * keys, k + h * keys, keys, scale, to);
      if (by_key) decays(own, r.buffer[decay] + (t * heads + h) * keys, h * keys, keys, to + 2 * keys);
    }
  }
  float* state(const Run& r, int64_t slot, int64_t head, int64_t column) const {
    return r.cache->state(layer, slot) + r.cache->state_layer(layer).state_at() + head * delta_state(keys, columns) + column * keys;
  }
  void scan(const Run& r, const Piece& p, int64_t head, int64_t column) const {
    const int64_t key_head = tiled ? head % key_heads : head / (heads / key_heads), at = key_head * r.step->rows + p.row;
    delta_kernels(*r.k).scan({
      .rows = shared->rows.data() + at * row_width(), .stride = row_width(),
      .beta = r.buffer[beta] + p.row * heads + head, .decay = by_key ? nullptr : r.buffer[decay] + p.row * heads + head, .gate_stride = heads,
      .kq = shared->kq.data() + at, .kq_stride = 1,
      .v = qkv[2].row(r, p.row) + head * columns + column, .v_stride = qkv[2].width,
      .from = p.read < 0 ? nullptr : state(r, p.read, head, column), .to = state(r, p.write, head, column),
      .out = r.buffer[out] + (p.row * heads + head) * columns + column, .out_stride = heads * columns,
      .tokens = p.rows, .keys = static_cast<int>(keys), .columns = static_cast<int>(std::min<int64_t>(kDeltaColumns, columns - column))});
  }
  void run(Run& r, int) override {
    each_row(r, first, r.step->rows, [&](int64_t t) { prepare_token(r, t); });
    const int64_t items = heads * groups();
    share(r, second, static_cast<int64_t>(r.chains.size()) * items, 1, [&](int64_t i, int64_t) {
      const Chain& chain = r.chains[static_cast<size_t>(i / items)];
      for (size_t p = chain.first; p < chain.end; ++p) scan(r, r.pieces[p], i % items / groups(), i % groups() * kDeltaColumns);
    });
  }
};

// q, k and v of one buffer, or of three.
void take(const Plan& plan, GatedDelta& op, const std::vector<int>& qkv) {
  const int64_t wide = op.key_heads * op.keys;
  if (qkv.size() != 1 && qkv.size() != 3) refuse("gated_delta() takes q, k and v as one buffer or three, got " + std::to_string(qkv.size()));
  const bool one = qkv.size() == 1;
  for (size_t i = 0; i < 3; ++i) {
    const int buffer = qkv[one ? 0 : i];
    op.qkv[i] = {buffer, plan.width_of(buffer), one ? static_cast<int64_t>(i) * wide : 0};
  }
  if (!one) {
    plan.want_width(qkv[0], wide, "the queries");
    plan.want_width(qkv[1], wide, "the keys");
  }
  const int64_t values = op.qkv[2].width - op.qkv[2].at;
  op.columns = values / op.heads;
  if (values < op.heads || values % op.heads) refuse("values are not a whole number for each of " + std::to_string(op.heads) + " heads");
}

void check(const Plan& plan, const GatedDelta& op) {
  const auto text = [](int64_t n) { return std::to_string(n); };
  if (op.keys < 2 || op.keys % 2 || op.keys > 4096) refuse("key heads must have an even width up to 4096, got " + text(op.keys));
  if (op.heads < 1 || op.key_heads < 1 || op.heads % op.key_heads) refuse(text(op.key_heads) + " key heads do not divide " + text(op.heads) + " value heads");
  if (op.by_key && op.heads != op.key_heads) refuse("a decay for each key needs as many key heads as value heads");
  const int64_t decays = op.by_key ? op.heads * op.keys : op.heads;
  plan.want_width(op.decay, decays, "the decay");
  plan.want_width(op.beta, op.heads, "beta");
  if (op.bias.size() != decays) refuse("the decay's bias needs " + text(decays) + " values");
}

// One of `a` for each head, to one for each decay.
Vector spread(const Vector& a, int64_t times) {
  Vector out;
  for (const float v : a.values) out.values.insert(out.values.end(), static_cast<size_t>(times), v);
  return out;
}

int gated_delta(Plan& plan, int layer, const std::vector<int>& qkv, int decay, int beta, Vector a, Vector bias, int key_heads, int keys, bool tiled,
                float beta_scale, float bound) {
  if (!(bound <= 0)) refuse("a bound of the decay's logarithm must be 0 (none) or less");
  auto op = std::make_unique<GatedDelta>();
  op->layer = layer;
  op->decay = decay;
  op->beta = beta;
  op->key_heads = key_heads;
  op->keys = keys;
  op->heads = a.size();
  op->by_key = plan.width_of(decay) != op->heads;
  op->tiled = tiled;
  op->beta_scale = beta_scale;
  op->bound = bound;
  op->bias = std::move(bias);
  check(plan, *op);
  take(plan, *op, qkv);
  plan.want_state(layer, -1, op->heads * delta_state(op->keys, op->columns));
  op->a = spread(a, op->by_key ? op->keys : 1);
  op->shared = &plan.shared<DeltaTokens>();
  op->out = plan.buffer(op->heads * op->columns);
  op->reads = {decay, beta};
  op->reads.insert(op->reads.end(), qkv.begin(), qkv.end());
  op->writes = {decay, beta, op->out};
  op->persists = true;
  return plan.add(std::move(op)).out;
}
FREEHOLD_OP(gated_delta,
            "The gated delta rule; qkv: q of all key heads, k, v of all value heads, in one buffer or three.\n\n"
            "g = exp(a * softplus(decay + bias)), with a `bound` below 0 exp(bound * sigmoid(a * (decay + bias)));\n"
            "b = beta_scale * sigmoid(beta); q, k of unit length, q times keys ** -0.5.\n"
            "S = g S, d = b (v - S' k), S = S + k d', o = S' q. decay: [heads], or [heads * keys] for a g of each key.\n"
            "Value head j reads key head j % key_heads if `tiled`, else j / (heads / key_heads).\n"
            "The layer's state is [heads][blocks of 16 columns][keys][16]. decay and beta are overwritten.",
            "layer"_a, "qkv"_a, "decay"_a, "beta"_a, "a"_a, "bias"_a, nanobind::kw_only(), "key_heads"_a, "keys"_a, "tiled"_a = false,
            "beta_scale"_a = 1.0f, "bound"_a = 0.0f)

}  // namespace
}  // namespace fh
