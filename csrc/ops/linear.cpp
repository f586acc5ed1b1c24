// One input, one or more weights: products with bias, added to a residual, or through an activation.
#include "ops/low_rank.h"
#include "ops/record.h"

namespace fh {
namespace {

enum class Act { None, Gelu, GeluErf, GeluQuick, Relu, Relu2 };

constexpr float kQuick = 1.702f;              // of the quick GELU, x * sigmoid(1.702 x)

struct Linear final : Op {
  Input in; std::vector<MatrixPtr> w; std::vector<MaybeVector> bias; std::vector<int> out; bool accumulate = false;
  Act act = Act::None;
  int gate = -1;                              // a buffer [rows][1] whose sigmoid multiplies what is added; -1: none
  float scale = 1.0f;                         // of what is added
  std::vector<float> ones;                    // a panel's: what GELU's kernel multiplies with, of the quick one 1 / 1.702
  LowRank low;
  const uint8_t* weights() const override { return w[0]->w.data; }
  bool scaled() const { return gate >= 0 || scale != 1.0f; }
  void allocate(int64_t max_rows, int threads) override {
    in.scratch->allocate(max_rows, threads);
    if (act != Act::Gelu && act != Act::GeluQuick) return;
    ones.assign(static_cast<size_t>(std::min<int64_t>(max_rows, kGemmTokens) * kPanelRows), act == Act::Gelu ? 1.0f : 1.0f / kQuick);
  }
  void prepare(const Run& r) override { low.prepare(r, in, w); }
  // Where panel n of all matrices, counted on, lies; after the last, what the next op begins with.
  const uint8_t* address(int64_t n) const {
    for (const MatrixPtr& m : w) {
      if (n < m->w.count()) return m->w.high(n);
      n -= m->w.count();
    }
    return following;
  }
  void run(Run& r, int thread) override {
    const int64_t rows = r.step->rows;
    each_row(r, first, rows, [&](int64_t t) {
      in.row(r, r.buffer[in.x] + t * in.k, t, rows);
      if (scaled()) in.scratch->gates[static_cast<size_t>(t)] = gate < 0 ? scale : scale / (1.0f + std::exp(-r.buffer[gate][t]));
    });
    low.reduce(r, in);
    int64_t panels = 0;
    for (const MatrixPtr& m : w) panels += m->w.count();
    float* tiles = in.scratch->tiles[static_cast<size_t>(thread)].data();
    walk(*this, r, panels, rows, kGemmPanels, [&](int64_t begin, int64_t end, int64_t t0, int64_t nt) {
      int64_t base = 0;                        // number of the matrix's first panel
      for (size_t i = 0; begin < end; base += w[i++]->w.count())
        for (const int64_t last = std::min(end, base + w[i]->w.count()); begin < last;) {
          const int64_t to = std::min(last, begin + kGemmPanels);
          block(r, i, begin - base, to - base, t0, nt, tiles, address(panel_after(*this, r, to - 1, end)));
          begin = to;
        }
    });
  }
  void block(const Run& r, size_t i, int64_t p0, int64_t p1, int64_t t0, int64_t nt, float* tiles, const uint8_t* next) const {
    const Matrix& m = *w[i];
    in.multiply(r, m, p0, p1, t0, nt, tiles, next);
    low.expand(r, in, i, p0, p1, t0, nt, tiles);
    if (act != Act::None) return activate(r, m, p0, p1, t0, nt, tiles);
    const Place to(m, p0, p1, t0, r.buffer[out[i]]);
    if (scaled()) add_bias(r, m, p0, p1, nt, tiles);
    if (scaled()) return r.k->add_scaled_rows(tiles, to.width, nt, nullptr, in.scratch->gates.data() + t0, to.y, to.ld);
    r.k->store_rows(tiles, to.width, nt, bias[i] ? bias[i]->data() + p0 * kPanelRows : nullptr, accumulate, to.y, to.ld);
  }
  void add_bias(const Run& r, const Matrix& m, int64_t p0, int64_t p1, int64_t nt, float* tiles) const {
    for (int64_t p = p0; bias[0] && p < p1; ++p)
      for (int64_t t = 0; t < nt; ++t) r.k->add(tiles + ((p - p0) * nt + t) * kPanelRows, bias[0]->data() + p * kPanelRows, panel_width(m, p));
  }
  void activate(const Run& r, const Matrix& m, int64_t p0, int64_t p1, int64_t t0, int64_t nt, float* tiles) const {
    if (act == Act::Gelu && in.rounds && r.k->gelu_bias_rounded) {
      const Place to(m, p0, p1, t0, r.buffer[out[0]]);
      return r.k->gelu_bias_rounded(tiles, to.width, nt, bias[0] ? bias[0]->data() + p0 * kPanelRows : nullptr, to.y, to.ld);
    }
    add_bias(r, m, p0, p1, nt, tiles);
    const int64_t panel = nt * kPanelRows, n = (p1 - p0) * panel;
    if (act == Act::GeluErf) r.k->gelu_erf(tiles, n);
    for (int64_t i = 0; act == Act::Gelu && i < n; i += panel) r.k->gelu_rows(tiles + i, ones.data(), kPanelRows, nt, tiles + i, kPanelRows);
    if (act == Act::GeluQuick) r.k->scale(tiles, kQuick, n);
    for (int64_t i = 0; act == Act::GeluQuick && i < n; i += panel) r.k->silu_rows(tiles + i, ones.data(), kPanelRows, nt, tiles + i, kPanelRows);
    for (int64_t i = 0; act == Act::Relu && i < n; ++i) tiles[i] = tiles[i] < 0.0f ? 0.0f : tiles[i];               // NaN stays
    for (int64_t i = 0; act == Act::Relu2 && i < n; ++i) tiles[i] = tiles[i] < 0.0f ? 0.0f : tiles[i] * tiles[i];   // NaN stays
    const Place to(m, p0, p1, t0, r.buffer[out[0]]);
    r.k->store_rows(tiles, to.width, nt, nullptr, false, to.y, to.ld);
  }
};

std::vector<int> linear(Plan& plan, int x, std::vector<MatrixPtr> weights, std::vector<MaybeVector> biases, MaybeVector norm, float eps) {
  if (weights.empty() || biases.size() != weights.size()) refuse("linear() takes one bias (or None) for each weight");
  auto op = std::make_unique<Linear>();
  op->in = Input::record(plan, x, {std::move(norm), eps}, weights);
  for (size_t i = 0; i < weights.size(); ++i) {
    check_bias(biases[i], *weights[i]);
    op->out.push_back(plan.buffer(weights[i]->w.n));
  }
  op->w = std::move(weights);
  op->bias = std::move(biases);
  op->reads = {x};
  op->writes = op->out;
  return plan.add(std::move(op)).out;
}
FREEHOLD_OP(linear, "One output per weight: W · (norm(x) or x) + bias. One quantisation of x serves all.", "x"_a, "weights"_a, "biases"_a,
            "norm"_a = nanobind::none(), "eps"_a = 0.0f)

// A Linear of one weight, whose output is the recorder's to choose.
std::unique_ptr<Linear> single(Plan& plan, int x, MatrixPtr weight, MaybeVector bias, Norm norm = {}) {
  check_bias(bias, *weight);
  auto op = std::make_unique<Linear>();
  op->in = Input::record(plan, x, std::move(norm), {weight});
  op->w = {std::move(weight)};
  op->bias = {std::move(bias)};
  return op;
}

void linear_add(Plan& plan, int x, MatrixPtr weight, int residual, MaybeVector bias, std::optional<int> gate, float scale) {
  plan.want_width(residual, weight->w.n, "the output");
  if (gate && bias) refuse("linear_add() with a gate takes no bias");
  auto op = single(plan, x, std::move(weight), std::move(bias));
  op->out = {residual};
  op->accumulate = true;
  op->scale = scale;
  op->reads = {x, residual};
  if (gate) {
    plan.want_width(*gate, 1, "a gate");
    op->gate = *gate;
    op->reads.push_back(*gate);
  }
  plan.add(std::move(op));
}
FREEHOLD_OP(linear_add, "residual += scale * (W · x + bias), in place.\n\n`gate`: a buffer [rows, 1]; sigmoid(gate) multiplies W · x. Takes no bias.",
            "x"_a, "weight"_a, "residual"_a, "bias"_a = nanobind::none(), "gate"_a = nanobind::none(), "scale"_a = 1.0f)

Act act_named(const std::string& name) {
  if (name == "gelu") return Act::Gelu;
  if (name == "gelu_erf") return Act::GeluErf;
  if (name == "gelu_quick") return Act::GeluQuick;
  if (name == "relu") return Act::Relu;
  if (name == "relu2") return Act::Relu2;
  throw Error(ErrorKind::Usage, "act must be 'gelu', 'gelu_erf', 'gelu_quick', 'relu' or 'relu2', got '" + name + "'");
}

int linear_act(Plan& plan, int x, MatrixPtr weight, const std::string& act, MaybeVector bias, MaybeVector norm, float eps) {
  const int out = plan.buffer(weight->w.n);
  auto op = single(plan, x, std::move(weight), std::move(bias), {std::move(norm), eps});
  op->out = {out};
  op->act = act_named(act);
  op->reads = {x};
  op->writes = {out};
  plan.add(std::move(op));
  return out;
}
FREEHOLD_OP(linear_act, "act(W · n + bias), n = norm(x) or x; act: \"gelu\" (tanh), \"gelu_erf\", \"gelu_quick\", \"relu\" or \"relu2\".", "x"_a,
            "weight"_a, "act"_a, "bias"_a = nanobind::none(), "norm"_a = nanobind::none(), "eps"_a = 0.0f)

}  // namespace
}  // namespace fh
