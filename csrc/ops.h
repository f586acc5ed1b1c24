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

// Panels a thread takes at once in prefill: their sums over 512 tokens are 256 KB of a 1 MB L2. Steps of fewer than
// gemm_rows rows read weights as a stream: two tiles at most, the second from a panel that still lies in L1 or L2.
constexpr int64_t kGemmPanels = 8;
constexpr int64_t kWideTokens = 96;                           // 288 KB of wide codes at 1536 inputs
constexpr int64_t kUnitInputs = 256, kUnitRoom = 32;          // units of Acts: inputs, and rows that may be read past the last

// Rows of one sequence inside a step, at consecutive positions.
struct Segment { int seq; int64_t row, rows; int position; };

// Consecutive rows of a step that one adapter changes.
struct Adapted { const Adapter* adapter; int64_t row, rows; };

// Everything a running op sees.
struct Run {
  const Kernels* k;
  Threads* threads;
  KvCache* cache;
  const Step* step;
  std::vector<Segment> segments;
  std::vector<Adapted> adapted;               // in order of rows
  std::vector<float*> buffer;                 // by buffer number
  const std::vector<int64_t>* wanted = nullptr;   // rows that go on after the last keys are stored: see Narrow
  int active = 1;                             // threads the step is offered to
  int seat = 0;                               // which set of counters and lists is this step's
  int64_t ahead = 0;                          // bytes of weights to ask for early; 0 where rows, not bytes, bound a step
};

// Activation rows in the forms a set of weights wants; scratch shared by all ops, one op at a time.
struct ActScratch {
  std::vector<float> normed, scale32, scale256, fsum32;
  std::vector<int8_t> q32, q256;
  std::vector<int32_t> sum32, sum256;
  std::vector<float> low;                     // A x of the rows that adapters change: see LowRank
  std::vector<int16_t> wide;
  std::vector<float> wide_scale;
  std::vector<std::vector<float>> tiles;      // by thread: sums of kGemmPanels panels
  int64_t k32 = 0, k256 = 0, kf = 0, kw = 0;  // widest K each form must hold
  void allocate(int64_t rows, int threads) {
    const auto units = [](int64_t k) { return (k + kUnitInputs - 1) / kUnitInputs; };
    normed.resize(static_cast<size_t>(rows * kf));
    q32.resize(static_cast<size_t>((rows * units(k32) + kUnitRoom) * kUnitInputs));
    scale32.resize(static_cast<size_t>(rows * units(k32) * 8));
    fsum32.resize(scale32.size());
    sum32.resize(static_cast<size_t>(rows * units(k32) * 16));
    q256.resize(static_cast<size_t>((rows * units(k256) + kUnitRoom) * kUnitInputs));
    scale256.resize(static_cast<size_t>(rows * units(k256)));
    sum256.resize(static_cast<size_t>(rows * units(k256) * 16));
    wide.resize(static_cast<size_t>(rows * kw));
    wide_scale.resize(static_cast<size_t>(rows * kw / kWideUnit));
    tiles.resize(static_cast<size_t>(threads));
    // At least 64 tokens' room: in decode sixteen gate and sixteen up panels share it, of sixteen rows at most.
    for (auto& t : tiles) t.resize(static_cast<size_t>(kGemmPanels * std::clamp<int64_t>(rows, 64, kGemmTokens) * kPanelRows));
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
  bool want[kActs] = {};                       // by kActF32, kAct32, ...
  ActScratch* scratch;

  void wants(const Matrix& w) {
    const int act = kind_info(w.w.kind).act;
    want[act] = true;
    if (act == kAct32) scratch->k32 = std::max(scratch->k32, k);
    if (act == kAct256) scratch->k256 = std::max(scratch->k256, k);
    if (act == kActWide) scratch->kw = std::max(scratch->kw, k);
    if (norm.weight) scratch->kf = std::max(scratch->kf, k);
  }
  // rows: 0 where row t is to lie by itself, else the number of rows that lie by units.
  void row(Run& r, const float* src, int64_t t, int64_t rows = 0) const {
    if (norm.weight) {
      float* y = scratch->normed.data() + t * k;
      r.k->rms_norm(src, norm.weight->data(), norm.eps, k, y);
      src = y;
    }
    if (want[kActWide]) r.k->quantize_wide(src, k, rows, scratch->wide.data() + t * kWideUnit, scratch->wide_scale.data() + t);
    if (rows < r.k->gemm_rows) return quantize(r, src, t * k, k);
    for (int64_t u = 0; u * kUnitInputs < k; ++u)
      quantize(r, src + u * kUnitInputs, (u * rows + t) * kUnitInputs, std::min(kUnitInputs, k - u * kUnitInputs));
  }
  // n inputs, the first of which is number `at` of the scratch rows.
  void quantize(Run& r, const float* src, int64_t at, int64_t n) const {
    if (want[kAct32])
      r.k->quantize32(src, n, scratch->q32.data() + at, scratch->scale32.data() + at / 32, scratch->sum32.data() + at / 16,
                      scratch->fsum32.data() + at / 32);
    if (want[kAct256])
      r.k->quantize256(src, n, scratch->q256.data() + at, scratch->scale256.data() + at / 256, scratch->sum256.data() + at / 16);
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
      case kActWide: a.wide = scratch->wide.data(); a.scale = scratch->wide_scale.data(); a.rows = r.step->rows; break;
      default: a.f32 = norm.weight ? scratch->normed.data() : x_rows;
    }
    return a;
  }
  // The rows as they were before any rounding: [rows][k].
  const float* floats(const Run& r) const { return norm.weight ? scratch->normed.data() : r.buffer[x]; }
  // Panels [p0, p1) of w times rows [t0, t0 + nt) of the step: y [p1-p0][nt][16]. `next`: what is read after them.
  void multiply(const Run& r, const Matrix& w, int64_t p0, int64_t p1, int64_t t0, int64_t nt, float* y, const uint8_t* next) const {
    Acts a = acts(r, w, r.buffer[x], next);
    const int kind = static_cast<int>(w.w.kind);
    if (a.wide) return multiply_wide(r, w, p0, p1, t0, nt, a, y);
    if (a.f32 || r.step->rows < r.k->gemm_rows) {
      for (int64_t p = p0; p < p1; ++p, y += nt * kPanelRows) {
        a.next = p + 1 < p1 ? w.w.high(p + 1) : next;
        r.k->panel[kind](w.w, p, a, t0, nt, y, kPanelRows);
      }
      return;
    }
    a.rows = r.step->rows;
    for (int64_t u = 0; u * kUnitInputs < k; ++u) r.k->gemm[kind](w.w, p0, p1, u, a, t0, nt, y);
  }
  // Some rows at a time, so that what all panels of a range read of them stays in an L2.
  void multiply_wide(const Run& r, const Matrix& w, int64_t p0, int64_t p1, int64_t t0, int64_t nt, const Acts& a, float* y) const {
    for (int64_t t = 0; t < nt; t += kWideTokens)
      for (int64_t p = p0; p < p1; ++p)
        r.k->panel[static_cast<int>(w.w.kind)](w.w, p, a, t0 + t, std::min(kWideTokens, nt - t), y + ((p - p0) * nt + t) * kPanelRows, kPanelRows);
  }
};

// Walks panels [0, panels) in ranges and token blocks; body(begin, end, t0, nt) computes and stores one block.
// Decode reads weights as a stream; prefill takes up to `most` panels over all tokens of the step, and enough ranges
// that threads end together.
template <class Body> void walk(Op& op, const Run& r, int64_t panels, int64_t rows, int64_t most, Body body) {
  if (rows < r.k->gemm_rows) return share_stream(r, op.second, panels, [&](int64_t begin, int64_t end) { body(begin, end, 0, rows); });
  const int64_t range = std::clamp<int64_t>(panels / (4 * r.active), 1, most);
  share(r, op.second, panels, range, [&](int64_t begin, int64_t end) {
    for (int64_t t = 0; t < rows; t += kGemmTokens) body(begin, end, t, std::min<int64_t>(kGemmTokens, rows - t));
  });
}
// The panel after n of a thread's range [.., end): within it the next; then the first that nobody has claimed, which
// will be this thread's if it is quick; then what the next op begins with. A wrong guess costs a few lines read early.
int64_t panel_after(const Op& op, const Run& r, int64_t n, int64_t end) {
  return n + 1 < end ? n + 1 : op.second.seats[r.seat].next.load(std::memory_order_relaxed);
}
int64_t panel_width(const Matrix& w, int64_t p) { return std::min<int64_t>(kPanelRows, w.w.n - p * kPanelRows); }

// Rows [t0, ..) of a matrix's output y, from panel p0 on; and the columns of its panels [p0, p1).
struct Place {
  float* y;
  int64_t width, ld;
  Place(const Matrix& m, int64_t p0, int64_t p1, int64_t t0, float* y)
      : y(y + t0 * m.w.n + p0 * kPanelRows), width(std::min(p1 * kPanelRows, m.w.n) - p0 * kPanelRows), ld(m.w.n) {}
};

// What adapters add to an op's products. A x is computed once for all panels, between the op's two phases and by whoever
// comes, and costs no phase where no row has an adapter; B (A x) joins a panel's sums as soon as they are made.
struct LowRank {
  static constexpr int64_t kRows = 16;         // a claim: 16 rows of one panel of A
  // Rows of the step that a pair changes in matrix number `matrix`; their A x, `rank` floats each, begin at `at`.
  struct Part { size_t matrix; const Adapter::Pair* pair; int64_t row, rows, at; };
  struct Item { size_t part; int64_t row, rows, panel; };
  struct Deal { std::vector<Part> parts; std::vector<Item> items; };   // a step's work, by seat
  Deal deals[Threads::kSeats];
  Phase phase;

  void prepare(const Run& r, const Input& in, const std::vector<MatrixPtr>& weights) {
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
  // scale * A x, from rows that are normalised already.
  void reduce(const Run& r, const Input& in) {
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
      r.k->panel[static_cast<int>(a.kind)](a, item.panel, x, item.row, item.rows, out, a.n);
      for (int64_t t = 0; t < item.rows; ++t) r.k->scale(out + t * a.n, part.pair->scale, kPanelRows);
    });
  }
  // Adds to y [p1-p0][nt][16] what adapters change in panels [p0, p1) of a matrix, for rows [t0, t0 + nt).
  void expand(const Run& r, const Input& in, size_t matrix, int64_t p0, int64_t p1, int64_t t0, int64_t nt, float* y) const {
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
          r.k->panel[static_cast<int>(b.kind)](b, p, x, t - part.row, n, sums, kPanelRows);
          r.k->add(y + ((p - p0) * nt + t - t0) * kPanelRows, sums, n * kPanelRows);
        }
    }
  }
};

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
  Input in; std::vector<MatrixPtr> w; std::vector<Vector> bias; std::vector<int> out; bool accumulate = false, gelu = false;
  LowRank low;
  const uint8_t* weights() const override { return w[0]->w.data; }
  void prepare(const Run& r) override { low.prepare(r, in, w); }
  // Where panel n of all matrices, counted on, lies; behind the last, what the next op begins with.
  const uint8_t* address(int64_t n) const {
    for (const MatrixPtr& m : w) {
      if (n < m->w.count()) return m->w.high(n);
      n -= m->w.count();
    }
    return following;
  }
  void run(Run& r, int thread) override {
    const int64_t rows = r.step->rows;
    each_row(r, first, rows, [&](int64_t t) { in.row(r, r.buffer[in.x] + t * in.k, t, rows); });
    low.reduce(r, in);
    int64_t panels = 0;
    for (const MatrixPtr& m : w) panels += m->w.count();
    float* tiles = in.scratch->tiles[static_cast<size_t>(thread)].data();
    walk(*this, r, panels, rows, kGemmPanels, [&](int64_t begin, int64_t end, int64_t t0, int64_t nt) {
      int64_t base = 0;                        // number of the matrix's first panel
      for (size_t i = 0; begin < end; base += w[i++]->w.count())
        for (const int64_t last = std::min(end, base + w[i]->w.count()); begin < last;) {
          const int64_t to = std::min(last, begin + kGemmPanels);
          block(r, i, begin - base, to - base, t0, nt, tiles, address(panel_after(*this, r, to - 1, end)));
          begin = to;
        }
    });
  }
  void block(const Run& r, size_t i, int64_t p0, int64_t p1, int64_t t0, int64_t nt, float* tiles, const uint8_t* next) const {
    const Matrix& m = *w[i];
    in.multiply(r, m, p0, p1, t0, nt, tiles, next);
    low.expand(r, in, i, p0, p1, t0, nt, tiles);
    if (gelu) return activate(r, m, p0, p1, t0, nt, tiles);
    const Place to(m, p0, p1, t0, r.buffer[out[i]]);
    r.k->store_rows(tiles, to.width, nt, bias[i] ? bias[i]->data() + p0 * kPanelRows : nullptr, accumulate, to.y, to.ld);
  }
  void activate(const Run& r, const Matrix& m, int64_t p0, int64_t p1, int64_t t0, int64_t nt, float* tiles) const {
    for (int64_t p = p0; bias[0] && p < p1; ++p)
      for (int64_t t = 0; t < nt; ++t) r.k->add(tiles + ((p - p0) * nt + t) * kPanelRows, bias[0]->data() + p * kPanelRows, panel_width(m, p));
    r.k->gelu_erf(tiles, (p1 - p0) * nt * kPanelRows);
    const Place to(m, p0, p1, t0, r.buffer[out[0]]);
    r.k->store_rows(tiles, to.width, nt, nullptr, false, to.y, to.ld);
  }
};

// Gate panels first, then up panels: a thread that went to and fro between the two matrices every 14 KB would start
// the machine's prefetcher anew each time.
struct Gated final : Op {
  // Gate values of sixteen panels and sixteen tokens take 16 KB of an L1; in prefill gate and up share a thread's tiles.
  static constexpr int64_t kDecodePanels = 16, kPrefillPanels = kGemmPanels / 2;
  Input in; std::vector<MatrixPtr> w; bool gelu; int out;   // w: gate, up
  LowRank low;
  const uint8_t* weights() const override { return w[0]->w.data; }
  void prepare(const Run& r) override { low.prepare(r, in, w); }
  void run(Run& r, int thread) override {
    const int64_t rows = r.step->rows;
    each_row(r, first, rows, [&](int64_t t) { in.row(r, r.buffer[in.x] + t * in.k, t, rows); });
    low.reduce(r, in);
    float* tiles = in.scratch->tiles[static_cast<size_t>(thread)].data();
    const int64_t most = rows < r.k->gemm_rows ? kDecodePanels : kPrefillPanels;
    walk(*this, r, w[0]->w.count(), rows, most, [&](int64_t begin, int64_t end, int64_t t0, int64_t nt) {
      for (int64_t p = begin; p < end; p += most) block(r, p, std::min(end, p + most), end, t0, nt, tiles);
    });
  }
  // The gate panel that follows panel p of a range.
  const uint8_t* after(const Run& r, int64_t p, int64_t last) const {
    const int64_t n = panel_after(*this, r, p, last);
    return n < w[0]->w.count() ? w[0]->w.high(n) : following;
  }
  void block(const Run& r, int64_t begin, int64_t end, int64_t last, int64_t t0, int64_t nt, float* g) const {
    const int64_t n = (end - begin) * nt * kPanelRows;
    float* u = g + n;
    in.multiply(r, *w[0], begin, end, t0, nt, g, w[1]->w.high(begin));
    in.multiply(r, *w[1], begin, end, t0, nt, u, after(r, end - 1, last));
    low.expand(r, in, 0, begin, end, t0, nt, g);
    low.expand(r, in, 1, begin, end, t0, nt, u);
    const Place to(*w[0], begin, end, t0, r.buffer[out]);
    (gelu ? r.k->gelu_rows : r.k->silu_rows)(g, u, to.width, nt, to.y, to.ld);
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
      const int32_t* table = r.cache->in_slots(layer) ? s.slot_tables : s.block_tables;
      const int32_t block = table[s.seqs[t] * s.table_width + pos / kBlockTokens];
      r.k->kv_store(kr, r.buffer[v] + t * shape.kv_heads * shape.dv, shape.kv_heads, shape.d, shape.dv, r.cache->type(),
                    r.cache->pages(layer) + block * r.cache->stride(layer), pos % kBlockTokens);
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
  // split: [item][span][rows * group][2 + dv]; one room for all layers, of which one is computed at a time: of 28 layers'
  // own rooms a prompt's tail at 32k positions took 900 MB.
  std::vector<float>* partials;
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
      partials->resize(static_cast<size_t>(std::max<int64_t>(total, static_cast<int64_t>(partials->size()))));
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
    a.block_bytes = r.cache->stride(layer);
    a.block_table = (r.cache->in_slots(layer) ? r.step->slot_tables : r.step->block_tables) + it.seg.seq * r.step->table_width;
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
                         partials->data() + it.partial + s * unit(it.rows));
      }
    });
    share(r, second, static_cast<int64_t>(items.size()), 1, [&](int64_t i, int64_t) {
      const Item& it = items[static_cast<size_t>(i)];
      const int64_t count = it.rows * (heads / shape.kv_heads);
      start(scratch, count);
      for (int s = 0; s < it.spans; ++s)
        r.k->attend_merge(scratch, partials->data() + it.partial + s * unit(it.rows), static_cast<int>(count), shape.dv);
      end(r, args(r, it), it, scratch);
    });
  }
};

}  // namespace fh
