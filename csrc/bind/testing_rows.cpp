// Kernels over rows, for tests: norms, gates, rope, the cache's pages, attention.
#include <algorithm>
#include <cmath>
#include <optional>
#include <random>

#include "bind/testing.h"
#include "sample.h"

namespace fh {
namespace testing {
namespace {

using Row = In<float, 1>;

Out<float> rms_norm(const std::string& isa, Row x, Row w, float eps) {
  const int64_t n = dim(x, 0);
  expect(n > 0 && dim(w, 0) == n, "x and w need one length, at least 1");
  Out<float> y = zeros<float>({n});
  const Kernels* k = table(isa);
  (k ? k->rms_norm : reference::rms_norm)(x.data(), w.data(), eps, n, y.data());
  return y;
}

Out<float> layer_norm(const std::string& isa, Row x, Row w, Row b, float eps) {
  const int64_t n = dim(x, 0);
  expect(n > 0 && n % 16 == 0 && dim(w, 0) == n && dim(b, 0) == n, "x, w and b need one length, a multiple of 16");
  Out<float> y = zeros<float>({n});
  const Kernels* k = table(isa);
  (k ? k->layer_norm : reference::layer_norm)(x.data(), w.data(), b.data(), eps, n, y.data());
  return y;
}

Out<float> gelu_erf(const std::string& isa, Row x) {
  const int64_t n = dim(x, 0);
  expect(n % 16 == 0, "x needs a multiple of 16");
  Out<float> y = copy<1>(x, {n});
  const Kernels* k = table(isa);
  (k ? k->gelu_erf : reference::gelu_erf)(y.data(), n);
  return y;
}

// `cut`: queries a call takes at most.
Out<float> attend_both(const std::string& isa, In<float, 2> q, In<float, 2> keys, In<float, 2> values, float scale, bool rounded, int64_t cut) {
  const int64_t rows = dim(q, 0), d = dim(q, 1);
  expect(rows > 0 && d >= 16, "q is [rows, d], d of 16 or more");
  expect(dim(keys, 0) == rows && dim(values, 0) == rows && dim(keys, 1) == d && dim(values, 1) == d, "q, keys and values need one shape");
  Out<float> out = zeros<float>({rows, d});
  const BothArgs a{q.data(), keys.data(), values.data(), out.data(), d, rows, static_cast<int>(d), scale};
  const Kernels* k = table(isa);
  expect(cut > 0 && cut <= kBothMost, "cut is 1 to 256");
  if (!k) {
    reference::attend_both(a, rounded);
    return out;
  }
  const BothKernel& both = rounded ? k->both_rounded : k->both;
  AlignedFloats packed(both.packed(rows, d)), scratch(both.scratch(rows, d));
  for (AlignedFloats* room : {&packed, &scratch}) std::fill_n(room->data(), room->size(), NAN);
  for (int64_t j = 0; j < rows; j += kBothPacked) both.pack(a, j, std::min(rows, j + kBothPacked), packed.data());
  for (int64_t i = 0; i < rows; i += cut) both.attend(a, packed.data(), i, std::min(cut, rows - i), scratch.data());
  return out;
}

// Kernels of the form y[n] = f(y[n], x[n]).
using Binary = void (*)(float*, const float*, int64_t);
Out<float> binary(const Kernels* k, Binary Kernels::* member, Binary oracle, Row y, Row x) {
  const int64_t n = dim(y, 0);
  expect(dim(x, 0) == n, "both rows need one length");
  Out<float> out = copy<1>(y, {n});
  (k ? k->*member : oracle)(out.data(), x.data(), n);
  return out;
}
void add(float* y, const float* x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] += x[i];
}

// Panels' sums [panels, rows, 16] put into rows [rows, width].
int64_t rows_of(In<float, 3> sums, int64_t width) {
  expect(dim(sums, 2) == kPanelRows && width > 0 && (width + kPanelRows - 1) / kPanelRows == dim(sums, 0), "sums are [panels, rows, 16], as many panels as width needs");
  return dim(sums, 1);
}
Out<float> store_rows(const std::string& isa, In<float, 3> sums, In<float, 2> y, std::optional<Row> bias, bool grow) {
  const int64_t width = dim(y, 1), rows = rows_of(sums, width);
  expect(dim(y, 0) == rows && (!bias || dim(*bias, 0) == width), "y is [rows, width], bias [width]");
  Out<float> out = copy<2>(y, {rows, width});
  expect(table(isa), "store_rows has no reference: its sums are plain additions");
  table(isa)->store_rows(sums.data(), width, rows, bias ? bias->data() : nullptr, grow, out.data(), width);
  return out;
}
Out<float> add_scaled_rows(const std::string& isa, In<float, 3> sums, In<float, 2> y, std::optional<In<int32_t, 1>> rows, Row scale) {
  const int64_t width = dim(y, 1), count = rows_of(sums, width);
  expect(dim(scale, 0) == count && (rows ? dim(*rows, 0) == count : dim(y, 0) == count), "rows and scale need one length");
  for (int64_t i = 0; rows && i < count; ++i) expect(rows->data()[i] >= 0 && rows->data()[i] < dim(y, 0), "a row outside y");
  expect(table(isa), "add_scaled_rows has no reference: each of its sums is one multiply-add");
  Out<float> out = copy<2>(y, {dim(y, 0), width});
  table(isa)->add_scaled_rows(sums.data(), width, count, rows ? rows->data() : nullptr, scale.data(), out.data(), width);
  return out;
}
Out<float> gate_rows(const std::string& isa, Kernels::Gate Kernels::* member, Binary oracle, In<float, 3> g, In<float, 3> u, int64_t width) {
  const int64_t rows = rows_of(g, width);
  expect(rows_of(u, width) == rows, "g and u need one shape");
  Out<float> y = zeros<float>({rows, width});
  if (const Kernels* k = table(isa)) {
    (k->*member)(g.data(), u.data(), width, rows, y.data(), width);
    return y;
  }
  for (int64_t t = 0; t < rows; ++t)
    for (int64_t c = 0; c < width; c += kPanelRows) {
      const int64_t at = c * rows + t * kPanelRows, n = std::min<int64_t>(kPanelRows, width - c);
      std::copy_n(g.data() + at, n, y.data() + t * width + c);
      oracle(y.data() + t * width + c, u.data() + at, n);
    }
  return y;
}

// Kernels of the form y[n] = f(y[n], s).
using Unary = void (*)(float*, float, int64_t);
Out<float> unary(const Kernels* k, Unary Kernels::* member, Unary oracle, Row y, float s) {
  const int64_t n = dim(y, 0);
  Out<float> out = copy<1>(y, {n});
  (k ? k->*member : oracle)(out.data(), s, n);
  return out;
}
void scale(float* y, float s, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] *= s;
}

Out<float> rope(const std::string& isa, In<float, 2> x, Row cos, Row sin, bool adjacent) {
  const int64_t heads = dim(x, 0), d = dim(x, 1), half = dim(cos, 0);
  expect(dim(sin, 0) == half && 2 * half <= d, "cos and sin need one length, at most half of d");
  Out<float> out = copy<2>(x, {heads, d});
  const Kernels* k = table(isa);
  (k ? k->rope : reference::rope)(out.data(), static_cast<int>(heads), static_cast<int>(d), static_cast<int>(2 * half),
                                  cos.data(), sin.data(), adjacent);
  return out;
}

Out<uint8_t> kv_store(const std::string& isa, In<float, 2> keys, In<float, 2> values, int slot, const std::string& kv_type) {
  const int64_t heads = dim(keys, 0), d = dim(keys, 1), dv = dim(values, 1);
  expect(dim(values, 0) == heads && slot >= 0 && slot < kBlockTokens, "keys and values need one number of heads; slot 0 to 31");
  const KvType type = kv_type_named(kv_type);
  Out<uint8_t> page = zeros<uint8_t>({heads * kv_head_bytes(type, d, dv)});
  kernels_named(isa)->kv_store(keys.data(), values.data(), static_cast<int>(heads), static_cast<int>(d), static_cast<int>(dv),
                               type, page.data(), slot);
  return page;
}

// Rows of one sequence over keys and values of its positions; see reference.h for the shapes.
struct Attention {
  In<float, 3> q, keys, values;
  AttnArgs a{};
  int64_t rows, positions;
  Out<float> out;

  Attention(In<float, 3> q_, In<float, 3> k_, In<float, 3> v_, int first, float scale, float softcap, int window)
      : q(q_), keys(k_), values(v_), rows(dim(q_, 0)), positions(dim(k_, 0)), out(zeros<float>({rows, dim(q_, 1), dim(v_, 2)})) {
    const int64_t heads = dim(q, 1), kv_heads = dim(keys, 1);
    expect(dim(keys, 2) == dim(q, 2) && dim(values, 0) == positions && dim(values, 1) == kv_heads, "q, keys and values do not fit");
    expect(kv_heads > 0 && heads > 0 && heads % kv_heads == 0, "heads must be a multiple of kv heads");
    expect(first >= 0 && first + rows <= positions, "every row needs the keys before it");
    a.q = q.data();
    a.out = out.data();
    a.heads = static_cast<int>(heads);
    a.kv_heads = static_cast<int>(kv_heads);
    a.d = static_cast<int>(dim(q, 2));
    a.dv = static_cast<int>(dim(values, 2));
    a.q_stride = heads * a.d;
    a.out_stride = heads * a.dv;
    a.scale = scale;
    a.softcap = softcap;
    a.window = window;
    a.first_position = first;
    a.ends = nullptr;
  }
};

// Keys and values, dealt over shuffled pages. What no row may see stays all ones: NaN in floats and in scales.
struct PagedCache {
  std::vector<int32_t> block_table;
  std::shared_ptr<Memory> memory;
  int64_t page_bytes;

  PagedCache(const Kernels& k, const Attention& t, uint32_t shuffle)
      : block_table(static_cast<size_t>((t.positions + kBlockTokens - 1) / kBlockTokens)),
        page_bytes(t.a.kv_heads * kv_head_bytes(t.a.type, t.a.d, t.a.dv)) {
    for (size_t i = 0; i < block_table.size(); ++i) block_table[i] = static_cast<int32_t>(i);
    std::shuffle(block_table.begin(), block_table.end(), std::mt19937(shuffle));
    memory = Memory::anonymous(block_table.size() * static_cast<size_t>(page_bytes));
    std::fill_n(memory->data, memory->bytes, uint8_t{0xff});
    const int64_t seen = t.a.window > 0 ? std::max(0, t.a.first_position - t.a.window + 1) : 0;
    for (int64_t p = seen; p < t.a.first_position + t.rows; ++p)
      k.kv_store(t.keys.data() + p * t.a.kv_heads * t.a.d, t.values.data() + p * t.a.kv_heads * t.a.dv, t.a.kv_heads, t.a.d, t.a.dv,
                 t.a.type, memory->data + block_table[static_cast<size_t>(p / kBlockTokens)] * page_bytes, static_cast<int>(p % kBlockTokens));
  }
};

// All spans of one tile in order, for one kv head. from: the first span; those before must be invisible.
void attend_tile(const Kernels& k, const AttnArgs& a, int head, int row, int rows, int from) {
  const int count = rows * (a.heads / a.kv_heads), stride = 2 + a.dv;
  std::vector<float> running(static_cast<size_t>(count * stride)), partial(running.size());
  for (int i = 0; i < count; ++i) running[static_cast<size_t>(i * stride)] = -HUGE_VALF;
  for (int s = from; s <= (a.first_position + row + rows - 1) / kSpanTokens; ++s) {
    k.attend_span(a, head, row, rows, s, partial.data());
    k.attend_merge(running.data(), partial.data(), count, a.dv);
  }
  for (int i = 0; i < rows; ++i) k.attend_finish(a, head, row + i, running.data() + i * (a.heads / a.kv_heads) * stride);
}

void attend_reference(Attention& t) {
  const auto rounded = [&](const In<float, 3>& x) {
    std::vector<float> y(x.data(), x.data() + x.size());
    if (t.a.type == KvType::F16) for (float& v : y) v = f16_to_f32(f32_to_f16(v));
    if (t.a.type == KvType::Q8) reference::round_rows(y.data(), dim(x, 0) * dim(x, 1), dim(x, 2));
    return y;
  };
  reference::attention(t.a, static_cast<int>(t.rows), rounded(t.keys).data(), rounded(t.values).data());
}

Out<float> attention(const std::string& isa, In<float, 3> q, In<float, 3> keys, In<float, 3> values, int first, float scale,
                     float softcap, int window, int tile_rows, uint32_t shuffle, bool skip_spans, const std::string& kv_type) {
  Attention t(q, keys, values, first, scale, softcap, window);
  t.a.type = kv_type_named(kv_type);
  const Kernels* k = table(isa);
  if (!k) {
    attend_reference(t);
    return t.out;
  }
  expect(tile_rows >= 1 && tile_rows <= kAttnTileQueries, "a tile has 1 to 64 rows");
  const PagedCache cache(*k, t, shuffle);
  t.a.pages = cache.memory->data;
  t.a.block_bytes = cache.page_bytes;
  t.a.block_table = cache.block_table.data();
  for (int head = 0; head < t.a.kv_heads; ++head)
    for (int row = 0; row < t.rows; row += tile_rows) {
      const int seen = window > 0 ? std::max(0, first + row - window + 1) : 0;
      attend_tile(*k, t.a, head, row, std::min<int>(tile_rows, static_cast<int>(t.rows) - row), skip_spans ? seen / kSpanTokens : 0);
    }
  return t.out;
}

}  // namespace
}  // namespace testing

void bind_testing_rows(nb::module_& t) {
  using namespace testing;
  t.def("rms_norm", &rms_norm, "isa"_a, "x"_a, "w"_a, "eps"_a);
  t.def("layer_norm", &layer_norm, "isa"_a, "x"_a, "w"_a, "b"_a, "eps"_a);
  t.def("gelu_erf", &gelu_erf, "isa"_a, "x"_a);
  t.def("attend_both", &attend_both, "isa"_a, "q"_a, "keys"_a, "values"_a, "scale"_a, "rounded"_a = false, "cut"_a = kBothMost);
  t.def("add", [](const std::string& isa, Row y, Row x) { return binary(table(isa), &Kernels::add, add, y, x); });
  t.def("silu_rows", [](const std::string& isa, In<float, 3> g, In<float, 3> u, int64_t width) { return gate_rows(isa, &Kernels::silu_rows, reference::silu_mul, g, u, width); });
  t.def("gelu_rows", [](const std::string& isa, In<float, 3> g, In<float, 3> u, int64_t width) { return gate_rows(isa, &Kernels::gelu_rows, reference::gelu_mul, g, u, width); });
  t.def("store_rows", &store_rows, "isa"_a, "sums"_a, "y"_a, "bias"_a.none(), "grow"_a);
  t.def("add_scaled_rows", &add_scaled_rows, "isa"_a, "sums"_a, "y"_a, "rows"_a.none(), "scale"_a);
  t.def("scale", [](const std::string& isa, Row y, float s) { return unary(table(isa), &Kernels::scale, scale, y, s); });
  t.def("softcap", [](const std::string& isa, Row y, float cap) { return unary(table(isa), &Kernels::softcap, reference::softcap, y, cap); });
  t.def("log_sum_exp", [](const std::string& isa, Row x) {
    const Kernels* k = table(isa);
    return k ? static_cast<double>(k->log_sum_exp(x.data(), dim(x, 0))) : reference::log_sum_exp(x.data(), dim(x, 0));
  });
  t.def("argmax", [](const std::string& isa, Row x) {
    expect(dim(x, 0) > 0, "x must not be empty");
    const Kernels* k = table(isa);
    return (k ? k->argmax : reference::argmax)(x.data(), dim(x, 0));
  });
  t.def("gumbel", &gumbel, "seed"_a, "position"_a, "id"_a);
  t.def("rope", &rope, "isa"_a, "x"_a, "cos"_a, "sin"_a, "adjacent"_a);
  t.def("kv_store", &kv_store, "isa"_a, "keys"_a, "values"_a, "slot"_a, "kv_type"_a = "f16");
  t.def("attention", &attention, "isa"_a, "q"_a, "keys"_a, "values"_a, "first_position"_a, "scale"_a, "softcap"_a = 0.0f,
        "window"_a = 0, "tile_rows"_a = 8, "shuffle"_a = 0, "skip_spans"_a = false, "kv_type"_a = "f16");
}

}  // namespace fh
