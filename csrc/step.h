// Runs the steps of a finished plan: checks each against plan and cache, chooses threads and prefetch distance, replays.
// Knows the trace; knows no op by name.
#pragma once
#include <mutex>
#include <vector>

#include "thread_tuner.h"
#include "narrow.h"
#include "ops/op.h"
#include "prefetch_tuner.h"
#include "plan.h"

namespace fh {

class StepRunner {
 public:
  explicit StepRunner(Trace& trace) : trace_(trace) {}
  void run(const Step& step);
  // From now on counts the calling thread's processor time in each op, from zero.
  void watch() {
    std::lock_guard lock(one_step_);
    spent_.assign(trace_.ops.size(), 0.0);
  }
  std::vector<double> spent() {
    std::lock_guard lock(one_step_);
    return spent_;
  }

 private:
  // A step in one seat: as it came, and what is left of it after the Narrow op.
  // Or of a section cut by rows: the cut as a step of its own. Ops [begin, end) are run.
  struct Seat { Step step; Run run; Narrowed narrowed; Run rest; Step cut; Run some; size_t begin = 0, end = 0; };

  void validate(const Step& step) const;
  void validate_rows(const Step& step) const;
  void validate_pages(const Step& step) const;
  void validate_pieces(const Step& step) const;
  Seat& ready(const Step& step, int number, int active, int64_t ahead);
  void fill(Run& r, const Step& step, int seat, int active, int64_t ahead) const;
  void walk(Seat& seat, int thread);
  Run& part(Seat& seat, size_t op) const {
    if (seat.cut.rows && trace_.ops[op]->sees() == Op::Sees::Own) return seat.some;
    return trace_.narrow && op > trace_.narrow ? seat.rest : seat.run;
  }
  void fill_cut(Seat& seat, int number, int active, int64_t ahead) const;
  ThreadTuner& thread_tuner(int64_t rows);
  void check_section(const Step& step);

  Trace& trace_;
  std::vector<double> spent_;                                           // seconds by op; empty: not watched
  PrefetchTuner prefetch_;
  std::vector<ThreadTuner> thread_tuners_;                              // by size of step: see thread_tuner()
  int64_t next_section_ = 0, next_row_ = 0, section_rows_ = 0;          // what may follow the section, or its cut, that ran last
  std::mutex one_step_;
  Seat seats_[Threads::kSeats];
};

}  // namespace fh
