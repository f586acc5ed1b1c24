// One input, one or more weights: products with bias, added to a residual, or through GELU.
#include "ops/low_rank.h"
#include "ops/record.h"

namespace fh {
namespace {

struct Linear final : Op {
  Input in; std::vector<MatrixPtr> w; std::vector<MaybeVector> bias; std::vector<int> out; bool accumulate = false, gelu = false;
  int gate = -1;                              // a buffer [rows][1] whose sigmoid multiplies what is added; -1: none
  LowRank low;
  const uint8_t* weights() const override { return w[0]->w.data; }
  void allocate(int64_t max_rows, int threads) override { in.scratch->allocate(max_rows, threads); }
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
      if (gate >= 0) in.scratch->gates[static_cast<size_t>(t)] = 1.0f / (1.0f + std::exp(-r.buffer[gate][t]));
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
    if (gelu) return activate(r, m, p0, p1, t0, nt, tiles);
    const Place to(m, p0, p1, t0, r.buffer[out[i]]);
    if (gate >= 0) return r.k->add_scaled_rows(tiles, to.width, nt, nullptr, in.scratch->gates.data() + t0, to.y, to.ld);
    r.k->store_rows(tiles, to.width, nt, bias[i] ? bias[i]->data() + p0 * kPanelRows : nullptr, accumulate, to.y, to.ld);
  }
  void activate(const Run& r, const Matrix& m, int64_t p0, int64_t p1, int64_t t0, int64_t nt, float* tiles) const {
    for (int64_t p = p0; bias[0] && p < p1; ++p)
      for (int64_t t = 0; t < nt; ++t) r.k->add(tiles + ((p - p0) * nt + t) * kPanelRows, bias[0]->data() + p * kPanelRows, panel_width(m, p));
    r.k->gelu_erf(tiles, (p1 - p0) * nt * kPanelRows);
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
std::unique_ptr<Linear> single(Plan& plan, int x, MatrixPtr weight, MaybeVector bias) {
  check_bias(bias, *weight);
  auto op = std::make_unique<Linear>();
  op->in = Input::record(plan, x, {}, {weight});
  op->w = {std::move(weight)};
  op->bias = {std::move(bias)};
  return op;
}

void linear_add(Plan& plan, int x, MatrixPtr weight, int residual, MaybeVector bias, std::optional<int> gate) {
  plan.want_width(residual, weight->w.n, "the output");
  if (gate && bias) refuse("linear_add() with a gate takes no bias");
  auto op = single(plan, x, std::move(weight), std::move(bias));
  op->out = {residual};
  op->accumulate = true;
  op->reads = {x, residual};
  if (gate) {
    plan.want_width(*gate, 1, "a gate");
    op->gate = *gate;
    op->reads.push_back(*gate);
  }
  plan.add(std::move(op));
}
FREEHOLD_OP(linear_add, "residual += W · x + bias, in place.\n\n`gate`: a buffer [rows, 1]; sigmoid(gate) multiplies W · x. Takes no bias.",
            "x"_a, "weight"_a, "residual"_a, "bias"_a = nanobind::none(), "gate"_a = nanobind::none())

int linear_gelu(Plan& plan, int x, MatrixPtr weight, MaybeVector bias) {
  const int out = plan.buffer(weight->w.n);
  auto op = single(plan, x, std::move(weight), std::move(bias));
  op->out = {out};
  op->gelu = true;
  op->reads = {x};
  op->writes = {out};
  plan.add(std::move(op));
  return out;
}
FREEHOLD_OP(linear_gelu, "gelu(W · x + bias), the exact form.", "x"_a, "weight"_a, "bias"_a = nanobind::none())

}  // namespace
}  // namespace fh
