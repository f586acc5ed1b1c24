// What the faces of single kernels share, for tests: freehold._native.testing. A kernel takes the name of its table, or
// "reference" for the oracle. Checks shapes and calls; the product's path does not come through here.
#pragma once
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include "bind/bind.h"
#include "kernels/reference.h"

namespace fh::testing {

template <class T> Out<T> zeros(std::initializer_list<int64_t> shape) {
  size_t n = 1, dims[4] = {}, rank = 0;
  for (const int64_t s : shape) n *= dims[rank++] = static_cast<size_t>(s);
  T* data = new T[std::max<size_t>(n, 1)]();
  nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<T*>(p); });
  return Out<T>(data, rank, dims, owner);
}
template <int D> Out<float> copy(const In<float, D>& x, std::initializer_list<int64_t> shape) {
  Out<float> y = zeros<float>(shape);
  std::copy_n(x.data(), x.size(), y.data());
  return y;
}

template <class A> int64_t dim(const A& a, int i) { return static_cast<int64_t>(a.shape(static_cast<size_t>(i))); }

inline void expect(bool fits, const char* text) {
  if (!fits) throw Error(ErrorKind::Usage, text);
}
// The named table, or null for the oracle.
inline const Kernels* table(const std::string& isa) { return isa == "reference" ? nullptr : kernels_named(isa); }

}  // namespace fh::testing
