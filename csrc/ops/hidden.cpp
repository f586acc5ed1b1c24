// The last op of an encoder's plan: rows that a step asks for, as they are.
#include "ops/record.h"

namespace fh {
namespace {

struct Hidden final : Op {
  struct Part { int buffer; int64_t width, at; };
  std::vector<Part> parts; int64_t k = 0;     // k: their widths' sum
  void validate(const Step& s) const override {
    if (s.nlogits + s.nchoices) refuse("an encoder has no logits");
  }
  Sees sees() const override { return Sees::Listed; }
  void run(Run& r, int) override {
    const Step& s = *r.step;
    each_row(r, first, s.nhidden, [&](int64_t t) {
      if (s.hidden_rows[t] < r.begin || s.hidden_rows[t] >= r.end) return;
      for (const Part& p : parts) std::copy_n(r.buffer[p.buffer] + s.hidden_rows[t] * p.width, p.width, s.hidden + t * k + p.at);
    });
  }
};

void hidden(Plan& plan, int x, const std::vector<int>& beside) {
  auto op = std::make_unique<Hidden>();
  op->reads = {x};
  op->reads.insert(op->reads.end(), beside.begin(), beside.end());
  for (int buffer : op->reads) {
    const int64_t width = plan.width_of(buffer);
    op->parts.push_back({buffer, width, op->k});
    op->k += width;
  }
  const Plan::Ends ends{0, op->k};
  plan.add_last(std::move(op), ends);
}
FREEHOLD_OP(hidden, "The rows a step asks for, as they are, `beside` after them. The last op of a plan without a cache.",
            "x"_a, "beside"_a = std::vector<int>())

}  // namespace
}  // namespace fh
