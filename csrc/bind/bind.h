// What the files of the Python face share: array types and the parts they bind. No arithmetic here or in its neighbours.
#pragma once
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <algorithm>
#include <initializer_list>

#include "freehold.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace fh {

template <class T, int D> using In = nb::ndarray<const T, nb::ndim<D>, nb::c_contig, nb::device::cpu>;
template <class T, int D> using InOut = nb::ndarray<T, nb::ndim<D>, nb::c_contig, nb::device::cpu>;
template <class T> using Out = nb::ndarray<nb::numpy, T>;

template <class T> Out<T> array(std::initializer_list<size_t> shape) {
  size_t n = 1;
  for (size_t s : shape) n *= s;
  T* data = new T[std::max<size_t>(n, 1)];
  nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<T*>(p); });
  return Out<T>(data, shape, owner);
}

void bind_machine(nb::module_& m);
void bind_weights(nb::module_& m);
void bind_plan(nb::module_& m);
void bind_sampling(nb::module_& m);
void bind_vocab(nb::module_& m);
void bind_trellis(nb::module_& m);
void bind_bf16(nb::module_& m);
void bind_sounds(nb::module_& m);
void bind_json(nb::module_& m);
void bind_testing_delta(nb::module_& t);
void bind_testing_conv(nb::module_& t);
void bind_testing_mamba(nb::module_& t);
void bind_testing_rows(nb::module_& t);
void bind_testing_products(nb::module_& t);
void bind_testing_latent(nb::module_& t);
void bind_testing_trellis(nb::module_& t);

}  // namespace fh
