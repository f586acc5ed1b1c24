// A mixture's experts: residual += sum over a row's experts, by ascending id, of weight * down(act(gate n) * (up n)).
//
// Rows that share an expert share a read of its panels, and experts without rows are not read. Five phases: rows are assigned
// to groups (one claim); rows are normalised, quantised once and copied to their groups; gate and up, by (group, panel); their
// products are quantised for down; down, by columns. A claim of columns walks all groups by ascending expert and adds to the
// residual, so each element's sum has one thread and one order, whatever the batch, the chunks and the threads.
#include "ops/grouped_rows.h"
#include "ops/mixture.h"
#include "ops/record.h"

namespace fh {
namespace {

struct Experts final : Op {
  static constexpr int64_t kMostPanels = 16;  // of gate and of up together in a thread's tiles, if the rows leave room
  Input in;                                   // x and its norm; rows wait in the plan's scratch until they are copied
  GroupedRows gates, downs;
  MatrixPtr gate, up, down; bool gelu; int routes, residual, top_k; int64_t experts;
  ExpertScratch* own;
  Phase copied, activated, quantized;         // between first, which assigns rows, and second, which is down
  int64_t used[Threads::kSeats] = {};         // groups of a step, by seat

  int64_t inner() const { return down->w.k; }
  int64_t width() const { return down->w.n / experts; }
  int64_t gate_panels() const { return inner() / kPanelRows; }   // of one expert
  int64_t down_panels() const { return width() / kPanelRows; }

  void prepare(const Run& r) override {
    for (Phase* p : {&copied, &activated, &quantized}) p->reset(r.seat);
  }
  void validate(const Step& s) const override { refuse_adapters(s, gate, up, down); }
  void allocate(int64_t max_rows, int threads) override {
    in.scratch->allocate(max_rows, threads);
    own->allocate(max_rows * top_k, experts, inner());
  }
  void run(Run& r, int thread) override {
    const int64_t rows = r.step->rows;
    share(r, first, 1, 1, [&](int64_t, int64_t) { assign(r); });
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
      own->weight[place] = chosen(n)[top_k];
    }
    used[r.seat] = static_cast<int64_t>(own->groups.size());
  }
  const Group& group_of(int64_t place) const { return own->groups[static_cast<size_t>(own->group[static_cast<size_t>(place)])]; }
  void spread(Run& r, int64_t t) const {
    const int32_t* places = own->place.data() + t * top_k;
    const float* x = r.buffer[in.x] + t * in.k;
    if (in.norm.weight) {
      float* y = in.scratch->normed.data() + t * in.k;
      r.k->rms_norm(x, in.norm.weight->data(), in.norm.eps, in.k, y);
      x = y;
    }
    const Group& g = group_of(places[0]);
    gates.quantize(r, x, g, places[0] - g.first);
    for (int i = 0; i < top_k; ++i) {
      if (gates.in.want[kActF32]) std::copy_n(x, in.k, own->in.normed.data() + places[i] * in.k);
      const Group& h = group_of(places[i]);
      if (i) gates.copy(r, g, places[0] - g.first, h, places[i] - h.first);
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
    const int64_t base = g.expert * gate_panels();
    const float* x = own->in.normed.data();
    float* ups = gated + (p1 - p0) * nt * kPanelRows;
    gates.multiply(r, *gate, base + p0, base + p1, g, x, t0, nt, gated, up->w.high(base + p0));
    gates.multiply(r, *up, base + p0, base + p1, g, x, t0, nt, ups, p1 < gate_panels() ? gate->w.high(base + p1) : nullptr);
    float* y = own->hidden.data() + (g.first + t0) * inner() + p0 * kPanelRows;
    (gelu ? r.k->gelu_rows : r.k->silu_rows)(gated, ups, (p1 - p0) * kPanelRows, nt, y, inner());
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
    r.k->add_scaled_rows(sums, (p1 - p0) * kPanelRows, nt, own->row.data() + place, own->weight.data() + place, r.buffer[residual] + p0 * kPanelRows, width());
  }
};

// Weights fit the router's experts, rows of k inputs and a residual of `width`. Throws Usage.
void check_experts(const Routes& routes, const Matrix& gate, const Matrix& up, const Matrix& down, int64_t k, int64_t width) {
  const int64_t n = routes.experts, inner = down.w.k;
  const auto fits = [](const Matrix& m, int64_t rows, int64_t inputs) { return m.w.n == rows && m.w.k == inputs; };
  if (!fits(gate, n * inner, k) || !fits(up, n * inner, k) || !fits(down, n * width, inner))
    refuse("experts that do not fit " + std::to_string(n) + " of " + std::to_string(k) + " x " + std::to_string(inner) + " x " + std::to_string(width));
  if (inner % kPanelRows || width % kPanelRows) refuse("an expert's rows must be multiples of " + std::to_string(kPanelRows));
  for (const Matrix* m : {&gate, &up, &down})
    if (traits(m->w.type).act() == kActWide || m->w.low_bytes) refuse(std::string("experts of ") + traits(m->w.type).name);
}

void experts(Plan& plan, int x, int routes, MatrixPtr gate, MatrixPtr up, MatrixPtr down, int residual, const std::string& act, MaybeVector norm, float eps) {
  const auto& known = plan.shared<AllRoutes>().by_buffer;
  const auto found = known.find(routes);
  if (found == known.end()) refuse("experts() takes what route() returned, not buffer " + std::to_string(routes));
  if (act != "silu" && act != "gelu") throw Error(ErrorKind::Usage, "act must be 'silu' or 'gelu', got '" + act + "'");
  check_experts(found->second, *gate, *up, *down, plan.width_of(x), plan.width_of(residual));
  auto op = std::make_unique<Experts>();
  op->own = &plan.shared<ExpertScratch>();
  op->in = Input::record(plan, x, {std::move(norm), eps}, {});
  if (op->in.norm.weight) op->in.scratch->kf = std::max(op->in.scratch->kf, op->in.k);
  op->gates.in = Input::record(plan, x, {}, {gate, up}, &op->own->in);
  op->downs.in = {x, {}, down->w.k, {}, &op->own->mid};
  op->downs.in.wants(*down);
  if (op->gates.in.want[kActF32]) op->own->in.kf = std::max(op->own->in.kf, op->in.k);
  op->gate = std::move(gate);
  op->up = std::move(up);
  op->down = std::move(down);
  op->gelu = act == "gelu";
  op->routes = routes;
  op->residual = residual;
  op->top_k = found->second.top_k;
  op->experts = found->second.experts;
  op->reads = {x, routes, residual};
  plan.add(std::move(op));
}
FREEHOLD_OP(experts,
            "residual += weight * down(act(gate · n) * (up · n)) for each of a row's experts, by ascending id.\n\n"
            "n = norm(x) or x. gate and up: [experts * intermediate, width], down: [experts * width, intermediate],\n"
            "both sizes multiples of 16. A step with an adapter for one of them is refused.",
            "x"_a, "routes"_a, "gate"_a, "up"_a, "down"_a, "residual"_a, nanobind::kw_only(), "act"_a, "norm"_a = nanobind::none(), "eps"_a = 0.0f)

}  // namespace
}  // namespace fh
