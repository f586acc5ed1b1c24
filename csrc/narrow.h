// Rows without a requested output stop once the last keys, values and states are stored: this drops them from the step.
// A prompt's other rows then skip the last layer's attention and MLP, and the head.
// Knows steps and rows; knows no arithmetic.
#pragma once
#include <algorithm>
#include <vector>

#include "ops/op.h"

namespace fh {

// The rows of a step that want logits, a choice or their hidden values, as a step of their own. No row's bits depend on
// the others of its step, so what they give is what they would have given among all.
class Narrowed {
 public:
  std::vector<int64_t> rows;                  // of the whole step, ascending
  Step step;

  void take(const Step& s) {
    choose(s);
    const auto picked = [&](std::vector<int32_t>& own, const int32_t* from) {
      own.clear();
      for (int64_t t : rows) own.push_back(from[t]);
      return own.data();
    };
    const auto moved = [&](std::vector<int32_t>& own, const int32_t* from, int64_t n) {
      own.clear();
      for (int64_t i = 0; i < n; ++i) own.push_back(place(from[i]));
      return own.data();
    };
    step = s;
    step.rows = static_cast<int64_t>(rows.size());
    step.tokens = picked(tokens_, s.tokens);
    step.positions = picked(positions_, s.positions);
    step.seqs = picked(seqs_, s.seqs);
    step.npieces = 0;                         // states are written by now
    if (s.nadapters) step.row_adapters = picked(adapters_, s.row_adapters);
    if (s.feature_rows) step.feature_rows = picked(features_, s.feature_rows);
    if (s.ends) step.ends = picked(ends_, s.ends);
    if (s.places) {
      places_.clear();
      for (int64_t t : rows) places_.insert(places_.end(), s.places + 3 * t, s.places + 3 * t + 3);
      step.places = places_.data();
    }
    step.logit_rows = moved(logits_, s.logit_rows, s.nlogits);
    step.hidden_rows = moved(hidden_, s.hidden_rows, s.nhidden);
    choices_.assign(s.choices, s.choices + s.nchoices);
    for (Choice& c : choices_) c.row = place(c.row);
    step.choices = choices_.data();
  }

 private:
  void choose(const Step& s) {
    rows.assign(s.logit_rows, s.logit_rows + s.nlogits);
    rows.insert(rows.end(), s.hidden_rows, s.hidden_rows + s.nhidden);
    for (int64_t i = 0; i < s.nchoices; ++i) rows.push_back(s.choices[i].row);
    std::sort(rows.begin(), rows.end());
    rows.erase(std::unique(rows.begin(), rows.end()), rows.end());
  }
  int32_t place(int32_t row) const { return static_cast<int32_t>(std::lower_bound(rows.begin(), rows.end(), row) - rows.begin()); }

  std::vector<int32_t> tokens_, positions_, seqs_, adapters_, features_, ends_, places_, logits_, hidden_;
  std::vector<Choice> choices_;
};

// Moves the rows that continue to the front of every buffer that is read after here. Ascending, so none is overwritten
// before it was moved; a buffer is one claim, and few rows of a prompt are wanted.
struct Narrow final : Op {
  struct Kept { int buffer; int64_t width; };
  std::vector<Kept> kept;
  void run(Run& r, int) override {
    const std::vector<int64_t>& rows = *r.wanted;
    if (static_cast<int64_t>(rows.size()) == r.step->rows) return;
    share(r, first, static_cast<int64_t>(kept.size()), 1, [&](int64_t i, int64_t) {
      const auto [buffer, width] = kept[static_cast<size_t>(i)];
      float* y = r.buffer[buffer];
      for (size_t t = 0; t < rows.size(); ++t)
        if (rows[t] != static_cast<int64_t>(t)) std::copy_n(y + rows[t] * width, width, y + static_cast<int64_t>(t) * width);
    });
  }
};

}  // namespace fh
