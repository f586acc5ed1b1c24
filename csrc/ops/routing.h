// How a row's router logits become experts and their weights. Knows one row of scores; knows no matrix and no thread.
//
// Sources: arXiv 2401.06066 and 2412.19437 (DeepSeekMoE, V3: sigmoid, correction, groups), 2409.12136 (GRIN's sparse mixer).
#pragma once
#include <algorithm>
#include <cmath>

#include "ops/op.h"

namespace fh {

enum class Scoring : uint8_t { Softmax, Sigmoid, SparseMixer };

struct Routing {
  Scoring scoring; int top_k; bool renormalise;
  int groups, kept; bool sum_of_two;          // a group's score: its best, or the sum of its two best
  float epsilon, least, scale, jitter;
  MaybeVector bias, correction;               // of the logits; of what is compared alone
  bool corrects_logits;                       // logits are compared, with the correction, not scores

  // Floats of a thread's own that choose() works in: what is compared, the groups' scores, the groups that are kept.
  int64_t room(int64_t experts) const { return experts + groups + kept; }
  // Fills ids [top_k], ascending, and weights [top_k] behind them; `row` is overwritten. All sums in order of id.
  void choose(float* row, int64_t experts, float* ids, float* room) const {
    float* weights = ids + top_k;
    if (scoring == Scoring::SparseMixer) return mix(row, experts, ids, weights);
    // What is compared, where that is not the logits themselves: both scorings rise with a logit, but a correction and a
    // sum of two depend on their values.
    const bool plain = !correction && !sum_of_two;
    if (plain) pick(row, experts, ids, room + experts);
    else if (corrects_logits) pick_corrected(row, experts, ids, room);
    const float damage = scoring == Scoring::Softmax ? softmax(row, experts) : sigmoid(row, experts);
    if (!plain && !corrects_logits) pick_corrected(row, experts, ids, room);
    std::sort(ids, ids + top_k);
    float sum = 0;
    for (int i = 0; i < top_k; ++i) sum += weights[i] = row[static_cast<int64_t>(ids[i])];
    const float by = renormalise ? std::max(sum + epsilon, least) : 1.0f;
    for (int i = 0; i < top_k; ++i) weights[i] = weights[i] / by * scale + damage;
  }

 private:
  // Both return zero, or NaN where a score is not a number.
  static float softmax(float* row, int64_t experts) {
    float most = -INFINITY, all = 0;
    for (int64_t e = 0; e < experts; ++e) most = std::max(most, row[e]);
    for (int64_t e = 0; e < experts; ++e) all += row[e] = std::exp(row[e] - most);
    for (int64_t e = 0; e < experts; ++e) row[e] /= all;
    return all - all;
  }
  static float sigmoid(float* row, int64_t experts) {
    float all = 0;
    for (int64_t e = 0; e < experts; ++e) all += row[e] = 1.0f / (1.0f + std::exp(-row[e]));
    return all - all;
  }
  void pick_corrected(const float* row, int64_t experts, float* ids, float* room) const {
    std::copy_n(row, experts, room);
    for (int64_t e = 0; correction && e < experts; ++e) room[e] += correction->data()[e];
    pick(room, experts, ids, room + experts);
  }
  // A score that is not a number counts as the least, so that ids are valid and differ whatever a damaged file holds; the
  // weights of such a row are NaN.
  static float value(const float* row, int64_t e) { return std::isnan(row[e]) ? -INFINITY : row[e]; }

  // Inserts id into `best`, of which n are filled, in falling order of their values, of equals the lowest id first.
  static void insert(const float* row, float* best, int& n, int most, int64_t e) {
    const auto of = [row](float id) { return value(row, static_cast<int64_t>(id)); };
    const float v = value(row, e);
    if (n == most && !(v > of(best[most - 1]))) return;
    int at = n < most ? n++ : most - 1;
    for (; at > 0 && v > of(best[at - 1]); --at) best[at] = best[at - 1];
    best[at] = static_cast<float>(e);
  }
  // Ids of the top_k greatest of the groups that are kept. scores: [groups] and [kept] floats of room.
  void pick(const float* row, int64_t experts, float* ids, float* scores) const {
    int n = 0;
    if (kept == groups) {
      for (int64_t e = 0; e < experts; ++e) insert(row, ids, n, top_k, e);
      return;
    }
    const int64_t size = experts / groups;
    float* open = scores + groups;
    for (int g = 0; g < groups; ++g) scores[g] = group_score(row + g * size, size);
    for (int g = 0, m = 0; g < groups; ++g) insert(scores, open, m, kept, g);
    std::sort(open, open + kept);             // experts are compared by ascending id
    for (int g = 0; g < kept; ++g)
      for (int64_t e = static_cast<int64_t>(open[g]) * size, end = e + size; e < end; ++e) insert(row, ids, n, top_k, e);
  }
  float group_score(const float* row, int64_t size) const {
    float best = -INFINITY, second = -INFINITY;
    for (int64_t e = 0; e < size; ++e) {
      const float v = value(row, e);
      if (v > best) { second = best; best = v; }
      else if (v > second) second = v;
    }
    return sum_of_two ? best + second : best;
  }
  // Twice: the greatest that is left, weighed by a softmax over those within a relative distance of 2 * jitter from it.
  void mix(const float* row, int64_t experts, float* ids, float* weights) const {
    int64_t taken = -1;
    for (int i = 0; i < 2; ++i) {
      int64_t best = taken == 0 ? 1 : 0;
      for (int64_t e = best + 1; e < experts; ++e)
        if (e != taken && value(row, e) > value(row, best)) best = e;
      const float most = row[best];
      float all = 0;
      for (int64_t e = 0; e < experts; ++e) {
        const float far = (most - row[e]) / std::max(std::fabs(row[e]), most);
        if (e != taken && !(far > 2 * jitter)) all += std::exp(row[e] - most);
      }
      ids[i] = static_cast<float>(best);
      weights[i] = 1.0f / all;
      taken = best;
    }
    if (ids[0] > ids[1]) { std::swap(ids[0], ids[1]); std::swap(weights[0], weights[1]); }
  }
};

}  // namespace fh
