// Ropes, the KV cache and plans. The ops' methods come from ops/.
#include <nanobind/stl/pair.h>
#include <nanobind/stl/tuple.h>

#include "bind/bind.h"
#include "ops/record.h"
#include "plan.h"

namespace fh {
namespace {

// A step's logits, in the memory of the step before unless an array still refers to that. Arrays of megabytes, made and freed
// again and again, go to the top of glibc's heap, which keeps up to twice the largest one for good. What is larger than
// 32 MB never comes from there: it is mapped, and given back, by itself.
constexpr size_t kMostKept = (size_t{32} << 20) / sizeof(float);
Out<float> logits_array(Plan::Room& room, size_t rows, size_t vocab) {
  const size_t n = std::max<size_t>(rows * vocab, 1);
  if (n > kMostKept) return array<float>({rows, vocab});
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
                                             const std::optional<In<int32_t, 2>>& window_blocks, const std::optional<In<int32_t, 2>>& pieces,
                                             const std::optional<In<float, 2>>& features, const std::optional<In<int32_t, 1>>& feature_rows,
                                             const std::optional<In<int32_t, 2>>& places, const std::optional<In<int32_t, 1>>& ends, int64_t section, int64_t begin, int64_t end) {
  if (ends && ends->size() != tokens.size()) throw Error(ErrorKind::Usage, "ends must be [rows]");
  if (feature_rows && (!features || feature_rows->size() != tokens.size())) throw Error(ErrorKind::Usage, "feature_rows must be [rows], beside features");
  if (places && (places->shape(0) != tokens.size() || places->shape(1) != 3)) throw Error(ErrorKind::Usage, "places must be [rows, 3]");
  if (pieces && pieces->shape(1) != 5) throw Error(ErrorKind::Usage, "pieces must be [pieces, 5]");
  if (!adapters.empty() && (!row_adapters || row_adapters->size() != tokens.size()))
    throw Error(ErrorKind::Usage, "adapters need a number for each row");
  if (positions.size() != tokens.size() || seqs.size() != tokens.size())
    throw Error(ErrorKind::Usage, "tokens, positions and seqs must have one length");
  if (window_blocks && (window_blocks->shape(0) != tables.shape(0) || window_blocks->shape(1) != tables.shape(1)))
    throw Error(ErrorKind::Usage, "tables of blocks and of window blocks must have one shape");
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
  step.window_tables = window_blocks ? window_blocks->data() : nullptr;
  step.npieces = pieces ? static_cast<int64_t>(pieces->shape(0)) : 0;
  step.pieces = pieces ? pieces->data() : nullptr;
  step.section = section;
  step.begin = begin;
  step.end = end;
  if (features) {
    step.nfeatures = static_cast<int64_t>(features->shape(0));
    step.feature_width = static_cast<int64_t>(features->shape(1));
    step.features = features->data();
  }
  step.feature_rows = feature_rows ? feature_rows->data() : nullptr;
  step.places = places ? places->data() : nullptr;
  step.ends = ends ? ends->data() : nullptr;
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

}  // namespace

void bind_plan(nb::module_& m) {
  nb::class_<Rope>(m, "Rope", R"(Rotary embedding: angle = position * inv_freq[i], cos and sin times `factor`; pairs adjacent or halves.

`axes` uint8 [pairs]: which number of a row's place (0 time, 1 row, 2 column) turns each pair, in steps
that have places.)")
      .def("__init__", [](Rope* self, In<float, 1> inv_freq, float factor, bool adjacent, const std::optional<In<uint8_t, 1>>& axes) {
    new (self) Rope{{inv_freq.data(), inv_freq.data() + inv_freq.size()}, factor, adjacent, {}};
    if (axes) self->axes.assign(axes->data(), axes->data() + axes->size());
  }, "inv_freq"_a, "factor"_a = 1.0f, "adjacent"_a = false, "axes"_a = nb::none());

  nb::class_<KvCache>(m, "KvCache", R"(Pages of keys and values for all layers, "f16", "f32" or "q8"; layers are (kv_heads, key width, value width).

With `window_blocks`, layers whose entry in `windows` is not 0 lie in a pool of that many blocks of their own.
With `slots`, layers whose entry in `states`, (convolution inputs, state floats), is not (0, 0) have a
float32 state in each slot.
A layer of (0, 0, 0) keeps no keys and values.)")
      .def("__init__", [](KvCache* self, const std::vector<std::tuple<int, int, int>>& layers, int64_t blocks, const std::string& type,
                          std::vector<int> windows, int64_t window_blocks, const std::vector<std::tuple<int64_t, int64_t>>& states, int64_t slots) {
        std::vector<KvLayer> shapes;
        for (const auto& [heads, d, dv] : layers) shapes.push_back({heads, d, dv});
        std::vector<StateLayer> kept;
        for (const auto& [conv, state] : states) kept.push_back({conv, state});
        new (self) KvCache(std::move(shapes), blocks, kv_type_named(type), std::move(windows), window_blocks, std::move(kept), slots);
      }, "layers"_a, "blocks"_a, "kv_type"_a = "f16", "windows"_a = std::vector<int>(), "window_blocks"_a = 0,
         "states"_a = std::vector<std::tuple<int64_t, int64_t>>(), "slots"_a = 0)
      .def_prop_ro("blocks", &KvCache::blocks)
      .def_prop_ro("window_blocks", &KvCache::window_blocks)
      .def("copy", &KvCache::copy, "pairs"_a, "window_blocks"_a = std::vector<std::pair<int64_t, int64_t>>(), nb::call_guard<nb::gil_scoped_release>(),
           "Copy blocks, and window blocks, each (from, to) after the one before it.")
      .def("read_block", [](const KvCache& cache, int64_t block, int64_t window_block) {
        Out<uint8_t> out = array<uint8_t>({static_cast<size_t>(cache.bytes_per_block() + cache.bytes_per_window_block())});
        {
          nb::gil_scoped_release free;
          cache.read_block(block, window_block, out.data());
        }
        return out;
      }, "block"_a, "window_block"_a = -1, "Return a block's bytes: the layers' pages in a row, then those in its window block.")
      .def("write_block", [](KvCache& cache, int64_t block, In<uint8_t, 1> bytes, int64_t window_block) {
        nb::gil_scoped_release free;
        cache.write_block(block, window_block, bytes.data(), bytes.size());
      }, "block"_a, "bytes"_a, "window_block"_a = -1, "Fill a block with what read_block gave.")
      .def("read_state", [](const KvCache& cache, int64_t slot) {
        Out<uint8_t> out = array<uint8_t>({static_cast<size_t>(cache.bytes_per_slot())});
        {
          nb::gil_scoped_release free;
          cache.read_state(slot, out.data());
        }
        return out;
      }, "slot"_a, "Return a slot's bytes: the layers' states in a row, of each its inputs, then its state.")
      .def("write_state", [](KvCache& cache, int64_t slot, In<uint8_t, 1> bytes) {
        nb::gil_scoped_release free;
        cache.write_state(slot, bytes.data(), bytes.size());
      }, "slot"_a, "bytes"_a, "Fill a slot with what read_state gave.")
      .def_prop_ro("slots", &KvCache::slots)
      .def_prop_ro("bytes_per_slot", &KvCache::bytes_per_slot, "0 without recurrent layers.")
      .def_prop_ro("bytes_per_window_block", &KvCache::bytes_per_window_block, "0 without a sliding-window pool.")
      .def_prop_ro("bytes_per_block", &KvCache::bytes_per_block);

  nb::class_<Plan> plan(m, "Plan", R"(A traced forward pass. Build it once with the op methods, `finish`, then `run` steps.

Op methods take and return buffer numbers: float32 activations [rows of the step, width].
`rounds`: products, and attention both ways, may round to bfloat16 where that is faster.)");
  plan.def(nb::init<std::shared_ptr<Threads>, std::shared_ptr<KvCache>, int64_t, bool>(), "threads"_a, "cache"_a.none(), "max_rows"_a, "rounds"_a = false);
  bind_ops(plan);
  plan.def_prop_ro("hidden_width", &Plan::hidden_width, "Width of the rows `run` gives as hidden.")
      .def("section", &Plan::section, "Let a run pause here, in a plan without a cache: see `run` and its `section`.")
      .def_prop_ro("sections", &Plan::sections, "How many parts `section` made of it.")
      .def("finish", &Plan::finish, "Check the trace and allocate activation buffers.")
      .def("watch", &Plan::watch, "Count from now on, and from zero, the calling thread's processor time in each op of `run`.")
      .def("spent", &Plan::spent, "Each op's name and the seconds counted, in the plan's order; empty before `watch`.")
      .def("run", &run_plan, "tokens"_a, "positions"_a, "seqs"_a, "block_tables"_a, "logit_rows"_a,
           "choices"_a = std::vector<ChoiceTuple>(), "tokens_end"_a = 0, "adapters"_a = std::vector<std::shared_ptr<Adapter>>(),
           "row_adapters"_a = nb::none(), "hidden_rows"_a = nb::none(), "hidden"_a = nb::none(), "window_tables"_a = nb::none(), "pieces"_a = nb::none(),
           "features"_a = nb::none(), "feature_rows"_a = nb::none(), "places"_a = nb::none(), "ends"_a = nb::none(), "section"_a = -1, "begin"_a = 0, "end"_a = 0,
           R"(Run one step: tokens, positions, seqs int32 [rows]; block_tables int32 [sequences, width];
logit_rows int32 [R]; choices (row, temperature, seed, position), for rows of which only the token is
wanted that `sample` would choose among ids below `tokens_end` with every filter off. Return float32
logits [R, vocab] and the chosen ids (-1 where `sample` gives -1). Rows of one sequence are consecutive
positions. A step without logit_rows screens: it need not read the whole of a head in two planes.
`row_adapters` int32 [rows]: which of `adapters` each row is computed with, -1 for none.
`hidden` float32 [H, hidden_width] is filled with what the head would read of `hidden_rows` int32 [H].
`window_tables`: as block_tables, for a cache with a sliding-window pool; read where a row of the step looks.
`pieces` int32 [pieces, 5], for a cache with slots: sequence, first position, end, slot read (-1: zeros, at 0),
slot written; they cover the rows of each sequence in order.
`features` float32 [F, width]: rows of pictures, `feature_rows` int32 [rows]: which of them each row is,
-1 for a token's.
`places` int32 [rows, 3]: time, row and column of each row, for ropes with axes. `ends` int32 [rows]:
where layers of attention both ways stop looking, beyond a row's own position. `section`: that part of
the plan alone, of those that `Plan.section` made, in order; `begin`, `end`: those rows of it (end 0: to the
last), one cut after another. No bit depends on cuts.)");
}

}  // namespace fh
