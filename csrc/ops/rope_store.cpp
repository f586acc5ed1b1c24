// Rotates queries and keys by position, and writes keys and values into the cache.
#include "ops/angles.h"
#include "ops/record.h"

namespace fh {
namespace {

struct RopeStore final : Op {
  int layer, q, k, v, heads; KvLayer shape; const Angles* table = nullptr; Norm q_norm, k_norm;
  void turn(const Run& r, float* x, int n, const Norm& norm, int64_t t) const {
    if (norm.weight)
      for (int h = 0; h < n; ++h) r.k->rms_norm(x + h * shape.d, norm.weight->data(), norm.eps, shape.d, x + h * shape.d);
    if (table) table->turn(r, x, n, shape.d, t);
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
  if (rope) check_rope(*rope, shape.d);
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
