// Where residual streams begin and end: one row becomes several, and several one; and parts of rows.
// Knows rows; a few kilobytes a token, bound by memory.
#include <algorithm>
#include <cmath>

#include "ops/record.h"
#include "ops/streams.h"

namespace fh {
namespace {

struct Part final : Op {
  int x, out; int64_t k, at, width;           // k: width of x
  void run(Run& r, int) override {
    each_row(r, first, r.step->rows, [&](int64_t t) {
      const float* from = r.buffer[x] + t * k + at;
      std::copy(from, from + width, r.buffer[out] + t * width);
    });
  }
};

int part(Plan& plan, int x, int64_t at, int64_t width) {
  const int64_t k = plan.width_of(x);
  if (at < 0 || width < 1 || at > k - width) refuse("part() of " + std::to_string(width) + " inputs from " + std::to_string(at) + " on of " + std::to_string(k));
  auto op = std::make_unique<Part>();
  op->x = x;
  op->k = k;
  op->at = at;
  op->width = width;
  op->out = plan.buffer(width);
  op->reads.push_back(x);
  op->writes.push_back(op->out);
  return plan.add(std::move(op)).out;
}
FREEHOLD_OP(part, "A copy of `width` inputs of every row, from `at` on.", "x"_a, "at"_a, "width"_a)

struct Join final : Op {
  int x, y, out; int64_t k, n;                // k, n: widths of x and y
  void run(Run& r, int) override {
    each_row(r, first, r.step->rows, [&](int64_t t) {
      float* to = r.buffer[out] + t * (k + n);
      std::copy_n(r.buffer[x] + t * k, k, to);
      std::copy_n(r.buffer[y] + t * n, n, to + k);
    });
  }
};

int join(Plan& plan, int x, int y) {
  auto op = std::make_unique<Join>();
  op->x = x;
  op->y = y;
  op->k = plan.width_of(x);
  op->n = plan.width_of(y);
  op->out = plan.buffer(op->k + op->n);
  op->reads = {x, y};
  op->writes.push_back(op->out);
  return plan.add(std::move(op)).out;
}
FREEHOLD_OP(join, "Rows of x and y side by side.", "x"_a, "y"_a)

// Streams after the first one, scaled to its root mean square.
struct Beside : Op {
  int x, others, out; int64_t k, n; float least;   // n: streams with the first; least: of a mean square that divides
  float factor(float size, const float* stream) const { return size / std::sqrt(std::max(mean_square(stream, k), least)); }
};

struct Spread final : Beside {
  void run(Run& r, int) override {
    each_row(r, first, r.step->rows, [&](int64_t t) {
      const float *row = r.buffer[x] + t * k, *from = r.buffer[others] + t * (n - 1) * k;
      float* to = r.buffer[out] + t * n * k;
      const float size = std::sqrt(mean_square(row, k));
      std::copy(row, row + k, to);
      for (int64_t j = 1; j < n; ++j, from += k) {
        const float by = factor(size, from);
        for (int64_t i = 0; i < k; ++i) to[j * k + i] = from[i] * by;
      }
    });
  }
};

struct Merge final : Beside {
  void run(Run& r, int) override {
    each_row(r, first, r.step->rows, [&](int64_t t) {
      const float *row = r.buffer[x] + t * n * k, *from = r.buffer[others] + t * (n - 1) * k;
      float* to = r.buffer[out] + t * k;
      const float size = std::sqrt(mean_square(row, k));
      std::copy(row, row + k, to);
      for (int64_t j = 1; j < n; ++j, from += k) {
        const float by = factor(size, from);
        for (int64_t i = 0; i < k; ++i) to[i] += from[i] * by;
      }
      r.k->scale(to, 1.0f / static_cast<float>(n), k);
    });
  }
};

template <class T> std::unique_ptr<T> beside(Plan& plan, int x, int others, float least, int64_t k, int64_t n) {
  if (k % kStreamLanes) refuse("streams of " + std::to_string(k) + ", which are no multiple of " + std::to_string(kStreamLanes));
  plan.want_width(others, (n - 1) * k, "the streams beside the first");
  if (!(least > 0.0f)) refuse("a least mean square above 0 is needed");
  auto op = std::make_unique<T>();
  op->x = x;
  op->others = others;
  op->k = k;
  op->n = n;
  op->least = least;
  op->reads = {x, others};
  return op;
}

int spread(Plan& plan, int x, int others, float least) {
  const int64_t k = plan.width_of(x), wide = plan.width_of(others);
  auto op = beside<Spread>(plan, x, others, least, k, wide / k + 1);
  op->out = plan.buffer(k + wide);
  op->writes.push_back(op->out);
  return plan.add(std::move(op)).out;
}
FREEHOLD_OP(spread, "Streams: x, then parts of `others` as wide as x, each scaled to the root mean square of x.\n\n"
            "`least`: of the mean square of a part.",
            "x"_a, "others"_a, "least"_a)

int merge(Plan& plan, int x, int others, float least) {
  const int64_t k = plan.width_of(x) - plan.width_of(others);
  if (k < 1 || plan.width_of(x) % k) refuse("merge() of streams whose rows do not fit");
  auto op = beside<Merge>(plan, x, others, least, k, plan.width_of(x) / k);
  op->out = plan.buffer(k);
  op->writes.push_back(op->out);
  return plan.add(std::move(op)).out;
}
FREEHOLD_OP(merge, "The mean of the first stream of x and of parts of `others`, each scaled to its root mean square.\n\n"
            "`least`: of the mean square of a part.",
            "x"_a, "others"_a, "least"_a)

}  // namespace
}  // namespace fh
