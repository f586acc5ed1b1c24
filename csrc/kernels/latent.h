// Attention in latent space (DeepSeek's MLA, arXiv 2405.04434, absorbed form): all heads share one key of d = latent + rope
// inputs per position, and the first `latent` of them are the value too. A table of kernels of its own, one an ISA.
// Knows pages through the block table; knows no thread and no model.
//
// A page is kernels.h's page of one kv head with keys alone: transposed, [d][32]. Keys and values are the same bytes, read twice
// while they lie in an L2 (a span of 256 positions by 576 halves is 288 KB), so memory gives each byte once.
// Lanes are queries: a row's heads one after another, then the next row's. So one page element, broadcast, serves sixteen
// queries in both products, a softmax runs down columns without a horizontal sum, and no page needs a transpose.
#pragma once
#include "kernels/kernels.h"

namespace fh {

struct LatentArgs {
  const float* q; int64_t q_stride;      // row r: q + r*q_stride, [heads][d], the last d - latent rotated already
  float* out; int64_t out_stride;        // row r: [heads][latent]
  const uint8_t* pages; int64_t block_bytes;
  const int32_t* block_table;            // of this sequence
  int heads, d, latent;                  // latent a multiple of 16
  float scale;
  int first_position;                    // rows are consecutive positions of one sequence
  KvType type;                           // f16 or f32
};

// Queries of a tile: four vectors of lanes. A query's number is row * heads + head.
constexpr int kLatentQueries = 64;
constexpr int64_t latent_lanes(int64_t queries) { return (queries + 15) / 16 * 16; }
// Floats: a tile's queries, lane by lane; one tile's softmax over some span: m (in bits), l, then `latent` rows of lanes.
constexpr int64_t latent_packed(int64_t queries, int64_t d) { return d * latent_lanes(queries); }
constexpr int64_t latent_partial(int64_t queries, int64_t latent) { return (2 + latent) * latent_lanes(queries); }
// Scores of a span, and what is widened of a page at a time.
constexpr int64_t kLatentWide = 64 * 64;
constexpr int64_t kLatentScratch = kSpanTokens * kLatentQueries + kLatentWide;

// An indexer's scores of pages of its keys, transposed as a latent's: sum over heads of weights[h] * max(0, q[h] . key).
struct IndexArgs {
  const float *q, *weights;              // of one row: [heads][d], [heads]
  const uint8_t* pages; int64_t block_bytes;
  const int32_t* block_table;            // from the first page on
  int heads, d;
  KvType type;                           // f16 or f32
};

struct LatentKernels {
  // Queries [first, first + n), n <= kLatentQueries, to [d][lanes]; lanes beyond n are zero.
  void (*pack)(const LatentArgs& a, int64_t first, int n, float* packed);
  // Their partial softmax over span number `span`. A span that a query cannot see leaves m = -inf, l = 0.
  void (*span)(const LatentArgs& a, int64_t first, int n, const float* packed, int span, float* scratch, float* partial);
  // Folds a partial into the running one, which begins as m = -inf and zeros; spans must come in order.
  void (*merge)(float* running, const float* partial, int n, int latent);
  // out = running / l, for the queries of the tile.
  void (*finish)(const LatentArgs& a, int64_t first, int n, const float* running);
  // to[pages * 32]: what later positions of the last page get is not used. wide: d * 32 floats.
  void (*index)(const IndexArgs& a, int64_t pages, float* wide, float* to);
};

const LatentKernels* latent_scalar();
const LatentKernels* latent_avx2();       // null where the compiler cannot build it
const LatentKernels* latent_avx512();
const LatentKernels* latent_neon();
const LatentKernels& latent_kernels(const Kernels& k);   // of the same ISA; AMX has avx512's

}  // namespace fh
