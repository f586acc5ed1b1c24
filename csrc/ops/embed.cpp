// The first op of a decoder's plan: rows of the embedding, or of pictures in their place; and what else pictures add.
#include "ops/record.h"

namespace fh {
namespace {

// Null for the row of a token.
const float* feature_of(const Step& s, int64_t t) {
  const int32_t row = s.feature_rows ? s.feature_rows[t] : -1;
  return row < 0 ? nullptr : s.features + row * s.feature_width;
}

struct Embed final : Op {
  MatrixPtr table; float scale; int64_t beyond, shown; int out;
  void validate(const Step& s) const override {
    for (int64_t t = 0; t < s.rows; ++t)
      if (s.tokens[t] < 0 || (beyond < 0 && s.tokens[t] >= table->w.n))
        refuse("token " + std::to_string(s.tokens[t]) + " is outside the vocabulary of " + std::to_string(table->w.n));
    if (shown < 0 && s.features && s.feature_width < table->w.k) refuse("features are " + std::to_string(s.feature_width) + " wide, rows " + std::to_string(table->w.k));
  }
  void run(Run& r, int) override {
    const int64_t k = table->w.k;
    each_row(r, first, r.step->rows, [&](int64_t t) {
      float* y = r.buffer[out] + t * k;
      const float* picture = feature_of(*r.step, t);
      if (picture && shown < 0) {
        std::copy_n(picture, k, y);           // as the tower gave it: the scale is the table's
        return;
      }
      const int64_t token = picture ? shown : r.step->tokens[t];
      decode_row(table->w, token < table->w.n ? token : beyond, y);
      if (scale != 1.0f) r.k->scale(y, scale, k);
    });
  }
};

int embed(Plan& plan, MatrixPtr table, float scale, int64_t beyond, int64_t shown) {
  if (const int64_t row = std::max(beyond, shown); row >= table->w.n) refuse("row " + std::to_string(row) + " is outside a table of " + std::to_string(table->w.n));
  auto op = std::make_unique<Embed>();
  op->out = plan.buffer(table->w.k);
  op->writes = {op->out};
  op->table = std::move(table);
  op->scale = scale;
  op->beyond = beyond;
  op->shown = shown;
  return plan.add(std::move(op)).out;
}
FREEHOLD_OP(embed, "x = table[token] * scale.\n\n`beyond`: the row of tokens after the table's last; -1: they are refused.\nRows of pictures are those of the step's "
            "features, unscaled; with `shown` that row of the table.", "table"_a, "scale"_a = 1.0f, "beyond"_a = -1, "shown"_a = -1)

// What a tower's middle layers saw joins the stream after the first layers (DeepStack, arXiv 2406.04334).
struct AddFeatures final : Op {
  int x; int64_t k, at;
  void validate(const Step& s) const override {
    if (s.features && s.feature_width < at + k) refuse("features are " + std::to_string(s.feature_width) + " wide; the plan reads up to " + std::to_string(at + k));
  }
  void run(Run& r, int) override {
    if (!r.step->feature_rows) return;
    each_row(r, first, r.step->rows, [&](int64_t t) {
      if (const float* picture = feature_of(*r.step, t)) r.k->add(r.buffer[x] + t * k, picture + at, k);
    });
  }
};

void add_features(Plan& plan, int x, int64_t at) {
  if (at < 0) refuse("features begin at column 0");
  auto op = std::make_unique<AddFeatures>();
  op->x = x;
  op->k = plan.width_of(x);
  op->at = at;
  op->reads = {x};
  plan.add(std::move(op));
}
FREEHOLD_OP(add_features, "Add the features' columns from `at` on, as many as x has, to rows of pictures, in place.", "x"_a, "at"_a)

// The first op of a tower's plan.
struct Features final : Op {
  int out; int64_t k, at;
  void validate(const Step& s) const override {
    if (!s.features || s.feature_rows || s.nfeatures != s.rows) refuse("a tower's step needs features of its " + std::to_string(s.rows) + " rows, and no feature_rows");
    if (s.feature_width < at + k) refuse("features are " + std::to_string(s.feature_width) + " wide; the plan reads up to " + std::to_string(at + k));
  }
  void run(Run& r, int) override {
    const Step& s = *r.step;
    each_row(r, first, s.rows, [&](int64_t t) { std::copy_n(s.features + t * s.feature_width + at, k, r.buffer[out] + t * k); });
  }
};

int features(Plan& plan, int64_t width, int64_t at) {
  if (width < 1 || at < 0) refuse("features() of " + std::to_string(width) + " columns from " + std::to_string(at) + " on");
  auto op = std::make_unique<Features>();
  op->k = width;
  op->at = at;
  op->out = plan.buffer(width);
  op->writes = {op->out};
  return plan.add(std::move(op)).out;
}
FREEHOLD_OP(features, "The features' columns [at, at + width) of every row, for a plan over features instead of tokens.", "width"_a, "at"_a = 0)

}  // namespace
}  // namespace fh
