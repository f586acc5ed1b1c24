// The ops of a forward pass, running: who computes which rows and panels, and what must be done before what.
// Knows rows, buffers and phases; every sum is a kernel's. Recorded by plan.cpp, which alone includes this file; the last op is head.h's.
#pragma once
#include <algorithm>
#include <atomic>
#include <cmath>
#include <memory>
#include <utility>
#include <vector>

#include "freehold.h"
#include "plan.h"

namespace fh {

// Tokens whose int8 rows stay in half of a 1 MB L2 beside four panels of 4-bit codes: 64 * 4864 = 311 KB.
constexpr int64_t kTokenBlock = 64;
constexpr int64_t kPrefillPanels = 4;
// Steps of fewer rows read weights as a stream: two tiles at most, the second from a panel that still lies in L1 or L2.
constexpr int64_t kStreamRows = 2 * kTileTokens;

// Rows of one sequence inside a step.
struct Segment { int seq; int64_t row, rows; int position; };

// Everything a running op sees.
struct Run {
  const Kernels* k;
  Threads* threads;
  KvCache* cache;
  const Step* step;
  std::vector<Segment> segments;
  std::vector<float*> buffer;                 // by buffer number
  int active = 1;                             // threads the step is offered to
  int seat = 0;                               // which set of counters and lists is this step's
  int64_t ahead = 0;                          // bytes of weights to ask for early; 0 where rows, not bytes, bound a step
};

// Activation rows in the forms a set of weights wants; scratch shared by all ops, one op at a time.
struct ActScratch {
  std::vector<float> normed, scale32, scale256, fsum32;
  std::vector<int8_t> q32, q256;
  std::vector<int32_t> sum32, sum256;
  int64_t k32 = 0, k256 = 0, kf = 0;          // widest K each form must hold
  void allocate(int64_t rows) {
    normed.resize(static_cast<size_t>(rows * kf));
    q32.resize(static_cast<size_t>(rows * k32));
    scale32.resize(static_cast<size_t>(rows * k32 / 32));
    fsum32.resize(scale32.size());
    sum32.resize(static_cast<size_t>(rows * k32 / 16));
    q256.resize(static_cast<size_t>(rows * k256));
    scale256.resize(static_cast<size_t>(rows * k256 / 256));
    sum256.resize(static_cast<size_t>(rows * k256 / 16));
  }
  int64_t bytes() const {
    return static_cast<int64_t>(4 * (normed.size() + scale32.size() + fsum32.size() + scale256.size() + sum32.size() + sum256.size()) +
                                q32.size() + q256.size());
  }
};

// A piece of work that must be done before the next begins. Threads wait for the work, not for each other: one that
// a neighbour keeps from running claims nothing and holds nobody up, and skips forward when it comes back. It may come
// back when the next step has begun, so counters, like all that ops read outside claimed work, are kept per seat.
struct Phase {
  struct Count {
    alignas(64) std::atomic<int64_t> next{0};    // first item nobody has claimed
    alignas(64) std::atomic<uint32_t> done{0};   // items finished
  };
  Count seats[Threads::kSeats];
  void reset(int seat) {
    seats[seat].next.store(0, std::memory_order_relaxed);   // the door publishes both
    seats[seat].done.store(0, std::memory_order_relaxed);
  }
};

struct Op {
  std::vector<int> reads, writes;             // buffer numbers, for liveness
  Phase first, second;                        // an op has one phase or two; reset before a step
  const uint8_t* following = nullptr;         // weights that the next matmul op begins with
  virtual ~Op() = default;
  virtual const uint8_t* weights() const { return nullptr; }   // the first this op reads
  virtual void run(Run& r, int thread) = 0;
  virtual void prepare(const Run&) {}          // before a step, on the calling thread: may allocate
};

// Calls f(begin, end) for chunks of [0, n) as this thread gets them; returns when all of [0, n) is done.
template <class Body> void share(const Run& r, Phase& phase, int64_t n, int64_t chunk, Body f) {
  Phase::Count& c = phase.seats[r.seat];
  for (int64_t i; (i = c.next.fetch_add(chunk, std::memory_order_relaxed)) < n;) {
    const int64_t end = std::min(n, i + chunk);
    f(i, end);
    Threads::finish(c.done, end - i, n);
  }
  Threads::await(c.done, n);
}
// The same with shrinking chunks: half of a thread's share of what is left. A stream of weights runs at full speed only
// once the machine's prefetcher has caught on, so ranges are long while work is plenty, and short at the end.
template <class Body> void share_stream(const Run& r, Phase& phase, int64_t n, Body f) {
  Phase::Count& c = phase.seats[r.seat];
  int64_t i = c.next.load(std::memory_order_relaxed);
  while (i < n) {
    const int64_t end = i + std::max<int64_t>(1, (n - i) / (2 * r.active));
    if (!c.next.compare_exchange_weak(i, end, std::memory_order_relaxed)) continue;
    f(i, end);
    Threads::finish(c.done, end - i, n);
    i = c.next.load(std::memory_order_relaxed);
  }
  Threads::await(c.done, n);
}
// Rows are equal, small work: four chunks a thread.
template <class Body> void each_row(const Run& r, Phase& phase, int64_t rows, Body f) {
  share(r, phase, rows, std::max<int64_t>(1, rows / (4 * r.active)), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) f(t);
  });
}

// The shared first half of every matmul op: normalise rows and quantise them once for all weights that read them.
struct Input {
  int x;
  Norm norm;
  int64_t k;
  bool want[3] = {false, false, false};        // kActF32, kAct32, kAct256
  ActScratch* scratch;

  void wants(const Matrix& w) {
    const int act = kind_info(w.w.kind).act;
    want[act] = true;
    if (act == kAct32) scratch->k32 = std::max(scratch->k32, k);
    if (act == kAct256) scratch->k256 = std::max(scratch->k256, k);
    if (norm.weight) scratch->kf = std::max(scratch->kf, k);
  }
  void row(Run& r, const float* src, int64_t t) const {
    if (norm.weight) {
      float* y = scratch->normed.data() + t * k;
      r.k->rms_norm(src, norm.weight->data(), norm.eps, k, y);
      src = y;
    }
    quantize(r, src, t);
  }
  void quantize(Run& r, const float* src, int64_t t) const {
    if (want[kAct32])
      r.k->quantize32(src, k, scratch->q32.data() + t * k, scratch->scale32.data() + t * (k / 32),
                      scratch->sum32.data() + t * (k / 16), scratch->fsum32.data() + t * (k / 32));
    if (want[kAct256])
      r.k->quantize256(src, k, scratch->q256.data() + t * k, scratch->scale256.data() + t * (k / 256),
                       scratch->sum256.data() + t * (k / 16));
  }
  // Rows as `w` wants them; f32 rows come from `x` when there is no norm. `next`: what this thread reads after the panel.
  Acts acts(const Run& r, const Matrix& w, const float* x_rows, const uint8_t* next) const {
    Acts a;
    a.k = k;
    a.ahead = r.ahead;
    a.next = next;
    switch (kind_info(w.w.kind).act) {
      case kAct32:
        a.q = scratch->q32.data(); a.scale = scratch->scale32.data();
        a.sum16 = scratch->sum32.data(); a.fsum32 = scratch->fsum32.data();
        break;
      case kAct256:
        a.q = scratch->q256.data(); a.scale = scratch->scale256.data(); a.sum16 = scratch->sum256.data();
        break;
      default: a.f32 = norm.weight ? scratch->normed.data() : x_rows;
    }
    return a;
  }
};

// Walks panels [0, panels) in ranges and token blocks; body(begin, end, t0, nt) computes and stores one block.
// Decode reads weights as a stream; prefill takes four panels over a block of tokens in L2.
template <class Body> void walk(Op& op, const Run& r, int64_t panels, int64_t rows, Body body) {
  if (rows < kStreamRows) return share_stream(r, op.second, panels, [&](int64_t begin, int64_t end) { body(begin, end, 0, rows); });
  share(r, op.second, panels, kPrefillPanels, [&](int64_t begin, int64_t end) {
    for (int64_t t = 0; t < rows; t += kTokenBlock) body(begin, end, t, std::min(kTokenBlock, rows - t));
  });
}
// The panel after n of a thread's range [.., end): within it the next; then the first that nobody has claimed, which
// will be this thread's if it is quick; then what the next op begins with. A wrong guess costs a few lines read early.
int64_t panel_after(const Op& op, const Run& r, int64_t n, int64_t end) {
  return n + 1 < end ? n + 1 : op.second.seats[r.seat].next.load(std::memory_order_relaxed);
}
const uint8_t* panel_at(const Matrix& m, int64_t p) { return m.w.data + p * m.w.panel_bytes; }
using Tile = float[kTokenBlock * kPanelRows];
int64_t panel_width(const Matrix& w, int64_t p) { return std::min<int64_t>(kPanelRows, w.w.n - p * kPanelRows); }

struct Embed final : Op {
  MatrixPtr table; float scale; int out;
  void run(Run& r, int) override {
    const int64_t k = table->w.k;
    each_row(r, first, r.step->rows, [&](int64_t t) {
      float* y = r.buffer[out] + t * k;
      decode_row(table->w, r.step->tokens[t], y);
      if (scale != 1.0f) r.k->scale(y, scale, k);
    });
  }
};

struct NormOp final : Op {
  int x, out; Norm n; int64_t k;
  void run(Run& r, int) override {
    each_row(r, first, r.step->rows, [&](int64_t t) { r.k->rms_norm(r.buffer[x] + t * k, n.weight->data(), n.eps, k, r.buffer[out] + t * k); });
  }
};

struct AddNorm final : Op {
  int x, residual; Norm n; int64_t k;
  void run(Run& r, int) override {
    each_row(r, first, r.step->rows, [&](int64_t t) {
      float* y = r.buffer[x] + t * k;
      r.k->rms_norm(y, n.weight->data(), n.eps, k, y);
      r.k->add(r.buffer[residual] + t * k, y, k);
    });
  }
};

struct Linear final : Op {
  Input in; std::vector<MatrixPtr> w; std::vector<Vector> bias; std::vector<int> out; bool accumulate = false;
  struct At { size_t matrix; int64_t panel; };
  const uint8_t* weights() const override { return w[0]->w.data; }
  At locate(int64_t n) const {                 // panel n of all matrices, counted on; the end lies in no matrix
    size_t i = 0;
    while (i < w.size() && n >= w[i]->w.count()) n -= w[i++]->w.count();
    return {i, n};
  }
  const uint8_t* address(int64_t n) const {
    const At at = locate(n);
    return at.matrix < w.size() ? panel_at(*w[at.matrix], at.panel) : following;
  }
  void run(Run& r, int) override {
    const int64_t rows = r.step->rows;
    each_row(r, first, rows, [&](int64_t t) { in.row(r, r.buffer[in.x] + t * in.k, t); });
    int64_t panels = 0;
    for (const MatrixPtr& m : w) panels += m->w.count();
    walk(*this, r, panels, rows, [&](int64_t begin, int64_t end, int64_t t0, int64_t nt) {
      for (int64_t n = begin; n < end; ++n) store(r, locate(n), t0, nt, address(panel_after(*this, r, n, end)));
    });
  }
  void store(Run& r, At at, int64_t t0, int64_t nt, const uint8_t* next) const {
    const auto [i, p] = at;
    const Matrix& m = *w[i];
    Tile tile;
    r.k->panel[static_cast<int>(m.w.kind)](m.w, p, in.acts(r, m, r.buffer[in.x], next), t0, nt, tile, kPanelRows);
    const int64_t width = panel_width(m, p);
    const float* b = bias[i] ? bias[i]->data() + p * kPanelRows : nullptr;
    for (int64_t t = 0; t < nt; ++t) {
      float *y = r.buffer[out[i]] + (t0 + t) * m.w.n + p * kPanelRows, *v = tile + t * kPanelRows;
      if (b) for (int64_t c = 0; c < width; ++c) v[c] += b[c];
      if (accumulate) for (int64_t c = 0; c < width; ++c) y[c] += v[c];
      else for (int64_t c = 0; c < width; ++c) y[c] = v[c];
    }
  }
};

// Gate panels first, then up panels: a thread that went to and fro between the two matrices every 14 KB would start
// the machine's prefetcher anew each time.
struct Gated final : Op {
  // Gate values of sixteen panels and fifteen tokens take 15 KB, of four panels and a token block 16: half an L1.
  static constexpr int64_t kGatePanels = 16;
  Input in; MatrixPtr gate, up; bool gelu; int out;
  const uint8_t* weights() const override { return gate->w.data; }
  void run(Run& r, int) override {
    each_row(r, first, r.step->rows, [&](int64_t t) { in.row(r, r.buffer[in.x] + t * in.k, t); });
    walk(*this, r, gate->w.count(), r.step->rows, [&](int64_t begin, int64_t end, int64_t t0, int64_t nt) {
      for (int64_t p = begin; p < end; p += kGatePanels) block(r, p, std::min(end, p + kGatePanels), end, t0, nt);
    });
  }
  void multiply(const Run& r, const Matrix& m, int64_t p, int64_t t0, int64_t nt, float* tile, const uint8_t* next) const {
    r.k->panel[static_cast<int>(m.w.kind)](m.w, p, in.acts(r, m, r.buffer[in.x], next), t0, nt, tile, kPanelRows);
  }
  const uint8_t* after(const Run& r, int64_t p, int64_t last) const {       // the gate panel that follows a block of this range
    const int64_t n = panel_after(*this, r, p, last);
    return n < gate->w.count() ? panel_at(*gate, n) : following;
  }
  void block(const Run& r, int64_t begin, int64_t end, int64_t last, int64_t t0, int64_t nt) const {
    alignas(64) float g[std::max<int64_t>(kPrefillPanels * kTokenBlock, kGatePanels * (kStreamRows - 1)) * kPanelRows];
    alignas(64) Tile u;
    for (int64_t p = begin; p < end; ++p)
      multiply(r, *gate, p, t0, nt, g + (p - begin) * nt * kPanelRows, p + 1 < end ? panel_at(*gate, p + 1) : panel_at(*up, begin));
    for (int64_t p = begin; p < end; ++p) {
      float* v = g + (p - begin) * nt * kPanelRows;
      multiply(r, *up, p, t0, nt, u, p + 1 < end ? panel_at(*up, p + 1) : after(r, p, last));
      (gelu ? r.k->gelu_mul : r.k->silu_mul)(v, u, nt * kPanelRows);
      const int64_t width = panel_width(*gate, p);
      for (int64_t t = 0; t < nt; ++t)
        std::copy_n(v + t * kPanelRows, width, r.buffer[out] + (t0 + t) * gate->w.n + p * kPanelRows);
    }
  }
};

// cos and sin of every row's position, once a step for each rope in use. In double: at position 100,000 a float
// angle is off by 0.004 already.
struct RopeTable {
  std::shared_ptr<const Rope> rope;
  std::vector<float> cos, sin;                // [max_rows][rot/2]
  Phase first;
  void fill(const Run& r) {
    const size_t half = rope->inv_freq.size();
    each_row(r, first, r.step->rows, [&](int64_t t) {
      for (size_t i = 0; i < half; ++i) {
        const double angle = static_cast<double>(r.step->positions[t]) * static_cast<double>(rope->inv_freq[i]);
        cos[static_cast<size_t>(t) * half + i] = static_cast<float>(std::cos(angle)) * rope->factor;
        sin[static_cast<size_t>(t) * half + i] = static_cast<float>(std::sin(angle)) * rope->factor;
      }
    });
  }
};

struct RopeStore final : Op {
  int layer, q, k, v, heads; KvLayer shape; RopeTable* table; Norm q_norm, k_norm;
  void turn(const Run& r, float* x, int n, const Norm& norm, int64_t t) const {
    if (norm.weight)
      for (int h = 0; h < n; ++h) r.k->rms_norm(x + h * shape.d, norm.weight->data(), norm.eps, shape.d, x + h * shape.d);
    if (!table) return;
    const size_t half = table->rope->inv_freq.size(), at = static_cast<size_t>(t) * half;
    r.k->rope(x, n, shape.d, static_cast<int>(2 * half), table->cos.data() + at, table->sin.data() + at, table->rope->adjacent);
  }
  void run(Run& r, int) override {
    const Step& s = *r.step;
    each_row(r, first, s.rows, [&](int64_t t) {
      float *qr = r.buffer[q] + t * heads * shape.d, *kr = r.buffer[k] + t * shape.kv_heads * shape.d;
      turn(r, qr, heads, q_norm, t);
      turn(r, kr, shape.kv_heads, k_norm, t);
      const int pos = s.positions[t];
      const int32_t block = s.block_tables[s.seqs[t] * s.table_width + pos / kBlockTokens];
      r.k->kv_store(kr, r.buffer[v] + t * shape.kv_heads * shape.dv, shape.kv_heads, shape.d, shape.dv, r.cache->type(),
                    r.cache->pages(layer) + block * r.cache->page_bytes(layer), pos % kBlockTokens);
    });
  }
};

// One item: some rows of one sequence, one kv head. Where no item is a large share of the work (prefill), a thread takes
// an item and walks its spans. Else (decode over a long context, or beside short ones) spans are dealt out too, and merged
// in order afterwards. Same bits.
struct Attention final : Op {
  int layer, q, out, heads, window; KvLayer shape; float scale, softcap;
  struct Item { Segment seg; int64_t row, rows; int head, first_span, spans; int64_t partial; };
  struct Deal {                               // a step's work, by seat
    std::vector<Item> items;
    std::vector<std::pair<int32_t, int32_t>> pieces;   // split: (item, span)
    bool split = false;
  };
  Deal deals[Threads::kSeats];
  std::vector<float> partials;                // split: [item][span][rows * group][2 + dv]
  std::vector<std::vector<float>> local;      // by thread: running and partial of one item

  int64_t unit(int64_t rows) const { return rows * (heads / shape.kv_heads) * (2 + shape.dv); }
  int64_t tile_rows() const { return std::max(1, kAttnTileQueries / (heads / shape.kv_heads)); }
  void prepare(const Run& r) override {
    auto& [items, pieces, split] = deals[r.seat];
    items.clear();
    pieces.clear();
    int64_t total = 0, largest = 0;
    for (const Segment& seg : r.segments)
      for (int64_t row = 0; row < seg.rows; row += tile_rows())
        for (int h = 0; h < shape.kv_heads; ++h) {
          Item it{seg, row, std::min(tile_rows(), seg.rows - row), h, 0, 0, total};
          const int64_t first = seg.position + row, last = first + it.rows - 1;
          it.first_span = static_cast<int>(window ? std::max<int64_t>(0, first - window + 1) / kSpanTokens : 0);
          it.spans = static_cast<int>(last / kSpanTokens) + 1 - it.first_span;
          total += unit(it.rows) * it.spans;
          largest = std::max(largest, unit(it.rows) * it.spans);
          items.push_back(it);
        }
    const int64_t n = r.active;
    split = n > 1 && largest * 4 * n > total;
    if (split) {
      partials.resize(static_cast<size_t>(std::max<int64_t>(total, static_cast<int64_t>(partials.size()))));
      for (size_t i = 0; i < items.size(); ++i)
        for (int s = 0; s < items[i].spans; ++s) pieces.emplace_back(static_cast<int32_t>(i), s);
      if (pieces.size() == items.size()) split = false;
    }
    local.resize(static_cast<size_t>(r.threads->size()));
    for (auto& l : local) l.resize(static_cast<size_t>(2 * unit(tile_rows())));
  }
  AttnArgs args(const Run& r, const Item& it) const {
    AttnArgs a;
    a.q_stride = heads * shape.d;
    a.out_stride = heads * shape.dv;
    a.q = r.buffer[q] + it.seg.row * a.q_stride;
    a.out = r.buffer[out] + it.seg.row * a.out_stride;
    a.pages = r.cache->pages(layer);
    a.page_bytes = r.cache->page_bytes(layer);
    a.block_table = r.step->block_tables + it.seg.seq * r.step->table_width;
    a.heads = heads;
    a.kv_heads = shape.kv_heads;
    a.d = shape.d;
    a.dv = shape.dv;
    a.scale = scale;
    a.softcap = softcap;
    a.window = window;
    a.first_position = it.seg.position;
    a.type = r.cache->type();
    return a;
  }
  void start(float* running, int64_t count) const {
    std::fill_n(running, count * (2 + shape.dv), 0.0f);
    for (int64_t i = 0; i < count; ++i) running[i * (2 + shape.dv)] = -INFINITY;
  }
  void end(const Run& r, const AttnArgs& a, const Item& it, const float* running) const {
    const int64_t group = heads / shape.kv_heads;
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
    float* scratch = local[static_cast<size_t>(thread)].data();
    const Deal& deal = deals[r.seat];
    const std::vector<Item>& items = deal.items;
    if (!deal.split) {
      share(r, first, static_cast<int64_t>(items.size()), 1, [&](int64_t i, int64_t) { whole(r, items[static_cast<size_t>(i)], scratch); });
      return;
    }
    share_stream(r, first, static_cast<int64_t>(deal.pieces.size()), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const auto [n, s] = deal.pieces[static_cast<size_t>(i)];
        const Item& it = items[static_cast<size_t>(n)];
        r.k->attend_span(args(r, it), it.head, static_cast<int>(it.row), static_cast<int>(it.rows), it.first_span + s,
                         partials.data() + it.partial + s * unit(it.rows));
      }
    });
    share(r, second, static_cast<int64_t>(items.size()), 1, [&](int64_t i, int64_t) {
      const Item& it = items[static_cast<size_t>(i)];
      const int64_t count = it.rows * (heads / shape.kv_heads);
      start(scratch, count);
      for (int s = 0; s < it.spans; ++s)
        r.k->attend_merge(scratch, partials.data() + it.partial + s * unit(it.rows), static_cast<int>(count), shape.dv);
      end(r, args(r, it), it, scratch);
    });
  }
};

}  // namespace fh
