// The Python face: checks shapes and dtypes, drops the GIL, calls. No arithmetic.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>

#include "freehold.h"
#include "ops/record.h"
#include "plan.h"
#include "sample.h"
#include "vocab.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace fh;

void bind_kernels(nb::module_& m);

namespace {

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

// fh::Error becomes the named Python error of errors.py.
void translate(const std::exception_ptr& p, void*) {
  try {
    std::rethrow_exception(p);
  } catch (const Error& e) {
    const char* name = e.kind == ErrorKind::Usage ? "UsageError" : e.kind == ErrorKind::Capacity ? "CapacityExceeded" : "BadModelFile";
    nb::object type = nb::module_::import_("freehold.errors").attr(name);
    const std::string text = e.what();
    const size_t cut = std::min(text.find('\n'), text.size());
    PyErr_SetObject(type.ptr(), type(text.substr(0, cut), text.substr(std::min(cut + 1, text.size()))).ptr());
  }
}

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Seconds that the pool takes for part(0) .. part(n - 1), n its size. Parts are claimed: a worker that comes late leaves
// its own to others.
template <class Part> double seconds_of_parts(Threads& pool, Part part) {
  const auto start = std::chrono::steady_clock::now();
  std::atomic<int> next{0};
  pool.run([&](int) {
    for (int t; (t = next++) < pool.size();) part(static_cast<size_t>(t));
  });
  return seconds_since(start);
}

// The best of several readers, three passes each: a ceiling is what the machine can do, not what one loop or a
// neighbour left of it.
double measure_read_gb_s(int threads, int megabytes) {
  if (megabytes < 1 || megabytes > 1 << 16) throw Error(ErrorKind::Usage, "megabytes must be 1 to 65536");
  Threads pool(threads);
  const size_t n = static_cast<size_t>(megabytes) << 20, each = n / static_cast<size_t>(threads) / 16384 * 16384;
  auto memory = Memory::anonymous(n);
  std::fill_n(memory->data, n, uint8_t{1});
  double best = 1e30;
  std::vector<uint64_t> sums(static_cast<size_t>(threads));
  for (int pass = 0; pass < 3; ++pass)
    for (int streams : {1, 2, 4})
      for (size_t ahead : {0, 512, 1024, 2048, 4096, 8192})
        best = std::min(best, seconds_of_parts(pool, [&](size_t t) { sums[t] += kernels()->read_loop(memory->data + t * each, each, streams, ahead); }));
  return static_cast<double>(each) * threads / best / 1e9;
}

// Of vector dots, or of the matrix unit that the table's gemm uses: 0 where it uses none.
double measure_int8_gops(int threads, bool tiles) {
  const auto loop = tiles ? kernels()->tile_loop : kernels()->dot_loop;
  if (!loop) return 0.0;
  Threads pool(threads);
  double best = 1e30;
  const int64_t iterations = kernels() == kernels_scalar() ? 20'000 : tiles ? 500'000 : 2'000'000;   // about 10-20 ms a pass
  std::vector<int32_t> sums(static_cast<size_t>(threads));
  for (int pass = 0; pass < 5; ++pass) best = std::min(best, seconds_of_parts(pool, [&](size_t t) { sums[t] += loop(iterations); }));
  return static_cast<double>(iterations * (tiles ? kTileLoopOps : kDotLoopOps)) * threads / best / 1e9;
}

// Panels inside somebody's array (a mapped packed file): alive as long as the matrix.
class Borrowed final : public Memory {
 public:
  explicit Borrowed(In<uint8_t, 1> array) : owner_(nb::cast(array)) {
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

std::shared_ptr<Matrix> matrix_view(In<uint8_t, 1> panels, const std::string& kind, int64_t rows, int64_t cols) {
  for (int i = 0; i < kKinds; ++i) {
    if (kind != kind_info(static_cast<Kind>(i)).name) continue;
    auto m = std::make_shared<Matrix>();
    m->w = {static_cast<Kind>(i), rows, cols, 0, panels.data(), 0};
    if (rows < 1 || cols < 1) throw Error(ErrorKind::BadModelFile, "a packed matrix without rows or columns");
    m->w.panel_bytes = panel_bytes(m->w.kind, cols);
    m->w.low_bytes = low_bytes(m->w.kind, cols);
    if (static_cast<__int128>(m->w.panel_bytes + m->w.low_bytes) * m->w.count() != static_cast<__int128>(panels.size()))
      throw Error(ErrorKind::BadModelFile, "packed " + kind + " matrix of " + std::to_string(rows) + " x " + std::to_string(cols) +
                                               " does not take " + std::to_string(panels.size()) + " bytes");
    if (reinterpret_cast<uintptr_t>(panels.data()) % 64) throw Error(ErrorKind::BadModelFile, "packed panels are not 64-byte aligned");
    m->memory = std::make_shared<Borrowed>(panels);
    return m;
  }
  throw Error(ErrorKind::BadModelFile, "no panel kind named '" + kind + "'");
}

// Maps all pages of a file's array at once, read from disk in order if they are not in memory: a first step that
// faults its way through 490 MB takes some 7,000 faults. A hint: nothing depends on its success.
void prefault(In<uint8_t, 1> array) {
#ifdef __linux__
  constexpr int kPopulateRead = 22;    // MADV_POPULATE_READ, Linux 5.14
  constexpr uintptr_t kPage = 4096;
  const auto begin = reinterpret_cast<uintptr_t>(array.data()) & ~(kPage - 1);
  const size_t bytes = reinterpret_cast<uintptr_t>(array.data()) + array.size() - begin;
  if (madvise(reinterpret_cast<void*>(begin), bytes, kPopulateRead)) madvise(reinterpret_cast<void*>(begin), bytes, MADV_WILLNEED);
#else
  (void)array;
#endif
}

Out<const uint8_t> mapped_array(int fd, bool huge) {
  auto* held = new std::shared_ptr<Memory>(map_file(fd, huge));
  nb::capsule owner(held, [](void* p) noexcept { delete static_cast<std::shared_ptr<Memory>*>(p); });
  return Out<const uint8_t>((*held)->data, {(*held)->bytes}, owner);
}

void bind_mapped(nb::module_& m) {
  m.def("map_file", &mapped_array, "fd"_a, "huge"_a = false);
  m.def("is_lost", [](In<uint8_t, 1> array) { return is_lost(array.data()); }, "array"_a);
  m.def("checksum", [](In<uint8_t, 1> array) {
    nb::gil_scoped_release free;
    return checksum(array.data(), array.size());
  }, "array"_a);
}

void bind_matrix(nb::module_& m) {
  m.def("prefault", &prefault, "array"_a, nb::call_guard<nb::gil_scoped_release>());
  nb::class_<Threads>(m, "Threads").def(nb::init<int>(), "n"_a).def_prop_ro("size", &Threads::size);
  nb::class_<Matrix>(m, "Matrix")
      .def_static("pack", [](In<uint8_t, 1> raw, const std::string& type, int64_t rows, int64_t cols, Threads& threads, bool head) {
        nb::gil_scoped_release free;
        return std::const_pointer_cast<Matrix>(pack(raw.data(), raw.size(), type, rows, cols, threads, head));
      }, "raw"_a, "type"_a, "rows"_a, "cols"_a, "threads"_a, "head"_a = false)
      .def_static("pack_codes", [](In<int8_t, 2> codes, In<float, 2> scales, Threads& threads) {
        const size_t n = codes.shape(0), k = codes.shape(1);
        if (k % 32 || scales.shape(0) != n || scales.shape(1) * 16 != k)
          throw Error(ErrorKind::Usage, "codes [N, K] need scales [N, K/16] and K a multiple of 32");
        nb::gil_scoped_release free;
        return std::const_pointer_cast<Matrix>(pack_codes(codes.data(), scales.data(), static_cast<int64_t>(n), static_cast<int64_t>(k), threads));
      }, "codes"_a, "scales"_a, "threads"_a)
      .def_static("pack_wide", [](In<float, 2> values, Threads& threads) {
        const auto n = static_cast<int64_t>(values.shape(0)), k = static_cast<int64_t>(values.shape(1));
        nb::gil_scoped_release free;
        return std::const_pointer_cast<Matrix>(pack_wide(values.data(), n, k, threads));
      }, "values"_a, "threads"_a)
      .def_static("view", &matrix_view, "panels"_a, "kind"_a, "rows"_a, "cols"_a)
      .def("panels", [](nb::handle self) {
        const Matrix& x = nb::cast<const Matrix&>(self);
        return nb::ndarray<nb::numpy, const uint8_t, nb::ndim<1>>(x.w.data, {static_cast<size_t>(x.bytes())}, self);
      })
      .def_prop_ro("rows", [](const Matrix& x) { return x.w.n; })
      .def_prop_ro("cols", [](const Matrix& x) { return x.w.k; })
      .def_prop_ro("kind", [](const Matrix& x) { return kind_info(x.w.kind).name; })
      .def_prop_ro("nbytes", &Matrix::bytes)
      .def("row", [](const Matrix& x, int64_t row) {
        if (row < 0 || row >= x.w.n) throw Error(ErrorKind::Usage, "row " + std::to_string(row) + " of a matrix of " + std::to_string(x.w.n));
        Out<float> out = array<float>({static_cast<size_t>(x.w.k)});
        decode_row(x.w, row, out.data());
        return out;
      }, "index"_a);
}

// A step's logits, in the memory of the step before unless somebody still holds that. Arrays of megabytes, made and freed
// again and again, go to the top of glibc's heap, which keeps up to twice the largest one for good. What is larger than
// 32 MB never comes from there: it is mapped, and given back, by itself.
constexpr size_t MOST_KEPT = (size_t{32} << 20) / sizeof(float);
Out<float> logits_array(Plan::Room& room, size_t rows, size_t vocab) {
  const size_t n = std::max<size_t>(rows * vocab, 1);
  if (n > MOST_KEPT) return array<float>({rows, vocab});
  if (room.data.use_count() != 1 || room.floats < n) {
    room.data.reset();      // first, so that the larger one may lie in its place
    room = {std::shared_ptr<float[]>(new float[n]), n};
  }
  auto* held = new std::shared_ptr<float[]>(room.data);
  nb::capsule owner(held, [](void* p) noexcept { delete static_cast<std::shared_ptr<float[]>*>(p); });
  return Out<float>(held->get(), {rows, vocab}, owner);
}

using ChoiceTuple = std::tuple<int32_t, float, uint64_t, int64_t>;
std::pair<Out<float>, Out<int64_t>> run_plan(Plan& plan, In<int32_t, 1> tokens, In<int32_t, 1> positions, In<int32_t, 1> seqs,
                                             In<int32_t, 2> tables, In<int32_t, 1> logit_rows, const std::vector<ChoiceTuple>& choices,
                                             int64_t tokens_end, const std::vector<std::shared_ptr<Adapter>>& adapters,
                                             const std::optional<In<int32_t, 1>>& row_adapters, const std::optional<In<int32_t, 1>>& hidden_rows,
                                             const std::optional<InOut<float, 2>>& hidden,
                                             const std::optional<In<int32_t, 2>>& slots) {
  if (!adapters.empty() && (!row_adapters || row_adapters->size() != tokens.size()))
    throw Error(ErrorKind::Usage, "adapters need a number for each row");
  if (positions.size() != tokens.size() || seqs.size() != tokens.size())
    throw Error(ErrorKind::Usage, "tokens, positions and seqs must have one length");
  if (slots && (slots->shape(0) != tables.shape(0) || slots->shape(1) != tables.shape(1)))
    throw Error(ErrorKind::Usage, "tables of blocks and of slots must have one shape");
  Out<float> logits = logits_array(plan.room, logit_rows.size(), static_cast<size_t>(plan.vocab()));
  Out<int64_t> chosen = array<int64_t>({choices.size()});
  std::vector<Choice> wanted;
  for (const auto& [row, temperature, seed, position] : choices) wanted.push_back({row, temperature, seed, position});
  std::vector<const Adapter*> named;
  for (const auto& adapter : adapters) named.push_back(adapter.get());
  Step step;
  step.rows = static_cast<int64_t>(tokens.size());
  step.tokens = tokens.data();
  step.positions = positions.data();
  step.seqs = seqs.data();
  step.nseqs = static_cast<int64_t>(tables.shape(0));
  step.table_width = static_cast<int64_t>(tables.shape(1));
  step.block_tables = tables.data();
  step.nadapters = static_cast<int64_t>(named.size());
  step.adapters = named.data();
  step.row_adapters = named.empty() ? nullptr : row_adapters->data();
  step.slot_tables = slots ? slots->data() : nullptr;
  step.nlogits = static_cast<int64_t>(logit_rows.size());
  step.logit_rows = logit_rows.data();
  step.logits = logits.data();
  step.nchoices = static_cast<int64_t>(wanted.size());
  step.choices = wanted.data();
  step.tokens_end = tokens_end;
  step.chosen = chosen.data();
  if (hidden_rows.has_value() != hidden.has_value() ||
      (hidden && (hidden->shape(0) != hidden_rows->size() || hidden->shape(1) != static_cast<size_t>(plan.hidden_width()))))
    throw Error(ErrorKind::Usage, "hidden must be [hidden_rows, " + std::to_string(plan.hidden_width()) + "]");
  if (hidden) {
    step.nhidden = static_cast<int64_t>(hidden_rows->size());
    step.hidden_rows = hidden_rows->data();
    step.hidden = hidden->data();
  }
  {
    nb::gil_scoped_release free;
    plan.run(step);
  }
  return {std::move(logits), std::move(chosen)};
}

void bind_plan(nb::module_& m) {
  nb::class_<Rope>(m, "Rope").def("__init__", [](Rope* self, In<float, 1> inv_freq, float factor, bool adjacent) {
    new (self) Rope{{inv_freq.data(), inv_freq.data() + inv_freq.size()}, factor, adjacent};
  }, "inv_freq"_a, "factor"_a = 1.0f, "adjacent"_a = false);

  nb::class_<KvCache>(m, "KvCache")
      .def("__init__", [](KvCache* self, const std::vector<std::tuple<int, int, int>>& layers, int64_t blocks, const std::string& type,
                          std::vector<int> windows, int64_t slots) {
        std::vector<KvLayer> shapes;
        for (const auto& [heads, d, dv] : layers) shapes.push_back({heads, d, dv});
        new (self) KvCache(std::move(shapes), blocks, kv_type_named(type), std::move(windows), slots);
      }, "layers"_a, "blocks"_a, "kv_type"_a = "f16", "windows"_a = std::vector<int>(), "slots"_a = 0)
      .def_prop_ro("blocks", &KvCache::blocks)
      .def_prop_ro("slots", &KvCache::slots)
      .def("copy", &KvCache::copy, "pairs"_a, "slots"_a = std::vector<std::pair<int64_t, int64_t>>(), nb::call_guard<nb::gil_scoped_release>())
      .def("read_block", [](const KvCache& cache, int64_t block, int64_t slot) {
        Out<uint8_t> out = array<uint8_t>({static_cast<size_t>(cache.bytes_per_block() + cache.bytes_per_slot())});
        {
          nb::gil_scoped_release free;
          cache.read_block(block, slot, out.data());
        }
        return out;
      }, "block"_a, "slot"_a = -1)
      .def("write_block", [](KvCache& cache, int64_t block, In<uint8_t, 1> bytes, int64_t slot) {
        nb::gil_scoped_release free;
        cache.write_block(block, slot, bytes.data(), bytes.size());
      }, "block"_a, "bytes"_a, "slot"_a = -1)
      .def_prop_ro("bytes_per_slot", &KvCache::bytes_per_slot)
      .def_prop_ro("bytes_per_block", &KvCache::bytes_per_block);

  nb::class_<Adapter>(m, "Adapter")
      .def(nb::init<>())
      .def("add", [](Adapter& self, std::shared_ptr<Matrix> w, std::shared_ptr<Matrix> a, std::shared_ptr<Matrix> b, float scale) {
        self.add(w, {a, b, scale});
      }, "weight"_a, "a"_a, "b"_a, "scale"_a)
      .def_prop_ro("nbytes", &Adapter::bytes);

  nb::class_<Plan> plan(m, "Plan");
  plan.def(nb::init<std::shared_ptr<Threads>, std::shared_ptr<KvCache>, int64_t>(), "threads"_a, "cache"_a.none(), "max_rows"_a);
  bind_ops(plan);
  plan.def_prop_ro("hidden_width", &Plan::hidden_width)
      .def("finish", &Plan::finish)
      .def("run", &run_plan, "tokens"_a, "positions"_a, "seqs"_a, "block_tables"_a, "logit_rows"_a,
           "choices"_a = std::vector<ChoiceTuple>(), "tokens_end"_a = 0, "adapters"_a = std::vector<std::shared_ptr<Adapter>>(),
           "row_adapters"_a = nb::none(), "hidden_rows"_a = nb::none(), "hidden"_a = nb::none(), "slot_tables"_a = nb::none());
}

void bind_sampling(nb::module_& m) {
  m.def("sample", [](In<float, 1> logits, float temperature, int top_k, float top_p, float min_p, float typical_p, uint64_t seed, int64_t position) {
    nb::gil_scoped_release free;
    return sample_token(logits.data(), static_cast<int64_t>(logits.size()), {temperature, top_p, min_p, typical_p, top_k, seed, position});
  }, "logits"_a, "temperature"_a, "top_k"_a, "top_p"_a, "min_p"_a, "typical_p"_a, "seed"_a, "position"_a);
  m.def("log_sum_exp", [](In<float, 1> x) { return kernels()->log_sum_exp(x.data(), static_cast<int64_t>(x.size())); }, "logits"_a);
  m.def("penalize", [](InOut<float, 1> logits, In<int32_t, 1> ids, In<int32_t, 1> counts, float repetition, float presence, float frequency) {
    if (ids.size() != counts.size()) throw Error(ErrorKind::Usage, "one count for each id");
    penalize(logits.data(), static_cast<int64_t>(logits.size()), ids.data(), counts.data(), static_cast<int64_t>(ids.size()), repetition, presence, frequency);
  }, "logits"_a, "ids"_a, "counts"_a, "repetition"_a, "presence"_a, "frequency"_a);
}

// Words of a text: bytes, and for each byte the number of its word (non-decreasing).
std::vector<int32_t> bpe_encode(const Bpe& bpe, nb::bytes text, const std::vector<int32_t>& words) {
  const std::string_view bytes(text.c_str(), text.size());
  if (words.size() != bytes.size()) throw Error(ErrorKind::Usage, "one word number for each byte");
  nb::gil_scoped_release free;
  std::vector<int32_t> ids;
  for (size_t begin = 0, end; begin < bytes.size(); begin = end) {
    end = begin + 1;
    while (end < bytes.size() && words[end] == words[begin]) ++end;
    bpe.encode(bytes.substr(begin, end - begin), ids);
  }
  return ids;
}

void bind_vocab(nb::module_& m) {
  nb::class_<Strings>(m, "Strings")
      .def(nb::new_([](const std::vector<std::string>& texts) {
        auto s = std::make_shared<Strings>();
        for (const std::string& t : texts) s->add(t);
        return s;
      }), "texts"_a)
      .def_static("read", [](In<uint8_t, 1> data, size_t at, size_t count) {
        nb::gil_scoped_release free;
        return std::make_shared<Strings>(Strings::read(data.data(), data.size(), at, count));
      }, "data"_a, "at"_a, "count"_a)
      .def_prop_ro("file_bytes", &Strings::file_bytes)
      .def("__len__", &Strings::size)
      .def("__getitem__", [](const Strings& s, int64_t i) {
        const auto n = static_cast<int64_t>(s.size());
        if (i < -n || i >= n) throw nb::index_error();
        const std::string_view text = s[static_cast<size_t>(i < 0 ? i + n : i)];
        return nb::str(text.data(), text.size());
      }, "index"_a)
      .def("index", [](const Strings& s, const std::string& text) {
        for (size_t i = 0; i < s.size(); ++i)
          if (s[i] == text) return i;
        throw nb::value_error("no such string");
      }, "text"_a);
  nb::class_<Bpe>(m, "Bpe")
      .def("__init__", [](Bpe* self, std::shared_ptr<Strings> tokens, In<uint8_t, 1> reachable, bool byte_level, bool ignore_merges,
                          bool byte_fallback, int32_t unk) {
        if (reachable.size() != tokens->size() || tokens->size() > INT32_MAX) throw Error(ErrorKind::Usage, "one flag for each token");
        nb::gil_scoped_release free;
        new (self) Bpe(tokens, reachable.data(), {byte_level, ignore_merges, byte_fallback, unk});
      }, "tokens"_a, "reachable"_a, "byte_level"_a, "ignore_merges"_a = false, "byte_fallback"_a = false, "unk"_a = -1)
      .def("merge_by_lines", &Bpe::merge_by_lines, "lines"_a, nb::call_guard<nb::gil_scoped_release>())
      .def("merge_by_rank", [](Bpe& self, In<int32_t, 1> rank) {
        self.merge_by_rank({rank.data(), rank.data() + rank.size()});
      }, "rank"_a)
      .def("encode", &bpe_encode, "text"_a, "words"_a)
      .def("find", [](const Bpe& self, const std::string& token) { return self.find(token); }, "token"_a);
}

}  // namespace

NB_MODULE(_native, m) {
  nb::set_leak_warnings(false);   // a tokenizer that a module's global holds lives to the interpreter's end, and is no leak
  nb::register_exception_translator(translate);
  m.attr("BLOCK_TOKENS") = kBlockTokens;
  m.attr("LAYOUT") = kLayout;
  m.attr("WIDE_UNIT") = kWideUnit;
  m.attr("REVISION") = revision();
  m.def("isas", [] {
    std::vector<std::string> names;
    for (const Kernels* k : runnable_kernels()) names.emplace_back(k->name);
    return names;
  });
  m.def("isa", [] { return std::string(kernels()->name); });
  m.def("type_routes", [] {
    std::vector<std::tuple<std::string, std::string, std::string, double, double>> rows;
    for (const TypeRoute& r : type_routes()) rows.emplace_back(r.type, r.kind, r.route, r.bits_file, r.bits_packed);
    return rows;
  });
  bind_mapped(m);
  bind_matrix(m);
  bind_plan(m);
  bind_sampling(m);
  bind_vocab(m);
  m.def("measure_read_gb_s", &measure_read_gb_s, "threads"_a, "megabytes"_a = 512, nb::call_guard<nb::gil_scoped_release>());
  m.def("measure_int8_gops", &measure_int8_gops, "threads"_a, "tiles"_a = false, nb::call_guard<nb::gil_scoped_release>());
  bind_kernels(m);
}
