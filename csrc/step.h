// Runs the steps of a finished plan: checks each against plan and cache, chooses threads and prefetch distance, replays.
// Knows the trace; knows no op by name.
#pragma once
#include <mutex>
#include <vector>

#include "crew.h"
#include "narrow.h"
#include "ops/op.h"
#include "pace.h"
#include "plan.h"

namespace fh {

class StepRunner {
 public:
  explicit StepRunner(Trace& trace) : trace_(trace) {}
  void run(const Step& step);

 private:
  // A step in one seat: as it came, and what is left of it behind the Narrow op.
  struct Seat { Step step; Run run; Narrowed narrowed; Run rest; };

  void validate(const Step& step) const;
  void validate_rows(const Step& step) const;
  void validate_pages(const Step& step) const;
  Seat& ready(const Step& step, int number, int active, int64_t ahead);
  void fill(Run& r, const Step& step, int seat, int active, int64_t ahead) const;
  void walk(Seat& seat, int thread);
  Run& part(Seat& seat, size_t op) const { return trace_.narrow && op > trace_.narrow ? seat.rest : seat.run; }
  Crew& crew(int64_t rows);

  Trace& trace_;
  Pace pace_;
  std::vector<Crew> crews_;                              // by size of step: see crew()
  std::mutex one_step_;
  Seat seats_[Threads::kSeats];
};

}  // namespace fh
