// Kernels over matrices, and the thread pool, for tests.
#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <ctime>
#include <thread>

#include "bind/testing.h"
#include "thread_tuner.h"
#include "screen.h"

namespace fh {
namespace testing {
namespace {

using Row = In<float, 1>;
using Quantized = std::tuple<Out<int16_t>, Out<float>, Out<int32_t>, Out<float>>;
Quantized quantize(const std::string& isa, Row x, int block) {
  const int64_t k = dim(x, 0);
  expect((block == 32 || block == kWideUnit || block == 256) && k % block == 0, "block is 32, 128 or 256 and divides the row");
  Quantized r{zeros<int16_t>({k}), zeros<float>({k / block}), zeros<int32_t>({k / 16}), zeros<float>({k / 32})};
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
  Out<float> out = zeros<float>({m, n});
  const Kernels* t = table(isa);
  if (!t) {
    reference::matmul(w.w, x.data(), m, out.data());
    return out;
  }
  const Activations in(*t, traits(w.w.type).act(), x.data(), m, k);
  std::vector<float> y(static_cast<size_t>(m) * kPanelRows);
  for (int64_t p = 0; p < w.w.count(); ++p) {
    for (int64_t t0 = 0; t0 < m; t0 += tile)
      t->panel[static_cast<int>(w.w.type)](w.w, p, in.acts, t0, std::min<int64_t>(tile, m - t0), y.data() + t0 * kPanelRows, kPanelRows);
    for (int64_t i = 0; i < m; ++i)
      std::copy_n(y.data() + i * kPanelRows, std::min<int64_t>(kPanelRows, n - p * kPanelRows), out.data() + i * n + p * kPanelRows);
  }
  return out;
}

// Seconds of this thread that `rounds` products of all panels with the rows of x take, by the kernel alone.
double time_matmul(const std::string& isa, const Matrix& w, In<float, 2> x, int rounds) {
  const int64_t m = dim(x, 0);
  expect(dim(x, 1) == w.w.k && m <= kTileTokens && rounds >= 1, "x [M, K] must have the matrix's K, and a tile's rows at most");
  const Kernels& t = *kernels_named(isa);
  const Activations in(t, traits(w.w.type).act(), x.data(), m, w.w.k);
  const Kernels::Panel panel = t.panel[static_cast<int>(w.w.type)];
  alignas(64) float y[kTileTokens * kPanelRows];
  const auto now = [] {
    timespec at;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &at);
    return static_cast<double>(at.tv_sec) + 1e-9 * static_cast<double>(at.tv_nsec);
  };
  const double begun = now();
  for (int r = 0; r < rounds; ++r)
    for (int64_t p = 0; p < w.w.count(); ++p) panel(w.w, p, in.acts, 0, m, y, kPanelRows);
  return now() - begun;
}

// Upper bounds [M][N] of a head's products with the rows of x, whatever their parts.
Out<float> screen(const std::string& isa, const Matrix& w, In<float, 2> x, int tile) {
  const int64_t m = dim(x, 0), k = dim(x, 1), n = w.w.n;
  const Kernels::Screen run = kernels_named(isa)->screen[static_cast<int>(w.w.type)];
  expect(run && k == w.w.k && tile >= 1, "x [M, K] must have the K of a head in planes; tile is at least 1");
  ScreenRows rows;
  rows.allocate(w.w.type, k, m);
  for (int64_t t = 0; t < m; ++t) rows.set(t, x.data() + t * k);
  Out<float> out = zeros<float>({m, n});
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
  const int form = traits(w.w.type).act();
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
  Out<float> out = zeros<float>({m, n});
  std::vector<float> y(static_cast<size_t>(w.w.count() * tokens * kPanelRows), 7.0f);
  for (int64_t t0 = 0; t0 < m; t0 += tokens) {
    const int64_t nt = std::min<int64_t>(tokens, m - t0);
    for (int64_t u = 0; u < units; ++u) t.gemm[static_cast<int>(w.w.type)](w.w, 0, w.w.count(), u, acts, t0, nt, y.data());
    for (int64_t r = 0; r < n; ++r)
      for (int64_t i = 0; i < nt; ++i) out.data()[(t0 + i) * n + r] = y[static_cast<size_t>((r / kPanelRows * nt + i) * kPanelRows + r % kPanelRows)];
  }
  return out;
}

// Jobs of two phases over kItems counters, on a pool whose workers now and then sleep `late_us` where the system could
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
  nb::class_<ThreadTuner>(t, "ThreadTuner").def(nb::init<int>(), "most"_a).def_prop_ro("threads", &ThreadTuner::threads)
      .def("report", &ThreadTuner::report, "cost"_a, "seconds"_a);
}

}  // namespace
}  // namespace testing

void bind_testing_products(nb::module_& t) {
  using namespace testing;
  bind_threads(t);
  t.def("quantize", &quantize, "isa"_a, "x"_a, "block"_a);
  t.def("matmul", &matmul, "isa"_a, "matrix"_a, "x"_a, "tile"_a = kTileTokens);
  t.def("time_matmul", &time_matmul, "isa"_a, "matrix"_a, "x"_a, "rounds"_a);
  t.def("screen", &screen, "isa"_a, "matrix"_a, "x"_a, "tile"_a = kTileTokens);
  t.def("gemm", &gemm, "isa"_a, "matrix"_a, "x"_a, "tokens"_a = kGemmTokens);
}

}  // namespace fh
