// The list of ops that FREEHOLD_OP fills and the binding of Plan reads.
#include "ops/record.h"

#include <algorithm>
#include <string_view>
#include <vector>

namespace fh {
namespace {

// A function's static, as ops in other files add themselves in no set order.
std::vector<RecordedOp>& recorded() {
  static std::vector<RecordedOp> ops;
  return ops;
}

}  // namespace

RecordedOp::RecordedOp(const char* name, void (*bind)(nanobind::class_<Plan>&)) : name(name), bind(bind) { recorded().push_back(*this); }

void bind_ops(nanobind::class_<Plan>& plan) {
  std::ranges::sort(recorded(), {}, [](const RecordedOp& op) { return std::string_view(op.name); });
  for (const RecordedOp& op : recorded()) op.bind(plan);
}

}  // namespace fh
