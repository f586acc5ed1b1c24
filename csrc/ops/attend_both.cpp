// Bidirectional attention: each row over all rows of its sequence in this step. Nothing is kept for another step.
#include "ops/record.h"

namespace fh {
namespace {

// One item: all rows of one sequence, one head. The longest sequences come first, so that threads end together.
struct AttendBoth final : Op {
  int q, k, v, out, heads, d, head, count; float scale;               // heads [head, head + count)
  std::vector<std::pair<int32_t, int32_t>> items[Threads::kSeats];   // segment, head
  std::vector<std::vector<float>> scratch;                            // by thread
  void prepare(const Run& r) override {
    auto& list = items[r.seat];
    list.clear();
    int64_t longest = 0;
    for (size_t s = 0; s < r.segments.size(); ++s) {
      longest = std::max(longest, r.segments[s].rows);
      for (int h = head; h < head + count; ++h) list.emplace_back(static_cast<int32_t>(s), h);
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

int attend_both(Plan& plan, int q, int k, int v, int heads, float scale, int first, int count, int into) {
  const int64_t width = plan.width_of(q);
  plan.want_width(k, width, "the keys");
  plan.want_width(v, width, "the values");
  if (heads < 1 || width % heads || width / heads < 16) refuse("heads must divide rows of " + std::to_string(width) + " into 16 columns or more each");
  if (!(scale > 0.0f)) refuse("scores need a scale above 0");
  auto op = std::make_unique<AttendBoth>();
  op->q = q; op->k = k; op->v = v;
  op->heads = heads;
  op->d = static_cast<int>(width / heads);
  op->scale = scale;
  op->head = first;
  op->count = count ? count : heads - first;
  if (first < 0 || op->count < 1 || op->head + op->count > heads) refuse("heads " + std::to_string(first) + " to " + std::to_string(first + count) + " of " + std::to_string(heads));
  if (into >= 0) plan.want_width(into, width, "what other heads gave");
  op->out = into < 0 ? plan.buffer(width) : into;
  op->reads = {q, k, v};
  op->writes = {op->out};
  return plan.add(std::move(op)).out;
}
FREEHOLD_OP(attend_both, "Attention of each row over all rows of its sequence in this step; heads of 16 columns or more.\n\n"
            "`first`, `count`: some of the heads (0: all from `first` on); their columns of `into` are written, or a buffer.",
            "q"_a, "k"_a, "v"_a, "heads"_a, "scale"_a, "first"_a = 0, "count"_a = 0, "into"_a = -1)

}  // namespace
}  // namespace fh
