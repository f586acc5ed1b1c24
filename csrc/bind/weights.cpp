// Files in memory, packed matrices and adapters.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>

#include <sys/mman.h>
#include <unistd.h>

#include "bind/bind.h"

namespace fh {
namespace {

// Panels inside a caller's array (a mapped packed file): alive as long as the matrix.
class Borrowed final : public Memory {
 public:
  Borrowed(In<uint8_t, 1> array, bool from_disk) : owner_(nb::cast(array)) {
    paged = from_disk;
    data = const_cast<uint8_t*>(array.data());      // panels are only ever read
    bytes = array.size();
  }
  ~Borrowed() override {
    nb::gil_scoped_acquire hold;
    owner_.reset();
  }
 private:
  nb::object owner_;
};

std::shared_ptr<Matrix> matrix_view(In<uint8_t, 1> panels, const std::string& weight_type, int64_t rows, int64_t cols, bool paged) {
  const auto* found = std::ranges::find(kWeightTypes, weight_type, &WeightTraits::name);
  if (found == std::end(kWeightTypes)) throw Error(ErrorKind::BadModelFile, "'" + weight_type + "' is not a weight type");
  if (rows < 1 || cols < 1) throw Error(ErrorKind::BadModelFile, "a packed matrix without rows or columns");
  const auto type = static_cast<WeightType>(found - kWeightTypes);
  auto m = std::make_shared<Matrix>();
  m->w = {type, rows, cols, panel_bytes(type, cols), panels.data(), low_bytes(type, cols)};
  if (static_cast<__int128>(m->w.panel_bytes + m->w.low_bytes) * m->w.count() + m->w.table_bytes() != static_cast<__int128>(panels.size()))
    throw Error(ErrorKind::BadModelFile, "packed " + weight_type + " matrix of " + std::to_string(rows) + " x " + std::to_string(cols) +
                                             " does not take " + std::to_string(panels.size()) + " bytes");
  if (reinterpret_cast<uintptr_t>(panels.data()) % 64) throw Error(ErrorKind::BadModelFile, "packed panels are not 64-byte aligned");
  m->memory = std::make_shared<Borrowed>(panels, paged);
  return m;
}

// Maps all pages of a file's array at once, read from disk in order if they are not in memory: a first step that
// faults its way through 490 MB takes some 7,000 faults. A hint: nothing depends on its success.
void prefault(In<uint8_t, 1> array) {
  static const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));      // 4 KB; 16 on a Pi 5 and a Mac, 64 on some servers
  const auto begin = reinterpret_cast<uintptr_t>(array.data()) & ~(page - 1);
  const size_t bytes = reinterpret_cast<uintptr_t>(array.data()) + array.size() - begin;
#ifdef __linux__
  constexpr int kPopulateRead = 22;    // MADV_POPULATE_READ, Linux 5.14
  if (madvise(reinterpret_cast<void*>(begin), bytes, kPopulateRead) == 0) return;
#endif
  madvise(reinterpret_cast<void*>(begin), bytes, MADV_WILLNEED);
}

Out<const uint8_t> mapped_array(int fd, bool huge) {
  auto* held = new std::shared_ptr<Memory>(map_file(fd, huge));
  nb::capsule owner(held, [](void* p) noexcept { delete static_cast<std::shared_ptr<Memory>*>(p); });
  return Out<const uint8_t>((*held)->data, {(*held)->bytes}, owner);
}

void bind_mapped(nb::module_& m) {
  m.def("map_file", &mapped_array, "fd"_a, "huge"_a = false,
        R"(Map a regular file read-only, as long as any view of the array lives; `huge`: in huge pages.

What is lost meanwhile (the file is cut short, the disk fails) reads as zeros instead of killing the process:
ask `is_lost` after reading. Raises BadModelFile, CapacityExceeded.)");
  m.def("is_lost", [](In<uint8_t, 1> array) { return is_lost(array.data()); }, "array"_a,
        "Tell whether any part of the mapping that the array begins in was lost; False for other arrays.");
  m.def("checksum", [](In<uint8_t, 1> array) {
    nb::gil_scoped_release free;
    return checksum(array.data(), array.size());
  }, "array"_a, "Return the XXH64 of the bytes, without holding the GIL.");
  m.def("prefault", &prefault, "array"_a, nb::call_guard<nb::gil_scoped_release>(),
        "Map all pages of a memory-mapped array, in order, without holding the GIL; a hint.");
}

void bind_matrix(nb::module_& m) {
  nb::class_<Matrix>(m, "Matrix", "A weight matrix [rows, cols] re-laid into panels. Immutable.")
      .def_static("pack", [](In<uint8_t, 1> raw, const std::string& type, int64_t rows, int64_t cols, Threads& threads, bool head) {
        nb::gil_scoped_release free;
        return std::const_pointer_cast<Matrix>(pack(raw.data(), raw.size(), type, rows, cols, threads, head));
      }, "raw"_a, "type"_a, "rows"_a, "cols"_a, "threads"_a, "head"_a = false,
         R"(Re-lay `rows` GGUF rows of `type` ("Q4_K", "F32", ...); raw holds exactly those bytes, 1-D.

A `head` of type Q8_0, Q6_K or Q3_K goes into two planes, so that choices can be screened (see Plan.run).)")
      .def_static("pack_trellis", [](In<uint8_t, 1> raw, const std::string& type, int64_t rows, int64_t cols, Threads& threads, bool expand) {
        if (type != "T2" && type != "T3") throw Error(ErrorKind::Usage, "'" + type + "' is not T2 or T3");
        nb::gil_scoped_release free;
        return std::const_pointer_cast<Matrix>(pack_trellis(raw.data(), raw.size(), type == "T2" ? WeightType::T2 : WeightType::T3, rows, cols, threads, expand));
      }, "raw"_a, "type"_a, "rows"_a, "cols"_a, "threads"_a, "expand"_a,
         R"(Re-lay a tensor of "T2" or "T3", its table first, as it is or expanded to int8.

`pack` chooses by the kernels in use.)")
      .def_static("pack_codes", [](In<int8_t, 2> codes, In<float, 2> scales, Threads& threads) {
        const size_t n = codes.shape(0), k = codes.shape(1);
        if (k % 32 || scales.shape(0) != n || scales.shape(1) * 16 != k)
          throw Error(ErrorKind::Usage, "codes [N, K] need scales [N, K/16] and K a multiple of 32");
        nb::gil_scoped_release free;
        return std::const_pointer_cast<Matrix>(pack_codes(codes.data(), scales.data(), static_cast<int64_t>(n), static_cast<int64_t>(k), threads));
      }, "codes"_a, "scales"_a, "threads"_a,
         "Lay codes int8 [N, K] with scales float32 [N, K/16] (value = scale * code); K a multiple of 32.")
      .def_static("pack_wide", [](In<float, 2> values, Threads& threads) {
        const auto n = static_cast<int64_t>(values.shape(0)), k = static_cast<int64_t>(values.shape(1));
        nb::gil_scoped_release free;
        return std::const_pointer_cast<Matrix>(pack_wide(values.data(), n, k, threads));
      }, "values"_a, "threads"_a,
         "Round float32 [N, K] to int16 codes with a scale for each row's 128 inputs; K a multiple of WIDE_UNIT.")
      .def_static("view", &matrix_view, "panels"_a, "weight_type"_a, "rows"_a, "cols"_a, "paged"_a = false,
         "Use panels that lie in an array (a mapped packed file): 64-byte aligned, exactly as long as needed.\n\n"
         "`paged`: memory does not hold the file; the panels of a mixture's chosen experts are asked for ahead.")
      .def("panels", [](nb::handle self) {
        const Matrix& x = nb::cast<const Matrix&>(self);
        return nb::ndarray<nb::numpy, const uint8_t, nb::ndim<1>>(x.w.data, {static_cast<size_t>(x.bytes())}, self);
      }, "Show the panels' bytes, read-only, without a copy.")
      .def_prop_ro("rows", [](const Matrix& x) { return x.w.n; })
      .def_prop_ro("cols", [](const Matrix& x) { return x.w.k; })
      .def_prop_ro("weight_type", [](const Matrix& x) { return traits(x.w.type).name; })
      .def_prop_ro("nbytes", &Matrix::bytes)
      .def("row", [](const Matrix& x, int64_t row) {
        if (row < 0 || row >= x.w.n) throw Error(ErrorKind::Usage, "row " + std::to_string(row) + " of a matrix of " + std::to_string(x.w.n));
        Out<float> out = array<float>({static_cast<size_t>(x.w.k)});
        decode_row(x.w, row, out.data());
        return out;
      }, "index"_a, "Decode one row to float32 [K].");
}

void bind_quantize(nb::module_& m) {
  m.def("quantize_rows", [](In<float, 2> values, const std::string& type, Threads& threads, std::optional<In<float, 1>> importance, const std::string& isa) {
    const size_t n = values.shape(0), k = values.shape(1);
    if (importance && importance->size() != k) throw Error(ErrorKind::Usage, "importance has " + std::to_string(importance->size()) + " values for " + std::to_string(k) + " columns");
    Out<uint8_t> out = array<uint8_t>({n, static_cast<size_t>(quantized_row_bytes(type, static_cast<int64_t>(k)))});
    const Kernels& table = isa.empty() ? *kernels() : *kernels_named(isa);
    nb::gil_scoped_release free;
    quantize_rows(values.data(), static_cast<int64_t>(n), static_cast<int64_t>(k), importance ? importance->data() : nullptr, type, threads, out.data(), table);
    return out;
  }, "values"_a, "type"_a, "threads"_a, "importance"_a.none() = nb::none(), "isa"_a = "",
        "Round float32 [N, K] to rows of a GGUF weight type's blocks, as ggml does: uint8 [N, row bytes].\n\n"
        "`importance` [K]: how much each column's squared error counts. `isa`: the kernels, for tests; the bytes are\n"
        "the same. Raises UsageError for another type or a K that its blocks do not divide, BadModelFile for what a\n"
        "type cannot hold.");
}

void bind_unpack(nb::module_& m) {
  m.def("unpacks", [](const std::string& type) { return unpacks(type); }, "type"_a, "Tell whether `unpack` takes this GGUF type.");
  m.def("unpack", [](In<uint8_t, 1> raw, const std::string& type, InOut<float, 2> out, Threads& threads) {
    nb::gil_scoped_release free;
    unpack(raw.data(), raw.size(), type, static_cast<int64_t>(out.shape(0)), static_cast<int64_t>(out.shape(1)), threads, out.data(), nullptr);
  }, "raw"_a, "type"_a, "out"_a, "threads"_a,
        "Decode GGUF rows of `type` into `out`, float32 [N, K]; raw: exactly their bytes, after the table of T2, T3.");
  m.def("unpack_half", [](In<uint8_t, 1> raw, const std::string& type, InOut<uint16_t, 2> out, Threads& threads) {
    nb::gil_scoped_release free;
    unpack(raw.data(), raw.size(), type, static_cast<int64_t>(out.shape(0)), static_cast<int64_t>(out.shape(1)), threads, nullptr, out.data());
  }, "raw"_a, "type"_a, "out"_a, "threads"_a, "Decode as `unpack` does, into the bits of bfloat16, rounded to nearest even.");
}

void bind_adapter(nb::module_& m) {
  nb::class_<Adapter>(m, "Adapter",
                      "Low-rank changes of weight matrices, for rows of a step that ask for them. Fill it before any step has it.")
      .def(nb::init<>())
      .def("add", [](Adapter& self, std::shared_ptr<Matrix> w, std::shared_ptr<Matrix> a, std::shared_ptr<Matrix> b, float scale) {
        self.add(w, {a, b, scale});
      }, "weight"_a, "a"_a, "b"_a, "scale"_a,
         "Let W · x become W · x + scale * B · (A · x): A [rank, K], B [N, rank], floats, rank a multiple of 16.")
      .def_prop_ro("nbytes", &Adapter::bytes, "Bytes of all A and B.");
}

}  // namespace

void bind_weights(nb::module_& m) {
  bind_mapped(m);
  nb::class_<Threads>(m, "Threads", "A pool of n threads, the caller being one. Keep it alive as long as anything computes with it.")
      .def(nb::init<int>(), "n"_a)
      .def_prop_ro("size", &Threads::size);
  bind_matrix(m);
  bind_quantize(m);
  bind_unpack(m);
  bind_adapter(m);
}

}  // namespace fh
