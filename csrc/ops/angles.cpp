// The op that fills a step's cosines and sines, and the plan's list of them.
#include "ops/angles.h"

#include <cmath>

namespace fh {
namespace {

struct AllAngles { std::vector<const Angles*> ops; };

// Rows keep the places they had in the whole step, so it does not matter on which side of the narrowing an op turns.
size_t place(const Run& r, int64_t t) { return static_cast<size_t>(r.origin ? (*r.origin)[static_cast<size_t>(t)] : t + r.offset); }

}  // namespace

void Angles::allocate(int64_t max_rows, int) {
  cos.resize(static_cast<size_t>(max_rows) * rope->inv_freq.size());
  sin.resize(cos.size());
}

void Angles::run(Run& r, int) {
  const size_t half = rope->inv_freq.size();
  each_row(r, first, r.step->rows, [&](int64_t t) {
    const size_t at = place(r, t) * half;
    for (size_t i = 0; i < half; ++i) {
      const int32_t turns = rope->axes.empty() || !r.step->places ? r.step->positions[t] : r.step->places[3 * t + rope->axes[i]];
      const double angle = static_cast<double>(turns) * static_cast<double>(rope->inv_freq[i]);
      cos[at + i] = static_cast<float>(std::cos(angle)) * rope->factor;
      sin[at + i] = static_cast<float>(std::sin(angle)) * rope->factor;
    }
  });
}

void Angles::turn(const Run& r, float* x, int n, int d, int64_t t) const {
  const size_t half = rope->inv_freq.size(), at = place(r, t) * half;
  r.k->rope(x, n, d, static_cast<int>(2 * half), cos.data() + at, sin.data() + at, rope->adjacent);
}

const Angles* angles(Plan& plan, std::shared_ptr<const Rope> rope) {
  auto& all = plan.shared<AllAngles>().ops;
  for (const Angles* op : all)
    if (op->rope == rope) return op;
  auto op = std::make_unique<Angles>();
  op->rope = std::move(rope);
  return all.emplace_back(&plan.add(std::move(op)));
}

void check_rope(const Rope& rope, int width) {
  if (rope.inv_freq.empty() || static_cast<int64_t>(2 * rope.inv_freq.size()) > width) refuse("a rope wider than its heads");
  if (rope.axes.empty()) return;
  if (rope.axes.size() != rope.inv_freq.size()) refuse("a rope of " + std::to_string(rope.inv_freq.size()) + " pairs with " + std::to_string(rope.axes.size()) + " axes");
  for (uint8_t axis : rope.axes)
    if (axis > 2) refuse("a rope's axis is " + std::to_string(axis) + "; a place has three numbers");
}

}  // namespace fh
