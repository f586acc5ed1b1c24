// Causal attention over the cache's pages.
#include <algorithm>
#include <cmath>

#include "ops/record.h"
#include "ops/spans.h"

namespace fh {
namespace {

// One for all layers, of which one is computed at a time: of 28 layers' own rooms a prompt's tail at 32k positions took 900 MB.
struct AttentionRooms {
  std::vector<std::vector<float>> local;      // by thread: running and partial of one item
  std::vector<float> partials;                // split: [item][span][rows * group][2 + dv]
};

// One item: some rows of one sequence, one kv head.
struct Attention final : Op {
  int layer, q, out, heads, window, chunk; KvLayer shape; float scale, softcap;
  bool both;                                  // rows see up to Step::ends, where a step has them
  int until;                                  // > 0: every row sees the keys before this position, and no other
  std::vector<int32_t> untils;                // [max_rows], each of them `until`
  MaybeVector sinks;                          // a logit for each head that joins the sum of weights, and no value
  struct Item { Segment seg; int64_t row, rows; int head, first_span, spans; int64_t partial; };
  SpanDeal<Item> deals[Threads::kSeats];      // a step's work
  AttentionRooms* rooms;

  int64_t unit(int64_t rows) const { return rows * (heads / shape.kv_heads) * (2 + shape.dv); }
  int64_t tile_rows() const { return std::max(1, kAttnTileQueries / (heads / shape.kv_heads)); }
  // How many of `rows` from position `first` on are an item: all of one chunk; alone where a chunk begins inside a span, so
  // that its own window hides the span's other keys.
  int64_t together(int64_t first, int64_t rows) const {
    rows = std::min(tile_rows(), rows);
    if (!chunk) return rows;
    return chunk % kSpanTokens ? 1 : std::min(rows, chunk - first % chunk);
  }
  int64_t first_seen(int64_t position) const {
    if (chunk) return position / chunk * chunk;
    return window ? std::max<int64_t>(0, position - window + 1) : 0;
  }
  // The last position that any of `count` rows from `row` on sees.
  int64_t last_seen(const Run& r, const Segment& seg, int64_t row, int64_t count) const {
    if (until) return until - 1;
    const int64_t own = seg.position + row + count - 1;
    if (!both || !r.step->ends) return own;
    const int32_t* ends = r.step->ends + seg.row + row;
    return std::max<int64_t>(own, *std::max_element(ends, ends + count) - 1);
  }
  void allocate(int64_t rows, int threads) override {
    if (until) untils.assign(static_cast<size_t>(rows), until);
    rooms->local.resize(static_cast<size_t>(threads));
    for (auto& l : rooms->local) l.resize(std::max(l.size(), static_cast<size_t>(2 * unit(tile_rows()))));
  }
  void validate(const Step& s) const override {
    for (int64_t t = 0; until && t < s.rows; ++t)
      if (s.positions[t] < until) refuse("row " + std::to_string(t) + " lies before position " + std::to_string(until) + ", which it is to see keys up to");
  }
  void prepare(const Run& r) override {
    SpanDeal<Item>& deal = deals[r.seat];
    deal.clear();
    for (const Segment& seg : r.segments)
      for (int64_t row = 0, count; row < seg.rows; row += count) {
        const int64_t first = seg.position + row;
        count = together(first, seg.rows - row);
        const int64_t last = last_seen(r, seg, row, count);
        for (int h = 0; h < shape.kv_heads; ++h) {
          Item it{seg, row, count, h, 0, 0, 0};
          it.first_span = static_cast<int>(first_seen(first) / kSpanTokens);
          it.spans = static_cast<int>(last / kSpanTokens) + 1 - it.first_span;
          deal.add(it, unit(it.rows));
        }
      }
    deal.deal(r.active);
    if (deal.split) rooms->partials.resize(std::max(rooms->partials.size(), static_cast<size_t>(deal.total)));
  }
  AttnArgs args(const Run& r, const Item& it) const {
    AttnArgs a;
    a.q_stride = heads * shape.d;
    a.out_stride = heads * shape.dv;
    a.q = r.buffer[q] + it.seg.row * a.q_stride;
    a.out = r.buffer[out] + it.seg.row * a.out_stride;
    a.pages = r.cache->pages(layer);
    a.block_bytes = r.cache->stride(layer);
    a.block_table = (r.cache->windowed(layer) ? r.step->window_tables : r.step->block_tables) + it.seg.seq * r.step->table_width;
    a.heads = heads;
    a.kv_heads = shape.kv_heads;
    a.d = shape.d;
    a.dv = shape.dv;
    a.scale = scale;
    a.softcap = softcap;
    a.window = window;
    if (chunk % kSpanTokens) a.window = static_cast<int>((it.seg.position + it.row) % chunk + 1);
    a.first_position = it.seg.position;
    a.ends = until ? untils.data() : both && r.step->ends ? r.step->ends + it.seg.row : nullptr;
    a.type = r.cache->type();
    return a;
  }
  void start(float* running, int64_t count) const {
    std::fill_n(running, count * (2 + shape.dv), 0.0f);
    for (int64_t i = 0; i < count; ++i) running[i * (2 + shape.dv)] = -INFINITY;
  }
  // m of a running softmax is in bits: see attend_span.
  void add_sinks(const Item& it, float* running) const {
    const int64_t group = heads / shape.kv_heads;
    const float* sink = sinks->data() + it.head * group;
    for (int64_t i = 0; i < it.rows * group; ++i) {
      float* at = running + i * (2 + shape.dv);
      at[1] += std::exp2(sink[i % group] * static_cast<float>(M_LOG2E) - at[0]);
    }
  }
  void end(const Run& r, const AttnArgs& a, const Item& it, float* running) const {
    const int64_t group = heads / shape.kv_heads;
    if (sinks) add_sinks(it, running);
    for (int64_t i = 0; i < it.rows; ++i)
      r.k->attend_finish(a, it.head, static_cast<int>(it.row + i), running + i * group * (2 + shape.dv));
  }
  void whole(const Run& r, const Item& it, float* scratch) const {
    const AttnArgs a = args(r, it);
    const int64_t count = it.rows * (heads / shape.kv_heads);
    float* partial = scratch + unit(tile_rows());
    start(scratch, count);
    for (int s = 0; s < it.spans; ++s) {
      r.k->attend_span(a, it.head, static_cast<int>(it.row), static_cast<int>(it.rows), it.first_span + s, partial);
      r.k->attend_merge(scratch, partial, static_cast<int>(count), shape.dv);
    }
    end(r, a, it, scratch);
  }
  void run(Run& r, int thread) override {
    float* scratch = rooms->local[static_cast<size_t>(thread)].data();
    const SpanDeal<Item>& deal = deals[r.seat];
    if (!deal.split) return deal.each_item(r, first, [&](const Item& it) { whole(r, it, scratch); });
    const auto partial = [&](const Item& it, int64_t s) { return rooms->partials.data() + it.partial + s * unit(it.rows); };
    deal.each_piece(r, first, [&](const Item& it, int s) {
      r.k->attend_span(args(r, it), it.head, static_cast<int>(it.row), static_cast<int>(it.rows), it.first_span + s, partial(it, s));
    });
    deal.each_item(r, second, [&](const Item& it) {
      const int64_t count = it.rows * (heads / shape.kv_heads);
      start(scratch, count);
      for (int s = 0; s < it.spans; ++s) r.k->attend_merge(scratch, partial(it, s), static_cast<int>(count), shape.dv);
      end(r, args(r, it), it, scratch);
    });
  }
};

int attention(Plan& plan, int layer, int q, float scale, int window, float softcap, MaybeVector sinks, int chunk, bool both, int until) {
  const KvLayer& shape = plan.want_layer(layer);
  if (window < 0 || chunk < 0) refuse("a window or chunk must be 0 (none) or positive");
  if (window && chunk) refuse("attention has a window or chunks, not both");
  if (until < 0 || (until && (window || chunk || both))) refuse("attention up to a position has no window, chunks or ends of its own");
  if (const int reach = window + chunk; plan.cache().windowed(layer) && (!reach || reach > plan.cache().window())) refuse("layer " + std::to_string(layer) + " looks further back than its window blocks");
  if (!(scale > 0.0f)) refuse("scores need a scale above 0");
  auto op = std::make_unique<Attention>();
  op->shape = shape;
  op->layer = layer;
  op->q = q;
  op->heads = static_cast<int>(plan.width_of(q) / shape.d);
  if (op->heads < 1 || op->heads % shape.kv_heads || plan.width_of(q) % shape.d) refuse("query heads are no multiple of kv heads");
  if (sinks && sinks->size() != op->heads) refuse(std::to_string(sinks->size()) + " sinks for " + std::to_string(op->heads) + " heads");
  op->sinks = std::move(sinks);
  op->out = plan.buffer(int64_t{op->heads} * shape.dv);
  op->scale = scale;
  op->window = window;
  op->chunk = chunk;
  op->softcap = softcap;
  op->both = both;
  op->until = until;
  op->rooms = &plan.shared<AttentionRooms>();
  op->reads = {q};
  op->writes = {op->out};
  return plan.add(std::move(op)).out;
}
FREEHOLD_OP(attention,
            "Causal attention of q over the layer's pages; window w > 0: keys j with i - w < j <= i; chunk c > 0: those of\n"
            "i's own chunk, j / c = i / c. `sinks`: a logit for each head that joins the softmax's sum and has no value.\n"
            "`both`: rows of a picture see each other, where the step has `ends`. `until` > 0: keys j < until, for rows at\n"
            "that position and beyond.",
            "layer"_a, "q"_a, "scale"_a, "window"_a = 0, "softcap"_a = 0.0f, "sinks"_a = nanobind::none(), "chunk"_a = 0, "both"_a = false, "until"_a = 0)

}  // namespace
}  // namespace fh
