// The router of a mixture of experts: which experts each row takes, and with which weights.
#include "ops/matmul.h"
#include "ops/mixture.h"
#include "ops/record.h"
#include "ops/routing.h"

namespace fh {
namespace {

// Of the op that runs.
struct RouterScores {
  std::vector<float> values;                  // [rows][experts]
  std::vector<std::vector<float>> rooms;      // by thread: see Routing::room
};

struct Route final : Op {
  Input in; MatrixPtr w; Routing rule; int out;
  RouterScores* scores;
  Phase third;
  const uint8_t* weights() const override { return w->w.data; }
  void allocate(int64_t max_rows, int threads) override {
    in.scratch->allocate(max_rows, threads);
    const auto grow = [](std::vector<float>& v, int64_t n) { v.resize(std::max(v.size(), static_cast<size_t>(n))); };
    grow(scores->values, max_rows * w->w.n);
    scores->rooms.resize(static_cast<size_t>(threads));
    for (auto& room : scores->rooms) grow(room, rule.room(w->w.n));
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
        const Place to(*w, p, p + 1, t0, scores->values.data());
        r.k->store_rows(tiles, to.width, nt, rule.bias ? rule.bias->data() + p * kPanelRows : nullptr, false, to.y, to.ld);
      }
    });
    float* room = scores->rooms[static_cast<size_t>(thread)].data();
    each_row(r, third, rows, [&](int64_t t) { rule.choose(scores->values.data() + t * experts, experts, r.buffer[out] + t * 2 * rule.top_k, room); });
  }
};

Scoring scoring_of(const std::string& name) {
  if (name == "softmax") return Scoring::Softmax;
  if (name == "sigmoid") return Scoring::Sigmoid;
  if (name == "sparsemixer") return Scoring::SparseMixer;
  throw Error(ErrorKind::Usage, "scoring must be 'softmax', 'sigmoid' or 'sparsemixer', got '" + name + "'");
}

// Throws Usage unless `experts` can be chosen from by this rule.
void check_rule(const Routing& rule, int64_t experts) {
  const int64_t per_group = experts / std::max(rule.groups, 1), best = rule.sum_of_two ? 2 : 1;
  if (rule.top_k < 1 || rule.top_k > experts) refuse("top_k must be 1 to " + std::to_string(experts) + ", got " + std::to_string(rule.top_k));
  for (const MaybeVector* v : {&rule.bias, &rule.correction})
    if (*v && (*v)->size() != experts) refuse("a router's bias of " + std::to_string((*v)->size()) + " for " + std::to_string(experts) + " experts");
  if (rule.groups < 1 || experts % rule.groups) refuse(std::to_string(rule.groups) + " groups do not divide " + std::to_string(experts) + " experts");
  if (rule.kept < 1 || rule.kept > rule.groups || rule.kept * per_group < rule.top_k || (rule.groups > 1 && per_group < best))
    refuse(std::to_string(rule.kept) + " of " + std::to_string(rule.groups) + " groups of " + std::to_string(per_group) + " experts cannot hold " + std::to_string(rule.top_k));
  if (rule.corrects_logits && !rule.correction) refuse("there is no correction to join logits");
  const bool mixer = rule.scoring == Scoring::SparseMixer;
  if (mixer && (rule.top_k != 2 || experts < 2 || rule.groups > 1 || rule.correction)) refuse("a sparse mixer chooses two experts, without groups or a correction");
  if (mixer && !(rule.jitter > 0)) refuse("a sparse mixer needs a jitter above 0");
  if (mixer && (rule.renormalise || rule.scale != 1)) refuse("a sparse mixer's weights are neither renormalised nor scaled");
}

int route(Plan& plan, int x, MatrixPtr router, int top_k, MaybeVector norm, float eps, bool renormalise, const std::string& scoring, MaybeVector bias,
          MaybeVector correction, int groups, int kept, const std::string& group_score, float epsilon, float least, float scale, float jitter,
          bool corrects_logits) {
  const int64_t experts = router->w.n;
  if (traits(router->w.type).act() != kActF32) refuse(std::string("a router is a matrix of floats, not of ") + traits(router->w.type).name);
  if (experts >= 1 << 24) refuse("a router of " + std::to_string(experts) + " experts");
  if (group_score != "best" && group_score != "top2") throw Error(ErrorKind::Usage, "group_score must be 'best' or 'top2', got '" + group_score + "'");
  auto op = std::make_unique<Route>();
  op->rule = {scoring_of(scoring), top_k, renormalise, groups, kept, group_score == "top2", epsilon, least, scale, jitter, std::move(bias), std::move(correction), corrects_logits};
  check_rule(op->rule, experts);
  op->in = Input::record(plan, x, {std::move(norm), eps}, {router});
  op->w = std::move(router);
  op->scores = &plan.shared<RouterScores>();
  op->out = plan.buffer(2 * top_k);
  op->reads.push_back(x);
  op->writes.push_back(op->out);
  plan.shared<AllRoutes>().by_buffer[op->out] = {experts, top_k};
  return plan.add(std::move(op)).out;
}
FREEHOLD_OP(route,
            "Scores router · (norm(x) or x) + bias; returns each row's top_k experts and their weights, for experts().\n\n"
            "router: [experts, width], of a float type. Of equal scores the lowest id is chosen, of equal groups the lowest.\n"
            "scoring: \"softmax\" over all experts, \"sigmoid\" of each, or \"sparsemixer\" (two masked softmaxes, `jitter`).\n"
            "`correction` joins a score where experts are compared, and no weight; with `corrects_logits` logits are compared\n"
            "instead, and it joins those. Only the `kept` best of `groups` are\n"
            "chosen from: a group's score is its \"best\" or the sum of its \"top2\". `renormalise` divides the weights by\n"
            "max(their sum + epsilon, least); `scale` multiplies them.",
            "x"_a, "router"_a, "top_k"_a, nanobind::kw_only(), "norm"_a = nanobind::none(), "eps"_a = 0.0f, "renormalise"_a, "scoring"_a = "softmax",
            "bias"_a = nanobind::none(), "correction"_a = nanobind::none(), "groups"_a = 1, "kept"_a = 1, "group_score"_a = "best", "epsilon"_a = 0.0f,
            "least"_a = 0.0f, "scale"_a = 1.0f, "jitter"_a = 0.0f, "corrects_logits"_a = false)

}  // namespace
}  // namespace fh
