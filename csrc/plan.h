// A traced forward pass: a list of ops over buffers, replayed whole in one native call a step.
//
// Ops are recorded by the parts of models/ once, each through its own file in ops/; finish() lays out the buffers, and run()
// walks the list on every thread of the pool. An op has one phase or a few; in a phase, threads claim work in chunks and go
// on when the phase's work is done. So a thread that the system delays does less and delays no other, and the result is
// the same: each output element is computed by one thread alone.
#pragma once
#include <memory>
#include <typeindex>
#include <unordered_map>
#include <vector>

#include "freehold.h"
#include "ops/op.h"

namespace fh {

// What has been recorded. Filled by Plan, read by StepRunner.
struct Trace {
  std::shared_ptr<Threads> threads;
  std::shared_ptr<KvCache> cache;                        // null in an encoder's plan
  int64_t max_rows;
  std::vector<std::unique_ptr<Op>> ops;
  std::vector<int64_t> width;                            // of each buffer
  std::vector<int> room;                                 // of each buffer, after finish(): which of `rooms` it lies in
  std::vector<std::shared_ptr<Memory>> rooms;            // made by the system where a thread first touches them: a picture's take 0.5 GB
  size_t narrow = 0;                                     // number of the Narrow op; 0: there is none
  std::vector<size_t> sections;                          // numbers of the ops that begin one, but the first
  std::pair<size_t, size_t> ops_of(int64_t section) const {
    const auto k = static_cast<size_t>(section);
    return {k ? sections[k - 1] : 0, k < sections.size() ? sections[k] : ops.size()};
  }
};

class StepRunner;

class Plan {
 public:
  Plan(std::shared_ptr<Threads> threads, std::shared_ptr<KvCache> cache, int64_t max_rows, bool rounds = false);
  ~Plan();

  // A run may pause here: Step::section runs the ops between two such places. Sections of a step run in order, with the same
  // step, and what the ones before left stays in the plan's buffers. For plans without a cache.
  void section();
  int64_t sections() const { return static_cast<int64_t>(trace_.sections.size()) + 1; }
  const bool rounds;                                     // products may round to bfloat16: see Kernels::both_rounded, gemm_rounded
  void finish();
  int64_t vocab() const { return ends_.vocab; }
  int64_t hidden_width() const { return ends_.width; }   // of the rows that a step may ask for
  void run(const Step& step);      // throws Usage when the step does not fit the plan or the cache
  void watch();                    // from now on run() counts the calling thread's processor time in each op, from zero
  std::vector<std::pair<std::string, double>> spent() const;   // ops' names and seconds; empty before watch()

  // Where the logits of one step lay, for the next one to lie in once their last reader has let go. Kept by run's caller.
  struct Room { std::shared_ptr<float[]> data; size_t floats = 0; } room;

  // What ops record themselves with. Everything below throws Usage for what does not fit.
  struct Ends { int64_t vocab = 0, width = 0; };         // of the last op: logits (0: none) and hidden rows
  template <class T> T& add(std::unique_ptr<T> op) {
    if (runner_ || ends_.width) refuse("no op may follow logits() or hidden()");
    T& ref = *op;
    trace_.ops.push_back(std::move(op));
    return ref;
  }
  template <class T> T& add_last(std::unique_ptr<T> op, Ends ends) {
    T& ref = add(std::move(op));
    ends_ = ends;
    return ref;
  }
  int buffer(int64_t width);                             // a new one
  int64_t width_of(int buffer) const;
  void want_width(int buffer, int64_t width, const char* what) const;
  const KvLayer& want_layer(int layer) const;            // of the cache
  const StateLayer& want_state(int layer, int64_t conv, int64_t state) const;   // -1: any size; throws where the cache keeps another
  const KvCache& cache() const { return *trace_.cache; } // after want_layer()
  int threads() const { return trace_.threads->size(); }
  // The plan's one T, made at its first use: scratch and tables that several ops share.
  template <class T> T& shared() {
    std::shared_ptr<void>& kept = shared_[typeid(T)];
    if (!kept) kept = std::make_shared<T>();
    return *static_cast<T*>(kept.get());
  }

 private:
  void insert_narrow();
  std::vector<std::pair<size_t, size_t>> lives() const;  // of each buffer: numbers of the first and the last op
  void assign_rooms();

  Trace trace_;
  Ends ends_;
  std::unordered_map<std::type_index, std::shared_ptr<void>> shared_;
  std::unique_ptr<StepRunner> runner_;                   // after finish()
};

inline void check(const Norm& n, int64_t width) {
  if (n.weight && n.weight->size() != width) refuse("a norm weight of " + std::to_string(n.weight->size()) + " for rows of " + std::to_string(width));
}

}  // namespace fh
