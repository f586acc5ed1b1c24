// What latent attention keeps of a token: its latent, normalised, and one rotated key part that all heads share.
#include <cstring>

#include "ops/angles.h"
#include "ops/record.h"

namespace fh {
namespace {

struct LatentStore final : Op {
  int layer, q, absorbed, kv, heads, latent, turned; bool rows; Norm norm; const Angles* table = nullptr;
  int d() const { return latent + turned; }
  void run(Run& r, int) override {
    const Step& s = *r.step;
    each_row(r, first, s.rows, [&](int64_t t) {
      rotate_queries(r, t);
      float* key = r.buffer[kv] + t * d();
      r.k->rms_norm(key, norm.weight->data(), norm.eps, latent, key);
      if (table) table->turn(r, key + latent, 1, turned, t);
      const int pos = s.positions[t];
      const int32_t block = s.block_tables[s.seqs[t] * s.table_width + pos / kBlockTokens];
      r.k->kv_store(key, key, 1, rows ? 0 : d(), rows ? d() : 0, r.cache->type(), r.cache->pages(layer) + block * r.cache->stride(layer), pos % kBlockTokens);
    });
  }
  // The end of each head goes behind what was absorbed of its beginning, and is turned there.
  void rotate_queries(const Run& r, int64_t t) const {
    const int64_t width = q_width / heads;
    for (int64_t h = 0; h < heads; ++h) {
      float* to = r.buffer[absorbed] + (t * heads + h) * d() + latent;
      std::memcpy(to, r.buffer[q] + t * q_width + (h + 1) * width - turned, sizeof(float) * static_cast<size_t>(turned));
      if (table) table->turn(r, to, 1, turned, t);
    }
  }
  int64_t q_width;
};

void latent_store(Plan& plan, int layer, int q, int absorbed, int kv, Vector norm, float eps, std::shared_ptr<const Rope> rope, bool rows) {
  const KvLayer shape = plan.want_layer(layer);
  if (shape.kv_heads != 1 || shape.dv) refuse("layer " + std::to_string(layer) + " keeps no latent");
  const int64_t latent = norm.size(), turned = shape.d - latent, wide = plan.width_of(absorbed), q_width = plan.width_of(q);
  plan.want_width(kv, shape.d, "latent and key");
  if (latent < 1 || turned < 1) refuse("a latent of " + std::to_string(latent) + " in keys of " + std::to_string(shape.d));
  if (wide % shape.d || q_width % (wide / shape.d) || q_width / (wide / shape.d) < turned) refuse("queries do not fit what was absorbed of them");
  auto op = std::make_unique<LatentStore>();
  op->layer = layer; op->q = q; op->absorbed = absorbed; op->kv = kv;
  op->heads = static_cast<int>(wide / shape.d);
  op->latent = static_cast<int>(latent);
  op->turned = static_cast<int>(turned);
  op->q_width = q_width;
  op->rows = rows;
  op->norm = {std::move(norm), eps};
  if (rope) {
    check_rope(*rope, op->turned);
    op->table = angles(plan, std::move(rope));
  }
  op->reads = {q, absorbed, kv};
  op->writes = {absorbed};
  op->persists = true;
  plan.add(std::move(op));
}
FREEHOLD_OP(latent_store,
            "Normalise kv's latent, rotate the rest of it and of q's heads, and write [latent | key] into its pages.\n\n"
            "absorbed: [heads, latent + rotated], as linear_heads() leaves it: q's rotated parts go into its room.\n"
            "rope None: nothing turns. rows: a token's values lie in a row, for picked_attention().",
            "layer"_a, "q"_a, "absorbed"_a, "kv"_a, "norm"_a, "eps"_a, "rope"_a.none(), "rows"_a = false)

}  // namespace
}  // namespace fh
