// Sampling: filters over the vocabulary, and Gumbel noise that is a function of seed, position and token id.
// Knows one row of logits; knows no text, no sequence, no random state. See sample.h for the contract.
//
// A vocabulary has 150,000 to 260,000 tokens and a step has milliseconds, so nothing here touches all of them with a
// logarithm: top-k and top-p first cut to a superset by a bound, and plain sampling skips tokens whose noise cannot win.
//
// Logarithms and exponentials are libm's in double: within an ulp (1e-16) of the truth, so two machines could part only
// where two scores tie that closely, and on one machine they are a function. Logits themselves differ by ISA far more.
#include "sample.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "freehold.h"

namespace fh {
namespace {

// ---- noise ------------------------------------------------------------------------------------------------------
// SplitMix64 (Steele, Lea, Flood 2014): token id's value is the id-th output of a stream that starts at a hash of seed
// and position, so streams of neighbouring positions share nothing.
constexpr uint64_t kGolden = 0x9e3779b97f4a7c15u;
constexpr int kUniformBits = 52;        // k + 1/2 over 2^52 is exact and never 0 or 1; 53 bits would round up to 1

uint64_t mix(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}
uint64_t stream(uint64_t seed, int64_t position) { return mix(mix(seed + kGolden) ^ (static_cast<uint64_t>(position) * kGolden)); }
uint64_t draw(uint64_t stream, int64_t id) { return mix(stream + (static_cast<uint64_t>(id) + 1) * kGolden) >> (64 - kUniformBits); }
double gumbel_of(uint64_t k) { return -std::log(-std::log((static_cast<double>(k) + 0.5) * 0x1p-52)); }

// ---- the vocabulary, in blocks ----------------------------------------------------------------------------------
constexpr int64_t kBlock = 64;          // tokens whose maximum bounds them all; four lanes of sixteen
constexpr int kLanes = 16;

bool all_finite(const float* x, int64_t n) {
  uint32_t bad = 0;
  for (int64_t i = 0; i < n; ++i) {
    uint32_t bits;
    memcpy(&bits, x + i, 4);
    bad |= static_cast<uint32_t>((bits & 0x7f800000u) == 0x7f800000u);
  }
  return !bad;
}

float maximum(const float* x, int64_t n) {
  float lane[kLanes];
  std::fill_n(lane, kLanes, x[0]);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int j = 0; j < kLanes; ++j) lane[j] = lane[j] < x[i + j] ? x[i + j] : lane[j];
  for (; i < n; ++i) lane[0] = std::max(lane[0], x[i]);
  return *std::max_element(lane, lane + kLanes);
}

std::vector<float> block_maxima(const float* x, int64_t n) {
  std::vector<float> out(static_cast<size_t>((n + kBlock - 1) / kBlock));
  for (size_t b = 0; b < out.size(); ++b) {
    const int64_t at = static_cast<int64_t>(b) * kBlock;
    out[b] = maximum(x + at, std::min(kBlock, n - at));
  }
  return out;
}

// ---- candidates -------------------------------------------------------------------------------------------------
struct Candidate {
  double x;        // logit / temperature
  double p;        // exp(x - greatest x): probability but for a factor
  int64_t id;
};
using Candidates = std::vector<Candidate>;

bool likelier(const Candidate& a, const Candidate& b) { return a.x != b.x ? a.x > b.x : a.id < b.id; }

// All tokens with logit >= least, in order of id.
Candidates gather(const float* logits, int64_t n, const std::vector<float>& maxima, float least, double temperature) {
  Candidates out;
  for (size_t b = 0; b < maxima.size(); ++b) {
    if (maxima[b] < least) continue;
    const int64_t at = static_cast<int64_t>(b) * kBlock;
    for (int64_t i = at; i < std::min(n, at + kBlock); ++i)
      if (logits[i] >= least) out.push_back({logits[i] / temperature, 0.0, i});
  }
  return out;
}

double greatest(const Candidates& c) {
  double top = c.front().x;
  for (const Candidate& t : c) top = std::max(top, t.x);
  return top;
}

void weigh(Candidates& c) {
  const double top = greatest(c);
  for (Candidate& t : c) t.p = std::exp(t.x - top);
}

double mass(Candidates::const_iterator from, Candidates::const_iterator to) {
  double sum = 0.0;
  for (; from != to; ++from) sum += from->p;
  return sum;
}

// Shortest prefix, in `before`'s order, whose mass reaches target; at least one. Halves the doubtful part each time.
template <class Before>
void halve_to_mass(Candidates& c, double target, Before before) {
  auto lo = c.begin(), hi = c.end();             // the cut lies in (lo, hi]; what is before lo holds less than target
  while (hi - lo > 1) {
    const auto mid = lo + (hi - lo) / 2;
    std::nth_element(lo, mid, hi, before);
    const double half = mass(lo, mid);
    if (half >= target) hi = mid;
    else { target -= half; lo = mid; }
  }
  c.erase(hi, c.end());
}

// The same for many: `key` (in nats, never against `before`'s order) deals them into bins, and only the bin in which the
// mass reaches target is searched. Two passes, where moving 150,000 candidates about by selection takes 20 ms.
constexpr size_t kBins = 4096;
constexpr double kBinsPerNat = 128;              // 32 nats deep; beyond lies 1e-14 of the likeliest, in the last bin
template <class Key, class Before>
void keep_mass(Candidates& c, double target, Key key, Before before) {
  const auto bin = [&](const Candidate& t) { return static_cast<size_t>(std::clamp(key(t) * kBinsPerNat, 0.0, kBins - 1.0)); };
  std::vector<double> masses(kBins);
  for (const Candidate& t : c) masses[bin(t)] += t.p;
  size_t cut = 0;
  while (cut + 1 < kBins && masses[cut] < target) target -= masses[cut++];
  Candidates sure, doubtful;
  for (const Candidate& t : c) {
    const size_t at = bin(t);
    if (at <= cut) (at < cut ? sure : doubtful).push_back(t);
  }
  if (!doubtful.empty()) halve_to_mass(doubtful, target, before);
  sure.insert(sure.end(), doubtful.begin(), doubtful.end());
  c = std::move(sure);
}

void keep_likeliest(Candidates& c, double target) {
  const double top = greatest(c);
  keep_mass(c, target, [&](const Candidate& t) { return top - t.x; }, likelier);
}

void keep_top_k(Candidates& c, int64_t k) {
  if (k >= static_cast<int64_t>(c.size())) return;
  std::nth_element(c.begin(), c.begin() + k, c.end(), likelier);
  c.resize(static_cast<size_t>(k));
}

// k or more blocks reach the k-th greatest maximum, so k or more tokens do: whatever is below it is not in the top k.
Candidates top_k(const float* logits, int64_t n, const std::vector<float>& maxima, int64_t k, double temperature) {
  float least = -HUGE_VALF;
  if (k <= static_cast<int64_t>(maxima.size())) {
    std::vector<float> order = maxima;
    std::nth_element(order.begin(), order.begin() + (k - 1), order.end(), std::greater<>());
    least = order[static_cast<size_t>(k - 1)];
  }
  Candidates c = gather(logits, n, maxima, least, temperature);
  keep_top_k(c, k);
  return c;
}

// Sum of exp((logit - top) / temperature) over the vocabulary, by the vector kernel: good to 1e-6 of itself, which
// moves top-p's cut only where the sum comes within that of p, and the same way every time.
double total_mass(const float* logits, int64_t n, float top, double temperature) {
  std::vector<float> x(static_cast<size_t>(n));
  const float inverse = static_cast<float>(std::min(1.0 / temperature, 1e38));      // 0 * infinity is NaN
  for (int64_t i = 0; i < n; ++i) x[static_cast<size_t>(i)] = std::max((logits[i] - top) * inverse, -200.0f);
  return std::exp(static_cast<double>(kernels()->log_sum_exp(x.data(), n)));
}

// Top-p over the whole vocabulary: tokens within e^-8 of the greatest nearly always reach p; else look further down.
Candidates top_p_of_all(const float* logits, int64_t n, const std::vector<float>& maxima, double p, double temperature) {
  const float top = *std::max_element(maxima.begin(), maxima.end());
  const double target = p * total_mass(logits, n, top, temperature);
  for (const double depth : {8.0, 16.0, 32.0, HUGE_VAL}) {
    Candidates c = gather(logits, n, maxima, static_cast<float>(top - depth * temperature), temperature);
    weigh(c);
    if (depth < HUGE_VAL && mass(c.begin(), c.end()) < target) continue;
    keep_likeliest(c, target);
    return c;
  }
  return {};
}

// Locally typical sampling (Meister et al. 2022): those whose surprise is nearest the entropy, up to mass p.
void keep_typical(Candidates& c, double p) {
  weigh(c);
  const double sum = mass(c.begin(), c.end()), log_sum = std::log(sum);
  const double top = greatest(c);
  double entropy = 0.0;
  for (const Candidate& t : c)
    if (t.p > 0.0) entropy += t.p / sum * (log_sum - (t.x - top));
  const auto oddity = [&](const Candidate& t) { return std::fabs(log_sum - (t.x - top) - entropy); };
  keep_mass(c, p * sum, oddity, [&](const Candidate& a, const Candidate& b) {
    const double oa = oddity(a), ob = oddity(b);
    return oa != ob ? oa < ob : a.id < b.id;
  });
}

void keep_top_p(Candidates& c, double p) {
  weigh(c);
  keep_likeliest(c, p * mass(c.begin(), c.end()));
}

void keep_min_p(Candidates& c, double p) {
  weigh(c);
  const double least = std::min(p, 1.0);
  std::erase_if(c, [&](const Candidate& t) { return t.p < least; });
}

Candidates survivors(const float* logits, int64_t n, const SampleParams& s, double temperature) {
  const std::vector<float> maxima = block_maxima(logits, n);
  const bool k = s.top_k > 0 && s.top_k < n, typical = s.typical_p < 1.0f, p = s.top_p < 1.0f;
  Candidates c;
  if (k) {
    c = top_k(logits, n, maxima, s.top_k, temperature);
  } else if (p && !typical) {
    c = top_p_of_all(logits, n, maxima, s.top_p, temperature);
  } else if (typical) {
    c = gather(logits, n, maxima, -HUGE_VALF, temperature);
  } else {      // min-p alone: everything it could keep, with room for rounding
    const float top = *std::max_element(maxima.begin(), maxima.end());
    const double depth = -std::log(std::clamp(static_cast<double>(s.min_p), 1e-300, 1.0)) * temperature;
    c = gather(logits, n, maxima, static_cast<float>(top - depth - 1e-6 * (std::fabs(top) + depth)), temperature);
  }
  if (typical) keep_typical(c, s.typical_p);
  if (p && (k || typical)) keep_top_p(c, s.top_p);
  if (s.min_p > 0.0f) keep_min_p(c, s.min_p);
  return c;
}

// ---- the choice -------------------------------------------------------------------------------------------------
using Best = Contest::Best;
constexpr Best kNobody{-HUGE_VAL, -1};

// Most tokens need no logarithm: with u = (k + 1/2) / 2^52, noise <= -log(1 - u), as -log u >= 1 - u. So a token beats
// `best` only if 1 - u <= exp(x - best), and complement(k) <= that * 2^52 says so. Slack is for the rounding of x, the
// noise and their sum.
constexpr uint64_t kMask = (uint64_t{1} << kUniformBits) - 1;
uint64_t complement(uint64_t k) { return k ^ kMask; }
double chance(double x, double best) {
  const double slack = 1e-9 + 1e-14 * (std::fabs(x) + std::fabs(best));
  return std::exp(std::min(x - best + slack, 700.0)) * 0x1p52;
}

// Over the whole vocabulary a block's greatest logit bounds it, and blocks so low that no u would do are not even hashed.
int64_t sample_all(const float* logits, int64_t n, double temperature, uint64_t stream) {
  const std::vector<float> maxima = block_maxima(logits, n);
  const int64_t top = kernels()->argmax(logits, n);
  Best best = kNobody;
  best.offer(logits[top] / temperature + gumbel_of(draw(stream, top)), top);
  for (size_t b = 0; b < maxima.size(); ++b) {
    const double limit = chance(maxima[b] / temperature, best.score);
    if (limit < 0.5) continue;
    const int64_t at = static_cast<int64_t>(b) * kBlock;
    for (int64_t i = at; i < std::min(n, at + kBlock); ++i) {
      const uint64_t k = draw(stream, i);
      if (static_cast<double>(complement(k)) <= limit) best.offer(logits[i] / temperature + gumbel_of(k), i);
    }
  }
  return best.id;
}

int64_t sample_candidates(Candidates& c, uint64_t stream) {
  weigh(c);
  const double top = greatest(c);
  Best best = kNobody;
  double limit = HUGE_VAL;                       // of a token as likely as the likeliest
  for (const Candidate& t : c) {
    const uint64_t k = draw(stream, t.id);
    if (best.id >= 0 && static_cast<double>(complement(k)) > t.p * limit) continue;
    best.offer(t.x + gumbel_of(k), t.id);
    limit = chance(top, best.score);
  }
  return best.id;
}

}  // namespace

Contest::Contest(const Choice& choice, int threads)
    : temperature_(choice.temperature), stream_(stream(choice.seed, choice.position)), best_(static_cast<size_t>(threads), kNobody),
      mark_(std::make_unique<std::atomic<double>>(-HUGE_VAL)), damaged_(std::make_unique<std::atomic<bool>>(false)) {}

uint32_t Contest::able(const float* upper, int64_t first, int n) const {
  const double mark = mark_->load(std::memory_order_relaxed);
  uint32_t bits = 0;
  if (!(temperature_ > 0.0)) {
    const float least = static_cast<float>(mark);        // exact: the mark is a logit or -infinity
    int any = 0;                                         // most panels have none, and need no bits packed
    for (int i = 0; i < n; ++i) any |= !(upper[i] < least);
    if (!any) return 0;
    for (int i = 0; i < n; ++i) bits |= static_cast<uint32_t>(!(upper[i] < least)) << i;
    return bits;
  }
  float top = upper[0];
  for (int i = 1; i < n; ++i) top = upper[i] > top ? upper[i] : top;
  const double limit = chance(top / temperature_, mark);
  if (limit < 0.5) return 0;
  for (int i = 0; i < n; ++i) {
    const double gap = static_cast<double>(complement(draw(stream_, first + i)));
    if (gap <= limit && gap <= chance(upper[i] / temperature_, mark)) bits |= 1u << i;
  }
  return bits;
}

void Contest::offer(int thread, const float* logits, int64_t first, int n, uint32_t able) {
  if (!all_finite(logits, n)) damaged_->store(true, std::memory_order_relaxed);
  Best& best = best_[static_cast<size_t>(thread)];
  for (int i = 0; i < n; ++i) {
    if (!(able >> i & 1)) continue;
    const double noise = temperature_ > 0.0 ? gumbel_of(draw(stream_, first + i)) : 0.0;
    best.offer(temperature_ > 0.0 ? logits[i] / temperature_ + noise : logits[i], first + i);
  }
  double mark = mark_->load(std::memory_order_relaxed);
  while (best.score > mark && !mark_->compare_exchange_weak(mark, best.score, std::memory_order_relaxed)) {}
}

int64_t Contest::winner() const {
  Best all = kNobody;
  for (const Best& b : best_)
    if (b.id >= 0) all.offer(b.score, b.id);
  return *damaged_ ? -1 : all.id;
}

double gumbel(uint64_t seed, int64_t position, int64_t id) { return gumbel_of(draw(stream(seed, position), id)); }

int64_t sample_token(const float* logits, int64_t n, const SampleParams& s) {
  if (n < 1 || !all_finite(logits, n)) return -1;
  if (!(s.temperature > 0.0f)) return kernels()->argmax(logits, n);
  const double temperature = s.temperature;
  const uint64_t from = stream(s.seed, s.position);
  const bool filtered = (s.top_k > 0 && s.top_k < n) || s.typical_p < 1.0f || s.top_p < 1.0f || s.min_p > 0.0f;
  if (!filtered) return sample_all(logits, n, temperature, from);
  Candidates c = survivors(logits, n, s, temperature);
  return sample_candidates(c, from);
}

void penalize(float* logits, int64_t n, const int32_t* ids, const int32_t* counts, int64_t m, float repetition, float presence,
              float frequency) {
  for (int64_t i = 0; i < m; ++i)
    if (ids[i] < 0 || ids[i] >= n)
      throw Error(ErrorKind::Usage, "token id " + std::to_string(ids[i]) + " is outside a vocabulary of " + std::to_string(n));
  for (int64_t i = 0; i < m; ++i) {
    if (counts[i] <= 0) continue;
    float& x = logits[ids[i]];
    x = (x > 0.0f ? x / repetition : x * repetition) - presence - frequency * static_cast<float>(counts[i]);
  }
}

}  // namespace fh
