// Bidirectional attention: each row over all rows of its sequence in this step. Nothing is kept for another step.
#include "ops/record.h"

namespace fh {
namespace {

// One for all layers, of which one is computed at a time: packed keys and values, and what a thread computes with.
struct BothRooms {
  AlignedFloats packed;
  std::vector<AlignedFloats> scratch;         // by thread
};

// Keys and values of the heads are packed first, some rows an item; then queries are computed, some of one head an item. Bits
// depend on neither, so items are small enough for all threads to have some.
struct AttendBoth final : Op {
  int q, k, v, out, heads, d, head, count; float scale; bool rounds;   // heads [head, head + count)
  BothRooms* rooms;
  struct Item { int64_t segment; int head; int64_t at, rows; };      // keys, or queries, of a sequence
  struct Deal {
    std::vector<Item> packs, items;
    std::vector<int64_t> packed;                                     // by segment: floats before those of its first head; -1: unused
  } deals[Threads::kSeats];

  Sees sees() const override { return Sees::All; }
  const BothKernel& kernel(const Run& r) const { return rounds ? r.k->both_rounded : r.k->both; }
  // Queries of a segment that this run computes.
  static std::pair<int64_t, int64_t> queries(const Run& r, const Segment& s) {
    return {std::max(s.row, r.begin) - s.row, std::min(s.row + s.rows, r.end) - s.row};
  }
  void prepare(const Run& r) override {
    Deal& deal = deals[r.seat];
    deal.packs.clear();
    deal.items.clear();
    deal.packed.assign(r.segments.size(), -1);
    const BothKernel& both = kernel(r);
    // Four items a thread, or as many as a call takes.
    const int64_t each = std::clamp<int64_t>(((r.end - r.begin) * count / (4 * r.active) + 31) / 32 * 32, 32, kBothMost);
    int64_t total = 0, longest = 0;
    for (size_t s = 0; s < r.segments.size(); ++s) {
      const int64_t rows = r.segments[s].rows, number = static_cast<int64_t>(s);
      const auto [begin, end] = queries(r, r.segments[s]);
      if (begin >= end) continue;
      deal.packed[s] = total;
      total += room(both, rows) * count;
      longest = std::max(longest, rows);
      for (int h = head; h < head + count; ++h) {
        for (int64_t j = 0; j < rows; j += kBothPacked) deal.packs.push_back({number, h, j, std::min<int64_t>(kBothPacked, rows - j)});
        for (int64_t i = begin; i < end; i += each) deal.items.push_back({number, h, i, std::min(each, end - i)});
      }
    }
    // The longest sequences come first, so that threads end together.
    std::stable_sort(deal.items.begin(), deal.items.end(), [&](const Item& a, const Item& b) { return rows_of(r, a) > rows_of(r, b); });
    rooms->packed.grow(total);
    rooms->scratch.resize(static_cast<size_t>(r.threads->size()));
    for (auto& s : rooms->scratch) s.grow(both.scratch(longest, d));
  }
  int64_t room(const BothKernel& both, int64_t rows) const { return (both.packed(rows, d) + 15) / 16 * 16; }
  static int64_t rows_of(const Run& r, const Item& it) { return r.segments[static_cast<size_t>(it.segment)].rows; }
  void run(Run& r, int thread) override {
    const Deal& deal = deals[r.seat];
    const BothKernel& both = kernel(r);
    const auto packed = [&](const Item& it) {
      return rooms->packed.data() + deal.packed[static_cast<size_t>(it.segment)] + (it.head - head) * room(both, rows_of(r, it));
    };
    const auto each = [&](Phase& phase, const std::vector<Item>& items, auto f) {
      share(r, phase, static_cast<int64_t>(items.size()), 1, [&](int64_t i, int64_t) { f(items[static_cast<size_t>(i)]); });
    };
    each(first, deal.packs, [&](const Item& it) { both.pack(args(r, it), it.at, it.at + it.rows, packed(it)); });
    float* const scratch = rooms->scratch[static_cast<size_t>(thread)].data();
    each(second, deal.items, [&](const Item& it) { both.attend(args(r, it), packed(it), it.at, it.rows, scratch); });
  }
  BothArgs args(const Run& r, const Item& it) const {
    const Segment& seg = r.segments[static_cast<size_t>(it.segment)];
    const int64_t stride = int64_t{heads} * d, at = seg.row * stride + int64_t{it.head} * d;
    return {r.buffer[q] + at, r.buffer[k] + at, r.buffer[v] + at, r.buffer[out] + at, stride, seg.rows, d, scale};
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
  op->rounds = plan.rounds;
  op->rooms = &plan.shared<BothRooms>();
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
