// What every op of a plan is made of: the state of a running step, phases that threads share, and the contract of an op.
// Knows rows, buffers and threads; knows no weights (matmul.h) and no arithmetic (kernels).
// Path: Plan::run -> StepRunner -> Op::prepare -> Op::run on every thread -> Op::settle
#pragma once
#include <algorithm>
#include <atomic>
#include <optional>
#include <string>
#include <vector>

#include "freehold.h"

namespace fh {

[[noreturn]] inline void refuse(const std::string& what) { throw Error(ErrorKind::Usage, "plan: " + what); }

// A norm weight or a bias, owned by the op that it was recorded with.
struct Vector {
  std::vector<float> values;
  const float* data() const { return values.data(); }
  int64_t size() const { return static_cast<int64_t>(values.size()); }
};
using MaybeVector = std::optional<Vector>;
struct Norm { MaybeVector weight; float eps = 0; };     // without a weight: no norm

// Rows of one sequence inside a step, at consecutive positions.
struct Segment { int seq; int64_t row, rows; int position; };

// Rows of one sequence between two states: an op that keeps a state reads `read` (-1: zeros) and writes `write` (may be the
// same slot), both of its layer. Consecutive pieces of one sequence belong to one chain, whose pieces are done in order, by one
// thread for each element of the state.
struct Piece { int seq; int64_t row, rows; int position; int64_t read, write; };
struct Chain { size_t first, end; };                    // into Run::pieces

// Consecutive rows of a step that one adapter changes.
struct Adapted { const Adapter* adapter; int64_t row, rows; };

// Everything a running op sees. Filled by StepRunner.
struct Run {
  const Kernels* k;
  Threads* threads;
  KvCache* cache;
  const Step* step;
  std::vector<Segment> segments;
  std::vector<Piece> pieces;                  // where the cache has slots, else none; none after the Narrow op
  std::vector<Chain> chains;                  // one a sequence
  std::vector<Adapted> adapted;               // in order of rows
  std::vector<float*> buffer;                 // by buffer number
  const std::vector<int64_t>* wanted = nullptr;   // rows that continue after the last persistent write: see Narrow
  const std::vector<int64_t>* origin = nullptr;   // after it: where each row lay in the whole step
  int64_t begin = 0, end = 0;                 // rows to compute, for ops that see other rows too: see Op::sees
  int64_t offset = 0;                         // of this run's first row in the whole step, where the step is cut by rows
  int active = 1;                             // threads the step is offered to
  int seat = 0;                               // which set of counters and lists is this step's
  int64_t ahead = 0;                          // bytes of weights to prefetch; 0 where rows, not bytes, bound a step
};

// A piece of work that must be done before the next begins. Threads wait for the work, not for each other: a thread that
// the system delays claims nothing, delays no other, and skips forward when it comes back. It may come back when the next
// step has begun, so counters, like all that ops read outside claimed work, are kept per seat.
struct Phase {
  struct Count {
    alignas(64) std::atomic<int64_t> next{0};    // first unclaimed item
    alignas(64) std::atomic<uint32_t> done{0};   // items finished
  };
  Count seats[Threads::kSeats];
  void reset(int seat) {
    seats[seat].next.store(0, std::memory_order_relaxed);   // made visible by publishing the job number
    seats[seat].done.store(0, std::memory_order_relaxed);
  }
};

// One op of a recorded plan. Its file holds the struct, the recorder and the checks: see record.h for how it is added.
struct Op {
  std::vector<int> reads, writes;             // buffer numbers, for liveness
  bool persists = false;                      // writes what outlives the step (keys and values, states): needs every row
  Phase first, second;                        // reset before a step; an op with more phases resets its own in prepare()
  const uint8_t* following = nullptr;         // weights that the next matmul op begins with
  virtual ~Op() = default;
  virtual const uint8_t* weights() const { return nullptr; }        // the first this op reads
  // Of a section that is cut by rows most ops are run as if the cut's rows were all. Others run over the whole step and
  // compute rows [begin, end) of it: one that reads other rows (it must begin its section), or lists of rows.
  enum class Sees : uint8_t { Own, Listed, All };
  virtual Sees sees() const { return Sees::Own; }
  virtual void allocate(int64_t /*max_rows*/, int /*threads*/) {}   // once, when the plan is finished
  virtual void validate(const Step&) const {}                       // throws Usage for a step that does not fit the op
  virtual void prepare(const Run&) {}                               // before a step, on the calling thread: may allocate
  virtual void run(Run& r, int thread) = 0;
  virtual void settle(const Step&) {}                               // after a step, on the calling thread
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

}  // namespace fh
