// Writers of weight blocks for machines with nothing better: four lanes, which every compiler maps to what there is.
#include "../writers.h"
#include "scalar.h"

namespace fh::scalar {

constexpr int kLanes = 4;
#include "../writers_lanes.inl"
#include "../writers_scales.inl"
#include "../writers_32.inl"
#include "../writers_k.inl"
#include "../writers_iq4.inl"
#include "../writers_table.inl"

}  // namespace fh::scalar

namespace fh { const WriterKernels& writers_scalar() { return scalar::kWriterTable; } }
