// Records ops into a plan, checks a step against it, and replays it. The ops themselves are in ops.h and head.h.
#include "plan.h"

#include <algorithm>
#include <bit>
#include <chrono>
#include <cmath>
#include <mutex>

#include "crew.h"
#include "encode.h"
#include "head.h"
#include "narrow.h"
#include "pace.h"

namespace fh {
namespace {

[[noreturn]] void refuse(const std::string& what) { throw Error(ErrorKind::Usage, "plan: " + what); }

}  // namespace

void Adapter::add(MatrixPtr w, Pair pair) {
  const auto shape = [](const Panels& m) { return std::to_string(m.n) + " x " + std::to_string(m.k); };
  const Panels &m = w->w, &a = pair.a->w, &b = pair.b->w;
  if (a.k != m.k || b.n != m.n || b.k != a.n || a.n % kPanelRows)
    refuse("an adapter of " + shape(a) + " and " + shape(b) + " for a matrix of " + shape(m));
  if (kind_info(a.kind).act != kActF32 || kind_info(b.kind).act != kActF32) refuse("an adapter's matrices are floats");
  if (!std::isfinite(pair.scale)) refuse("an adapter's scale is not finite");
  if (!pairs_.emplace(std::move(w), std::move(pair)).second) refuse("an adapter changes one matrix twice");
}

const Adapter::Pair* Adapter::find(const MatrixPtr& w) const {
  const auto found = pairs_.find(w);
  return found == pairs_.end() ? nullptr : &found->second;
}

int64_t Adapter::bytes() const {
  int64_t sum = 0;
  for (const auto& [w, pair] : pairs_) sum += pair.a->bytes() + pair.b->bytes();
  return sum;
}

struct Plan::State {
  std::shared_ptr<Threads> threads;
  std::shared_ptr<KvCache> cache;
  int64_t max_rows;
  std::vector<std::unique_ptr<Op>> ops;
  std::vector<int64_t> width;                            // of each buffer
  std::vector<int> slot;                                 // of each buffer, after finish()
  std::vector<std::vector<float>> slots;
  std::vector<std::unique_ptr<RopeTable>> ropes;
  ActScratch scratch;
  std::vector<float> partials;                           // of attention: see there
  Logits* head = nullptr;
  Hidden* last = nullptr;                                // of a plan without a head
  Pace pace;
  int64_t embed_rows = 0, most_positions = 0;            // the second without a cache
  bool finished = false;
  std::mutex one_step;
  std::vector<Crew> crews;                               // by kind of step: see crew()
  // A step in one seat: as it came, and what is left of it behind op number `narrow`.
  struct Seat { Step step; Run run; Narrowed narrowed; Run rest; };
  Seat seats[Threads::kSeats];
  size_t narrow = 0;                                     // 0: all rows go all the way

  template <class T> T& add(std::unique_ptr<T> op) {
    if (finished || head || last) refuse("no op may follow logits() or hidden()");
    T& ref = *op;
    ops.push_back(std::move(op));
    return ref;
  }
  int buffer(int64_t w) { width.push_back(w); return static_cast<int>(width.size()) - 1; }
  int64_t width_of(int b) const {
    if (b < 0 || static_cast<size_t>(b) >= width.size()) refuse("no buffer " + std::to_string(b));
    return width[static_cast<size_t>(b)];
  }
  void want_width(int b, int64_t w, const char* what) const {
    if (width_of(b) != w) refuse(std::string(what) + " is " + std::to_string(w) + " wide, its buffer " + std::to_string(width_of(b)));
  }
  void want_layer(int layer) const {
    if (!cache || layer < 0 || layer >= cache->layers()) refuse("no layer " + std::to_string(layer) + " in the cache");
  }
  void check(const Norm& n, int64_t w) const {
    if (n.weight && static_cast<int64_t>(n.weight->size()) != w) refuse("a norm weight of " + std::to_string(n.weight->size()) + " for rows of " + std::to_string(w));
  }
  Input input(int x, Norm norm, const std::vector<MatrixPtr>& weights, ActScratch* own = nullptr) {
    const int64_t k = width_of(x);
    check(norm, k);
    Input in{x, std::move(norm), k, {}, own ? own : &scratch};
    for (const MatrixPtr& w : weights) {
      if (w->w.k != k) refuse("a weight with " + std::to_string(w->w.k) + " inputs for rows of " + std::to_string(k));
      in.wants(*w);
    }
    return in;
  }
  void assign_slots();
  void validate(const Step& step) const;
  void insert_narrow();
  Seat& ready(const Step& step, int number, int active, int64_t ahead);
  void fill(Run& r, const Step& step, int seat, int active, int64_t ahead);
  // Steps whose cost a row is alike: one row, two, ... seven, 8 to 15, 16 to 31, ...
  Crew& crew(int64_t rows) {
    const auto kind = static_cast<size_t>(rows < 8 ? rows : 4 + std::bit_width(static_cast<uint64_t>(rows)));
    while (crews.size() <= kind) crews.emplace_back(threads->size());
    return crews[kind];
  }
  void walk(Seat& seat, int thread) {
    for (auto& t : ropes) t->fill(seat.run);
    for (size_t i = 0; i < ops.size(); ++i) {
      Run& r = part(seat, i);
      if (!r.step->rows) return;
      ops[i]->run(r, thread);
    }
  }
  Run& part(Seat& seat, size_t op) const { return narrow && op > narrow ? seat.rest : seat.run; }
  std::vector<Segment> segments(const Step& step) const;
  std::vector<Adapted> adapted(const Step& step) const;
};

Plan::Plan(std::shared_ptr<Threads> threads, std::shared_ptr<KvCache> cache, int64_t max_rows) : s_(std::make_unique<State>()) {
  if (max_rows < 1 || max_rows > 1 << 20) refuse("max_rows must be 1 to 1048576, got " + std::to_string(max_rows));
  s_->threads = std::move(threads);
  s_->cache = std::move(cache);
  s_->max_rows = max_rows;
}
Plan::~Plan() { s_->threads->settle(); }

int Plan::embed(MatrixPtr table, float scale) {
  auto op = std::make_unique<Embed>();
  op->out = s_->buffer(table->w.k);
  op->writes = {op->out};
  s_->embed_rows = table->w.n;
  op->table = std::move(table);
  op->scale = scale;
  return s_->add(std::move(op)).out;
}

int Plan::norm(int x, Norm n) {
  const int64_t k = s_->width_of(x);
  if (!n.weight) refuse("norm() needs a weight");
  s_->check(n, k);
  auto op = std::make_unique<NormOp>();
  op->x = x;
  op->k = k;
  op->n = std::move(n);
  op->out = s_->buffer(k);
  op->reads = {x};
  op->writes = {op->out};
  return s_->add(std::move(op)).out;
}

std::vector<int> Plan::linear(int x, std::vector<MatrixPtr> weights, std::vector<Vector> biases, Norm norm) {
  if (weights.empty() || biases.size() != weights.size()) refuse("linear() takes one bias (or None) for each weight");
  auto op = std::make_unique<Linear>();
  op->in = s_->input(x, std::move(norm), weights);
  for (size_t i = 0; i < weights.size(); ++i) {
    if (biases[i] && static_cast<int64_t>(biases[i]->size()) != weights[i]->w.n) refuse("a bias that does not fit its weight");
    op->out.push_back(s_->buffer(weights[i]->w.n));
  }
  op->w = std::move(weights);
  op->bias = std::move(biases);
  op->reads = {x};
  op->writes = op->out;
  return s_->add(std::move(op)).out;
}

void Plan::linear_add(int x, MatrixPtr weight, Vector bias, int residual) {
  s_->want_width(residual, weight->w.n, "the output");
  if (bias && static_cast<int64_t>(bias->size()) != weight->w.n) refuse("a bias that does not fit its weight");
  auto op = std::make_unique<Linear>();
  op->in = s_->input(x, {}, {weight});
  op->w = {std::move(weight)};
  op->bias = {std::move(bias)};
  op->out = {residual};
  op->accumulate = true;
  op->reads = {x, residual};
  s_->add(std::move(op));
}

int Plan::gated(int x, MatrixPtr gate, MatrixPtr up, bool gelu, Norm norm) {
  if (gate->w.n != up->w.n) refuse("gate and up differ in width");
  auto op = std::make_unique<Gated>();
  op->in = s_->input(x, std::move(norm), {gate, up});
  op->out = s_->buffer(gate->w.n);
  op->w = {std::move(gate), std::move(up)};
  op->gelu = gelu;
  op->reads = {x};
  op->writes = {op->out};
  return s_->add(std::move(op)).out;
}

void Plan::rope_store(int layer, int q, int k, int v, std::shared_ptr<const Rope> rope, Norm q_norm, Norm k_norm) {
  s_->want_layer(layer);
  const KvLayer shape = s_->cache->layer(layer);
  s_->want_width(k, int64_t{shape.kv_heads} * shape.d, "the keys");
  s_->want_width(v, int64_t{shape.kv_heads} * shape.dv, "the values");
  if (s_->width_of(q) % shape.d) refuse("queries are no whole number of heads");
  s_->check(q_norm, shape.d);
  s_->check(k_norm, shape.d);
  auto op = std::make_unique<RopeStore>();
  op->layer = layer; op->q = q; op->k = k; op->v = v;
  op->heads = static_cast<int>(s_->width_of(q) / shape.d);
  op->shape = shape;
  op->q_norm = std::move(q_norm);
  op->k_norm = std::move(k_norm);
  op->table = nullptr;
  if (rope) {
    if (rope->inv_freq.empty() || static_cast<int64_t>(2 * rope->inv_freq.size()) > shape.d) refuse("a rope wider than its heads");
    for (auto& t : s_->ropes) if (t->rope == rope) op->table = t.get();
    if (!op->table) {
      s_->ropes.push_back(std::make_unique<RopeTable>());
      s_->ropes.back()->rope = rope;
      op->table = s_->ropes.back().get();
    }
  }
  op->reads = {q, k, v};
  op->writes = {q};
  s_->add(std::move(op));
}

int Plan::attention(int layer, int q, float scale, int window, float softcap) {
  s_->want_layer(layer);
  if (window < 0) refuse("a window must be 0 (none) or positive");
  if (s_->cache->in_slots(layer) && (!window || window > s_->cache->window())) refuse("layer " + std::to_string(layer) + " looks further back than its slots");
  if (!(scale > 0.0f)) refuse("scores need a scale above 0");
  auto op = std::make_unique<Attention>();
  op->shape = s_->cache->layer(layer);
  op->layer = layer;
  op->q = q;
  op->heads = static_cast<int>(s_->width_of(q) / op->shape.d);
  if (op->heads < 1 || op->heads % op->shape.kv_heads || s_->width_of(q) % op->shape.d) refuse("query heads are no multiple of kv heads");
  op->out = s_->buffer(int64_t{op->heads} * op->shape.dv);
  op->scale = scale;
  op->window = window;
  op->softcap = softcap;
  op->partials = &s_->partials;
  op->reads = {q};
  op->writes = {op->out};
  return s_->add(std::move(op)).out;
}

void Plan::add_norm(int residual, int x, Norm n) {
  const int64_t k = s_->width_of(x);
  if (!n.weight) refuse("add_norm() needs a weight");
  s_->want_width(residual, k, "the addend");
  s_->check(n, k);
  auto op = std::make_unique<AddNorm>();
  op->x = x;
  op->residual = residual;
  op->n = std::move(n);
  op->k = k;
  op->reads = {x, residual};
  s_->add(std::move(op));
}

void Plan::logits(int x, MatrixPtr weight, Norm norm, float scale, float softcap) {
  if (!norm.weight) refuse("logits() needs a norm");     // gathers rows through it
  auto op = std::make_unique<Logits>();
  if (kind_info(weight->w.kind).act == kActWide) refuse("a head of wide codes");
  op->in = s_->input(x, std::move(norm), {weight}, &op->scratch);
  op->w = std::move(weight);
  op->scale = scale;
  op->softcap = softcap;
  op->reads = {x};
  Logits& head = s_->add(std::move(op));
  s_->head = &head;
}

int Plan::embed_sum(MatrixPtr words, MatrixPtr positions, MatrixPtr kinds) {
  const int64_t k = words->w.k;
  if (positions->w.k != k || kinds->w.k != k) refuse("embeddings of different widths");
  auto op = std::make_unique<EmbedSum>();
  op->kind.resize(static_cast<size_t>(k));
  decode_row(kinds->w, 0, op->kind.data());
  op->rows.assign(static_cast<size_t>(s_->threads->size()), std::vector<float>(static_cast<size_t>(k)));
  op->out = s_->buffer(k);
  op->writes = {op->out};
  s_->embed_rows = words->w.n;
  s_->most_positions = positions->w.n;
  op->words = std::move(words);
  op->positions = std::move(positions);
  return s_->add(std::move(op)).out;
}

void Plan::layer_norm(int x, Vector weight, Vector bias, float eps) {
  const int64_t k = s_->width_of(x);
  if (!weight || !bias || static_cast<int64_t>(weight->size()) != k || static_cast<int64_t>(bias->size()) != k)
    refuse("layer_norm() needs a weight and a bias as wide as its rows");
  if (k % 16) refuse("layer_norm() over rows of " + std::to_string(k) + ", no multiple of 16");
  auto op = std::make_unique<LayerNorm>();
  op->x = x;
  op->weight = std::move(weight);
  op->bias = std::move(bias);
  op->eps = eps;
  op->k = k;
  op->reads = {x};
  s_->add(std::move(op));
}

int Plan::linear_gelu(int x, MatrixPtr weight, Vector bias) {
  if (bias && static_cast<int64_t>(bias->size()) != weight->w.n) refuse("a bias that does not fit its weight");
  auto op = std::make_unique<Linear>();
  op->in = s_->input(x, {}, {weight});
  op->out = {s_->buffer(weight->w.n)};
  op->w = {std::move(weight)};
  op->bias = {std::move(bias)};
  op->gelu = true;
  op->reads = {x};
  op->writes = op->out;
  return s_->add(std::move(op)).out[0];
}

int Plan::attend_both(int q, int k, int v, int heads, float scale) {
  const int64_t width = s_->width_of(q);
  s_->want_width(k, width, "the keys");
  s_->want_width(v, width, "the values");
  if (heads < 1 || width % heads || width / heads % 16) refuse("heads must divide rows of " + std::to_string(width) + " into multiples of 16");
  if (!(scale > 0.0f)) refuse("scores need a scale above 0");
  auto op = std::make_unique<AttendBoth>();
  op->q = q; op->k = k; op->v = v;
  op->heads = heads;
  op->d = static_cast<int>(width / heads);
  op->scale = scale;
  op->out = s_->buffer(width);
  op->reads = {q, k, v};
  op->writes = {op->out};
  return s_->add(std::move(op)).out;
}

void Plan::hidden(int x) {
  auto op = std::make_unique<Hidden>();
  op->x = x;
  op->k = s_->width_of(x);
  op->reads = {x};
  s_->last = &s_->add(std::move(op));
}

// A buffer lives from its first op to its last; dead ones lend their memory to later ones of no greater width.
void Plan::State::assign_slots() {
  std::vector<size_t> last(width.size(), 0);
  for (size_t i = 0; i < ops.size(); ++i) {
    for (int b : ops[i]->reads) last[static_cast<size_t>(b)] = i;
    for (int b : ops[i]->writes) last[static_cast<size_t>(b)] = i;
  }
  std::vector<int64_t> slot_width;
  std::vector<bool> busy;
  slot.assign(width.size(), -1);
  for (size_t i = 0; i < ops.size(); ++i) {
    for (int b : ops[i]->writes) {
      int& at = slot[static_cast<size_t>(b)];
      if (at >= 0) continue;
      const int64_t want = width[static_cast<size_t>(b)];
      for (size_t s = 0; s < busy.size(); ++s)
        if (!busy[s] && slot_width[s] >= want && (at < 0 || slot_width[s] < slot_width[static_cast<size_t>(at)])) at = static_cast<int>(s);
      if (at < 0) {
        at = static_cast<int>(busy.size());
        busy.push_back(false);
        slot_width.push_back(want);
      }
      busy[static_cast<size_t>(at)] = true;
    }
    for (size_t b = 0; b < width.size(); ++b)
      if (slot[b] >= 0 && last[b] == i) busy[static_cast<size_t>(slot[b])] = false;
  }
  for (int64_t w : slot_width) slots.emplace_back(static_cast<size_t>(w * max_rows));
}

// Behind the last op that stores keys and values, where there is one: an encoder's rows all see each other to the end.
void Plan::State::insert_narrow() {
  for (size_t i = 0; i < ops.size(); ++i)
    if (dynamic_cast<RopeStore*>(ops[i].get())) narrow = i + 1;
  if (!narrow) return;
  auto op = std::make_unique<Narrow>();
  const auto uses = [&](size_t begin, size_t end, int buffer) {
    return std::any_of(ops.begin() + static_cast<int64_t>(begin), ops.begin() + static_cast<int64_t>(end), [&](const auto& o) {
      return std::count(o->reads.begin(), o->reads.end(), buffer) || std::count(o->writes.begin(), o->writes.end(), buffer);
    });
  };
  for (int b = 0; b < static_cast<int>(width.size()); ++b)
    if (uses(0, narrow, b) && uses(narrow, ops.size(), b)) op->kept.push_back({b, width_of(b)});
  ops.insert(ops.begin() + static_cast<int64_t>(narrow), std::move(op));
}

void Plan::finish() {
  if (!s_->head && !s_->last) refuse("finish() before logits() or hidden()");
  if (s_->finished) return;
  s_->insert_narrow();
  s_->assign_slots();
  s_->scratch.allocate(s_->max_rows, s_->threads->size());
  if (s_->head) s_->head->allocate(s_->max_rows, s_->threads->size());
  for (auto& t : s_->ropes) {
    t->cos.resize(static_cast<size_t>(s_->max_rows) * t->rope->inv_freq.size());
    t->sin.resize(t->cos.size());
  }
  const uint8_t* head = nullptr;
  for (auto op = s_->ops.rbegin(); op != s_->ops.rend(); ++op) {
    (*op)->following = head;
    if ((*op)->weights()) head = (*op)->weights();
  }
  s_->finished = true;
}

int64_t Plan::vocab() const { return s_->head ? s_->head->w->w.n : 0; }
int64_t Plan::hidden_width() const { return s_->head ? s_->head->in.k : s_->last ? s_->last->k : 0; }

// ---- running ---------------------------------------------------------------------------------------------------
void Plan::State::validate(const Step& s) const {
  if (!finished) refuse("run() before finish()");
  if (s.rows < 1 || s.rows > max_rows) refuse("a step takes 1 to " + std::to_string(max_rows) + " rows, got " + std::to_string(s.rows));
  if (!head && s.nlogits + s.nchoices) refuse("an encoder has no logits");
  if (s.nhidden > max_rows) refuse("more hidden rows than a step has rows");
  if (s.nlogits + s.nchoices > max_rows) refuse("more rows for logits and choices than a step has rows");
  if (s.nchoices && (s.tokens_end < 1 || s.tokens_end > head->w->w.n)) refuse("choices among " + std::to_string(s.tokens_end) + " tokens of a head of " + std::to_string(head->w->w.n));
  for (int64_t i = 0; i < s.nchoices; ++i)
    if (s.choices[i].row < 0 || s.choices[i].row >= s.rows) refuse("no row " + std::to_string(s.choices[i].row) + " for a choice");
  for (int64_t t = 0; t < s.rows; ++t) {
    if (s.tokens[t] < 0 || s.tokens[t] >= embed_rows) refuse("token " + std::to_string(s.tokens[t]) + " is outside the vocabulary of " + std::to_string(embed_rows));
    if (s.seqs[t] < 0 || s.seqs[t] >= s.nseqs) refuse("no sequence " + std::to_string(s.seqs[t]));
    if (s.positions[t] < 0 || s.positions[t] >= (cache ? s.table_width * kBlockTokens : most_positions))
      refuse("position " + std::to_string(s.positions[t]) + (cache ? " is beyond the block table" : " is beyond the model's " + std::to_string(most_positions)));
  }
  for (int64_t i = 0; i < s.nhidden; ++i)
    if (s.hidden_rows[i] < 0 || s.hidden_rows[i] >= s.rows) refuse("no row " + std::to_string(s.hidden_rows[i]) + " for hidden");
  for (int64_t t = 1; t < s.rows; ++t) {
    if (s.seqs[t] < s.seqs[t - 1]) refuse("rows must be in order of sequence");
    if (s.seqs[t] == s.seqs[t - 1] && s.positions[t] != s.positions[t - 1] + 1) refuse("rows of one sequence must be consecutive positions");
  }
  const int window = cache ? cache->window() : 0;
  if (window && !s.slot_tables) refuse("a cache with slots needs a table of them");
  for (const Segment& seg : segments(s)) {    // every page that will be read or written, not only the new rows'
    if (!cache && seg.position) refuse("a sequence begins at position " + std::to_string(seg.position) + " without a cache");
    if (!cache) continue;
    const int32_t* blocks = s.block_tables + seg.seq * s.table_width;
    const int64_t end = (seg.position + seg.rows - 1) / kBlockTokens;
    for (int64_t b = 0; b <= end; ++b)
      if (blocks[b] < 0 || blocks[b] >= cache->blocks()) refuse("block " + std::to_string(blocks[b]) + " is not in the cache");
    if (!window) continue;
    const int32_t* slots = s.slot_tables + seg.seq * s.table_width;
    for (int64_t b = std::max(0, seg.position - window + 1) / kBlockTokens; b <= end; ++b)
      if (slots[b] < 0 || slots[b] >= cache->slots()) refuse("slot " + std::to_string(slots[b]) + " is not in the cache");
  }
  for (int64_t t = 0; s.nadapters && t < s.rows; ++t)
    if (s.row_adapters[t] < -1 || s.row_adapters[t] >= s.nadapters) refuse("no adapter " + std::to_string(s.row_adapters[t]));
  for (int64_t i = 0; i < s.nlogits; ++i)
    if (s.logit_rows[i] < 0 || s.logit_rows[i] >= s.rows) refuse("no row " + std::to_string(s.logit_rows[i]) + " for logits");
}

std::vector<Segment> Plan::State::segments(const Step& s) const {
  std::vector<Segment> out;
  for (int64_t t = 0; t < s.rows; ++t) {
    if (!out.empty()) {
      Segment& l = out.back();
      if (l.seq == s.seqs[t] && s.positions[t] == l.position + l.rows) {
        ++l.rows;
        continue;
      }
    }
    out.push_back({s.seqs[t], t, 1, s.positions[t]});
  }
  return out;
}

std::vector<Adapted> Plan::State::adapted(const Step& s) const {
  std::vector<Adapted> out;
  for (int64_t t = 0; s.nadapters && t < s.rows; ++t) {
    if (s.row_adapters[t] < 0) continue;
    const Adapter* adapter = s.adapters[s.row_adapters[t]];
    if (!out.empty() && out.back().adapter == adapter && out.back().row + out.back().rows == t) ++out.back().rows;
    else out.push_back({adapter, t, 1});
  }
  return out;
}

void Plan::run(const Step& step) {
  std::lock_guard lock(s_->one_step);
  s_->validate(step);
  Threads::Turn turn(*s_->threads);
  Crew& crew = s_->crew(step.rows);
  // Prompts beside answers: at half the threads it would be twice the longest step that those who read along may meet.
  const int64_t wanted = step.nlogits + step.nchoices;
  const bool mixed = step.nseqs > 1 && wanted > 0 && wanted < step.rows;
  const bool streams = step.rows < kernels()->gemm_rows;
  const bool paced = streams && (mixed || !crew.trying());
  const int64_t ahead = !streams ? 0 : paced ? s_->pace.ahead(step.rows) : s_->pace.settled();
  State::Seat& seat = s_->ready(step, turn.seat(), mixed ? crew.settled() : crew.threads(), ahead);
  const auto start = std::chrono::steady_clock::now();
  turn.run([s = s_.get(), &seat](int thread) { s->walk(seat, thread); }, seat.run.active);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  if (!mixed) crew.tell(seconds / static_cast<double>(step.rows), seconds);
  if (paced) s_->pace.took(seconds);
  if (s_->head) s_->head->settle(step);
}

// Fills the seat and its counters. A worker late for the step before may still be on its way through the other seat.
Plan::State::Seat& Plan::State::ready(const Step& step, int number, int active, int64_t ahead) {
  Seat& seat = seats[number];
  seat.step = step;
  fill(seat.run, seat.step, number, active, ahead);
  if (narrow) {
    seat.narrowed.take(step);
    seat.run.wanted = &seat.narrowed.rows;
    const bool streams = seat.narrowed.step.rows < kernels()->gemm_rows;
    fill(seat.rest, seat.narrowed.step, number, active, streams && step.rows >= kernels()->gemm_rows ? pace.settled() : ahead);
  }
  for (size_t i = 0; i < ops.size(); ++i) {
    ops[i]->first.reset(number);
    ops[i]->second.reset(number);
    ops[i]->prepare(part(seat, i));
  }
  for (auto& t : ropes) t->first.reset(number);
  return seat;
}

void Plan::State::fill(Run& r, const Step& step, int seat, int active, int64_t ahead) {
  r.k = kernels();
  r.threads = threads.get();
  r.cache = cache.get();
  r.step = &step;
  r.segments = segments(step);
  r.adapted = adapted(step);
  r.active = active;
  r.seat = seat;
  r.ahead = ahead;
  r.buffer.clear();
  for (int s : slot) r.buffer.push_back(s < 0 ? nullptr : slots[static_cast<size_t>(s)].data());
}

}  // namespace fh
