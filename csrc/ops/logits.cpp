// The last op of a decoder's plan: logits for the rows that want them, and chosen tokens for rows that want only a token.
// Knows the head's matrix, its screen and the contest of tokens; knows no filter and no request.
#include <cmath>

#include "ops/matmul.h"
#include "ops/record.h"
#include "sample.h"
#include "screen.h"

namespace fh {
namespace {

// The head's own rounding goes straight into the logits (a quarter of all the KL divergence on smollm2), and few rows
// ask for logits: so an int8 head sees each row twice, rounded and what the rounding left, as two rows of one tile.
// That is 15 bits of activation for a second dot on bytes already read.
//
// Where a step wants choices alone, a head in two planes is screened: the high plane gives each token an upper bound,
// and a panel is finished with its low plane only if one of its bounds reaches the best logit seen so far. Threads share
// that mark, so which panels are finished depends on their timing, and what is chosen does not. Where logits lie so close
// together that bounds rule out little (a hot temperature; weights drawn at random), the next steps finish every panel at once.
struct Logits final : Op {
  static constexpr int64_t kScreenRows = 64;  // choices whose bounds are taken together: 4 KB
  // A screen reads seven tenths of a head, and a panel finished by itself costs a panel in order and half as much again (Zen 5,
  // Q6_K, one thread: 1.07 ms where all are finished, 0.57 without a screen). So it pays below a quarter; above, one step in 32 tries.
  static constexpr int64_t kPays = 4, kWhole = 31;
  Input in; MatrixPtr w; MaybeVector bias; float scale, softcap;
  ActScratch scratch;                         // its own: two rows for each that wants logits or a choice
  ScreenRows seen;                            // one a choice
  std::vector<Contest> contests;              // one a choice
  std::vector<float> rows;                    // logits of the choices, where the head is not screened
  int64_t whole = 0;                          // steps to come that finish every panel of a screened head
  std::atomic<int64_t> finished{0};           // panels of this step, for a choice each; drafts' are not counted

  const uint8_t* weights() const override { return w->w.data; }
  int64_t parts() const { return in.want[kActF32] ? 1 : 2; }
  int64_t block() const { return in.want[kAct32] ? 32 : 256; }
  // Scaled, shifted or capped logits could tie where products differ, and a step that reads all for other rows has all.
  bool screens(const Step& s) const {
    return s.nchoices && !s.nlogits && w->w.low_bytes && scale == 1.0f && softcap == 0.0f && !bias;
  }

  void allocate(int64_t max_rows, int threads) override {
    scratch.allocate(max_rows * parts(), threads);
    if (w->w.low_bytes) seen.allocate(w->w.type, in.k, max_rows);
  }
  void prepare(const Run& r) override {
    const Step& s = *r.step;
    finished.store(0, std::memory_order_relaxed);
    contests.clear();
    for (int64_t i = 0; i < s.nchoices; ++i) contests.emplace_back(s.choices[i], r.threads->size());
    if (!screens(s)) rows.resize(std::max(rows.size(), static_cast<size_t>(s.nchoices * w->w.n)));
  }
  void run(Run& r, int thread) override {
    const Step& s = *r.step;
    each_row(r, first, s.nlogits + s.nchoices + s.nhidden, [&](int64_t t) {
      if (t < s.nlogits + s.nchoices) row(r, thread, t);
      else show(r, t - s.nlogits - s.nchoices);
    });
    if (screens(s)) return screen(r, thread);
    walk(*this, r, panels(s), (s.nlogits + s.nchoices) * parts(), kGemmPanels, [&](int64_t begin, int64_t end, int64_t t0, int64_t nt) {
      for (int64_t p = begin; p < end; ++p) store(r, thread, p, t0, nt, w->w.high(panel_after(*this, r, p, end)));   // t0, nt: multiples of parts()
    });
  }
  void validate(const Step& s) const override {
    if (s.nchoices && (s.tokens_end < 1 || s.tokens_end > w->w.n)) refuse("choices among " + std::to_string(s.tokens_end) + " tokens of a head of " + std::to_string(w->w.n));
  }
  void settle(const Step& s) override {
    if (screens(s)) whole = whole ? whole - 1 : finished * kPays > panels(s) * s.nchoices ? kWhole : 0;
    for (int64_t i = 0; i < s.nchoices; ++i) {
      const Choice& c = s.choices[i];
      s.chosen[i] = screens(s) ? contests[static_cast<size_t>(i)].winner()
                               : sample_token(rows.data() + i * w->w.n, s.tokens_end, {c.temperature, 1.0f, 0.0f, 1.0f, 0, c.seed, c.position});
    }
  }

 private:
  // What the head would read of a row, for rows whose hidden values are requested.
  void show(Run& r, int64_t t) {
    const Step& s = *r.step;
    const float* x = r.buffer[in.x] + s.hidden_rows[t] * in.k;
    if (!in.norm.weight) std::copy_n(x, in.k, s.hidden + t * in.k);
    else r.k->rms_norm(x, in.norm.weight->data(), in.norm.eps, in.k, s.hidden + t * in.k);
  }
  void row(Run& r, int thread, int64_t t) {
    const Step& s = *r.step;
    const int64_t k = in.k, at = t * parts(), from = t < s.nlogits ? s.logit_rows[t] : s.choices[t - s.nlogits].row;
    if (!in.norm.weight) std::copy_n(r.buffer[in.x] + from * k, k, in.scratch->normed.data() + at * k);
    in.row(r, r.buffer[in.x] + from * k, at);
    if (parts() == 1) return;
    const float* x = in.scratch->normed.data() + at * k;
    float* rest = in.scratch->normed.data() + (at + 1) * k;
    const int64_t n = block();
    const int8_t* q = (n == 32 ? in.scratch->q32 : in.scratch->q256).data() + at * k;
    const float* d = (n == 32 ? in.scratch->scale32 : in.scratch->scale256).data() + at * (k / n);
    for (int64_t i = 0; i < k; ++i) rest[i] = x[i] - d[i / n] * static_cast<float>(q[i]);
    in.quantize(r, rest, (at + 1) * k, k);
    if (!screens(s) || whole) return;
    for (int64_t i = 0; i < k; i += n)         // what the products see of the row: both roundings of it together
      for (int64_t j = i; j < i + n; ++j) rest[j] = d[i / n] * static_cast<float>(q[j]) + d[(k + i) / n] * static_cast<float>(q[k + j]);
    seen.set(t, rest);
    const int32_t draft = draft_after(s, s.choices[t].row);
    if (draft >= 0 && draft < s.tokens_end) finish(r, thread, t, draft / kPanelRows, ~uint32_t{0});
  }
  // The token after a row in its sequence: the draft of what the row will choose. Most drafts are accepted, and a
  // contest that begins with its winner finishes 18 panels where it would finish 330 (0.5b, sixteen answers).
  static int32_t draft_after(const Step& s, int64_t row) {
    const bool follows = row + 1 < s.rows && s.seqs[row + 1] == s.seqs[row] && s.positions[row + 1] == s.positions[row] + 1;
    return follows ? s.tokens[row + 1] : -1;
  }
  // Products of panel p with rows t0 .. t0+nt of the scratch, the parts of a row added up: [nt / parts()][16].
  void product(const Run& r, const Acts& acts, int64_t p, int64_t t0, int64_t nt, float* tile) const {
    r.k->panel[static_cast<int>(w->w.type)](w->w, p, acts, t0, nt, tile, kPanelRows);
    if (parts() == 1) return;
    for (int64_t t = 0; t < nt / 2; ++t)
      for (int c = 0; c < kPanelRows; ++c)
        tile[t * kPanelRows + c] = tile[2 * t * kPanelRows + c] + tile[(2 * t + 1) * kPanelRows + c];
  }
  void store(const Run& r, int thread, int64_t p, int64_t t0, int64_t nt, const uint8_t* next) {
    const Step& s = *r.step;
    float* tile = scratch.tiles[static_cast<size_t>(thread)].data();
    product(r, in.acts(r, *w, in.scratch->normed.data(), next), p, t0, nt, tile);
    t0 /= parts();
    nt /= parts();
    for (int64_t t = 0; bias && t < nt; ++t) r.k->add(tile + t * kPanelRows, bias->data() + p * kPanelRows, panel_width(*w, p));
    if (scale != 1.0f) r.k->scale(tile, scale, nt * kPanelRows);
    if (softcap != 0.0f) r.k->softcap(tile, softcap, nt * kPanelRows);
    for (int64_t t = 0; t < nt; ++t) {
      const int64_t row = t0 + t;
      float* y = row < s.nlogits ? s.logits + row * w->w.n : rows.data() + (row - s.nlogits) * w->w.n;
      std::copy_n(tile + t * kPanelRows, panel_width(*w, p), y + p * kPanelRows);
    }
  }
  // Panels that a step reads: all for rows of logits, else those whose ids may be chosen.
  int64_t panels(const Step& s) const {
    if (s.nlogits) return w->w.count();
    return s.nchoices ? (s.tokens_end + kPanelRows - 1) / kPanelRows : 0;
  }
  // All of `next`, where two tiles or more are long enough for it to come.
  int64_t ahead(const Run& r) const { return r.step->rows < r.k->gemm_rows ? r.ahead : w->w.panel_bytes; }
  void screen(Run& r, int thread) {
    const Step& s = *r.step;
    share_stream(r, second, panels(s), [&](int64_t begin, int64_t end) {
      int64_t count = 0;
      for (int64_t p = begin; p < end; ++p)
        for (int64_t t = 0; t < s.nchoices; t += kScreenRows) {
          const int64_t nt = std::min(kScreenRows, s.nchoices - t);
          const uint8_t* next = w->w.high(panel_after(*this, r, p, end));
          if (whole) finish_all(r, thread, p, next, t, nt);
          else count += screen_panel(r, thread, p, next, t, nt);
        }
      finished.fetch_add(count, std::memory_order_relaxed);
    });
  }
  // Returns how many choices' panels were finished.
  int64_t screen_panel(const Run& r, int thread, int64_t p, const uint8_t* next, int64_t t0, int64_t nt) {
    alignas(64) float upper[kScreenRows * kPanelRows];
    Acts high = seen.acts();
    high.next = next;
    high.ahead = ahead(r);
    r.k->screen[static_cast<int>(w->w.type)](w->w, p, high, seen.reach.data(), t0, nt, upper);
    int64_t count = 0;
    for (int64_t t = 0; t < nt; ++t) {
      const uint32_t able = contests[static_cast<size_t>(t0 + t)].able(upper + t * kPanelRows, p * kPanelRows, ids(r, p));
      if (!able) continue;
      finish(r, thread, t0 + t, p, able);
      ++count;
    }
    return count;
  }
  void finish_all(const Run& r, int thread, int64_t p, const uint8_t* next, int64_t t0, int64_t nt) {
    alignas(64) float exact[2 * kScreenRows * kPanelRows];
    Acts acts = in.acts(r, *w, in.scratch->normed.data(), next);
    acts.ahead = ahead(r);
    product(r, acts, p, 2 * t0, 2 * nt, exact);
    for (int64_t t = 0; t < nt; ++t) {
      const float* logits = exact + t * kPanelRows;
      Contest& contest = contests[static_cast<size_t>(t0 + t)];
      contest.offer(thread, logits, p * kPanelRows, ids(r, p), contest.able(logits, p * kPanelRows, ids(r, p)));
    }
  }
  // Offers choice t the exact logits of panel p.
  void finish(const Run& r, int thread, int64_t t, int64_t p, uint32_t able) {
    float exact[2 * kPanelRows];
    Acts acts = in.acts(r, *w, in.scratch->normed.data(), nullptr);
    acts.ahead = 0;                            // a panel by itself: nothing follows it
    product(r, acts, p, 2 * t, 2, exact);
    contests[static_cast<size_t>(t)].offer(thread, exact, p * kPanelRows, ids(r, p), able);
  }
  int ids(const Run& r, int64_t p) const { return static_cast<int>(std::min<int64_t>(kPanelRows, r.step->tokens_end - p * kPanelRows)); }
};

void logits(Plan& plan, int x, MatrixPtr weight, MaybeVector norm, float eps, float scale, float softcap, MaybeVector bias) {
  if (traits(weight->w.type).act() == kActWide) refuse("a head of wide codes");
  check_bias(bias, *weight);
  auto op = std::make_unique<Logits>();
  op->in = Input::record(plan, x, {std::move(norm), eps}, {weight}, &op->scratch);
  op->scratch.kf = op->in.k;                 // rows are gathered there, normalised or as they are
  op->scale = scale;
  op->softcap = softcap;
  op->bias = std::move(bias);
  op->reads = {x};
  const Plan::Ends ends{weight->w.n, op->in.k};
  op->w = std::move(weight);
  plan.add_last(std::move(op), ends);
}
FREEHOLD_OP(logits, "Output head over the rows a step asks for. The last op of a plan.\n\nThe softcap of scale * (W · n + bias), n = norm(x) or x.", "x"_a,
            "weight"_a, "norm"_a.none(), "eps"_a = 0.0f, "scale"_a = 1.0f, "softcap"_a = 0.0f, "bias"_a = nanobind::none())

}  // namespace
}  // namespace fh
