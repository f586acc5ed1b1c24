// Freehold's native contract: what the binding (bind/) may call. No SIMD and no Python in it.
//
// Ownership. A Threads pool outlives everything that computes with it. A Matrix owns its panels, or keeps the
// mapping alive that they lie in. A KvCache owns its pages. A Plan refers to matrices, caches and pool by shared
// pointer and owns its vectors (norm weights, biases) and activation buffers. One Plan runs one step at a time.
//
// Errors. Functions throw freehold::Error with a text for the caller, and after a line feed the way out if there is one;
// bind/module.cpp turns it into the named Python error.
// Nothing here aborts the host process, and nothing trusts a size it was not given the length of.
#pragma once
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "kernels/kernels.h"

namespace fh {

enum class ErrorKind { BadModelFile, Usage, Capacity };
struct Error : std::runtime_error {
  Error(ErrorKind k, const std::string& text) : std::runtime_error(text), kind(k) {}
  ErrorKind kind;
};

// --- revision.cpp -----------------------------------------------------------------------------------------------
// The SHA-256 of all native sources, and the compiler: what two modules that compute the same bits have in common.
const char* revision();

// Floats on a boundary of 64 bytes, for kernels that pack into them. They begin as anything, and again where they grow.
class AlignedFloats {
 public:
  explicit AlignedFloats(int64_t n = 0) { grow(n); }
  void grow(int64_t n) {
    if (n <= size_) return;
    held_.reset();                           // first, so that the larger one may lie in its place
    held_.reset(new float[static_cast<size_t>(n) + 16]);
    size_ = n;
  }
  float* data() const { return reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(held_.get()) + 63) / 64 * 64); }
  int64_t size() const { return size_; }
 private:
  std::unique_ptr<float[]> held_;
  int64_t size_ = 0;
};

// --- dispatch.cpp -----------------------------------------------------------------------------------------------
// Tables this machine can run, best first; the one in use: FREEHOLD_ISA's choice, else the first.
const std::vector<const Kernels*>& runnable_kernels();
std::vector<std::string> tables_for(const std::vector<std::string>& flags);   // names of those that a processor with these flags runs
const Kernels* kernels();
const Kernels* kernels_named(std::string_view name);   // throws Usage, naming the runnable ones

// --- threads.cpp ------------------------------------------------------------------------------------------------
// A pool of n threads, the caller being thread 0. A job is offered to all; a thread that arrives in time runs it once, and
// a worker that the system delays finds another job number published, or none, and goes back to sleep. So a job must be
// work that the threads present claim piece by piece, until none is left. Workers sleep between jobs.
class Threads {
 public:
  // Sets of state a job may lie in: a worker still on its way out of one job holds its seat, not the next job.
  static constexpr int kSeats = 2;

  explicit Threads(int n);
  ~Threads();
  Threads(const Threads&) = delete;
  Threads& operator=(const Threads&) = delete;
  int size() const;
  void run(const std::function<void(int thread)>& job);     // returns when every thread that began it has ended it

  // The pool for one job whose state lies in seat(): no thread is left in an earlier job of that seat.
  class Turn {
   public:
    explicit Turn(Threads& threads);                        // waits until the pool and the seat are free
    int seat() const;
    // Offers the job to the first `active` threads; returns when thread 0 has ended it. Others may still be inside,
    // with nothing claimed: the job's state lives until the seat's next turn, or until settle().
    void run(std::function<void(int thread)> job, int active);
   private:
    Threads& pool_;
    std::unique_lock<std::mutex> lock_;
    uint32_t number_;
  };
  void settle();                                            // returns when no thread is inside any job

  // Holds a thread of a job until `done` has reached n: spins some microseconds, then sleeps until finish() wakes it.
  static void await(const std::atomic<uint32_t>& done, int64_t n);
  static void finish(std::atomic<uint32_t>& done, int64_t more, int64_t n);   // adds what this thread has done
 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// --- pack.cpp ---------------------------------------------------------------------------------------------------
// Bytes that panels lie in: huge-page friendly anonymous memory, or a mapped packed file.
class Memory {
 public:
  static std::shared_ptr<Memory> anonymous(size_t bytes);          // zeroed lazily by the kernel; throws Capacity
  virtual ~Memory() = default;
  uint8_t* data = nullptr;
  size_t bytes = 0;
  bool paged = false;               // the machine's memory does not hold it all: see announce()
};

// --- memory.cpp -------------------------------------------------------------------------------------------------
// The whole of a regular file, read-only, as long as it is held; `huge`: in huge pages, where the file lies in such.
// What is lost while it is mapped (the file is cut short, the disk fails) is zero from then on: ask is_lost().
std::shared_ptr<Memory> map_file(int fd, bool huge = false);       // throws BadModelFile, Capacity
bool is_lost(const void* p);                                        // whether anything of the mapping that p lies in was
// Of a paged mapping: asks the kernel to read [p, p + n) from disk now, in large pieces and while the caller computes.
void announce(const Memory& memory, const uint8_t* p, size_t n);
uint64_t checksum(const uint8_t* p, size_t n);                      // XXH64, seed 0

struct Matrix {
  Panels w;
  std::shared_ptr<Memory> memory;
  int64_t bytes() const { return w.bytes(); }
};
using MatrixPtr = std::shared_ptr<const Matrix>;

// The version of the panels' layout, which packed files are keyed by: raise it whenever pack() lays them differently.
constexpr int kLayout = 5;
int64_t panel_bytes(WeightType type, int64_t k);                    // throws BadModelFile when k does not fit the type
int64_t low_bytes(WeightType type, int64_t k);                      // of a panel of the low plane; 0 for most types
// Re-lays GGUF rows (or float rows) of `type` (a GGUF type name, "Q4_K") into panels; raw must hold n rows exactly.
// A head goes into two planes where its type can: the logits are the same, and a choice of the greatest reads half.
MatrixPtr pack(const uint8_t* raw, size_t raw_bytes, std::string_view type, int64_t n, int64_t k, Threads& threads, bool head = false);
std::shared_ptr<Matrix> make_matrix(WeightType type, int64_t n, int64_t k);   // panels of zeros; throws BadModelFile, Capacity
// --- pack_trellis.cpp -------------------------------------------------------------------------------------------
// T2 and T3: raw holds the table, then the rows. Into panels of the type, or expanded to T8's.
MatrixPtr pack_trellis(const uint8_t* raw, size_t raw_bytes, WeightType type, int64_t n, int64_t k, Threads& threads, bool expand);
int64_t trellis_panel_bytes(WeightType type, int64_t k);
void decode_trellis(const Panels& w, int64_t row, float* out);      // of T2, T3 and T8
// --- pack.cpp ---------------------------------------------------------------------------------------------------
// Codebook types: int8 codes [n][k] and one float scale per 16 inputs [n][k/16].
MatrixPtr pack_codes(const int8_t* codes, const float* scales, int64_t n, int64_t k, Threads& threads);
// Floats [n][k] to wide codes, each row by itself and each 128 inputs with a scale; k a multiple of 128. Throws for what is not finite.
MatrixPtr pack_wide(const float* values, int64_t n, int64_t k, Threads& threads);
// One row back to floats, exactly the value the panels stand for. Embeddings are read this way.
void decode_row(const Panels& w, int64_t row, float* out);
// How a GGUF type is run: "own", "re-laid as Q6_K", "codes"; for doctor --kernels.
struct TypeRoute { std::string type, weight_type, route; double bits_file, bits_packed; };
std::vector<TypeRoute> type_routes();

// --- quantize.cpp -----------------------------------------------------------------------------------------------
// Floats [n][k] to rows of a GGUF weight type, bit for bit as ggml's own quantisers make them. `importance` [k], or null: how
// much each column's squared error counts, finite and at least 0. Throw Usage for another type, or a k that does not divide into
// its blocks; BadModelFile, naming row and column, for NaN, infinity and what no float16 scale reaches.
std::string quantized_types();                                      // their names, "Q4_0, Q4_1, ..."
int64_t quantized_row_bytes(std::string_view type, int64_t k);
void quantize_rows(const float* values, int64_t n, int64_t k, const float* importance, std::string_view type, Threads& threads, uint8_t* out, const Kernels& table = *kernels());

// --- trellis_encode.cpp -----------------------------------------------------------------------------------------
// Float rows to rows of T2 or T3 (bits 2, 3): see kernels/trellis_encode.h for what the numbers mean. `values` [rows][cols], if
// there is one, gets what the rows stand for. The same bytes for any number of threads. Throws Usage.
struct TrellisRequest {
  const float* weights; int64_t rows, cols;
  const float* importance;              // [cols]
  const float* feedback; int64_t width; // [cols][width], or null
  const int8_t* table;                  // [128]
  float unit;
  int bits, block, ahead, spread;
  const Kernels* by = nullptr;          // null: this machine's
};
int64_t trellis_row_bytes(int bits, int64_t cols);
void trellis_encode(const TrellisRequest& q, Threads& threads, uint8_t* out, float* values);

// --- unpack.cpp -------------------------------------------------------------------------------------------------
// Rows of a model file [n][k] to floats, to `half` (bfloat16, to nearest even) where it is given, else to `out`. Throws Usage
// for a type that does not unpack here, BadModelFile for bytes that are not n rows.
bool unpacks(std::string_view type);
void unpack(const uint8_t* raw, size_t raw_bytes, std::string_view type, int64_t n, int64_t k, Threads& threads, float* out, uint16_t* half);

// --- plan.cpp ---------------------------------------------------------------------------------------------------
struct Rope {                     // angles position * inv_freq[i]; cos and sin times factor
  std::vector<float> inv_freq;    // rot/2 of them
  float factor = 1.0f;
  bool adjacent = false;
  std::vector<uint8_t> axes;      // which number of a row's place turns each pair: see Step::places; empty: its position
};

struct KvLayer { int kv_heads, d, dv; };     // all 0: it keeps no keys and values; only dv 0: values are a part of keys
// What a recurrent layer keeps of a sequence instead, or besides: floats of `conv`, the last inputs of a convolution, then,
// on a boundary of 64 bytes, floats of `state`. Both 0: it keeps none.
struct StateLayer {
  int64_t conv = 0, state = 0;
  int64_t state_at() const { return (conv + 15) / 16 * 16; }               // floats from the first of conv
  int64_t floats() const { return state_at() + (state + 15) / 16 * 16; }
};
KvType kv_type_named(std::string_view name);   // "f16", "f32", "q8"; throws Usage for another
// Pages for every layer, addressed by block. Reserved at once, touched lazily.
// With `window_blocks`, sliding-window layers (window > 0) keep their pages in a pool of that many window blocks instead: a
// block has one while a row may still look at it. Without, they keep all positions, as full layers do.
// With `slots`, recurrent layers keep their states in that many slots beside the blocks: a slot holds one state of each such
// layer, all after the same tokens of a sequence.
class KvCache {
 public:
  KvCache(std::vector<KvLayer> layers, int64_t blocks, KvType type, std::vector<int> windows = {}, int64_t window_blocks = 0,
          std::vector<StateLayer> states = {}, int64_t slots = 0);
  KvType type() const { return type_; }
  int64_t blocks() const { return blocks_.count; }
  int64_t window_blocks() const { return window_blocks_.count; }
  int64_t bytes_per_block() const { return blocks_.bytes; }
  int64_t bytes_per_window_block() const { return window_blocks_.bytes; }
  int64_t slots() const { return slots_.count; }
  int64_t bytes_per_slot() const { return slots_.bytes; }
  int window() const { return window_; }   // the widest of windowed layers; 0: none are
  const KvLayer& layer(int i) const;
  int layers() const { return static_cast<int>(layers_.size()); }
  bool windowed(int layer) const { return layers_[static_cast<size_t>(layer)].windowed; }
  uint8_t* pages(int layer) const;         // its page of block (or window block) b lies at pages(layer) + b * stride(layer)
  int64_t stride(int layer) const { return windowed(layer) ? window_blocks_.bytes : blocks_.bytes; }
  const StateLayer& state_layer(int layer) const { return layers_[static_cast<size_t>(layer)].kept; }
  float* state(int layer, int64_t slot) const;   // what the layer keeps in a slot, on a boundary of 64 bytes: see StateLayer
  // Whole blocks, over all layers: copied one after the other, in order; read and written as bytes_per_block() bytes, the
  // layers' pages in a row, then bytes_per_window_block() where there is a window pool. Throw Usage for a block outside.
  // The caller makes sure that no step writes what is read meanwhile.
  void copy(const std::vector<std::pair<int64_t, int64_t>>& blocks, const std::vector<std::pair<int64_t, int64_t>>& window_blocks);
  void read_block(int64_t block, int64_t window_block, uint8_t* out) const;
  void write_block(int64_t block, int64_t window_block, const uint8_t* in, size_t bytes);
  // A slot's states, the layers' in a row, as bytes_per_slot() bytes. Throw Usage for a slot outside.
  void read_state(int64_t slot, uint8_t* out) const;
  void write_state(int64_t slot, const uint8_t* in, size_t bytes);
 private:
  struct Region {                          // pieces of equal size
    int64_t count = 0, bytes = 0;
    std::shared_ptr<Memory> memory;
    void reserve();
    void check(int64_t piece, const char* what) const;
    uint8_t* at(int64_t piece) const { return memory->data + piece * bytes; }
    void copy(const std::vector<std::pair<int64_t, int64_t>>& from_to, const char* what) const;
  };
  struct Place : KvLayer { bool windowed; size_t offset; StateLayer kept; size_t state_offset; };   // offsets in bytes
  void add_states(const std::vector<StateLayer>& states, int64_t slots);
  std::vector<Place> layers_;
  Region blocks_, window_blocks_, slots_;
  int window_ = 0;
  KvType type_;
};

// A row whose next token is wanted and nothing else: the greatest logit (temperature 0), or a plain draw; see sample.h.
struct Choice {
  int32_t row;
  float temperature;
  uint64_t seed;
  int64_t position;
};

// Low-rank changes of some matrices of a plan: for a row that asks for one, W x becomes W x + scale * B (A x), added before
// bias and activation. A [rank][K] sees the floats that W's int8 are rounded from; A and B [N][rank] are panels of a float
// type, and the products are the float kernels', so a row's bits depend on no other row. Filled before it is used.
class Adapter {
 public:
  struct Pair { MatrixPtr a, b; float scale; };
  void add(MatrixPtr w, Pair pair);        // throws Usage unless the shapes fit; rank is a multiple of kPanelRows
  const Pair* find(const MatrixPtr& w) const;
  int64_t bytes() const;
 private:
  std::unordered_map<MatrixPtr, Pair> pairs_;
};

// One forward step over rows of one or more sequences. Rows of a sequence are consecutive, positions too.
struct Step {
  int64_t rows = 0;
  int64_t section = -1;                 // which section of the plan to run; -1: all. See Plan::section()
  int64_t begin = 0, end = 0;           // of a section: rows to compute, one cut after another; end 0: all
  const int32_t* tokens = nullptr;      // [rows]
  const int32_t* positions = nullptr;   // [rows]
  const int32_t* seqs = nullptr;        // [rows], index into block_tables, non-decreasing
  int64_t nseqs = 0, table_width = 0;
  const int32_t* block_tables = nullptr;  // [nseqs][table_width]
  const int32_t* window_tables = nullptr;   // the same for windowed layers, good where a row of the step looks; null where there are none
  // How recurrent layers go through the step, in order of sequence: rows of a sequence are cut where a state after them is
  // kept. Each reads a slot and writes a slot; the first reads -1, zeros, exactly at position 0, each other what the one
  // before it wrote. Of a sequence's slots none is written that another sequence of the step reads or writes.
  int64_t npieces = 0;
  const int32_t* pieces = nullptr;      // [npieces][5]: sequence, first position, end, slot read, slot written; null where the cache has no slots
  int64_t nadapters = 0;                // 0: no row has one, and nothing is looked up
  const Adapter* const* adapters = nullptr;
  const int32_t* row_adapters = nullptr;  // [rows], index into adapters, -1 for none
  // Rows of pictures. A decoder's embed() copies them in place of its table's rows; a tower's features() reads nothing else.
  int64_t nfeatures = 0, feature_width = 0;
  const float* features = nullptr;      // [nfeatures][feature_width]
  const int32_t* feature_rows = nullptr;  // [rows], which of them a row is, -1 for none; null: each row is the one of its number
  // [rows], for layers whose rows of a picture see each other: keys before this position, up to the end of the sequence's
  // rows in this step; null: those up to their own.
  const int32_t* ends = nullptr;
  const int32_t* places = nullptr;      // [rows][3], time, row and column for ropes with axes; null: all are the row's position
  int64_t nlogits = 0;
  const int32_t* logit_rows = nullptr;  // [nlogits], which rows want logits
  int64_t nhidden = 0;                  // rows whose last activations are wanted, as the head would read them
  const int32_t* hidden_rows = nullptr; // [nhidden]
  float* hidden = nullptr;              // [nhidden][the plan's hidden()]
  float* logits = nullptr;              // [nlogits][vocab]
  int64_t nchoices = 0;                 // nlogits + nchoices <= the plan's max_rows
  const Choice* choices = nullptr;
  int64_t tokens_end = 0;               // ids below it can be chosen
  int64_t* chosen = nullptr;            // [nchoices]; -1 where a logit of the row is not finite
};

}  // namespace fh
