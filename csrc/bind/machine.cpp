// What this machine offers: kernel tables, weight types, and the ceilings that speeds are compared with.
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <atomic>
#include <chrono>

#include "bind/bind.h"

namespace fh {
namespace {

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
// another process left of it.
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
  std::vector<uint32_t> sums(static_cast<size_t>(threads));   // they wrap
  for (int pass = 0; pass < 5; ++pass) best = std::min(best, seconds_of_parts(pool, [&](size_t t) { sums[t] += static_cast<uint32_t>(loop(iterations)); }));
  return static_cast<double>(iterations * (tiles ? kTileLoopOps : kDotLoopOps)) * threads / best / 1e9;
}

}  // namespace

void bind_machine(nb::module_& m) {
  m.def("isas", [] {
    std::vector<std::string> names;
    for (const Kernels* k : runnable_kernels()) names.emplace_back(k->name);
    return names;
  }, "Name the kernel tables this machine can run, best first.");
  m.def("tables_for", &tables_for, "flags"_a, "Name the kernel tables a processor with these flags, as in /proc/cpuinfo, can run, best first.");
  m.def("isa", [] { return std::string(kernels()->name); }, "Name the table in use (the best, or FREEHOLD_ISA's choice).");
  m.def("type_routes", [] {
    std::vector<std::tuple<std::string, std::string, std::string, double, double>> rows;
    for (const TypeRoute& r : type_routes()) rows.emplace_back(r.type, r.weight_type, r.route, r.bits_file, r.bits_packed);
    return rows;
  }, "List (GGUF type, weight type, route, bits a weight in the file, bits packed) for every type that packs.");
  m.def("measure_read_gb_s", &measure_read_gb_s, "threads"_a, "megabytes"_a = 512, nb::call_guard<nb::gil_scoped_release>(),
        "Measure plain read bandwidth in GB/s (1e9).");
  m.def("measure_int8_gops", &measure_int8_gops, "threads"_a, "tiles"_a = false, nb::call_guard<nb::gil_scoped_release>(),
        R"(Measure int8 multiply-add operations in 1e9/s, without memory traffic, on the ISA in use.

Of vector dots, or with `tiles` of the matrix unit that prompts use (AMX): 0.0 where there is none.)");
}

}  // namespace fh
