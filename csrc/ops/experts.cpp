// A mixture's experts: residual += sum over a row's experts, by ascending id, of weight * down(act(gate n) * (up n)),
// or of down(...) of weight * n.
//
// Rows that share an expert share a read of its panels, and experts without rows are not read. Five phases: rows are assigned
// to groups (one claim); rows are normalised, quantised once and copied to their groups; gate and up, by (group, panel); their
// products are quantised for down; down, by columns. A claim of columns walks all groups by ascending expert and adds to the
// residual, so each element's sum has one thread and one order, whatever the batch, the chunks and the threads.
#include "ops/activation.h"
#include "ops/grouped_rows.h"
#include "ops/mixture.h"
#include "ops/record.h"

namespace fh {
namespace {

struct Experts final : Op {
  static constexpr int64_t kMostPanels = 16;  // of gate and of up together in a thread's tiles, if the rows leave room
  Input in;                                   // x and its norm; rows wait in the plan's scratch until they are copied
  GroupedRows gates, downs;
  MatrixPtr gate, up, down;                   // gate null: there is none
  MaybeVector gate_bias, up_bias, down_bias;  // of all experts, one after another
  Activation act; int routes, residual, top_k; int64_t experts;
  bool weigh_input, fresh;                    // weights multiply what experts read; the residual begins at zero
  ExpertScratch* own;
  Phase copied, activated, quantized;         // between first, which assigns rows, and second, which is down
  int64_t used[Threads::kSeats] = {};         // groups of a step, by seat

  int64_t inner() const { return down->w.k; }
  int64_t width() const { return down->w.n / experts; }
  int64_t gate_panels() const { return inner() / kPanelRows; }   // of one expert, as many as up's
  int64_t down_panels() const { return width() / kPanelRows; }

  void prepare(const Run& r) override {
    for (Phase* p : {&copied, &activated, &quantized}) p->reset(r.seat);
  }
  void validate(const Step& s) const override {
    refuse_adapters(s, up, down);
    if (gate) refuse_adapters(s, gate);
  }
  void allocate(int64_t max_rows, int threads) override {
    in.scratch->allocate(max_rows, threads);
    own->allocate(max_rows * top_k, experts, inner());
  }
  void run(Run& r, int thread) override {
    const int64_t rows = r.step->rows;
    share(r, first, 1, 1, [&](int64_t, int64_t) {
      assign(r);
      announce_experts();
    });
    each_row(r, copied, rows, [&](int64_t t) { spread(r, t); });
    float* tiles = in.scratch->tiles[static_cast<size_t>(thread)].data();
    const int64_t room = static_cast<int64_t>(in.scratch->tiles[static_cast<size_t>(thread)].size()) / kPanelRows;
    const int64_t groups = used[r.seat];
    const bool streams = rows * top_k < groups * r.k->gemm_rows;
    claim(r, activated, groups * gate_panels(), streams, kGemmPanels / 2, [&](int64_t begin, int64_t end) { activate(r, begin, end, tiles, room); });
    each_row(r, quantized, rows * top_k, [&](int64_t n) { requantize(r, n); });
    claim(r, second, down_panels(), streams, kGemmPanels, [&](int64_t begin, int64_t end) { add_columns(r, begin, end, tiles, room); });
  }
  // Weights for few rows are read as streams; for many, up to `most` panels are multiplied at once.
  template <class Body> void claim(const Run& r, Phase& phase, int64_t panels, bool streams, int64_t most, Body f) const {
    if (streams) share_stream(r, phase, panels, f);
    else share(r, phase, panels, std::clamp<int64_t>(panels / (4 * r.active), 1, most), f);
  }
  // A counting sort by expert: a group's rows ascend, though no bit depends on their order.
  void assign(const Run& r) {
    const int64_t count = r.step->rows * top_k;
    const auto chosen = [&](int64_t n) { return r.buffer[routes] + n / top_k * 2 * top_k + n % top_k; };
    const auto filled = [&](int64_t n) -> int64_t& { return own->filled[static_cast<size_t>(*chosen(n))]; };
    std::fill_n(own->filled.begin(), experts, 0);
    for (int64_t n = 0; n < count; ++n) ++filled(n);
    own->groups.clear();
    for (int64_t e = 0, begin = 0; e < experts; ++e) {
      const int64_t rows = std::exchange(own->filled[static_cast<size_t>(e)], begin);
      std::fill_n(own->group.begin() + begin, rows, static_cast<int32_t>(own->groups.size()));
      if (rows) own->groups.push_back({static_cast<int>(e), begin, rows});
      begin += rows;
    }
    for (int64_t n = 0; n < count; ++n) {
      const auto place = static_cast<size_t>(filled(n)++);
      own->place[static_cast<size_t>(n)] = static_cast<int32_t>(place);
      own->row[place] = static_cast<int32_t>(n / top_k);
      own->weight[place] = weigh_input ? 1.0f : chosen(n)[top_k];
    }
    used[r.seat] = static_cast<int64_t>(own->groups.size());
  }
  // Where weights come from disk: the chosen experts' are read from now on, down's while gate and up are computed.
  void announce_experts() const {
    for (const MatrixPtr& m : {gate, up, down}) {
      if (!m || !m->memory->paged) continue;
      const int64_t panels = m->w.count() / experts;
      for (const Group& g : own->groups) announce(*m->memory, m->w.high(g.expert * panels), static_cast<size_t>(panels * m->w.panel_bytes));
    }
  }
  const Group& group_of(int64_t place) const { return own->groups[static_cast<size_t>(own->group[static_cast<size_t>(place)])]; }
  void spread(Run& r, int64_t t) const {
    const int32_t* places = own->place.data() + t * top_k;
    const float* x = r.buffer[in.x] + t * in.k;
    if (fresh) std::fill_n(r.buffer[residual] + t * width(), width(), 0.0f);
    if (in.norm.weight) {
      float* y = in.scratch->normed.data() + t * in.k;
      r.k->rms_norm(x, in.norm.weight->data(), in.norm.eps, in.k, y);
      x = y;
    }
    if (weigh_input) return spread_weighed(r, t, x);
    const Group& g = group_of(places[0]);
    gates.quantize(r, x, g, places[0] - g.first);
    for (int i = 0; i < top_k; ++i) {
      if (gates.in.want[kActF32]) std::copy_n(x, in.k, own->in.normed.data() + places[i] * in.k);
      const Group& h = group_of(places[i]);
      if (i) gates.copy(r, g, places[0] - g.first, h, places[i] - h.first);
    }
  }
  void spread_weighed(Run& r, int64_t t, const float* x) const {
    const float* weights = r.buffer[routes] + t * 2 * top_k + top_k;
    for (int i = 0; i < top_k; ++i) {
      const int64_t place = own->place[static_cast<size_t>(t * top_k + i)];
      float* y = own->in.normed.data() + place * in.k;
      for (int64_t j = 0; j < in.k; ++j) y[j] = x[j] * weights[i];
      gates.quantize(r, y, group_of(place), place - group_of(place).first);
    }
  }
  // Panels [begin, end) of all groups' gates, counted on, and those of up.
  void activate(const Run& r, int64_t begin, int64_t end, float* tiles, int64_t room) const {
    for (int64_t to; begin < end; begin = to) {
      const Group& g = own->groups[static_cast<size_t>(begin / gate_panels())];
      const int64_t first_panel = begin / gate_panels() * gate_panels();
      to = std::min(end, first_panel + gate_panels());
      for (int64_t t = 0; t < g.rows; t += kGemmTokens) {
        const int64_t nt = std::min<int64_t>(kGemmTokens, g.rows - t), most = std::clamp<int64_t>(room / (2 * nt), 1, kMostPanels);
        for (int64_t p = begin; p < to; p += most) gate_panels_of(r, g, p - first_panel, std::min(to, p + most) - first_panel, t, nt, tiles);
      }
    }
  }
  // act(gate) * up for panels [p0, p1) of a group's expert and rows [t0, t0 + nt) of the group.
  void gate_panels_of(const Run& r, const Group& g, int64_t p0, int64_t p1, int64_t t0, int64_t nt, float* gated) const {
    const int64_t base = g.expert * gate_panels(), panels = p1 - p0;
    const float* x = own->in.normed.data();
    float* ups = gated + panels * nt * kPanelRows;
    if (gate) gates.multiply(r, *gate, base + p0, base + p1, g, x, t0, nt, gated, up->w.high(base + p0));
    gates.multiply(r, *up, base + p0, base + p1, g, x, t0, nt, ups, p1 < gate_panels() ? (gate ? gate : up)->w.high(base + p1) : nullptr);
    if (gate_bias) add_bias(gated, panels, nt, gate_bias->data() + (base + p0) * kPanelRows);
    if (up_bias) add_bias(ups, panels, nt, up_bias->data() + (base + p0) * kPanelRows);
    act.store(*r.k, gated, ups, panels * kPanelRows, nt, own->hidden.data() + (g.first + t0) * inner() + p0 * kPanelRows, inner());
  }
  void requantize(Run& r, int64_t place) const {
    const Group& g = group_of(place);
    downs.quantize(r, own->hidden.data() + place * inner(), g, place - g.first);
  }
  // Panels [begin, end) of every group's down matrix.
  void add_columns(const Run& r, int64_t begin, int64_t end, float* tiles, int64_t room) const {
    const int64_t groups = used[r.seat];
    for (int64_t i = 0; i < groups; ++i) {
      const Group& g = own->groups[static_cast<size_t>(i)];
      const uint8_t* after = i + 1 < groups ? down->w.high((&g)[1].expert * down_panels() + begin) : following;
      for (int64_t t = 0; t < g.rows; t += kGemmTokens) {
        const int64_t nt = std::min<int64_t>(kGemmTokens, g.rows - t), most = std::clamp<int64_t>(room / nt, 1, kMostPanels);
        for (int64_t p = begin; p < end; p += most) add_panels(r, g, p, std::min(end, p + most), end, t, nt, tiles, after);
      }
    }
  }
  void add_panels(const Run& r, const Group& g, int64_t p0, int64_t p1, int64_t end, int64_t t0, int64_t nt, float* sums, const uint8_t* after) const {
    const int64_t base = g.expert * down_panels(), place = g.first + t0;
    downs.multiply(r, *down, base + p0, base + p1, g, own->hidden.data(), t0, nt, sums, p1 < end ? down->w.high(base + p1) : after);
    if (down_bias) add_bias(sums, p1 - p0, nt, down_bias->data() + (base + p0) * kPanelRows);
    r.k->add_scaled_rows(sums, (p1 - p0) * kPanelRows, nt, own->row.data() + place, own->weight.data() + place, r.buffer[residual] + p0 * kPanelRows, width());
  }
};

// Weights fit the router's experts, rows of k inputs and a residual of `width`; gate may be null. Throws Usage.
void check_experts(const Routes& routes, const MatrixPtr& gate, const MatrixPtr& up, const MatrixPtr& down, int64_t k, int64_t width) {
  const int64_t n = routes.experts, inner = down->w.k;
  const auto fits = [](const MatrixPtr& m, int64_t rows, int64_t inputs) { return !m || (m->w.n == rows && m->w.k == inputs); };
  if (!fits(gate, n * inner, k) || !fits(up, n * inner, k) || !fits(down, n * width, inner))
    refuse("experts that do not fit " + std::to_string(n) + " of " + std::to_string(k) + " x " + std::to_string(inner) + " x " + std::to_string(width));
  if (inner % kPanelRows || width % kPanelRows) refuse("an expert's rows must be multiples of " + std::to_string(kPanelRows));
  for (const MatrixPtr& m : {gate, up, down})
    if (m && (traits(m->w.type).act() == kActWide || m->w.low_bytes)) refuse(std::string("experts of ") + traits(m->w.type).name);
}

const Routes& routes_of(Plan& plan, int routes) {
  const auto& known = plan.shared<AllRoutes>().by_buffer;
  const auto found = known.find(routes);
  if (found == known.end()) refuse("experts() takes what route() returned, not buffer " + std::to_string(routes));
  return found->second;
}

int experts(Plan& plan, int x, int routes, MatrixPtr gate, MatrixPtr up, MatrixPtr down, std::optional<int> residual, const std::string& act,
            MaybeVector norm, float eps, MaybeVector gate_bias, MaybeVector up_bias, MaybeVector down_bias, float limit, float alpha, bool weigh_input) {
  const Routes& route = routes_of(plan, routes);
  const Activation between = Activation::of(act, gate != nullptr, limit, alpha);
  const int64_t width = residual ? plan.width_of(*residual) : down->w.n / route.experts;
  check_experts(route, gate, up, down, plan.width_of(x), width);
  if (gate_bias && !gate) refuse("a gate's bias without a gate");
  check_bias(gate_bias, gate ? *gate : *up);
  check_bias(up_bias, *up);
  check_bias(down_bias, *down);
  auto op = std::make_unique<Experts>();
  op->own = &plan.shared<ExpertScratch>();
  op->in = Input::record(plan, x, {std::move(norm), eps}, {});
  if (op->in.norm.weight) op->in.scratch->kf = std::max(op->in.scratch->kf, op->in.k);
  op->gates.in = Input::record(plan, x, {}, {up}, &op->own->in);
  if (gate) op->gates.in.wants(*gate);
  op->downs.in = {x, {}, down->w.k, {}, &op->own->mid};
  op->downs.in.wants(*down);
  if (op->gates.in.want[kActF32] || weigh_input) op->own->in.kf = std::max(op->own->in.kf, op->in.k);
  op->gate = gate;
  op->up = std::move(up);
  op->down = std::move(down);
  op->gate_bias = std::move(gate_bias);
  op->up_bias = std::move(up_bias);
  op->down_bias = std::move(down_bias);
  op->act = between;
  op->routes = routes;
  op->fresh = !residual;
  op->residual = residual ? *residual : plan.buffer(width);
  op->weigh_input = weigh_input;
  op->top_k = route.top_k;
  op->experts = route.experts;
  op->reads = {x, routes};
  (residual ? op->reads : op->writes).push_back(op->residual);
  return plan.add(std::move(op)).residual;
}
FREEHOLD_OP(experts,
            "residual += weight * down(act(gate · n) * (up · n)) for each of a row's experts, by ascending id.\n\n"
            "n = norm(x) or x. gate and up: [experts * intermediate, width of x], down: [experts * width of residual,\n"
            "intermediate], both sizes multiples of 16; a bias has a value for each row of its matrix. Returns residual, or\n"
            "without one a buffer of the sum. act: \"silu\" (with a `limit` as in gated()), \"gelu\", \"clamped\" (gpt-oss's, by\n"
            "`limit` and `alpha`), or \"relu2\" without a gate. `weigh_input`: weights multiply n instead. A step with an\n"
            "adapter for a matrix is refused.",
            "x"_a, "routes"_a, "gate"_a.none(), "up"_a, "down"_a, "residual"_a.none(), nanobind::kw_only(), "act"_a, "norm"_a = nanobind::none(), "eps"_a = 0.0f,
            "gate_bias"_a = nanobind::none(), "up_bias"_a = nanobind::none(), "down_bias"_a = nanobind::none(), "limit"_a = 0.0f, "alpha"_a = 1.0f,
            "weigh_input"_a = false)

}  // namespace
}  // namespace fh
