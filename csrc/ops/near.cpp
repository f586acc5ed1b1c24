// Ops over a row and those just before it in its sequence, all of them in this step: attention whose keys depend on how far
// back they are, and a convolution of each channel. A few kilobytes a row; nothing is kept for another step.
#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>

#include "ops/record.h"

namespace fh {
namespace {

constexpr int kNearWindow = 64, kNearHead = 512, kNearLanes = 16;

// The first row of the sequence that row t of a step belongs to.
int64_t begin_of(const Run& r, int64_t t) {
  const auto after = std::upper_bound(r.segments.begin(), r.segments.end(), t, [](int64_t row, const Segment& s) { return row < s.row; });
  return std::prev(after)->row;
}

struct AttendNear final : Op {
  int q, k, v, out, heads; int64_t d, window; float cap;
  Vector back, scale;                         // [window][heads][d], of the row itself first; [d]
  Sees sees() const override { return Sees::All; }
  void run(Run& r, int) override {
    each_row(r, first, r.end - r.begin, [&](int64_t i) {
      const int64_t t = r.begin + i, from = std::max(begin_of(r, t), t - window + 1);
      for (int64_t h = 0; h < heads; ++h) attend(r, t, from, h * d);
    });
  }
  // One head, whose columns begin at `at`, of row t over rows [from, t].
  void attend(const Run& r, int64_t t, int64_t from, int64_t at) const {
    const int64_t stride = heads * d;
    float query[kNearHead], weights[kNearWindow];
    const float* own = r.buffer[q] + t * stride + at;
    for (int64_t i = 0; i < d; ++i) query[i] = own[i] * scale.data()[i];
    float most = -std::numeric_limits<float>::infinity(), total = 0;
    for (int64_t j = from; j <= t; ++j) {
      const float score = dot(query, r.buffer[k] + j * stride + at, back.data() + (t - j) * stride + at);
      weights[j - from] = cap > 0 ? cap * std::tanh(score / cap) : score;
      most = std::max(most, weights[j - from]);
    }
    for (int64_t j = from; j <= t; ++j) total += weights[j - from] = std::exp(weights[j - from] - most);
    float* y = r.buffer[out] + t * stride + at;
    std::fill(y, y + d, 0.0f);
    for (int64_t j = from; j <= t; ++j) {
      const float share = weights[j - from] / total;
      const float* value = r.buffer[v] + j * stride + at;
      for (int64_t i = 0; i < d; ++i) y[i] += share * value[i];
    }
  }
  // The product of a query with the sum of a key and what its distance adds; d is a multiple of the lanes.
  float dot(const float* query, const float* key, const float* beside) const {
    float lanes[kNearLanes] = {}, sum = 0;
    for (int64_t i = 0; i < d; i += kNearLanes)
      for (int l = 0; l < kNearLanes; ++l) lanes[l] += query[i + l] * (key[i + l] + beside[i + l]);
    for (const float lane : lanes) sum += lane;
    return sum;
  }
};

int attend_near(Plan& plan, int q, int k, int v, int heads, Vector back, Vector scale, float softcap) {
  const int64_t width = plan.width_of(q);
  plan.want_width(k, width, "the keys");
  plan.want_width(v, width, "the values");
  const int64_t d = heads > 0 && width % heads == 0 ? width / heads : 0, window = back.size() / std::max<int64_t>(width, 1);
  if (d < kNearLanes || d % kNearLanes || d > kNearHead)
    refuse("heads must divide rows of " + std::to_string(width) + " into " + std::to_string(kNearLanes) + " to " + std::to_string(kNearHead) + " columns each, in steps of " + std::to_string(kNearLanes));
  if (window < 1 || window > kNearWindow || back.size() != window * width)
    refuse(std::to_string(back.size()) + " values of distances for rows of " + std::to_string(width) + "; expected those of 1 to " + std::to_string(kNearWindow) + " rows");
  if (scale.size() != d) refuse("scales of " + std::to_string(scale.size()) + " columns for heads of " + std::to_string(d));
  if (!(softcap >= 0.0f)) refuse("a softcap is 0 or more");
  auto op = std::make_unique<AttendNear>();
  op->q = q; op->k = k; op->v = v;
  op->heads = heads;
  op->d = d;
  op->window = window;
  op->cap = softcap;
  op->back = std::move(back);
  op->scale = std::move(scale);
  op->out = plan.buffer(width);
  op->reads = {q, k, v};
  op->writes = {op->out};
  return plan.add(std::move(op)).out;
}
FREEHOLD_OP(attend_near, R"(Attention of each row over itself and the rows just before it, of its sequence and of this step.

Scores are q times `scale` (of each column of a head) times (key + `back`), whose row is the distance: float32
[window * heads * columns], that of the row itself first. `softcap` > 0: softcap * tanh(score / softcap).)",
            "q"_a, "k"_a, "v"_a, "heads"_a, "back"_a, "scale"_a, "softcap"_a = 0.0f)

struct ConvNear final : Op {
  int x, out; int64_t channels, taps;
  std::vector<float> weight;                  // [taps][channels], the oldest first
  Sees sees() const override { return Sees::All; }
  void run(Run& r, int) override {
    each_row(r, first, r.end - r.begin, [&](int64_t i) {
      const int64_t t = r.begin + i, from = std::max(begin_of(r, t), t - taps + 1);
      float* y = r.buffer[out] + t * channels;
      std::fill(y, y + channels, 0.0f);
      for (int64_t j = from; j <= t; ++j) {
        const float* row = r.buffer[x] + j * channels;
        const float* w = weight.data() + (taps - 1 - (t - j)) * channels;
        for (int64_t c = 0; c < channels; ++c) y[c] += w[c] * row[c];
      }
    });
  }
};

int conv_near(Plan& plan, int x, Vector weight) {
  const int64_t channels = plan.width_of(x), taps = weight.size() / std::max<int64_t>(channels, 1);
  if (taps < 1 || taps > kNearWindow || weight.size() != taps * channels)
    refuse(std::to_string(weight.size()) + " weights for " + std::to_string(channels) + " channels; expected 1 to " + std::to_string(kNearWindow) + " each");
  auto op = std::make_unique<ConvNear>();
  op->x = x;
  op->channels = channels;
  op->taps = taps;
  op->weight.resize(weight.values.size());
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t j = 0; j < taps; ++j) op->weight[static_cast<size_t>(j * channels + c)] = weight.values[static_cast<size_t>(c * taps + j)];
  op->out = plan.buffer(channels);
  op->reads = {x};
  op->writes = {op->out};
  return plan.add(std::move(op)).out;
}
FREEHOLD_OP(conv_near, R"(The sum of each channel's last inputs times its weights, within its sequence and this step: causal.

`weight` is float32 [channels * taps], of a channel its oldest input's first.)", "x"_a, "weight"_a)

}  // namespace
}  // namespace fh
