// A traced forward pass: a list of ops over buffers, replayed whole in one call a step.
//
// Ops are recorded by models/<family>.py once; run() walks the list on every thread of the pool. An op has one phase
// or two; in a phase, threads take work in chunks as they come for it, and go on when the phase's work is done. So a
// thread that a neighbour slows down does less and holds nobody up, and the result is the same: each output element
// is computed by one thread alone.
#pragma once
#include <memory>
#include <optional>
#include <vector>

#include "freehold.h"

namespace fh {

using Vector = std::shared_ptr<const std::vector<float>>;
struct Norm { Vector weight; float eps = 0; };          // weight null: no norm

class Plan {
 public:
  Plan(std::shared_ptr<Threads> threads, std::shared_ptr<KvCache> cache, int64_t max_rows);
  ~Plan();

  int embed(MatrixPtr table, float scale);
  int norm(int x, Norm norm);
  std::vector<int> linear(int x, std::vector<MatrixPtr> weights, std::vector<Vector> biases, Norm norm);
  void linear_add(int x, MatrixPtr weight, Vector bias, int residual);
  int gated(int x, MatrixPtr gate, MatrixPtr up, bool gelu, Norm norm);
  void rope_store(int layer, int q, int k, int v, std::shared_ptr<const Rope> rope, Norm q_norm, Norm k_norm);
  int attention(int layer, int q, float scale, int window, float softcap);
  void add_norm(int residual, int x, Norm norm);
  void logits(int x, MatrixPtr weight, Norm norm, float scale, float softcap);
  // An encoder's: rows of a sequence see each other, and the plan needs no cache.
  int embed_sum(MatrixPtr words, MatrixPtr positions, MatrixPtr kinds);
  void layer_norm(int x, Vector weight, Vector bias, float eps);
  int linear_gelu(int x, MatrixPtr weight, Vector bias);
  int attend_both(int q, int k, int v, int heads, float scale);
  void hidden(int x);
  void finish();

  int64_t vocab() const;           // 0: the plan ends in hidden()
  int64_t hidden_width() const;    // of the rows that a step may ask for
  void run(const Step& step);      // throws Usage when the step does not fit the plan or the cache

  // Where the logits of one step lay, for the next one to lie in once nobody holds them: kept by whoever calls run.
  struct Room { std::shared_ptr<float[]> data; size_t floats = 0; } room;

 private:
  struct State;
  std::unique_ptr<State> s_;
};

}  // namespace fh
