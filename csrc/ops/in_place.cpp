// Small changes of rows in place, between a projection and what reads it: rotation alone, clipping, scales, sums, products.
// Knows rows and positions; a few kilobytes a token, bound by memory.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>

#include "ops/angles.h"
#include "ops/record.h"

namespace fh {
namespace {

// A rotation that a norm follows, so that rope_store() cannot do both.
struct Rotate final : Op {
  int x; int64_t k; int width; const Angles* table;
  void run(Run& r, int) override {
    each_row(r, first, r.step->rows, [&](int64_t t) { table->turn(r, r.buffer[x] + t * k, static_cast<int>(k / width), width, t); });
  }
};

void rotate(Plan& plan, int x, std::shared_ptr<const Rope> rope, int width) {
  const int64_t k = plan.width_of(x);
  if (width < 1 || k % width) refuse("rotate() in heads of " + std::to_string(width) + " over rows of " + std::to_string(k));
  check_rope(*rope, width);
  auto op = std::make_unique<Rotate>();
  op->x = x;
  op->k = k;
  op->width = width;
  op->table = angles(plan, std::move(rope));
  op->reads = {x};
  plan.add(std::move(op));
}
FREEHOLD_OP(rotate, "Rotate the heads of every row by its position, in place.", "x"_a, "rope"_a, "width"_a)

struct Clamp final : Op {
  int x; float limit, low; int64_t k;
  void run(Run& r, int) override {
    each_row(r, first, r.step->rows, [&](int64_t t) {
      float* y = r.buffer[x] + t * k;
      for (int64_t i = 0; i < k; ++i) y[i] = y[i] > limit ? limit : y[i] < low ? low : y[i];   // NaN stays
    });
  }
};

void clamp(Plan& plan, int x, float limit, std::optional<float> low) {
  if (!low && !(limit > 0.0f)) refuse("clamp() needs a limit above 0");
  if (low && !(*low <= limit)) refuse("clamp() to [" + std::to_string(*low) + ", " + std::to_string(limit) + "], which holds nothing");
  auto op = std::make_unique<Clamp>();
  op->x = x;
  op->limit = limit;
  op->low = low.value_or(-limit);
  op->k = plan.width_of(x);
  op->reads = {x};
  plan.add(std::move(op));
}
FREEHOLD_OP(clamp, "Limit every value to [low, limit], in place; `low` is -limit unless given.", "x"_a, "limit"_a, "low"_a = nanobind::none())

struct Gelu final : Op {
  int x; int64_t k;
  void run(Run& r, int) override {
    each_row(r, first, r.step->rows, [&](int64_t t) { r.k->gelu_erf(r.buffer[x] + t * k, k); });
  }
};

void gelu(Plan& plan, int x) {
  auto op = std::make_unique<Gelu>();
  op->x = x;
  op->k = plan.width_of(x);
  if (op->k % 16) refuse("gelu() of rows of " + std::to_string(op->k) + " inputs, which 16 does not divide");
  op->reads = {x};
  plan.add(std::move(op));
}
FREEHOLD_OP(gelu, "GELU of every value in its exact form, in place.", "x"_a)

// exp(x) - 1 - x for x <= 0: with n = round(x / ln 2) and r = x - n ln 2, exp(x) = 2^n (1 + r + r^2 q(r)), by the polynomial of
// kernels/functions.inl. Where n is 0 that is r^2 q(r), and nothing cancels.
inline float exp_beyond(float x) {
  const float z = x >= -104.0f ? x : -104.0f;                // so does NaN, which the last term brings back
  const int32_t n = static_cast<int32_t>(z * 1.44269504f - 0.5f);
  const float whole = static_cast<float>(n);
  const float r = (z - whole * 0.693359375f) - whole * -2.12194440e-4f;
  float q = 1.381455804e-3f;
  q = q * r + 8.368736133e-3f;
  q = q * r + 4.166838899e-2f;
  q = q * r + 0.1666652113f;
  q = q * r + 0.4999999404f;
  const float above = r * r * q;
  const uint32_t bits = static_cast<uint32_t>(n < -126 ? 0 : n + 127) << 23;   // 2^n; nothing below the least normal one
  float scale;
  std::memcpy(&scale, &bits, 4);
  return n == 0 ? above : scale * (above + r + 1.0f) - 1.0f - x;
}

struct Xielu final : Op {
  int x; float positive, negative, beta, eps; int64_t k;
  void run(Run& r, int) override {
    each_row(r, first, r.step->rows, [&](int64_t t) {
      float* y = r.buffer[x] + t * k;
      for (int64_t i = 0; i < k; ++i) {
        const float v = y[i], low = v > eps ? eps : v;
        y[i] = (v > 0.0f ? positive * v * v : (exp_beyond(low) + (low - v)) * negative) + beta * v;
      }
    });
  }
};

void xielu(Plan& plan, int x, float positive, float negative, float beta, float eps) {
  if (!(eps <= 0.0f && std::isfinite(positive) && std::isfinite(negative) && std::isfinite(beta))) refuse("xielu() needs finite factors and an eps of 0 or less");
  auto op = std::make_unique<Xielu>();
  op->x = x;
  op->positive = positive;
  op->negative = negative;
  op->beta = beta;
  op->eps = eps;
  op->k = plan.width_of(x);
  op->reads = {x};
  plan.add(std::move(op));
}
FREEHOLD_OP(xielu,
            "xIELU of every value, in place.\n\n"
            "Above 0 it is positive * x^2 + beta * x, else negative * (exp(min(x, eps)) - 1 - x) + beta * x.\n"
            "Source: arXiv 2411.13010.",
            "x"_a, "positive"_a, "negative"_a, "beta"_a, "eps"_a)

// Attention thins out over more keys than training showed it: queries far back are scaled up.
struct Temper final : Op {
  int x; float beta; int original, shift; int64_t k;
  void run(Run& r, int) override {
    each_row(r, first, r.step->rows, [&](int64_t t) {
      const int64_t times = (int64_t{r.step->positions[t]} + shift) / original;
      if (times) r.k->scale(r.buffer[x] + t * k, static_cast<float>(1.0 + beta * std::log1p(static_cast<double>(times))), k);
    });
  }
};

void temper(Plan& plan, int x, float beta, int original, int shift) {
  if (original < 1 || shift < 0) refuse("temper() needs an original length of 1 or more and a shift of 0 or more");
  auto op = std::make_unique<Temper>();
  op->x = x;
  op->beta = beta;
  op->original = original;
  op->shift = shift;
  op->k = plan.width_of(x);
  op->reads = {x};
  plan.add(std::move(op));
}
FREEHOLD_OP(temper, "x *= 1 + beta * ln(1 + floor((position + shift) / original)), in place.", "x"_a, "beta"_a, "original"_a, "shift"_a = 0)

struct ScaleRows final : Op {
  int x; float factor; int64_t k;
  void run(Run& r, int) override {
    each_row(r, first, r.step->rows, [&](int64_t t) { r.k->scale(r.buffer[x] + t * k, factor, k); });
  }
};

void scale(Plan& plan, int x, float factor) {
  auto op = std::make_unique<ScaleRows>();
  op->x = x;
  op->factor = factor;
  op->k = plan.width_of(x);
  op->reads = {x};
  plan.add(std::move(op));
}
FREEHOLD_OP(scale, "x *= factor, in place.", "x"_a, "factor"_a)

struct AddRows final : Op {
  int x, y; int64_t k, of, at;                // of: width of x, all of which from `at` on grows by y, k wide
  void run(Run& r, int) override {
    each_row(r, first, r.step->rows, [&](int64_t t) {
      for (int64_t i = at; i < of; i += k) r.k->add(r.buffer[x] + t * of + i, r.buffer[y] + t * k, k);
    });
  }
};

void add(Plan& plan, int x, int y, int64_t at) {
  const int64_t of = plan.width_of(x), k = plan.width_of(y);
  if (at < 0 && of != k) refuse("add() of " + std::to_string(k) + " inputs to " + std::to_string(of) + " without `at`");
  at = std::max<int64_t>(at, 0);
  if (at >= of || (of - at) % k) refuse("add() of " + std::to_string(k) + " inputs to those from " + std::to_string(at) + " on of " + std::to_string(of));
  auto op = std::make_unique<AddRows>();
  op->x = x;
  op->y = y;
  op->k = k;
  op->of = of;
  op->at = at;
  op->reads = {x, y};
  plan.add(std::move(op));
}
FREEHOLD_OP(add, "x += y in place, as wide as each other; with `at`: y to every part of x as wide as y, from `at` on.", "x"_a, "y"_a, "at"_a = -1)

struct MultiplyRows final : Op {
  int x, y; int64_t k, of, at;                // `of`: width of y, whose part at `at` is read
  void run(Run& r, int) override {
    each_row(r, first, r.step->rows, [&](int64_t t) {
      float* to = r.buffer[x] + t * k;
      const float* by = r.buffer[y] + t * of + at;
      for (int64_t i = 0; i < k; ++i) to[i] *= by[i];
    });
  }
};

void multiply(Plan& plan, int x, int y, int64_t at) {
  const int64_t k = plan.width_of(x), of = plan.width_of(y);
  if (at < 0 || at > of - k) refuse("multiply() by " + std::to_string(k) + " inputs from " + std::to_string(at) + " on of " + std::to_string(of));
  auto op = std::make_unique<MultiplyRows>();
  op->x = x;
  op->y = y;
  op->k = k;
  op->of = of;
  op->at = at;
  op->reads = {x, y};
  plan.add(std::move(op));
}
FREEHOLD_OP(multiply, "x *= the part of y that begins at `at`, in place.", "x"_a, "y"_a, "at"_a = 0)

}  // namespace
}  // namespace fh
