// Faces of single kernels, of the pool and of Crew for tests: _native.testing. A kernel takes the name of its table,
// or "reference" for the oracle.
// Checks shapes and calls, as bind.cpp does; the product's path does not come through here.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cmath>
#include <optional>
#include <random>
#include <thread>

#include "crew.h"
#include "freehold.h"
#include "screen.h"
#include "kernels/reference.h"
#include "sample.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace fh;

namespace {

template <class T, int D> using In = nb::ndarray<const T, nb::ndim<D>, nb::c_contig, nb::device::cpu>;
template <class T> using Out = nb::ndarray<nb::numpy, T>;

template <class T> Out<T> array(std::initializer_list<int64_t> shape) {
  size_t n = 1, dims[4] = {}, rank = 0;
  for (const int64_t s : shape) n *= dims[rank++] = static_cast<size_t>(s);
  T* data = new T[std::max<size_t>(n, 1)]();
  nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<T*>(p); });
  return Out<T>(data, rank, dims, owner);
}
template <int D> Out<float> copy(const In<float, D>& x, std::initializer_list<int64_t> shape) {
  Out<float> y = array<float>(shape);
  std::copy_n(x.data(), x.size(), y.data());
  return y;
}

template <class A> int64_t dim(const A& a, int i) { return static_cast<int64_t>(a.shape(static_cast<size_t>(i))); }

void expect(bool fits, const char* text) {
  if (!fits) throw Error(ErrorKind::Usage, text);
}
// The named table, or null for the oracle.
const Kernels* table(const std::string& isa) { return isa == "reference" ? nullptr : kernels_named(isa); }

using Row = In<float, 1>;

Out<float> rms_norm(const std::string& isa, Row x, Row w, float eps) {
  const int64_t n = dim(x, 0);
  expect(n > 0 && dim(w, 0) == n, "x and w need one length, at least 1");
  Out<float> y = array<float>({n});
  const Kernels* k = table(isa);
  (k ? k->rms_norm : reference::rms_norm)(x.data(), w.data(), eps, n, y.data());
  return y;
}

Out<float> layer_norm(const std::string& isa, Row x, Row w, Row b, float eps) {
  const int64_t n = dim(x, 0);
  expect(n > 0 && n % 16 == 0 && dim(w, 0) == n && dim(b, 0) == n, "x, w and b need one length, a multiple of 16");
  Out<float> y = array<float>({n});
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

Out<float> attend_both(const std::string& isa, In<float, 2> q, In<float, 2> keys, In<float, 2> values, float scale) {
  const int64_t rows = dim(q, 0), d = dim(q, 1);
  expect(rows > 0 && d > 0 && d % 16 == 0, "q is [rows, d], d a multiple of 16");
  expect(dim(keys, 0) == rows && dim(values, 0) == rows && dim(keys, 1) == d && dim(values, 1) == d, "q, keys and values need one shape");
  Out<float> out = array<float>({rows, d});
  std::vector<float> scratch(static_cast<size_t>(both_scratch(rows, d)), NAN);
  const BothArgs a{q.data(), keys.data(), values.data(), out.data(), d, rows, static_cast<int>(d), scale};
  const Kernels* k = table(isa);
  if (k) k->attend_both(a, scratch.data());
  else reference::attend_both(a);
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
Out<float> gate_rows(const std::string& isa, Kernels::Gate Kernels::* member, Binary oracle, In<float, 3> g, In<float, 3> u, int64_t width) {
  const int64_t rows = rows_of(g, width);
  expect(rows_of(u, width) == rows, "g and u need one shape");
  Out<float> y = array<float>({rows, width});
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
  Out<uint8_t> page = array<uint8_t>({heads * kv_head_bytes(type, d, dv)});
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
      : q(q_), keys(k_), values(v_), rows(dim(q_, 0)), positions(dim(k_, 0)), out(array<float>({rows, dim(q_, 1), dim(v_, 2)})) {
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

using Quantized = std::tuple<Out<int16_t>, Out<float>, Out<int32_t>, Out<float>>;
Quantized quantize(const std::string& isa, Row x, int block) {
  const int64_t k = dim(x, 0);
  expect((block == 32 || block == kWideUnit || block == 256) && k % block == 0, "block is 32, 128 or 256 and divides the row");
  Quantized r{array<int16_t>({k}), array<float>({k / block}), array<int32_t>({k / 16}), array<float>({k / 32})};
  auto& [q, scale, sum16, fsum32] = r;
  std::vector<int8_t> narrow(static_cast<size_t>(k));
  const Kernels* t = table(isa);
  if (!t) reference::quantize(x.data(), k, block, q.data(), scale.data());
  else if (block == kWideUnit) t->quantize_wide(x.data(), k, 1, q.data(), scale.data());
  else if (block == 32) t->quantize32(x.data(), k, narrow.data(), scale.data(), sum16.data(), fsum32.data());
  else t->quantize256(x.data(), k, narrow.data(), scale.data(), sum16.data());
  if (t && block != kWideUnit) std::copy(narrow.begin(), narrow.end(), q.data());
  return r;
}

// Activation rows in the form a kind of panel wants.
struct Activations {
  std::vector<int8_t> q;
  std::vector<float> scale, fsum32;
  std::vector<int32_t> sum16;
  std::vector<int16_t> wide;
  Acts acts;

  Activations(const Kernels& t, int form, const float* x, int64_t m, int64_t k) {
    const int64_t block = form == kAct256 ? 256 : 32;
    acts.k = k;
    acts.f32 = x;
    if (form == kActF32) return;
    if (form == kActWide) {
      widen(t, x, m, k);
      return;
    }
    q.resize(static_cast<size_t>(m * k));
    scale.resize(static_cast<size_t>(m * k / block));
    sum16.resize(static_cast<size_t>(m * k / 16));
    fsum32.resize(static_cast<size_t>(m * k / 32));
    for (int64_t i = 0; i < m; ++i) {
      if (form == kAct32)
        t.quantize32(x + i * k, k, q.data() + i * k, scale.data() + i * k / block, sum16.data() + i * k / 16, fsum32.data() + i * k / 32);
      else t.quantize256(x + i * k, k, q.data() + i * k, scale.data() + i * k / block, sum16.data() + i * k / 16);
    }
    acts.q = q.data();
    acts.scale = scale.data();
    acts.sum16 = sum16.data();
    acts.fsum32 = form == kAct32 ? fsum32.data() : nullptr;
  }
  void widen(const Kernels& t, const float* x, int64_t m, int64_t k) {
    wide.resize(static_cast<size_t>(m * k));
    scale.resize(static_cast<size_t>(m * k / kWideUnit));
    for (int64_t i = 0; i < m; ++i) t.quantize_wide(x + i * k, k, m, wide.data() + i * kWideUnit, scale.data() + i);
    acts.rows = m;
    acts.wide = wide.data();
    acts.scale = scale.data();
  }
};

Out<float> matmul(const std::string& isa, const Matrix& w, In<float, 2> x, int tile) {
  const int64_t m = dim(x, 0), k = dim(x, 1), n = w.w.n;
  expect(k == w.w.k && tile >= 1, "x [M, K] must have the matrix's K; tile is at least 1");
  Out<float> out = array<float>({m, n});
  const Kernels* t = table(isa);
  if (!t) {
    reference::matmul(w.w, x.data(), m, out.data());
    return out;
  }
  const Activations in(*t, kind_info(w.w.kind).act, x.data(), m, k);
  std::vector<float> y(static_cast<size_t>(m) * kPanelRows);
  for (int64_t p = 0; p < w.w.count(); ++p) {
    for (int64_t t0 = 0; t0 < m; t0 += tile)
      t->panel[static_cast<int>(w.w.kind)](w.w, p, in.acts, t0, std::min<int64_t>(tile, m - t0), y.data() + t0 * kPanelRows, kPanelRows);
    for (int64_t i = 0; i < m; ++i)
      std::copy_n(y.data() + i * kPanelRows, std::min<int64_t>(kPanelRows, n - p * kPanelRows), out.data() + i * n + p * kPanelRows);
  }
  return out;
}

// Upper bounds [M][N] of a head's products with the rows of x, whatever their parts.
Out<float> screen(const std::string& isa, const Matrix& w, In<float, 2> x, int tile) {
  const int64_t m = dim(x, 0), k = dim(x, 1), n = w.w.n;
  const Kernels::Screen run = kernels_named(isa)->screen[static_cast<int>(w.w.kind)];
  expect(run && k == w.w.k && tile >= 1, "x [M, K] must have the K of a head in planes; tile is at least 1");
  ScreenRows rows;
  rows.allocate(w.w.kind, k, m);
  for (int64_t t = 0; t < m; ++t) rows.set(t, x.data() + t * k);
  Out<float> out = array<float>({m, n});
  std::vector<float> y(static_cast<size_t>(m) * kPanelRows);
  for (int64_t p = 0; p < w.w.count(); ++p) {
    for (int64_t t0 = 0; t0 < m; t0 += tile)
      run(w.w, p, rows.acts(), rows.reach.data(), t0, std::min<int64_t>(tile, m - t0), y.data() + t0 * kPanelRows);
    for (int64_t i = 0; i < m; ++i)
      std::copy_n(y.data() + i * kPanelRows, std::min<int64_t>(kPanelRows, n - p * kPanelRows), out.data() + i * n + p * kPanelRows);
  }
  return out;
}

// The same by units of 256 inputs, as prompts are multiplied: `tokens` at a time, all panels in one call.
Out<float> gemm(const std::string& isa, const Matrix& w, In<float, 2> x, int tokens) {
  const int64_t m = dim(x, 0), k = dim(x, 1), n = w.w.n, units = (k + 255) / 256;
  const int form = kind_info(w.w.kind).act;
  expect(k == w.w.k && form != kActF32 && form != kActWide && tokens >= 1 && tokens <= kGemmTokens, "x [M, K] must have an integer matrix's K; 1 to 512 tokens");
  const Kernels& t = *kernels_named(isa);
  std::vector<int8_t> q(static_cast<size_t>((units * m + 32) * 256));
  std::vector<float> scale(static_cast<size_t>(units * m * 8)), fsum32(scale.size());
  std::vector<int32_t> sum16(2 * scale.size());
  for (int64_t u = 0; u < units; ++u)
    for (int64_t i = 0, at = u * m; i < m; ++i, ++at) {
      const float* from = x.data() + i * k + 256 * u;
      const int64_t some = std::min<int64_t>(256, k - 256 * u);
      if (form == kAct256) t.quantize256(from, some, q.data() + 256 * at, scale.data() + at, sum16.data() + 16 * at);
      else t.quantize32(from, some, q.data() + 256 * at, scale.data() + 8 * at, sum16.data() + 16 * at, fsum32.data() + 8 * at);
    }
  const Acts acts{k, m, nullptr, q.data(), nullptr, scale.data(), sum16.data(), fsum32.data(), nullptr, 0};
  Out<float> out = array<float>({m, n});
  std::vector<float> y(static_cast<size_t>(w.w.count() * tokens * kPanelRows), 7.0f);
  for (int64_t t0 = 0; t0 < m; t0 += tokens) {
    const int64_t nt = std::min<int64_t>(tokens, m - t0);
    for (int64_t u = 0; u < units; ++u) t.gemm[static_cast<int>(w.w.kind)](w.w, 0, w.w.count(), u, acts, t0, nt, y.data());
    for (int64_t r = 0; r < n; ++r)
      for (int64_t i = 0; i < nt; ++i) out.data()[(t0 + i) * n + r] = y[static_cast<size_t>((r / kPanelRows * nt + i) * kPanelRows + r % kPanelRows)];
  }
  return out;
}

// Jobs of two phases over kItems counters, on a pool whose workers now and then sleep `late_us` where a neighbour could
// keep them from running with nothing claimed: before a phase and after it. Returns the worker visits that came in time;
// throws unless every job had all its work done, exactly once, when it returned.
int64_t drill_threads(int threads, int jobs, int late_us) {
  constexpr int kItems = 24;
  struct Phase { std::atomic<int> next{0}; std::atomic<uint32_t> done{0}; std::array<int, kItems> hits{}; };
  struct State { Phase phases[2]; } seats[Threads::kSeats];
  std::atomic<int64_t> visits{0};
  Threads pool(threads);
  for (int job = 0; job < jobs; ++job) {
    Threads::Turn turn(pool);
    State& s = seats[turn.seat()];
    for (Phase& p : s.phases) p.next = 0, p.done = 0, p.hits.fill(0);
    turn.run([&s, &visits, job, late_us](int thread) {
      const auto nap = [&](int at) {
        if (thread && late_us && (job * 7 + thread * 3 + at) % 5 == 0) std::this_thread::sleep_for(std::chrono::microseconds(late_us));
      };
      for (Phase& p : s.phases) {
        nap(1);
        for (int i; (i = p.next.fetch_add(1)) < kItems;) {
          ++p.hits[static_cast<size_t>(i)];
          Threads::finish(p.done, 1, kItems);
        }
        Threads::await(p.done, kItems);
        nap(2);
      }
      if (thread) ++visits;
    }, threads);
    for (const Phase& p : s.phases)
      expect(std::ranges::all_of(p.hits, [](int h) { return h == 1; }), "a job returned before its work was done once");
  }
  pool.settle();
  return visits;
}

void bind_threads(nb::module_& t) {
  t.def("drill_threads", &drill_threads, "threads"_a, "jobs"_a, "late_us"_a, nb::call_guard<nb::gil_scoped_release>());
  nb::class_<Crew>(t, "Crew").def(nb::init<int>(), "most"_a).def_prop_ro("threads", &Crew::threads)
      .def("tell", &Crew::tell, "cost"_a, "seconds"_a);
}

void bind_rows(nb::module_& t) {
  t.def("rms_norm", &rms_norm, "isa"_a, "x"_a, "w"_a, "eps"_a);
  t.def("layer_norm", &layer_norm, "isa"_a, "x"_a, "w"_a, "b"_a, "eps"_a);
  t.def("gelu_erf", &gelu_erf, "isa"_a, "x"_a);
  t.def("attend_both", &attend_both, "isa"_a, "q"_a, "keys"_a, "values"_a, "scale"_a);
  t.def("add", [](const std::string& isa, Row y, Row x) { return binary(table(isa), &Kernels::add, add, y, x); });
  t.def("silu_rows", [](const std::string& isa, In<float, 3> g, In<float, 3> u, int64_t width) { return gate_rows(isa, &Kernels::silu_rows, reference::silu_mul, g, u, width); });
  t.def("gelu_rows", [](const std::string& isa, In<float, 3> g, In<float, 3> u, int64_t width) { return gate_rows(isa, &Kernels::gelu_rows, reference::gelu_mul, g, u, width); });
  t.def("store_rows", &store_rows, "isa"_a, "sums"_a, "y"_a, "bias"_a.none(), "grow"_a);
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
}

}  // namespace

void bind_kernels(nb::module_& m) {
  nb::module_ t = m.def_submodule("testing", "Single kernels by the name of their table, for tests.");
  bind_rows(t);
  bind_threads(t);
  t.def("rope", &rope, "isa"_a, "x"_a, "cos"_a, "sin"_a, "adjacent"_a);
  t.def("kv_store", &kv_store, "isa"_a, "keys"_a, "values"_a, "slot"_a, "kv_type"_a = "f16");
  t.def("attention", &attention, "isa"_a, "q"_a, "keys"_a, "values"_a, "first_position"_a, "scale"_a, "softcap"_a = 0.0f,
        "window"_a = 0, "tile_rows"_a = 8, "shuffle"_a = 0, "skip_spans"_a = false, "kv_type"_a = "f16");
  t.def("quantize", &quantize, "isa"_a, "x"_a, "block"_a);
  t.def("matmul", &matmul, "isa"_a, "matrix"_a, "x"_a, "tile"_a = kTileTokens);
  t.def("screen", &screen, "isa"_a, "matrix"_a, "x"_a, "tile"_a = kTileTokens);
  t.def("gemm", &gemm, "isa"_a, "matrix"_a, "x"_a, "tokens"_a = kGemmTokens);
}
