// A matrix for each head: what latent attention does to queries before it and to sums of latents after it.
#include <cstring>

#include "ops/grouped_rows.h"
#include "ops/mixture.h"
#include "ops/record.h"

namespace fh {
namespace {

// Rows by head: head h's rows of a step are a group, a matrix of activations by itself, and its panels multiply that alone.
struct HeadScratch {
  ActScratch acts;                            // by head, then by row
  std::vector<float> floats;                  // the same as floats, for weights of a float type
  int64_t most = 0;                           // rows of all heads there is memory for
  void allocate(int64_t rows, int threads) {
    most = std::max(most, rows);              // ops may differ in heads, and allocate in any order
    acts.allocate(most, threads);
  }
};

struct LinearHeads final : Op {
  GroupedRows rows; MatrixPtr w; int out, heads; int64_t stride, width;   // floats from head to head: of x, and of what is written
  HeadScratch* own;
  const uint8_t* weights() const override { return w->w.data; }
  int64_t inner() const { return rows.in.k; }
  int64_t outer() const { return w->w.n / heads; }
  int64_t panels() const { return outer() / kPanelRows; }                 // of one head
  bool floats() const { return rows.in.want[kActF32]; }
  void validate(const Step& s) const override { refuse_adapters(s, w); }
  void allocate(int64_t max_rows, int threads) override {
    own->allocate(max_rows * heads, threads);
    if (floats()) own->floats.resize(std::max(own->floats.size(), static_cast<size_t>(max_rows * heads * inner())));
  }
  Group group(const Run& r, int64_t head) const { return {static_cast<int>(head), head * r.step->rows, r.step->rows}; }
  void run(Run& r, int thread) override {
    const int64_t n = r.step->rows;
    each_row(r, first, n, [&](int64_t t) {
      for (int64_t h = 0; h < heads; ++h) {
        const float* x = r.buffer[rows.in.x] + (t * heads + h) * stride;
        if (floats()) std::memcpy(own->floats.data() + (h * n + t) * inner(), x, sizeof(float) * static_cast<size_t>(inner()));
        rows.quantize(r, x, group(r, h), t);
      }
    });
    float* tile = own->acts.tiles[static_cast<size_t>(thread)].data();
    walk(*this, r, heads * panels(), n, kGemmPanels, [&](int64_t begin, int64_t end, int64_t t0, int64_t nt) {
      while (begin < end) {
        const int64_t head = begin / panels(), to = std::min({end, (head + 1) * panels(), begin + kGemmPanels});
        const int64_t after = panel_after(*this, r, to - 1, end);
        block(r, head, begin, to, t0, nt, tile, after < w->w.count() ? w->w.high(after) : following);
        begin = to;
      }
    });
  }
  void block(const Run& r, int64_t head, int64_t p0, int64_t p1, int64_t t0, int64_t nt, float* tile, const uint8_t* next) const {
    rows.multiply(r, *w, p0, p1, group(r, head), own->floats.data(), t0, nt, tile, next);
    float* y = r.buffer[out] + (t0 * heads + head) * width + (p0 - head * panels()) * kPanelRows;
    r.k->store_rows(tile, (p1 - p0) * kPanelRows, nt, nullptr, false, y, heads * width);
  }
};

int linear_heads(Plan& plan, int x, MatrixPtr weight, int heads, int room) {
  const int64_t wide = plan.width_of(x), n = weight->w.n, k = weight->w.k;
  if (heads < 1 || wide % heads || n % heads) refuse("linear_heads() of " + std::to_string(heads) + " heads over rows of " + std::to_string(wide) + " and " + std::to_string(n) + " outputs");
  if (k > wide / heads) refuse("a weight with " + std::to_string(k) + " inputs for heads of " + std::to_string(wide / heads));
  if (n / heads % kPanelRows) refuse("heads of " + std::to_string(n / heads) + " outputs, which are no multiple of " + std::to_string(kPanelRows));
  if (traits(weight->w.type).act() == kActWide) refuse("heads of wide codes");
  if (room < 0) refuse("room must be 0 or more");
  auto op = std::make_unique<LinearHeads>();
  op->own = &plan.shared<HeadScratch>();
  op->rows.in = {x, {}, k, {}, &op->own->acts};
  op->rows.in.wants(*weight);
  op->heads = heads;
  op->stride = wide / heads;
  op->width = n / heads + room;
  op->out = plan.buffer(heads * op->width);
  op->w = std::move(weight);
  op->reads = {x};
  op->writes = {op->out};
  return plan.add(std::move(op)).out;
}
FREEHOLD_OP(linear_heads,
            "A product for each head: its rows of W times the first inputs of its part of x.\n\n"
            "weight: [heads * outputs, inputs]; x: [heads, inputs or more].\n"
            "Returns [heads, outputs + room], whose room is not written.",
            "x"_a, "weight"_a, "heads"_a, "room"_a = 0)

}  // namespace
}  // namespace fh
