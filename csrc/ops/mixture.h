// What the ops of a mixture of experts share: the buffers that route() fills, and the refusal of adapters.
// Knows no arithmetic.
#pragma once
#include <unordered_map>

#include "ops/op.h"

namespace fh {

// Which experts the rows take: a buffer [rows][2 * top_k], expert ids, ascending, as floats (exact below 2^24), then
// their weights. An ordinary buffer, so that liveness and Narrow treat it as any other.
struct Routes { int64_t experts; int top_k; };
struct AllRoutes { std::unordered_map<int, Routes> by_buffer; };   // of a plan

// For ops without a LowRank: an adapter of their matrices would be ignored.
template <class... M> void refuse_adapters(const Step& s, const M&... weights) {
  for (int64_t i = 0; i < s.nadapters; ++i)
    if ((s.adapters[i]->find(weights) || ...)) refuse("an adapter cannot change a router, experts or products by head");
}

}  // namespace fh
