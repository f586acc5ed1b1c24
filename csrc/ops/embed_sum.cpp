// The first op of a plan whose positions are learned: word, position and type embeddings, added.
#include "ops/record.h"

namespace fh {
namespace {

// x = words[token] + positions[position - start] + kinds[0]: a text by itself is the first segment.
struct EmbedSum final : Op {
  MatrixPtr words, positions; std::vector<float> kind; int start, out;
  std::vector<std::vector<float>> rows;       // by thread: one row of `positions`
  void allocate(int64_t, int threads) override {
    rows.assign(static_cast<size_t>(threads), std::vector<float>(static_cast<size_t>(words->w.k)));
  }
  void validate(const Step& s) const override {
    for (int64_t t = 0; t < s.rows; ++t) {
      if (s.tokens[t] < 0 || s.tokens[t] >= words->w.n) refuse("token " + std::to_string(s.tokens[t]) + " is outside the vocabulary of " + std::to_string(words->w.n));
      if (s.positions[t] < start) refuse("position " + std::to_string(s.positions[t]) + " lies before the first of words, " + std::to_string(start));
      if (s.positions[t] - start >= positions->w.n) refuse("position " + std::to_string(s.positions[t]) + " is beyond the model's " + std::to_string(start + positions->w.n));
    }
  }
  void run(Run& r, int thread) override {
    const int64_t k = words->w.k;
    float* place = rows[static_cast<size_t>(thread)].data();
    each_row(r, first, r.step->rows, [&](int64_t t) {
      float* y = r.buffer[out] + t * k;
      decode_row(words->w, r.step->tokens[t], y);
      decode_row(positions->w, r.step->positions[t] - start, place);
      r.k->add(y, place, k);
      if (!kind.empty()) r.k->add(y, kind.data(), k);
    });
  }
};

int embed_sum(Plan& plan, MatrixPtr words, MatrixPtr positions, MatrixPtr kinds, int start) {
  const int64_t k = words->w.k;
  if (positions->w.k != k || (kinds && kinds->w.k != k)) refuse("embeddings of different widths");
  if (start < 0) refuse("positions of words begin at 0 or later");
  auto op = std::make_unique<EmbedSum>();
  if (kinds) {
    op->kind.resize(static_cast<size_t>(k));
    decode_row(kinds->w, 0, op->kind.data());
  }
  op->start = start;
  op->out = plan.buffer(k);
  op->writes = {op->out};
  op->words = std::move(words);
  op->positions = std::move(positions);
  return plan.add(std::move(op)).out;
}
FREEHOLD_OP(embed_sum, "x = words[token] + positions[position - start] + kinds[0], if there are kinds.", "words"_a, "positions"_a,
            "kinds"_a.none() = nanobind::none(), "start"_a = 0)

}  // namespace
}  // namespace fh
