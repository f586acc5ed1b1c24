// The ops of an encoder, running: rows of a sequence see each other, nothing is kept for another step.
// Knows rows and segments; every sum is a kernel's. Included by plan.cpp alone, as ops.h is.
#pragma once
#include <vector>

#include "ops.h"

namespace fh {

// x = words[token] + positions[position] + kinds[0]: a text by itself is the first segment.
struct EmbedSum final : Op {
  MatrixPtr words, positions; std::vector<float> kind; int out;
  std::vector<std::vector<float>> rows;       // by thread: one row of `positions`
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

struct LayerNorm final : Op {
  int x; Vector weight, bias; float eps; int64_t k;
  void run(Run& r, int) override {
    each_row(r, first, r.step->rows, [&](int64_t t) {
      float* y = r.buffer[x] + t * k;
      r.k->layer_norm(y, weight->data(), bias->data(), eps, k, y);
    });
  }
};

// One item: all rows of one sequence, one head. The longest sequences come first, so that threads end together.
struct AttendBoth final : Op {
  int q, k, v, out, heads, d; float scale;
  std::vector<std::pair<int32_t, int32_t>> items[Threads::kSeats];   // segment, head
  std::vector<std::vector<float>> scratch;                            // by thread
  void prepare(const Run& r) override {
    auto& list = items[r.seat];
    list.clear();
    int64_t longest = 0;
    for (size_t s = 0; s < r.segments.size(); ++s) {
      longest = std::max(longest, r.segments[s].rows);
      for (int h = 0; h < heads; ++h) list.emplace_back(static_cast<int32_t>(s), h);
    }
    std::stable_sort(list.begin(), list.end(), [&](const auto& a, const auto& b) {
      return r.segments[static_cast<size_t>(a.first)].rows > r.segments[static_cast<size_t>(b.first)].rows;
    });
    const auto room = static_cast<size_t>(both_scratch(longest, d));
    scratch.resize(static_cast<size_t>(r.threads->size()));
    for (auto& s : scratch) if (s.size() < room) s.resize(room);
  }
  void run(Run& r, int thread) override {
    const auto& list = items[r.seat];
    share(r, first, static_cast<int64_t>(list.size()), 1, [&](int64_t i, int64_t) {
      const auto [s, h] = list[static_cast<size_t>(i)];
      const Segment& seg = r.segments[static_cast<size_t>(s)];
      const int64_t stride = int64_t{heads} * d, at = seg.row * stride + int64_t{h} * d;
      const BothArgs a{r.buffer[q] + at, r.buffer[k] + at, r.buffer[v] + at, r.buffer[out] + at, stride, seg.rows, d, scale};
      r.k->attend_both(a, scratch[static_cast<size_t>(thread)].data());
    });
  }
};

// The last op of an encoder's plan: rows that a step asks for, as they are.
struct Hidden final : Op {
  int x; int64_t k;
  void run(Run& r, int) override {
    const Step& s = *r.step;
    each_row(r, first, s.nhidden, [&](int64_t t) { std::copy_n(r.buffer[x] + s.hidden_rows[t] * k, k, s.hidden + t * k); });
  }
};

}  // namespace fh
