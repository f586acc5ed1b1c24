// How an op becomes a method of native.Plan: its file ends in one FREEHOLD_OP, which is its only declaration.
// The binding, the stub (tools/stub.py) and the help text follow from the recorder's signature and these arguments.
//
//   int norm(Plan& plan, int x, Vector weight, float eps) { ... plan.add(std::move(op)); ... }
//   FREEHOLD_OP(norm, "RMS norm of every row.", "x"_a, "weight"_a, "eps"_a)
//
// A recorder takes buffer numbers, matrices (MatrixPtr), vectors (Vector, or MaybeVector for None) and plain values.
#pragma once
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <memory>

#include "plan.h"

namespace fh {

// The ops of the program, each added by its file's FREEHOLD_OP before the module is initialised.
struct RecordedOp {
  const char* name;
  void (*bind)(nanobind::class_<Plan>&);
  RecordedOp(const char* name, void (*bind)(nanobind::class_<Plan>&));
};
void bind_ops(nanobind::class_<Plan>& plan);   // in order of names

}  // namespace fh

#define FREEHOLD_OP(op, ...) \
  const RecordedOp recorded_##op(#op, [](nanobind::class_<Plan>& plan) { \
    using namespace nanobind::literals; \
    plan.def(#op, &op, __VA_ARGS__); \
  });

// Float vectors are copied: an op owns its own.
template <> struct nanobind::detail::type_caster<fh::Vector> {
  using Array = ndarray<const float, ndim<1>, c_contig, device::cpu>;
  NB_TYPE_CASTER(fh::Vector, make_caster<Array>::Name)
  bool from_python(handle src, uint8_t flags, cleanup_list* cleanup) noexcept {
    make_caster<Array> caster;
    if (!caster.from_python(src, flags, cleanup)) return false;
    value.values.assign(caster.value.data(), caster.value.data() + caster.value.size());
    return true;
  }
};
