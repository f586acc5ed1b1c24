// Checks a step against its plan and runs it. What each op computes is in ops/.
#include "step.h"

#include <cxxabi.h>
#include <time.h>

#include <bit>
#include <chrono>
#include <cstdlib>
#include <tuple>
#include <typeinfo>
#include <unordered_map>

namespace fh {
namespace {

std::vector<Segment> segments(const Step& s) {
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

// Rows of pieces that validate_pieces() has passed.
void take_pieces(const Step& s, const std::vector<Segment>& segments, std::vector<Piece>& pieces, std::vector<Chain>& chains) {
  pieces.clear();
  chains.clear();
  int64_t row = 0;
  for (int64_t i = 0; i < s.npieces; ++i) {
    const int32_t* p = s.pieces + 5 * i;
    if (pieces.empty() || pieces.back().seq != p[0]) {
      row = segments[chains.size()].row;
      chains.push_back({pieces.size(), pieces.size()});
    }
    pieces.push_back({p[0], row, p[2] - p[1], p[1], p[3], p[4]});
    row += p[2] - p[1];
    ++chains.back().end;
  }
}

std::vector<Adapted> adapted(const Step& s) {
  std::vector<Adapted> out;
  for (int64_t t = 0; s.nadapters && t < s.rows; ++t) {
    if (s.row_adapters[t] < 0) continue;
    const Adapter* adapter = s.adapters[s.row_adapters[t]];
    if (!out.empty() && out.back().adapter == adapter && out.back().row + out.back().rows == t) ++out.back().rows;
    else out.push_back({adapter, t, 1});
  }
  return out;
}

// Whether a step of so many rows reads some weights for a few rows each: all below gemm_rows, which is 17 at most; and a mixture's
// experts, of which 64 rows by 8 give 128 four each.
bool streams(int64_t rows) { return rows <= 64; }

// Of this thread alone: what other processes took is not in it.
double thread_seconds() {
  timespec t{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

// The struct's name: Experts, Linear.
std::string name_of(const Op& op) {
  int status = 0;
  const char* mangled = typeid(op).name();
  const std::unique_ptr<char, decltype(&std::free)> plain(abi::__cxa_demangle(mangled, nullptr, nullptr, &status), &std::free);
  const std::string name = status ? mangled : plain.get();
  return name.substr(name.rfind(':') + 1);
}

}  // namespace

void Plan::run(const Step& step) {
  if (!runner_) refuse("run() before finish()");
  runner_->run(step);
}

void Plan::watch() {
  if (!runner_) refuse("watch() before finish()");
  runner_->watch();
}

std::vector<std::pair<std::string, double>> Plan::spent() const {
  std::vector<std::pair<std::string, double>> out;
  const std::vector<double> seconds = runner_ ? runner_->spent() : std::vector<double>();
  for (size_t i = 0; i < seconds.size(); ++i) out.emplace_back(name_of(*trace_.ops[i]), seconds[i]);
  return out;
}

void StepRunner::validate(const Step& s) const {
  const int64_t max_rows = trace_.max_rows;
  if (s.rows < 1 || s.rows > max_rows) refuse("a step takes 1 to " + std::to_string(max_rows) + " rows, got " + std::to_string(s.rows));
  if (s.nhidden > max_rows) refuse("more hidden rows than a step has rows");
  if (s.nlogits + s.nchoices > max_rows) refuse("more rows for logits and choices than a step has rows");
  const auto want_row = [&](int64_t row, const char* what) {
    if (row < 0 || row >= s.rows) refuse("no row " + std::to_string(row) + " for " + what);
  };
  for (int64_t i = 0; i < s.nchoices; ++i) want_row(s.choices[i].row, "a choice");
  for (int64_t i = 0; i < s.nhidden; ++i) want_row(s.hidden_rows[i], "hidden");
  for (int64_t i = 0; i < s.nlogits; ++i) want_row(s.logit_rows[i], "logits");
  validate_rows(s);
  for (const auto& op : trace_.ops) op->validate(s);
  for (int64_t t = 0; s.nadapters && t < s.rows; ++t)
    if (s.row_adapters[t] < -1 || s.row_adapters[t] >= s.nadapters) refuse("no adapter " + std::to_string(s.row_adapters[t]));
  validate_pieces(s);
  if (trace_.cache) return validate_pages(s);
  for (const Segment& seg : segments(s))
    if (seg.position) refuse("a sequence begins at position " + std::to_string(seg.position) + " without a cache");
}

void StepRunner::validate_rows(const Step& s) const {
  for (int64_t t = 0; t < s.rows; ++t) {
    if (s.seqs[t] < 0 || s.seqs[t] >= s.nseqs) refuse("no sequence " + std::to_string(s.seqs[t]));
    if (s.positions[t] < 0) refuse("position " + std::to_string(s.positions[t]) + " is negative");
    if (trace_.cache && s.positions[t] >= s.table_width * kBlockTokens) refuse("position " + std::to_string(s.positions[t]) + " is beyond the block table");
    if (t && s.seqs[t] < s.seqs[t - 1]) refuse("rows must be in order of sequence");
    if (t && s.seqs[t] == s.seqs[t - 1] && s.positions[t] != s.positions[t - 1] + 1) refuse("rows of one sequence must be consecutive positions");
  }
  if (!s.ends) return;
  for (const Segment& seg : segments(s))
    for (int64_t t = seg.row; t < seg.row + seg.rows; ++t)
      if (s.ends[t] <= s.positions[t] || s.ends[t] > seg.position + seg.rows)
        refuse("a row at position " + std::to_string(s.positions[t]) + " ends at " + std::to_string(s.ends[t]) + "; its sequence has positions up to " + std::to_string(seg.position + seg.rows) + " in this step");
}

// Every page that will be read or written, not only the new rows'.
void StepRunner::validate_pages(const Step& s) const {
  const KvCache& cache = *trace_.cache;
  const int window = cache.window();
  if (window && !s.window_tables) refuse("a cache with a sliding-window pool needs a table of window blocks");
  for (const Segment& seg : segments(s)) {
    const int32_t* blocks = s.block_tables + seg.seq * s.table_width;
    const int64_t end = (seg.position + seg.rows - 1) / kBlockTokens;
    for (int64_t b = 0; b <= end; ++b)
      if (blocks[b] < 0 || blocks[b] >= cache.blocks()) refuse("block " + std::to_string(blocks[b]) + " is not in the cache");
    if (!window) continue;
    const int32_t* window_blocks = s.window_tables + seg.seq * s.table_width;
    for (int64_t b = std::max(0, seg.position - window + 1) / kBlockTokens; b <= end; ++b)
      if (window_blocks[b] < 0 || window_blocks[b] >= cache.window_blocks()) refuse("window block " + std::to_string(window_blocks[b]) + " is not in the cache");
  }
}

// Pieces cover the rows exactly and in order, and no state that one sequence needs is written by another.
void StepRunner::validate_pieces(const Step& s) const {
  const int64_t slots = trace_.cache ? trace_.cache->slots() : 0;
  if (!slots && s.npieces) refuse("pieces, but there is no cache with slots");
  if (!slots) return;
  std::unordered_map<int32_t, int32_t> writer;          // slot -> sequence
  int64_t i = 0;
  for (const Segment& seg : segments(s)) {
    int64_t at = seg.position, before = seg.position ? -2 : -1;
    for (; i < s.npieces && s.pieces[5 * i] == seg.seq; ++i) {
      const int32_t *p = s.pieces + 5 * i, first = p[1], end = p[2], read = p[3], write = p[4];
      const std::string name = "piece " + std::to_string(i);
      if (first != at || end <= first) refuse(name + " has positions " + std::to_string(first) + " to " + std::to_string(end) + "; expected " + std::to_string(at) + " and more");
      if (before == -2 ? read < 0 || read >= slots : read != before) refuse(name + " reads slot " + std::to_string(read) + (before == -2 ? ", which the cache does not have" : "; expected " + std::to_string(before)));
      if (write < 0 || write >= slots) refuse(name + " writes slot " + std::to_string(write) + ", which the cache does not have");
      if (writer.emplace(write, seg.seq).first->second != seg.seq) refuse("two sequences write slot " + std::to_string(write));
      at = end;
      before = write;
    }
    if (at != seg.position + seg.rows) refuse("pieces of sequence " + std::to_string(seg.seq) + " end at position " + std::to_string(at) + ", its rows at " + std::to_string(seg.position + seg.rows));
  }
  if (i != s.npieces) refuse("piece " + std::to_string(i) + " is of sequence " + std::to_string(s.pieces[5 * i]) + ", which is not next in the step");
  for (i = 0; i < s.npieces; ++i) {
    const auto other = writer.find(s.pieces[5 * i + 3]);
    if (other != writer.end() && other->second != s.pieces[5 * i]) refuse("one sequence writes slot " + std::to_string(other->first) + ", which another reads");
  }
}

// Steps whose cost a row is alike share a tuner: one row, two, ... seven, 8 to 15, 16 to 31, ...
ThreadTuner& StepRunner::thread_tuner(int64_t rows) {
  const auto size = static_cast<size_t>(rows < 8 ? rows : 4 + std::bit_width(static_cast<uint64_t>(rows)));
  while (thread_tuners_.size() <= size) thread_tuners_.emplace_back(trace_.threads->size());
  return thread_tuners_[size];
}

void StepRunner::run(const Step& step) {
  std::lock_guard lock(one_step_);
  validate(step);
  check_section(step);
  Threads::Turn turn(*trace_.threads);
  ThreadTuner& tuner = thread_tuner(step.rows);
  // Prefill beside decode: a trial at half the threads would double the longest step that decoding streams wait for.
  const int64_t wanted = step.nlogits + step.nchoices;
  const bool sectioned = step.section >= 0;                  // sections differ in what a row costs
  const bool mixed = sectioned || (step.nseqs > 1 && wanted > 0 && wanted < step.rows);
  const bool tries_prefetch = streams(step.rows) && (mixed || !tuner.trying());
  const int64_t ahead = !streams(step.rows) ? 0 : tries_prefetch ? prefetch_.ahead(step.rows) : prefetch_.settled();
  Seat& seat = ready(step, turn.seat(), mixed ? tuner.settled() : tuner.threads(), ahead);
  const auto start = std::chrono::steady_clock::now();
  turn.run([this, &seat](int thread) { walk(seat, thread); }, seat.run.active);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  if (!mixed) tuner.report(seconds / static_cast<double>(step.rows), seconds);
  if (tries_prefetch) prefetch_.took(seconds);
  for (size_t i = seat.begin; i < seat.end; ++i) trace_.ops[i]->settle(step);
}

void StepRunner::check_section(const Step& step) {
  const auto sections = static_cast<int64_t>(trace_.sections.size()) + 1;
  const int64_t end = step.end ? step.end : step.rows;
  const bool whole = step.begin == 0 && end == step.rows;
  if (step.section < -1 || step.section >= sections) refuse("no section " + std::to_string(step.section) + " in a plan of " + std::to_string(sections));
  if (step.begin < 0 || step.begin >= end || end > step.rows) refuse("rows " + std::to_string(step.begin) + " to " + std::to_string(end) + " of " + std::to_string(step.rows));
  if (step.section < 0 && !whole) refuse("a run of all sections takes all rows");
  const bool first = step.section <= 0 && step.begin == 0;
  if (!first && (step.section != next_section_ || step.begin != next_row_ || step.rows != section_rows_)) refuse("section " + std::to_string(step.section) + " does not follow the one that ran last");
  if (!whole) {
    const auto [begin, last] = trace_.ops_of(step.section);
    for (size_t i = begin + 1; i < last; ++i)
      if (trace_.ops[i]->sees() == Op::Sees::All) refuse("section " + std::to_string(step.section) + " is not cut by rows: ops before its attention compute what that reads");
  }
  next_section_ = end == step.rows ? step.section + 1 : step.section;
  next_row_ = end == step.rows ? 0 : end;
  section_rows_ = step.rows;
}

// Fills the seat and its counters. A worker late for the step before may still be on its way through the other seat.
StepRunner::Seat& StepRunner::ready(const Step& step, int number, int active, int64_t ahead) {
  Seat& seat = seats_[number];
  seat.step = step;
  fill(seat.run, seat.step, number, active, ahead);
  if (trace_.narrow) {
    seat.narrowed.take(step);
    seat.run.wanted = &seat.narrowed.rows;
    seat.rest.origin = &seat.narrowed.rows;
    fill(seat.rest, seat.narrowed.step, number, active, streams(step.rows) || !streams(seat.narrowed.step.rows) ? ahead : prefetch_.settled());
  }
  std::tie(seat.begin, seat.end) = step.section < 0 ? std::pair{size_t{0}, trace_.ops.size()} : trace_.ops_of(step.section);
  fill_cut(seat, number, active, ahead);
  for (size_t i = seat.begin; i < seat.end; ++i) {
    Op& op = *trace_.ops[i];
    op.first.reset(number);
    op.second.reset(number);
    op.prepare(part(seat, i));
  }
  return seat;
}

// Rows [begin, end) of a section's step as a step of their own, in the same buffers.
void StepRunner::fill_cut(Seat& seat, int number, int active, int64_t ahead) const {
  const Step& all = seat.step;
  Run& whole = seat.run;
  whole.begin = all.begin;
  whole.end = all.end ? all.end : all.rows;
  const int64_t at = whole.begin, rows = whole.end - at;
  seat.cut = all;
  seat.cut.rows = rows == all.rows ? 0 : rows;
  if (!seat.cut.rows) return;
  Step& cut = seat.cut;
  cut.tokens += at;
  cut.positions += at;
  cut.seqs += at;
  if (cut.row_adapters) cut.row_adapters += at;
  if (cut.feature_rows) cut.feature_rows += at;
  else if (cut.features) cut.features += at * cut.feature_width, cut.nfeatures = rows;
  if (cut.places) cut.places += 3 * at;
  if (cut.ends) cut.ends += at;
  fill(seat.some, cut, number, active, ahead);
  seat.some.offset = at;
  for (size_t b = 0; b < seat.some.buffer.size(); ++b)
    if (seat.some.buffer[b]) seat.some.buffer[b] += at * trace_.width[b];
}

void StepRunner::fill(Run& r, const Step& step, int seat, int active, int64_t ahead) const {
  r.k = kernels();
  r.threads = trace_.threads.get();
  r.cache = trace_.cache.get();
  r.step = &step;
  r.segments = segments(step);
  take_pieces(step, r.segments, r.pieces, r.chains);
  r.adapted = adapted(step);
  r.begin = 0;
  r.end = step.rows;
  r.offset = 0;
  r.active = active;
  r.seat = seat;
  r.ahead = ahead;
  r.buffer.clear();
  for (int room : trace_.room) r.buffer.push_back(room < 0 ? nullptr : reinterpret_cast<float*>(trace_.rooms[static_cast<size_t>(room)]->data));
}

void StepRunner::walk(Seat& seat, int thread) {
  const bool watched = thread == 0 && !spent_.empty();
  double before = watched ? thread_seconds() : 0;
  for (size_t i = seat.begin; i < seat.end; ++i) {
    Run& r = part(seat, i);
    if (!r.step->rows) return;
    trace_.ops[i]->run(r, thread);
    if (!watched) continue;
    const double now = thread_seconds();
    spent_[i] += now - before;
    before = now;
  }
}

}  // namespace fh
