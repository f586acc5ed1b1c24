// Causal attention in latent space, over pages of latents.
#include <cmath>

#include "kernels/latent.h"
#include "ops/record.h"
#include "ops/spans.h"

namespace fh {
namespace {

// Of the op that runs. `local` takes half a megabyte a thread: with rooms of their own, 61 layers took 30.
struct LatentRooms {
  std::vector<std::vector<float>> local;      // by thread: queries, running, partial, scratch
  std::vector<float> partials, packed;        // where spans are dealt out
};

// One item: some queries of one sequence, a row's heads one after another.
struct LatentAttention final : Op {
  int layer, q, out, heads, d, latent; float scale;
  Phase merged;
  struct Item { Segment seg; int64_t query; int n, spans; int64_t partial, packed; };
  SpanDeal<Item> deals[Threads::kSeats];      // a step's work
  LatentRooms* rooms;

  int64_t unit(int64_t n) const { return latent_partial(n, latent); }
  void allocate(int64_t, int threads) override {
    const auto room = static_cast<size_t>(latent_packed(kLatentQueries, d) + 2 * unit(kLatentQueries) + kLatentScratch);
    rooms->local.resize(static_cast<size_t>(threads));
    for (auto& l : rooms->local) l.resize(std::max(l.size(), room));
  }
  void prepare(const Run& r) override {
    merged.reset(r.seat);
    SpanDeal<Item>& deal = deals[r.seat];
    deal.clear();
    int64_t packed = 0;
    for (const Segment& seg : r.segments)
      for (int64_t i = 0; i < seg.rows * heads; i += kLatentQueries) {
        const int n = static_cast<int>(std::min<int64_t>(kLatentQueries, seg.rows * heads - i));
        const int spans = static_cast<int>((seg.position + (i + n - 1) / heads) / kSpanTokens) + 1;
        deal.add({seg, i, n, spans, 0, packed}, unit(n));
        packed += latent_packed(n, d);
      }
    deal.deal(r.active);
    if (!deal.split) return;
    const auto grow = [](auto& v, int64_t n) { v.resize(std::max(v.size(), static_cast<size_t>(n))); };
    grow(rooms->partials, deal.total);
    grow(rooms->packed, packed);
  }
  LatentArgs args(const Run& r, const Item& it) const {
    LatentArgs a;
    a.heads = heads;
    a.d = d;
    a.latent = latent;
    a.q_stride = int64_t{heads} * d;
    a.out_stride = int64_t{heads} * latent;
    a.q = r.buffer[q] + it.seg.row * a.q_stride;
    a.out = r.buffer[out] + it.seg.row * a.out_stride;
    a.pages = r.cache->pages(layer);
    a.block_bytes = r.cache->stride(layer);
    a.block_table = r.step->block_tables + it.seg.seq * r.step->table_width;
    a.scale = scale;
    a.first_position = it.seg.position;
    a.type = r.cache->type();
    return a;
  }
  void start(float* running, int n) const {
    std::fill_n(running, unit(n), 0.0f);
    std::fill_n(running, latent_lanes(n), -INFINITY);
  }
  void whole(const LatentKernels& k, const LatentArgs& a, const Item& it, float* packed) const {
    float *running = packed + latent_packed(kLatentQueries, d), *partial = running + unit(kLatentQueries), *scratch = partial + unit(kLatentQueries);
    k.pack(a, it.query, it.n, packed);
    start(running, it.n);
    for (int s = 0; s < it.spans; ++s) {
      k.span(a, it.query, it.n, packed, s, scratch, partial);
      k.merge(running, partial, it.n, latent);
    }
    k.finish(a, it.query, it.n, running);
  }
  void run(Run& r, int thread) override {
    const LatentKernels& k = latent_kernels(*r.k);
    float* mine = rooms->local[static_cast<size_t>(thread)].data();
    const SpanDeal<Item>& deal = deals[r.seat];
    if (!deal.split) return deal.each_item(r, first, [&](const Item& it) { whole(k, args(r, it), it, mine); });
    const auto packed = [&](const Item& it) { return rooms->packed.data() + it.packed; };
    const auto partial = [&](const Item& it, int64_t s) { return rooms->partials.data() + it.partial + s * unit(it.n); };
    deal.each_item(r, first, [&](const Item& it) { k.pack(args(r, it), it.query, it.n, packed(it)); });
    deal.each_piece(r, second, [&](const Item& it, int s) { k.span(args(r, it), it.query, it.n, packed(it), s, mine, partial(it, s)); });
    deal.each_item(r, merged, [&](const Item& it) {
      start(mine, it.n);
      for (int s = 0; s < it.spans; ++s) k.merge(mine, partial(it, s), it.n, latent);
      k.finish(args(r, it), it.query, it.n, mine);
    });
  }
};

int latent_attention(Plan& plan, int layer, int q, int latent, float scale) {
  const KvLayer shape = plan.want_layer(layer);
  if (shape.kv_heads != 1 || shape.dv) refuse("layer " + std::to_string(layer) + " keeps no latent");
  if (latent < 16 || latent % 16 || latent > shape.d) refuse("a latent of " + std::to_string(latent) + " in keys of " + std::to_string(shape.d));
  if (plan.width_of(q) < 1 || plan.width_of(q) % shape.d) refuse("queries are not a whole number of heads");
  if (!(scale > 0.0f)) refuse("scores need a scale above 0");
  auto op = std::make_unique<LatentAttention>();
  op->layer = layer;
  op->q = q;
  op->d = shape.d;
  op->latent = latent;
  op->heads = static_cast<int>(plan.width_of(q) / shape.d);
  op->scale = scale;
  op->rooms = &plan.shared<LatentRooms>();
  op->out = plan.buffer(int64_t{op->heads} * latent);
  op->reads = {q};
  op->writes = {op->out};
  return plan.add(std::move(op)).out;
}
FREEHOLD_OP(latent_attention, "Causal attention of absorbed queries over the layer's latents; returns [heads, latent].", "layer"_a, "q"_a, "latent"_a, "scale"_a)

}  // namespace
}  // namespace fh
