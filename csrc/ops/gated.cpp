// The first half of a gated MLP: act(gate · n) * (up · n).
#include "ops/activation.h"
#include "ops/low_rank.h"
#include "ops/record.h"

namespace fh {
namespace {

// Gate panels first, then up panels: a thread that went to and fro between the two matrices every 14 KB would start
// the machine's prefetcher anew each time.
struct Gated final : Op {
  // Gate values of sixteen panels and sixteen tokens take 16 KB of an L1; in prefill gate and up share a thread's tiles.
  static constexpr int64_t kDecodePanels = 16, kPrefillPanels = kGemmPanels / 2;
  Input in; std::vector<MatrixPtr> w; bool gelu; int out;   // w: gate, up
  SiluLimit limit;
  LowRank low;
  const uint8_t* weights() const override { return w[0]->w.data; }
  void allocate(int64_t max_rows, int threads) override { in.scratch->allocate(max_rows, threads); }
  void prepare(const Run& r) override { low.prepare(r, in, w); }
  void run(Run& r, int thread) override {
    const int64_t rows = r.step->rows;
    each_row(r, first, rows, [&](int64_t t) { in.row(r, r.buffer[in.x] + t * in.k, t, rows); });
    low.reduce(r, in);
    float* tiles = in.scratch->tiles[static_cast<size_t>(thread)].data();
    const int64_t most = rows < r.k->gemm_rows ? kDecodePanels : kPrefillPanels;
    walk(*this, r, w[0]->w.count(), rows, most, [&](int64_t begin, int64_t end, int64_t t0, int64_t nt) {
      for (int64_t p = begin; p < end; p += most) block(r, p, std::min(end, p + most), end, t0, nt, tiles);
    });
  }
  // The gate panel that follows panel p of a range.
  const uint8_t* after(const Run& r, int64_t p, int64_t last) const {
    const int64_t n = panel_after(*this, r, p, last);
    return n < w[0]->w.count() ? w[0]->w.high(n) : following;
  }
  void block(const Run& r, int64_t begin, int64_t end, int64_t last, int64_t t0, int64_t nt, float* g) const {
    const int64_t n = (end - begin) * nt * kPanelRows;
    float* u = g + n;
    in.multiply(r, *w[0], begin, end, t0, nt, g, w[1]->w.high(begin));
    in.multiply(r, *w[1], begin, end, t0, nt, u, after(r, end - 1, last));
    low.expand(r, in, 0, begin, end, t0, nt, g);
    low.expand(r, in, 1, begin, end, t0, nt, u);
    limit.cut(g, u, n);
    const Place to(*w[0], begin, end, t0, r.buffer[out]);
    const bool rounds = in.rounds && r.k->gelu_rounded;
    (gelu ? rounds ? r.k->gelu_rounded : r.k->gelu_rows : rounds ? r.k->silu_rounded : r.k->silu_rows)(g, u, to.width, nt, to.y, to.ld);
  }
};

int gated(Plan& plan, int x, MatrixPtr gate, MatrixPtr up, const std::string& act, MaybeVector norm, float eps, float limit) {
  if (act != "silu" && act != "gelu") throw Error(ErrorKind::Usage, "act must be 'silu' or 'gelu', got '" + act + "'");
  if (limit != 0 && act != "silu") refuse("act " + act + " takes no limit");
  if (gate->w.n != up->w.n) refuse("gate and up differ in width");
  auto op = std::make_unique<Gated>();
  op->in = Input::record(plan, x, {std::move(norm), eps}, {gate, up});
  op->out = plan.buffer(gate->w.n);
  op->w = {std::move(gate), std::move(up)};
  op->gelu = act == "gelu";
  op->limit = SiluLimit::of(limit);
  op->reads = {x};
  op->writes = {op->out};
  return plan.add(std::move(op)).out;
}
FREEHOLD_OP(gated,
            "act(gate · n) * (up · n) with n = norm(x) or x; act is \"silu\" or \"gelu\" (tanh form).\n\n"
            "`limit` > 0: min(silu(gate · n), limit) * clamp(up · n, -limit, limit).",
            "x"_a, "gate"_a, "up"_a, "act"_a, "norm"_a = nanobind::none(), "eps"_a = 0.0f, "limit"_a = 0.0f)

}  // namespace
}  // namespace fh
