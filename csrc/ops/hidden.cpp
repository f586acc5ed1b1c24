// The last op of an encoder's plan: rows that a step asks for, as they are.
#include "ops/record.h"

namespace fh {
namespace {

struct Hidden final : Op {
  int x; int64_t k;
  void validate(const Step& s) const override {
    if (s.nlogits + s.nchoices) refuse("an encoder has no logits");
  }
  void run(Run& r, int) override {
    const Step& s = *r.step;
    each_row(r, first, s.nhidden, [&](int64_t t) { std::copy_n(r.buffer[x] + s.hidden_rows[t] * k, k, s.hidden + t * k); });
  }
};

void hidden(Plan& plan, int x) {
  auto op = std::make_unique<Hidden>();
  op->x = x;
  op->k = plan.width_of(x);
  op->reads = {x};
  const Plan::Ends ends{0, op->k};
  plan.add_last(std::move(op), ends);
}
FREEHOLD_OP(hidden, "The rows a step asks for, as they are. The last op of an encoder's plan, which needs no cache.", "x"_a)

}  // namespace
}  // namespace fh
