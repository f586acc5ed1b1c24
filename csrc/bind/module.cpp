// The Python face, freehold._native: checks shapes and dtypes, drops the GIL, calls. Its stub is made by tools/stub.py.
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "bind/bind.h"

using namespace fh;

namespace {

// fh::Error becomes the named Python error of errors.py.
void translate(const std::exception_ptr& p, void*) {
  try {
    std::rethrow_exception(p);
  } catch (const Error& e) {
    const char* name = e.kind == ErrorKind::Usage ? "UsageError" : e.kind == ErrorKind::Capacity ? "CapacityExceeded" : "BadModelFile";
    nb::object type = nb::module_::import_("freehold.base.errors").attr(name);
    const std::string text = e.what();
    const size_t cut = std::min(text.find('\n'), text.size());
    PyErr_SetObject(type.ptr(), type(text.substr(0, cut), text.substr(std::min(cut + 1, text.size()))).ptr());
  }
}

}  // namespace

NB_MODULE(_native, m) {
  nb::set_leak_warnings(false);   // a tokenizer in a module's global lives to the interpreter's end by design
  nb::register_exception_translator(translate);
  m.doc() = R"(The native module: packed matrices, the KV cache, traced plans, sampling, and the machine's ceilings.

Arrays are C-contiguous NumPy arrays of the dtype named; a wrong dtype or shape is a TypeError or UsageError.
Every call that computes drops the GIL. See csrc/freehold.h for who owns what.

WIDE_UNIT: inputs of wide codes that share a scale. BLOCK_TOKENS: positions in a page of the KV cache.
LAYOUT: version of the panels' layout; packed files are keyed by it.
REVISION: SHA-256 over the native sources, and the compiler; what is cached across restarts is keyed by it.
testing: single kernels by the name of their table, for tests/csrc; wheels are without it.)";
  m.attr("BLOCK_TOKENS") = kBlockTokens;
  m.attr("LAYOUT") = kLayout;
  m.attr("WIDE_UNIT") = kWideUnit;
  m.attr("REVISION") = revision();
  bind_machine(m);
  bind_weights(m);
  bind_plan(m);
  bind_sampling(m);
  bind_vocab(m);
  bind_trellis(m);
  bind_bf16(m);
  bind_sounds(m);
  bind_json(m);
#ifdef FREEHOLD_TESTING
  nb::module_ testing = m.def_submodule("testing", "Single kernels by the name of their table, for tests.");
  bind_testing_delta(testing);
  bind_testing_conv(testing);
  bind_testing_mamba(testing);
  bind_testing_rows(testing);
  bind_testing_products(testing);
  bind_testing_latent(testing);
  bind_testing_trellis(testing);
#endif
}
