// The first op of a decoder's plan: rows of the embedding.
#include "ops/record.h"

namespace fh {
namespace {

struct Embed final : Op {
  MatrixPtr table; float scale; int64_t beyond; int out;
  void validate(const Step& s) const override {
    for (int64_t t = 0; t < s.rows; ++t)
      if (s.tokens[t] < 0 || (beyond < 0 && s.tokens[t] >= table->w.n))
        refuse("token " + std::to_string(s.tokens[t]) + " is outside the vocabulary of " + std::to_string(table->w.n));
  }
  void run(Run& r, int) override {
    const int64_t k = table->w.k;
    each_row(r, first, r.step->rows, [&](int64_t t) {
      float* y = r.buffer[out] + t * k;
      const int64_t token = r.step->tokens[t];
      decode_row(table->w, token < table->w.n ? token : beyond, y);
      if (scale != 1.0f) r.k->scale(y, scale, k);
    });
  }
};

int embed(Plan& plan, MatrixPtr table, float scale, int64_t beyond) {
  if (beyond >= table->w.n) refuse("row " + std::to_string(beyond) + " is outside a table of " + std::to_string(table->w.n));
  auto op = std::make_unique<Embed>();
  op->out = plan.buffer(table->w.k);
  op->writes = {op->out};
  op->table = std::move(table);
  op->scale = scale;
  op->beyond = beyond;
  return plan.add(std::move(op)).out;
}
FREEHOLD_OP(embed, "x = table[token] * scale.\n\n`beyond`: the row of tokens after the table's last; -1: they are refused.", "table"_a, "scale"_a = 1.0f,
            "beyond"_a = -1)

}  // namespace
}  // namespace fh
