// The router of a mixture of experts: which experts each row takes, and with which weights.
#include "ops/matmul.h"
#include "ops/mixture.h"
#include "ops/record.h"

namespace fh {
namespace {

struct RouterScores { std::vector<float> values; };   // [rows][experts], of the op that runs

// Softmax over all experts, then the greatest. Another scoring (sigmoid, a bias for the choice, groups, a factor) is an
// argument of route(), a field here, and a branch of choose().
struct Route final : Op {
  Input in; MatrixPtr w; int top_k; bool renormalise; int out;
  std::vector<float>* scores;
  Phase third;
  const uint8_t* weights() const override { return w->w.data; }
  void allocate(int64_t max_rows, int threads) override {
    in.scratch->allocate(max_rows, threads);
    scores->resize(std::max(scores->size(), static_cast<size_t>(max_rows * w->w.n)));
  }
  void validate(const Step& s) const override { refuse_adapters(s, w); }
  void prepare(const Run& r) override { third.reset(r.seat); }
  void run(Run& r, int thread) override {
    const int64_t rows = r.step->rows, experts = w->w.n;
    each_row(r, first, rows, [&](int64_t t) { in.row(r, r.buffer[in.x] + t * in.k, t, rows); });
    float* tiles = in.scratch->tiles[static_cast<size_t>(thread)].data();
    walk(*this, r, w->w.count(), rows, kGemmPanels, [&](int64_t begin, int64_t end, int64_t t0, int64_t nt) {
      for (int64_t p = begin; p < end; ++p) {
        const int64_t after = panel_after(*this, r, p, end);
        in.multiply(r, *w, p, p + 1, t0, nt, tiles, after < w->w.count() ? w->w.high(after) : following);
        const Place to(*w, p, p + 1, t0, scores->data());
        r.k->store_rows(tiles, to.width, nt, nullptr, false, to.y, to.ld);
      }
    });
    each_row(r, third, rows, [&](int64_t t) { choose(scores->data() + t * experts, r.buffer[out] + t * 2 * top_k); });
  }
  // All sums in order of id.
  void choose(float* row, float* ids) const {
    const int64_t experts = w->w.n;
    float* weights = ids + top_k;
    pick(row, ids);
    std::sort(ids, ids + top_k);
    float most = -INFINITY, all = 0, chosen = 0;
    for (int64_t e = 0; e < experts; ++e) most = std::max(most, row[e]);
    for (int64_t e = 0; e < experts; ++e) all += row[e] = std::exp(row[e] - most);
    for (int i = 0; i < top_k; ++i) chosen += weights[i] = row[static_cast<int64_t>(ids[i])] / all;
    for (int i = 0; renormalise && i < top_k; ++i) weights[i] /= chosen;
  }
  // Ids of the top_k greatest, in falling order, of equals the lowest first. A score that is not a number counts as the
  // least, so that ids are valid and differ whatever a damaged file holds; the softmax makes such a row's weights NaN.
  void pick(const float* row, float* ids) const {
    const auto value = [row](float e) {
      const float v = row[static_cast<int64_t>(e)];
      return std::isnan(v) ? -INFINITY : v;
    };
    int n = 0;
    for (int64_t e = 0; e < w->w.n; ++e) {
      const auto id = static_cast<float>(e);
      if (n == top_k && !(value(id) > value(ids[top_k - 1]))) continue;
      int at = n < top_k ? n++ : top_k - 1;
      for (; at > 0 && value(id) > value(ids[at - 1]); --at) ids[at] = ids[at - 1];
      ids[at] = id;
    }
  }
};

int route(Plan& plan, int x, MatrixPtr router, int top_k, MaybeVector norm, float eps, bool renormalise) {
  const int64_t experts = router->w.n;
  if (traits(router->w.type).act() != kActF32) refuse(std::string("a router is a matrix of floats, not of ") + traits(router->w.type).name);
  if (experts >= 1 << 24) refuse("a router of " + std::to_string(experts) + " experts");
  if (top_k < 1 || top_k > experts) refuse("top_k must be 1 to " + std::to_string(experts) + ", got " + std::to_string(top_k));
  auto op = std::make_unique<Route>();
  op->in = Input::record(plan, x, {std::move(norm), eps}, {router});
  op->w = std::move(router);
  op->top_k = top_k;
  op->renormalise = renormalise;
  op->scores = &plan.shared<RouterScores>().values;
  op->out = plan.buffer(2 * top_k);
  op->reads = {x};
  op->writes = {op->out};
  plan.shared<AllRoutes>().by_buffer[op->out] = {experts, top_k};
  return plan.add(std::move(op)).out;
}
FREEHOLD_OP(route,
            "Softmax of router · (norm(x) or x); returns the top_k experts of each row and their weights, for experts().\n\n"
            "router: [experts, width], of a float type. Of equal scores the lowest id is chosen.\n"
            "`renormalise` divides the weights by their sum.",
            "x"_a, "router"_a, "top_k"_a, nanobind::kw_only(), "norm"_a = nanobind::none(), "eps"_a = 0.0f, "renormalise"_a)

}  // namespace
}  // namespace fh
