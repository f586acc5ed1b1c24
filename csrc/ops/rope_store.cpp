// Rotates queries and keys by position, and writes keys and values into the cache.
#include <cmath>

#include "ops/record.h"

namespace fh {
namespace {

// cos and sin of every row's position, once a step for each rope in use. In double: at position 100,000 a float
// angle is off by 0.004 already.
struct Angles final : Op {
  std::shared_ptr<const Rope> rope;
  std::vector<float> cos, sin;                // [max_rows][rot/2]
  void allocate(int64_t max_rows, int) override {
    cos.resize(static_cast<size_t>(max_rows) * rope->inv_freq.size());
    sin.resize(cos.size());
  }
  void run(Run& r, int) override {
    const size_t half = rope->inv_freq.size();
    each_row(r, first, r.step->rows, [&](int64_t t) {
      for (size_t i = 0; i < half; ++i) {
        const double angle = static_cast<double>(r.step->positions[t]) * static_cast<double>(rope->inv_freq[i]);
        cos[static_cast<size_t>(t) * half + i] = static_cast<float>(std::cos(angle)) * rope->factor;
        sin[static_cast<size_t>(t) * half + i] = static_cast<float>(std::sin(angle)) * rope->factor;
      }
    });
  }
};

// The plan's op for a rope, recorded before the first op that rotates by it.
struct AllAngles { std::vector<const Angles*> ops; };
const Angles* angles(Plan& plan, std::shared_ptr<const Rope> rope) {
  auto& all = plan.shared<AllAngles>().ops;
  for (const Angles* op : all)
    if (op->rope == rope) return op;
  auto op = std::make_unique<Angles>();
  op->rope = std::move(rope);
  return all.emplace_back(&plan.add(std::move(op)));
}

struct RopeStore final : Op {
  int layer, q, k, v, heads; KvLayer shape; const Angles* table = nullptr; Norm q_norm, k_norm;
  void turn(const Run& r, float* x, int n, const Norm& norm, int64_t t) const {
    if (norm.weight)
      for (int h = 0; h < n; ++h) r.k->rms_norm(x + h * shape.d, norm.weight->data(), norm.eps, shape.d, x + h * shape.d);
    if (!table) return;
    const size_t half = table->rope->inv_freq.size(), at = static_cast<size_t>(t) * half;
    r.k->rope(x, n, shape.d, static_cast<int>(2 * half), table->cos.data() + at, table->sin.data() + at, table->rope->adjacent);
  }
  void run(Run& r, int) override {
    const Step& s = *r.step;
    each_row(r, first, s.rows, [&](int64_t t) {
      float *qr = r.buffer[q] + t * heads * shape.d, *kr = r.buffer[k] + t * shape.kv_heads * shape.d;
      turn(r, qr, heads, q_norm, t);
      turn(r, kr, shape.kv_heads, k_norm, t);
      const int pos = s.positions[t];
      const int32_t* table = r.cache->windowed(layer) ? s.window_tables : s.block_tables;
      const int32_t block = table[s.seqs[t] * s.table_width + pos / kBlockTokens];
      r.k->kv_store(kr, r.buffer[v] + t * shape.kv_heads * shape.dv, shape.kv_heads, shape.d, shape.dv, r.cache->type(),
                    r.cache->pages(layer) + block * r.cache->stride(layer), pos % kBlockTokens);
    });
  }
};

void rope_store(Plan& plan, int layer, int q, int k, int v, std::shared_ptr<const Rope> rope, MaybeVector q_norm, MaybeVector k_norm, float eps) {
  const KvLayer shape = plan.want_layer(layer);
  plan.want_width(k, int64_t{shape.kv_heads} * shape.d, "the keys");
  plan.want_width(v, int64_t{shape.kv_heads} * shape.dv, "the values");
  if (plan.width_of(q) % shape.d) refuse("queries are not a whole number of heads");
  if (rope && (rope->inv_freq.empty() || static_cast<int64_t>(2 * rope->inv_freq.size()) > shape.d)) refuse("a rope wider than its heads");
  auto op = std::make_unique<RopeStore>();
  op->layer = layer; op->q = q; op->k = k; op->v = v;
  op->heads = static_cast<int>(plan.width_of(q) / shape.d);
  op->shape = shape;
  op->q_norm = {std::move(q_norm), eps};
  op->k_norm = {std::move(k_norm), eps};
  check(op->q_norm, shape.d);
  check(op->k_norm, shape.d);
  if (rope) op->table = angles(plan, std::move(rope));
  op->reads = {q, k, v};
  op->writes = {q};
  op->persists = true;
  plan.add(std::move(op));
}
FREEHOLD_OP(rope_store, "Normalise (per head) and rotate q in place and k, then write k and v into the layer's pages.", "layer"_a, "q"_a, "k"_a, "v"_a,
            "rope"_a.none(), "q_norm"_a = nanobind::none(), "k_norm"_a = nanobind::none(), "eps"_a = 0.0f)

}  // namespace
}  // namespace fh
