// Weights that experts have whatever the router says: a chosen one's joins the weight that route() gave it.
#include "ops/mixture.h"
#include "ops/record.h"
#include "plan.h"

namespace fh {
namespace {

struct Weigh final : Op {
  int routes, top_k; Vector scale;
  void run(Run& r, int) override {
    each_row(r, first, r.step->rows, [&](int64_t t) {
      const float* ids = r.buffer[routes] + t * 2 * top_k;
      float* weights = r.buffer[routes] + (2 * t + 1) * top_k;
      for (int i = 0; i < top_k; ++i) weights[i] *= scale.values[static_cast<size_t>(ids[i])];
    });
  }
};

void weigh(Plan& plan, int routes, Vector scale) {
  const auto& all = plan.shared<AllRoutes>().by_buffer;
  const auto found = all.find(routes);
  if (found == all.end()) refuse("weigh() takes what route() returned");
  if (scale.size() != found->second.experts) refuse("weigh() with " + std::to_string(scale.size()) + " weights of " + std::to_string(found->second.experts) + " experts");
  auto op = std::make_unique<Weigh>();
  op->routes = routes;
  op->top_k = found->second.top_k;
  op->scale = std::move(scale);
  op->reads = {routes};
  plan.add(std::move(op));
}
FREEHOLD_OP(weigh, "Multiply the weights that route() returned by those of the chosen experts, in place.", "routes"_a, "scale"_a)

}  // namespace
}  // namespace fh
