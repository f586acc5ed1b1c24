// The first op of an encoder's plan: word, position and type embeddings, added.
#include "ops/record.h"

namespace fh {
namespace {

// x = words[token] + positions[position] + kinds[0]: a text by itself is the first segment.
struct EmbedSum final : Op {
  MatrixPtr words, positions; std::vector<float> kind; int out;
  std::vector<std::vector<float>> rows;       // by thread: one row of `positions`
  void allocate(int64_t, int threads) override {
    rows.assign(static_cast<size_t>(threads), std::vector<float>(static_cast<size_t>(words->w.k)));
  }
  void validate(const Step& s) const override {
    for (int64_t t = 0; t < s.rows; ++t) {
      if (s.tokens[t] < 0 || s.tokens[t] >= words->w.n) refuse("token " + std::to_string(s.tokens[t]) + " is outside the vocabulary of " + std::to_string(words->w.n));
      if (s.positions[t] >= positions->w.n) refuse("position " + std::to_string(s.positions[t]) + " is beyond the model's " + std::to_string(positions->w.n));
    }
  }
  void run(Run& r, int thread) override {
    const int64_t k = words->w.k;
    float* place = rows[static_cast<size_t>(thread)].data();
    each_row(r, first, r.step->rows, [&](int64_t t) {
      float* y = r.buffer[out] + t * k;
      decode_row(words->w, r.step->tokens[t], y);
      decode_row(positions->w, r.step->positions[t], place);
      r.k->add(y, place, k);
      r.k->add(y, kind.data(), k);
    });
  }
};

int embed_sum(Plan& plan, MatrixPtr words, MatrixPtr positions, MatrixPtr kinds) {
  const int64_t k = words->w.k;
  if (positions->w.k != k || kinds->w.k != k) refuse("embeddings of different widths");
  auto op = std::make_unique<EmbedSum>();
  op->kind.resize(static_cast<size_t>(k));
  decode_row(kinds->w, 0, op->kind.data());
  op->out = plan.buffer(k);
  op->writes = {op->out};
  op->words = std::move(words);
  op->positions = std::move(positions);
  return plan.add(std::move(op)).out;
}
FREEHOLD_OP(embed_sum, "x = words[token] + positions[position] + kinds[0].", "words"_a, "positions"_a, "kinds"_a)

}  // namespace
}  // namespace fh
