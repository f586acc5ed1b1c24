// Adapters, and their share of a matmul op. See low_rank.h.
#include "ops/low_rank.h"

#include <algorithm>
#include <cmath>

namespace fh {

void Adapter::add(MatrixPtr w, Pair pair) {
  const auto shape = [](const Panels& m) { return std::to_string(m.n) + " x " + std::to_string(m.k); };
  const Panels &m = w->w, &a = pair.a->w, &b = pair.b->w;
  if (a.k != m.k || b.n != m.n || b.k != a.n || a.n % kPanelRows)
    refuse("an adapter of " + shape(a) + " and " + shape(b) + " for a matrix of " + shape(m));
  if (traits(a.type).act() != kActF32 || traits(b.type).act() != kActF32) refuse("an adapter's matrices are floats");
  if (!std::isfinite(pair.scale)) refuse("an adapter's scale is not finite");
  if (!pairs_.emplace(std::move(w), std::move(pair)).second) refuse("an adapter changes one matrix twice");
}

const Adapter::Pair* Adapter::find(const MatrixPtr& w) const {
  const auto found = pairs_.find(w);
  return found == pairs_.end() ? nullptr : &found->second;
}

int64_t Adapter::bytes() const {
  int64_t sum = 0;
  for (const auto& [w, pair] : pairs_) sum += pair.a->bytes() + pair.b->bytes();
  return sum;
}

void LowRank::prepare(const Run& r, const Input& in, const std::vector<MatrixPtr>& weights) {
  Deal& deal = deals[r.seat];
  deal.parts.clear();
  deal.items.clear();
  if (r.adapted.empty()) return;
  phase.reset(r.seat);
  int64_t room = 0;
  for (size_t i = 0; i < weights.size(); ++i)
    for (const Adapted& a : r.adapted)
      if (const Adapter::Pair* pair = a.adapter->find(weights[i])) {
        deal.parts.push_back({i, pair, a.row, a.rows, room});
        room += a.rows * pair->a->w.n;
        for (int64_t row = 0; row < a.rows; row += kRows)
          for (int64_t p = 0; p < pair->a->w.count(); ++p)
            deal.items.push_back({deal.parts.size() - 1, a.row + row, std::min(kRows, a.rows - row), p});
      }
  if (in.scratch->low.size() < static_cast<size_t>(room)) in.scratch->low.resize(static_cast<size_t>(room));
}

void LowRank::reduce(const Run& r, const Input& in) {
  const Deal& deal = deals[r.seat];
  if (deal.items.empty()) return;
  share(r, phase, static_cast<int64_t>(deal.items.size()), 1, [&](int64_t i, int64_t) {
    const Item& item = deal.items[static_cast<size_t>(i)];
    const Part& part = deal.parts[item.part];
    const Panels& a = part.pair->a->w;
    float* out = in.scratch->low.data() + part.at + (item.row - part.row) * a.n + item.panel * kPanelRows;
    Acts x;
    x.k = in.k;
    x.f32 = in.floats(r);
    r.k->panel[static_cast<int>(a.type)](a, item.panel, x, item.row, item.rows, out, a.n);
    for (int64_t t = 0; t < item.rows; ++t) r.k->scale(out + t * a.n, part.pair->scale, kPanelRows);
  });
}

void LowRank::expand(const Run& r, const Input& in, size_t matrix, int64_t p0, int64_t p1, int64_t t0, int64_t nt, float* y) const {
  for (const Part& part : deals[r.seat].parts) {
    const int64_t begin = std::max(t0, part.row), end = std::min(t0 + nt, part.row + part.rows);
    if (part.matrix != matrix || begin >= end) continue;
    const Panels& b = part.pair->b->w;
    Acts x;
    x.k = b.k;
    x.f32 = in.scratch->low.data() + part.at;
    alignas(64) float sums[kTileTokens * kPanelRows];
    for (int64_t p = p0; p < p1; ++p)
      for (int64_t t = begin; t < end; t += kTileTokens) {
        const int64_t n = std::min<int64_t>(kTileTokens, end - t);
        r.k->panel[static_cast<int>(b.type)](b, p, x, t - part.row, n, sums, kPanelRows);
        r.k->add(y + ((p - p0) * nt + t - t0) * kPanelRows, sums, n * kPanelRows);
      }
  }
}

}  // namespace fh
