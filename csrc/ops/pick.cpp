// Sparse attention in latent space (DeepSeek's DSA, arXiv 2512.02556): an indexer scores all tokens before a row, and the row
// attends to the best top_k of them alone.
//
//   score(t, s) = sum over h of w[t,h] * max(0, q[t,h] . k[s]),  s <= t
//
// A score's constant factors are left out: they change no order. Of equal scores the lower position is chosen, and picks are in
// order of positions, so a row's bits depend on no other row, nor on chunks.
// The index's keys are a layer of pages of their own, transposed as a latent's are in kernels.h: 256 bytes a token at a width of
// 128. The latents lie in rows (latent_store's `rows`), so that a picked token is read as one piece of 1,152 bytes.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "kernels/latent.h"
#include "ops/angles.h"
#include "ops/record.h"
#include "ops/spans.h"

namespace fh {
namespace {

constexpr int kMostPicks = 1 << 20;
constexpr int kSpanPages = kSpanTokens / kBlockTokens;

const KvLayer& want_keys(const Plan& plan, int layer, const char* what) {
  const KvLayer& shape = plan.want_layer(layer);
  if (shape.kv_heads != 1 || shape.dv) refuse("layer " + std::to_string(layer) + " keeps no " + what);
  return shape;
}
const int32_t* blocks_of(const Run& r, int seq) { return r.step->block_tables + seq * r.step->table_width; }
template <class T> void grow(std::vector<T>& v, int64_t n) { v.resize(std::max(v.size(), static_cast<size_t>(n))); }

// --- keys -------------------------------------------------------------------------------------------

// The first values of a head turn, by halves or adjacent pairs, whatever the rope itself says.
struct IndexStore final : Op {
  int layer, q, k, heads, d, rot; bool adjacent; Vector weight, bias; float eps; const Angles* table;
  void run(Run& r, int) override {
    const Step& s = *r.step;
    each_row(r, first, s.rows, [&](int64_t t) {
      float* key = r.buffer[k] + t * d;
      r.k->layer_norm(key, weight.data(), bias.data(), eps, d, key);
      turn(r, key, 1, t);
      turn(r, r.buffer[q] + t * heads * d, heads, t);
      const int32_t block = blocks_of(r, s.seqs[t])[s.positions[t] / kBlockTokens];
      r.k->kv_store(key, key, 1, d, 0, r.cache->type(), r.cache->pages(layer) + block * r.cache->stride(layer), s.positions[t] % kBlockTokens);
    });
  }
  void turn(const Run& r, float* x, int n, int64_t t) const {
    const int64_t at = (r.offset + t) * (rot / 2);
    r.k->rope(x, n, d, rot, table->cos.data() + at, table->sin.data() + at, adjacent);
  }
};

void index_store(Plan& plan, int layer, int q, int k, Vector weight, Vector bias, float eps, std::shared_ptr<const Rope> rope, bool adjacent) {
  const KvLayer& shape = want_keys(plan, layer, "index");
  plan.want_width(k, shape.d, "an index's key");
  if (shape.d % 16) refuse("an index's keys are a multiple of 16 wide, not " + std::to_string(shape.d));
  if (weight.size() != shape.d || bias.size() != shape.d) refuse("index_store() needs a weight and a bias as wide as its keys");
  if (plan.width_of(q) % shape.d) refuse("queries are not a whole number of heads");
  check_rope(*rope, shape.d);
  auto op = std::make_unique<IndexStore>();
  op->layer = layer; op->q = q; op->k = k; op->d = shape.d;
  op->heads = static_cast<int>(plan.width_of(q) / shape.d);
  op->rot = static_cast<int>(2 * rope->inv_freq.size());
  op->adjacent = adjacent;
  op->weight = std::move(weight);
  op->bias = std::move(bias);
  op->eps = eps;
  op->table = angles(plan, std::move(rope));
  op->reads = {q, k};
  op->writes = {q};
  op->persists = true;
  plan.add(std::move(op));
}
FREEHOLD_OP(index_store,
            "Normalise an index's key k, rotate the beginning of it and of q's heads, and write it into its pages.\n\n"
            "layer: the index's own in the cache, one key head. adjacent: whether adjacent pairs turn, else halves.",
            "layer"_a, "q"_a, "k"_a, "weight"_a, "bias"_a, "eps"_a, "rope"_a, "adjacent"_a)

// --- picks ------------------------------------------------------------------------------------------

// Of the op that runs, shared by a plan's layers.
struct PickRooms {
  std::vector<std::vector<float>> wide;            // by thread: a page's keys as floats
  std::vector<std::vector<float>> scores;          // by thread: of a row
  std::vector<std::vector<uint32_t>> ranks;        // by thread
  std::vector<float> dealt;                        // where a row's pages are dealt out: scores of all rows
};

// Floats in order as unsigned numbers; NaN lies beyond infinity, so that a choice is always one.
uint32_t rank_of(float score) {
  const auto bits = std::bit_cast<uint32_t>(score + 0.0f);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}

// The positions of the `most` best of n scores, ascending.
void choose(const float* scores, int64_t n, int64_t most, std::vector<uint32_t>& ranks, int32_t* picks) {
  ranks.resize(static_cast<size_t>(2 * n));
  uint32_t *all = ranks.data(), *sorted = all + n;
  for (int64_t i = 0; i < n; ++i) all[i] = rank_of(scores[i]);
  std::copy_n(all, n, sorted);
  std::nth_element(sorted, sorted + (most - 1), sorted + n, std::greater<>());
  const uint32_t last = sorted[most - 1];
  int64_t equal = most - std::count_if(sorted, sorted + most, [&](uint32_t x) { return x > last; });
  for (int64_t i = 0; i < n; ++i)
    if (all[i] > last || (all[i] == last && equal-- > 0)) *picks++ = static_cast<int32_t>(i);
}

struct Pick final : Op {
  int layer, q, weights, out, heads, d; int64_t top_k;
  PickRooms* rooms;
  // Rows are few: the pages of one are dealt out, in pieces of 512 positions.
  static constexpr int64_t kPiecePages = 16;
  struct Deal { bool split = false; int64_t width = 0; std::vector<std::pair<int64_t, int64_t>> pieces; };
  Deal deals[Threads::kSeats];

  static int64_t seen(const Run& r, int64_t t) { return int64_t{r.step->positions[t]} + 1; }
  void allocate(int64_t, int threads) override {
    const auto n = static_cast<size_t>(threads);
    rooms->wide.resize(n);
    rooms->scores.resize(n);
    rooms->ranks.resize(n);
    for (auto& w : rooms->wide) grow(w, int64_t{d} * kBlockTokens + 16);
  }
  void prepare(const Run& r) override {
    Deal& deal = deals[r.seat];
    deal.pieces.clear();
    deal.width = 0;
    deal.split = r.step->rows < 4 * r.active && r.active > 1;
    for (int64_t t = 0; deal.split && t < r.step->rows; ++t) {
      if (seen(r, t) <= top_k) continue;
      const int64_t pages = (seen(r, t) + kBlockTokens - 1) / kBlockTokens;
      deal.width = std::max(deal.width, pages * kBlockTokens);
      for (int64_t p = 0; p < pages; p += kPiecePages) deal.pieces.emplace_back(t, p);
    }
    grow(rooms->dealt, deal.width * (deal.split ? r.step->rows : 0));
  }
  void score(const Run& r, int64_t t, int64_t page, int64_t pages, int thread, float* to) const {
    IndexArgs a;
    a.q = r.buffer[q] + t * heads * d;
    a.weights = r.buffer[weights] + t * heads;
    a.heads = heads;
    a.d = d;
    a.pages = r.cache->pages(layer);
    a.block_bytes = r.cache->stride(layer);
    a.block_table = blocks_of(r, r.step->seqs[t]) + page;
    a.type = r.cache->type();
    latent_kernels(*r.k).index(a, pages, rooms->wide[static_cast<size_t>(thread)].data(), to);
  }
  void take(const Run& r, int64_t t, int thread, const float* scores) const {
    auto* picks = reinterpret_cast<int32_t*>(r.buffer[out] + t * top_k);
    const int64_t n = seen(r, t);
    if (n <= top_k) for (int64_t i = 0; i < n; ++i) picks[i] = static_cast<int32_t>(i);
    else choose(scores, n, top_k, rooms->ranks[static_cast<size_t>(thread)], picks);
  }
  void run(Run& r, int thread) override {
    const Deal& deal = deals[r.seat];
    if (deal.split) {
      share(r, first, static_cast<int64_t>(deal.pieces.size()), 1, [&](int64_t i, int64_t) {
        const auto [t, page] = deal.pieces[static_cast<size_t>(i)];
        const int64_t pages = std::min(kPiecePages, (seen(r, t) + kBlockTokens - 1) / kBlockTokens - page);
        score(r, t, page, pages, thread, rooms->dealt.data() + t * deal.width + page * kBlockTokens);
      });
      return share(r, second, r.step->rows, 1, [&](int64_t t, int64_t) { take(r, t, thread, rooms->dealt.data() + t * deal.width); });
    }
    share(r, first, r.step->rows, 1, [&](int64_t t, int64_t) {
      auto& scores = rooms->scores[static_cast<size_t>(thread)];
      const int64_t pages = (seen(r, t) + kBlockTokens - 1) / kBlockTokens;
      if (seen(r, t) > top_k) {
        grow(scores, pages * kBlockTokens);
        score(r, t, 0, pages, thread, scores.data());
      }
      take(r, t, thread, scores.data());
    });
  }
};

int pick(Plan& plan, int layer, int q, int weights, int top_k) {
  const KvLayer& shape = want_keys(plan, layer, "index");
  if (plan.width_of(q) % shape.d) refuse("queries are not a whole number of heads");
  if (top_k < 1 || top_k > kMostPicks) refuse("an index picks 1 to " + std::to_string(kMostPicks) + " tokens, not " + std::to_string(top_k));
  auto op = std::make_unique<Pick>();
  op->layer = layer; op->q = q; op->weights = weights; op->d = shape.d; op->top_k = top_k;
  op->heads = static_cast<int>(plan.width_of(q) / shape.d);
  plan.want_width(weights, op->heads, "weights of an index's heads");
  op->rooms = &plan.shared<PickRooms>();
  op->out = plan.buffer(top_k);
  op->reads = {q, weights};
  op->writes = {op->out};
  return plan.add(std::move(op)).out;
}
FREEHOLD_OP(pick,
            "Choose the top_k tokens that a row attends to, by the sum over heads of weights * max(0, q . key).\n\n"
            "layer: the index's own in the cache. Of equal scores the lower position; all tokens up to the row where they\n"
            "are no more.",
            "layer"_a, "q"_a, "weights"_a, "top_k"_a)

// --- attention to picks -----------------------------------------------------------------------------

struct PickedRooms {
  std::vector<std::vector<uint8_t>> pages;         // by thread: a span of picked latents, as a latent's pages lie
  std::vector<std::vector<float>> local;           // by thread: partial, scratch; then queries and running sums of all tiles
  std::vector<float> partials, packed;             // where spans are dealt out
};

// One item: a row. Its picks are gathered span by span into pages, which the kernels of dense latent attention read.
struct PickedAttention final : Op {
  int layer, q, picks, out, heads, d, latent; int64_t top_k; float scale;
  Phase merged;
  struct Item { int64_t row; int spans; int64_t partial, packed; };
  SpanDeal<Item> deals[Threads::kSeats];
  std::vector<int32_t> table;                      // every span's pages are the thread's own
  PickedRooms* rooms;

  int tiles() const { return (heads + kLatentQueries - 1) / kLatentQueries; }
  int in_tile(int tile) const { return std::min(kLatentQueries, heads - tile * kLatentQueries); }
  int64_t unit() const { return latent_partial(kLatentQueries, latent); }
  int64_t queries() const { return latent_packed(kLatentQueries, d); }
  static int64_t width(KvType type) { return type == KvType::F32 ? 4 : 2; }
  void allocate(int64_t, int threads) override {
    table.resize(static_cast<size_t>((top_k + kSpanTokens - 1) / kSpanTokens * kSpanPages));
    for (size_t i = 0; i < table.size(); ++i) table[i] = static_cast<int32_t>(i % kSpanPages);
    rooms->pages.resize(static_cast<size_t>(threads));
    rooms->local.resize(static_cast<size_t>(threads));
    for (auto& l : rooms->local) grow(l, unit() + kLatentScratch + tiles() * (queries() + unit()));
    for (auto& p : rooms->pages) grow(p, int64_t{kSpanTokens} * d * 4);
  }
  void prepare(const Run& r) override {
    merged.reset(r.seat);
    SpanDeal<Item>& deal = deals[r.seat];
    deal.clear();
    for (int64_t t = 0; t < r.step->rows; ++t)
      deal.add({t, static_cast<int>((count(r, t) + kSpanTokens - 1) / kSpanTokens), 0, t * tiles() * queries()}, tiles() * unit());
    deal.deal(r.active);
    if (!deal.split) return;
    grow(rooms->partials, deal.total);
    grow(rooms->packed, r.step->rows * tiles() * queries());
  }
  int64_t count(const Run& r, int64_t t) const { return std::min<int64_t>(top_k, int64_t{r.step->positions[t]} + 1); }
  LatentArgs args(const Run& r, const Item& it, int thread) const {
    LatentArgs a;
    a.heads = heads;
    a.d = d;
    a.latent = latent;
    a.q_stride = int64_t{heads} * d;
    a.out_stride = int64_t{heads} * latent;
    a.q = r.buffer[q] + it.row * a.q_stride;
    a.out = r.buffer[out] + it.row * a.out_stride;
    a.pages = rooms->pages[static_cast<size_t>(thread)].data();
    a.block_bytes = int64_t{kBlockTokens} * d * width(r.cache->type());
    a.block_table = table.data();
    a.scale = scale;
    a.first_position = static_cast<int>(count(r, it.row)) - 1;
    a.type = r.cache->type();
    return a;
  }
  // From rows to pages [d][32]. Thirty-two inputs of a row are a line or two, which are used up before the next row's.
  template <class E> void gather(const Run& r, const Item& it, int span, int thread) const {
    const auto* from = reinterpret_cast<const int32_t*>(r.buffer[picks] + it.row * top_k) + int64_t{span} * kSpanTokens;
    const int n = static_cast<int>(std::min<int64_t>(kSpanTokens, count(r, it.row) - int64_t{span} * kSpanTokens));
    const int32_t* blocks = blocks_of(r, r.step->seqs[it.row]);
    const uint8_t* pages = r.cache->pages(layer);
    for (int page = 0; page * kBlockTokens < n; ++page) {
      E* to = reinterpret_cast<E*>(rooms->pages[static_cast<size_t>(thread)].data()) + int64_t{page} * kBlockTokens * d;
      const int some = std::min(kBlockTokens, n - page * kBlockTokens);
      const E* row[kBlockTokens];
      for (int j = 0; j < some; ++j) {
        const int32_t at = from[page * kBlockTokens + j];
        row[j] = reinterpret_cast<const E*>(pages + blocks[at / kBlockTokens] * r.cache->stride(layer)) + int64_t{at % kBlockTokens} * d;
      }
      for (int e = 0; e < d; e += 32)
        for (int j = 0; j < some; ++j)
          for (int i = e; i < std::min(e + 32, d); ++i) to[i * kBlockTokens + j] = row[j][i];
    }
  }
  void gather_span(const Run& r, const Item& it, int span, int thread) const {
    if (r.cache->type() == KvType::F32) gather<float>(r, it, span, thread);
    else gather<uint16_t>(r, it, span, thread);
  }
  void pack(const LatentKernels& k, const LatentArgs& a, float* packed) const {
    for (int i = 0; i < tiles(); ++i) k.pack(a, int64_t{i} * kLatentQueries, in_tile(i), packed + i * queries());
  }
  void start(float* running) const {
    for (int i = 0; i < tiles(); ++i) {
      std::fill_n(running + i * unit(), unit(), 0.0f);
      std::fill_n(running + i * unit(), latent_lanes(in_tile(i)), -INFINITY);
    }
  }
  void finish(const LatentKernels& k, const LatentArgs& a, const float* running) const {
    for (int i = 0; i < tiles(); ++i) k.finish(a, int64_t{i} * kLatentQueries, in_tile(i), running + i * unit());
  }
  void whole(const LatentKernels& k, const Run& r, const Item& it, int thread, float* mine) const {
    float *partial = mine, *scratch = partial + unit(), *packed = scratch + kLatentScratch, *running = packed + tiles() * queries();
    const LatentArgs a = args(r, it, thread);
    pack(k, a, packed);
    start(running);
    for (int s = 0; s < it.spans; ++s) {
      gather_span(r, it, s, thread);
      for (int i = 0; i < tiles(); ++i) {
        k.span(a, int64_t{i} * kLatentQueries, in_tile(i), packed + i * queries(), s, scratch, partial);
        k.merge(running + i * unit(), partial, in_tile(i), latent);
      }
    }
    finish(k, a, running);
  }
  void run(Run& r, int thread) override {
    const LatentKernels& k = latent_kernels(*r.k);
    float* mine = rooms->local[static_cast<size_t>(thread)].data();
    float *scratch = mine + unit(), *running = scratch + kLatentScratch + tiles() * queries();
    const SpanDeal<Item>& deal = deals[r.seat];
    if (!deal.split) return deal.each_item(r, first, [&](const Item& it) { whole(k, r, it, thread, mine); });
    const auto packed = [&](const Item& it) { return rooms->packed.data() + it.packed; };
    const auto partial = [&](const Item& it, int64_t s, int i) { return rooms->partials.data() + it.partial + (s * tiles() + i) * unit(); };
    deal.each_item(r, first, [&](const Item& it) { pack(k, args(r, it, thread), packed(it)); });
    deal.each_piece(r, second, [&](const Item& it, int s) {
      gather_span(r, it, s, thread);
      for (int i = 0; i < tiles(); ++i)
        k.span(args(r, it, thread), int64_t{i} * kLatentQueries, in_tile(i), packed(it) + i * queries(), s, scratch, partial(it, s, i));
    });
    deal.each_item(r, merged, [&](const Item& it) {
      start(running);
      for (int s = 0; s < it.spans; ++s)
        for (int i = 0; i < tiles(); ++i) k.merge(running + i * unit(), partial(it, s, i), in_tile(i), latent);
      finish(k, args(r, it, thread), running);
    });
  }
};

int picked_attention(Plan& plan, int layer, int q, int picks, int latent, float scale) {
  const KvLayer& shape = want_keys(plan, layer, "latent");
  if (latent < 16 || latent % 16 || latent > shape.d) refuse("a latent of " + std::to_string(latent) + " in keys of " + std::to_string(shape.d));
  if (plan.width_of(q) < 1 || plan.width_of(q) % shape.d) refuse("queries are not a whole number of heads");
  if (!(scale > 0.0f)) refuse("scores need a scale above 0");
  auto op = std::make_unique<PickedAttention>();
  op->layer = layer; op->q = q; op->picks = picks; op->d = shape.d; op->latent = latent; op->scale = scale;
  op->top_k = plan.width_of(picks);
  op->heads = static_cast<int>(plan.width_of(q) / shape.d);
  op->rooms = &plan.shared<PickedRooms>();
  op->out = plan.buffer(int64_t{op->heads} * latent);
  op->reads = {q, picks};
  op->writes = {op->out};
  return plan.add(std::move(op)).out;
}
FREEHOLD_OP(picked_attention,
            "Attention of absorbed queries over the latents that pick() chose, kept in rows; returns [heads, latent].", "layer"_a, "q"_a,
            "picks"_a, "latent"_a, "scale"_a)

}  // namespace
}  // namespace fh
