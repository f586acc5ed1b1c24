// The first op of a decoder's plan: rows of the embedding.
#include "ops/record.h"

namespace fh {
namespace {

struct Embed final : Op {
  MatrixPtr table; float scale; int out;
  void validate(const Step& s) const override {
    for (int64_t t = 0; t < s.rows; ++t)
      if (s.tokens[t] < 0 || s.tokens[t] >= table->w.n)
        refuse("token " + std::to_string(s.tokens[t]) + " is outside the vocabulary of " + std::to_string(table->w.n));
  }
  void run(Run& r, int) override {
    const int64_t k = table->w.k;
    each_row(r, first, r.step->rows, [&](int64_t t) {
      float* y = r.buffer[out] + t * k;
      decode_row(table->w, r.step->tokens[t], y);
      if (scale != 1.0f) r.k->scale(y, scale, k);
    });
  }
};

int embed(Plan& plan, MatrixPtr table, float scale) {
  auto op = std::make_unique<Embed>();
  op->out = plan.buffer(table->w.k);
  op->writes = {op->out};
  op->table = std::move(table);
  op->scale = scale;
  return plan.add(std::move(op)).out;
}
FREEHOLD_OP(embed, "x = table[token] * scale.", "table"_a, "scale"_a = 1.0f)

}  // namespace
}  // namespace fh
