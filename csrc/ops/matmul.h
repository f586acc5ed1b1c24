// What the matmul ops share: activation rows in the forms that weights want, and walks over panels.
// Knows panels, rows and threads; every sum is a kernel's.
#pragma once
#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "ops/op.h"
#include "plan.h"

namespace fh {

// Panels a thread takes at once in prefill: their sums over 512 tokens are 256 KB of a 1 MB L2. Steps of fewer than
// gemm_rows rows read weights as a stream: two tiles at most, the second from a panel that still lies in L1 or L2.
constexpr int64_t kGemmPanels = 8;
constexpr int64_t kWideTokens = 96;                           // 288 KB of wide codes at 1536 inputs
constexpr int64_t kUnitInputs = 256, kUnitRoom = 32;          // units of Acts: inputs, and rows that may be read past the last

// Activation rows in the forms a set of weights wants; scratch shared by all ops of a plan, one op at a time.
struct ActScratch {
  std::vector<float> normed, scale32, scale256, fsum32;
  std::vector<int8_t> q32, q256;
  std::vector<int32_t> sum32, sum256;
  std::vector<float> gates;                   // of the rows, for linear_add
  std::vector<float> low;                     // A x of the rows that adapters change: see LowRank
  std::vector<int16_t> wide;
  std::vector<float> wide_scale;
  AlignedFloats rounded;                      // of uint16
  std::vector<std::vector<float>> tiles;      // by thread: sums of kGemmPanels panels
  int64_t k32 = 0, k256 = 0, kf = 0, kw = 0, kr = 0;   // widest K each form must hold
  void allocate(int64_t rows, int threads) {
    const auto units = [](int64_t k) { return (k + kUnitInputs - 1) / kUnitInputs; };
    normed.resize(static_cast<size_t>(rows * kf));
    gates.resize(static_cast<size_t>(rows));
    q32.resize(static_cast<size_t>((rows * units(k32) + kUnitRoom) * kUnitInputs));
    scale32.resize(static_cast<size_t>(rows * units(k32) * 8));
    fsum32.resize(scale32.size());
    sum32.resize(static_cast<size_t>(rows * units(k32) * 16));
    q256.resize(static_cast<size_t>((rows * units(k256) + kUnitRoom) * kUnitInputs));
    scale256.resize(static_cast<size_t>(rows * units(k256)));
    sum256.resize(static_cast<size_t>(rows * units(k256) * 16));
    wide.resize(static_cast<size_t>(rows * kw));
    wide_scale.resize(static_cast<size_t>(rows * kw / kWideUnit));
    if (kr) rounded.grow(rows * units(kr) * kUnitInputs / 2);
    tiles.resize(static_cast<size_t>(threads));
    // At least 64 tokens' room: in decode sixteen gate and sixteen up panels share it, of sixteen rows at most.
    for (auto& t : tiles) t.resize(static_cast<size_t>(kGemmPanels * std::clamp<int64_t>(rows, 64, kGemmTokens) * kPanelRows));
  }
};

// Panels [p0, p1) of w times rows [t0, t0 + nt) of x, which lie by units where x.rows says how many: y [p1-p0][nt][16].
inline void multiply_rows(const Run& r, const Matrix& w, int64_t p0, int64_t p1, Acts x, int64_t t0, int64_t nt, float* y) {
  const int type = static_cast<int>(w.w.type);
  if (x.rows) {
    for (int64_t u = 0; u * kUnitInputs < x.k; ++u) r.k->gemm[type](w.w, p0, p1, u, x, t0, nt, y);
    return;
  }
  const uint8_t* next = x.next;
  for (int64_t p = p0; p < p1; ++p, y += nt * kPanelRows) {
    x.next = p + 1 < p1 ? w.w.high(p + 1) : next;
    r.k->panel[type](w.w, p, x, t0, nt, y, kPanelRows);
  }
}

// The shared first half of every matmul op: normalise rows and quantise them once for all weights that read them.
struct Input {
  int x;
  Norm norm;
  int64_t k;
  bool want[kActs] = {};                       // by kActF32, kAct32, ...
  ActScratch* scratch;
  bool rounds = false;                         // see Plan::rounds

  // For rows of buffer x that all `weights` read. Throws Usage where widths differ.
  static Input record(Plan& plan, int x, Norm norm, const std::vector<MatrixPtr>& weights, ActScratch* own = nullptr) {
    const int64_t k = plan.width_of(x);
    check(norm, k);
    Input in{x, std::move(norm), k, {}, own ? own : &plan.shared<ActScratch>(), plan.rounds};
    for (const MatrixPtr& w : weights) {
      if (w->w.k != k) refuse("a weight with " + std::to_string(w->w.k) + " inputs for rows of " + std::to_string(k));
      in.wants(*w);
    }
    return in;
  }
  void wants(const Matrix& w) {
    const int act = act_of(w);
    want[act] = true;
    if (act == kActRounded) scratch->kr = std::max(scratch->kr, k);
    if (act == kAct32) scratch->k32 = std::max(scratch->k32, k);
    if (act == kAct256) scratch->k256 = std::max(scratch->k256, k);
    if (act == kActWide) scratch->kw = std::max(scratch->kw, k);
    if (norm.weight) scratch->kf = std::max(scratch->kf, k);
  }
  int act_of(const Matrix& w) const { return rounds && kernels()->gemm_rounded[static_cast<int>(w.w.type)] ? kActRounded : traits(w.w.type).act(); }
  uint16_t* rounded() const { return reinterpret_cast<uint16_t*>(scratch->rounded.data()); }
  // rows: 0 where row t is to lie by itself, else the number of rows that lie by units.
  void row(Run& r, const float* src, int64_t t, int64_t rows = 0) const {
    if (norm.weight) {
      float* y = scratch->normed.data() + t * k;
      r.k->rms_norm(src, norm.weight->data(), norm.eps, k, y);
      src = y;
    }
    if (want[kActWide]) r.k->quantize_wide(src, k, rows, scratch->wide.data() + t * kWideUnit, scratch->wide_scale.data() + t);
    for (int64_t u = 0; want[kActRounded] && u * kUnitInputs < k; ++u)
      r.k->round_row(src + u * kUnitInputs, std::min(kUnitInputs, k - u * kUnitInputs), rounded() + (u * rows + t) * kUnitInputs);
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
    switch (act_of(w)) {
      case kActRounded: a.rounded = rounded(); a.rows = r.step->rows; break;
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
    if (a.rounded) {
      for (int64_t u = 0; u * kUnitInputs < a.k; ++u) r.k->gemm_rounded[static_cast<int>(w.w.type)](w.w, p0, p1, u, a, t0, nt, y);
      return;
    }
    if (a.wide) return multiply_wide(r, w, p0, p1, t0, nt, a, y);
    if (!a.f32 && r.step->rows >= r.k->gemm_rows) a.rows = r.step->rows;
    multiply_rows(r, w, p0, p1, a, t0, nt, y);
  }
  // Some rows at a time, so that what all panels of a range read of them stays in an L2.
  void multiply_wide(const Run& r, const Matrix& w, int64_t p0, int64_t p1, int64_t t0, int64_t nt, const Acts& a, float* y) const {
    for (int64_t t = 0; t < nt; t += kWideTokens)
      for (int64_t p = p0; p < p1; ++p)
        r.k->panel[static_cast<int>(w.w.type)](w.w, p, a, t0 + t, std::min(kWideTokens, nt - t), y + ((p - p0) * nt + t) * kPanelRows, kPanelRows);
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
// The panel after n of a thread's range [.., end): within it the next; then the first unclaimed one, which will be this
// thread's if it is quick; then what the next op begins with. A wrong guess costs a few lines prefetched in vain.
inline int64_t panel_after(const Op& op, const Run& r, int64_t n, int64_t end) {
  return n + 1 < end ? n + 1 : op.second.seats[r.seat].next.load(std::memory_order_relaxed);
}
inline int64_t panel_width(const Matrix& w, int64_t p) { return std::min<int64_t>(kPanelRows, w.w.n - p * kPanelRows); }

// Rows [t0, ..) of a matrix's output y, from panel p0 on; and the columns of its panels [p0, p1).
struct Place {
  float* y;
  int64_t width, ld;
  Place(const Matrix& m, int64_t p0, int64_t p1, int64_t t0, float* y)
      : y(y + t0 * m.w.n + p0 * kPanelRows), width(std::min(p1 * kPanelRows, m.w.n) - p0 * kPanelRows), ld(m.w.n) {}
};

inline void check_bias(const MaybeVector& bias, const Matrix& w) {
  if (bias && bias->size() != w.w.n) refuse("a bias that does not fit its weight");
}

}  // namespace fh
