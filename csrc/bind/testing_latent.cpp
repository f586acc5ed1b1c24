// Latent attention by the name of its table, for tests: freehold._native.testing.latent_attention.
#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "bind/testing.h"
#include "kernels/latent.h"

namespace fh {
namespace testing {
namespace {

// Keys [positions][d] of one sequence, dealt over shuffled pages; what no row may see stays all ones, NaN.
struct LatentPages {
  std::vector<int32_t> block_table;
  std::shared_ptr<Memory> memory;

  LatentPages(const Kernels& k, const LatentArgs& a, const float* keys, int64_t positions, uint32_t shuffle)
      : block_table(static_cast<size_t>((positions + kBlockTokens - 1) / kBlockTokens)) {
    for (size_t i = 0; i < block_table.size(); ++i) block_table[i] = static_cast<int32_t>(i);
    std::shuffle(block_table.begin(), block_table.end(), std::mt19937(shuffle));
    memory = Memory::anonymous(block_table.size() * static_cast<size_t>(a.block_bytes));
    std::fill_n(memory->data, memory->bytes, uint8_t{0xff});
    for (int64_t p = 0; p < positions; ++p)
      k.kv_store(keys + p * a.d, keys, 1, a.d, 0, a.type, memory->data + block_table[static_cast<size_t>(p / kBlockTokens)] * a.block_bytes,
                 static_cast<int>(p % kBlockTokens));
  }
};

// By its definition: attention over one kv head whose values are the first inputs of its keys.
void latent_reference(const LatentArgs& a, int rows, const float* keys, int64_t positions) {
  std::vector<float> k(keys, keys + positions * a.d), v;
  if (a.type == KvType::F16) for (float& x : k) x = f16_to_f32(f32_to_f16(x));
  for (int64_t p = 0; p < positions; ++p) v.insert(v.end(), k.begin() + p * a.d, k.begin() + p * a.d + a.latent);
  AttnArgs b{};
  b.q = a.q;
  b.out = a.out;
  b.q_stride = a.q_stride;
  b.out_stride = a.out_stride;
  b.heads = a.heads;
  b.kv_heads = 1;
  b.d = a.d;
  b.dv = a.latent;
  b.scale = a.scale;
  b.first_position = a.first_position;
  reference::attention(b, rows, k.data(), v.data());
}

void latent_tile(const LatentKernels& k, const LatentArgs& a, int64_t first, int n) {
  std::vector<float> packed(static_cast<size_t>(latent_packed(n, a.d))), scratch(kLatentScratch);
  std::vector<float> running(static_cast<size_t>(latent_partial(n, a.latent))), partial(running.size());
  std::fill_n(running.begin(), latent_lanes(n), -HUGE_VALF);
  k.pack(a, first, n, packed.data());
  for (int s = 0; s <= (a.first_position + (first + n - 1) / a.heads) / kSpanTokens; ++s) {
    k.span(a, first, n, packed.data(), s, scratch.data(), partial.data());
    k.merge(running.data(), partial.data(), n, a.latent);
  }
  k.finish(a, first, n, running.data());
}

Out<float> latent_attention(const std::string& isa, In<float, 3> q, In<float, 2> keys, int latent, int first_position, float scale, int tile,
                            uint32_t shuffle, const std::string& kv_type) {
  const int64_t rows = dim(q, 0), heads = dim(q, 1), d = dim(q, 2), positions = first_position + rows;
  expect(rows > 0 && heads > 0 && first_position >= 0 && dim(keys, 1) == d && dim(keys, 0) >= positions, "every row needs the keys before it, as wide as it");
  expect(latent > 0 && latent % 16 == 0 && latent <= d, "the values are a multiple of 16 wide, and a part of the keys");
  expect(tile >= 1 && tile <= kLatentQueries, "a tile has 1 to 64 queries");
  Out<float> out = zeros<float>({rows, heads, latent});
  LatentArgs a{};
  a.q = q.data();
  a.out = out.data();
  a.q_stride = heads * d;
  a.out_stride = heads * latent;
  a.heads = static_cast<int>(heads);
  a.d = static_cast<int>(d);
  a.latent = latent;
  a.scale = scale;
  a.first_position = first_position;
  a.type = kv_type_named(kv_type);
  a.block_bytes = kv_head_bytes(a.type, d, 0);
  const Kernels* k = table(isa);
  if (!k) {
    latent_reference(a, static_cast<int>(rows), keys.data(), positions);
    return out;
  }
  const LatentPages pages(*k, a, keys.data(), positions, shuffle);
  a.pages = pages.memory->data;
  a.block_table = pages.block_table.data();
  for (int64_t i = 0; i < rows * heads; i += tile) latent_tile(latent_kernels(*k), a, i, static_cast<int>(std::min<int64_t>(tile, rows * heads - i)));
  return out;
}

}  // namespace
}  // namespace testing

void bind_testing_latent(nb::module_& t) {
  t.def("latent_attention", &testing::latent_attention, "isa"_a, "q"_a, "keys"_a, "latent"_a, "first_position"_a, "scale"_a, "tile"_a = kLatentQueries,
        "shuffle"_a = 0, "kv_type"_a = "f16");
}

}  // namespace fh
