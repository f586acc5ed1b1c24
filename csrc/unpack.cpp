// Rows of a model file to floats, for products that need the values themselves: training. Knows blocks, as weight_types.h
// reads them; lays no panels. The floats are those of formats/blocks.py, bit for bit: (d * sub) * code, then the minimum.
//
// Bound by arithmetic, 4-6 instructions for four weights in plain SSE2 or NEON: the file's bytes are a fifth of what is written.
// Of T2 and T3 a look-up and 5-7 instructions a weight: a window's place in its words is a constant of an unrolled loop.
#include <algorithm>
#include <atomic>
#include <cstring>

#include "freehold.h"
#include "trellis_rows.h"

namespace fh {
namespace {

constexpr int64_t kRowsAtOnce = 16;       // rows that a thread takes at a time: some 10-100 KB of floats

uint16_t to_bf16(float x) {               // to nearest, ties to even; a NaN stays one
  uint32_t bits;
  memcpy(&bits, &x, 4);
  const uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
  return static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? (bits >> 16 | 0x40u) : rounded);
}
void put(float x, float& to) { to = x; }
void put(float x, uint16_t& to) { to = to_bf16(x); }

// `Step` inputs under one scale; a constant, so that the loop is unrolled into vectors.
template <int Step, class Value> void put_group(const uint8_t* codes, int offset, float scale, float shift, Value* out) {
  float values[Step];
  for (int i = 0; i < Step; ++i) values[i] = static_cast<float>(static_cast<int>(codes[i]) - offset) * scale;
  if (shift != 0.0f)
    for (int i = 0; i < Step; ++i) values[i] += shift;
  for (int i = 0; i < Step; ++i) put(values[i], out[i]);
}

template <int Step, class Value> void put_block(const WeightTraits& t, const FileBlock& b, Value* out) {
  const float d = f16_to_f32(b.d), dmin = t.min ? f16_to_f32(b.dmin) : 0.0f;
  for (int s = 0; s < t.unit() / Step; ++s) {
    const float sub = !t.sub ? 1.0f : t.signed_sub ? static_cast<float>(static_cast<int8_t>(b.sub[s])) : static_cast<float>(b.sub[s]);
    const float shift = !t.min ? 0.0f : t.sub ? -(dmin * static_cast<float>(b.min[s])) : dmin;
    put_group<Step>(b.codes + Step * s, t.offset, d * sub, shift, out + Step * s);
  }
}

template <class Value> void put_row(const FileType& f, const uint8_t* from, int64_t k, Value* out) {
  const WeightTraits& t = traits(f.type);
  FileBlock block;
  for (int64_t i = 0; i < k; i += f.block, from += f.bytes) {
    f.read(from, block);
    if (t.sub == 16) put_block<16>(t, block, out + i);
    else put_block<32>(t, block, out + i);
  }
}

template <class Value> void put_floats(WeightType type, const uint8_t* from, int64_t k, Value* out) {
  for (int64_t i = 0; i < k; ++i) {
    float x;
    uint16_t h;
    if (type == WeightType::F32) memcpy(&x, from + 4 * i, 4);
    else { memcpy(&h, from + 2 * i, 2); x = type == WeightType::F16 ? f16_to_f32(h) : bf16_to_f32(h); }
    put(x, out[i]);
  }
}

// 32 windows of a run, from its `Half`: the run's words are read once for both.
template <int K, int Half, class Value> void put_windows(const uint64_t (&word)[K + 1], const float* table, float scale, Value* out) {
  float values[32];
  for (int i = 0; i < 32; ++i) values[i] = scale * table[TrellisPanel<K>::window(word, 32 * Half + i)];
  for (int i = 0; i < 32; ++i) put(values[i], out[i]);
}
template <int K, class Value> void put_trellis_row(const uint8_t* at, int64_t k, const float* table, Value* out) {
  const FileRow<K> row{at, k};
  const float d = f16_to_f32(row.scale());
  uint64_t word[K + 1] = {};
  for (int64_t g = 0; g < k / 32; ++g, out += 32) {
    const float scale = d * kFactors[row.nibble(g)];
    if (g % 2) put_windows<K, 1>(word, table, scale, out);
    else { row.words(g / 2, word); put_windows<K, 0>(word, table, scale, out); }
  }
}
template <int K, class Value> void unpack_trellis(const uint8_t* raw, int64_t n, int64_t k, Threads& threads, Value* out) {
  float table[kTableBytes];
  for (int i = 0; i < kTableBytes; ++i) table[i] = static_cast<float>(static_cast<int8_t>(raw[i]));
  std::atomic<int64_t> next{0};
  const int64_t row_bytes = FileRow<K>::bytes(k);
  threads.run([&](int) {
    for (int64_t first; (first = next.fetch_add(kRowsAtOnce)) < n;)
      for (int64_t row = first; row < std::min(n, first + kRowsAtOnce); ++row)
        put_trellis_row<K>(raw + kTableBytes + row * row_bytes, k, table, out + row * k);
  });
}

template <class Value> void unpack_all(const FileType& f, const uint8_t* raw, int64_t n, int64_t k, Threads& threads, Value* out) {
  if (f.type == WeightType::T2) return unpack_trellis<2>(raw, n, k, threads, out);
  if (f.type == WeightType::T3) return unpack_trellis<3>(raw, n, k, threads, out);
  std::atomic<int64_t> next{0};
  const int64_t row_bytes = k / f.block * f.bytes;
  threads.run([&](int) {
    for (int64_t first; (first = next.fetch_add(kRowsAtOnce)) < n;)
      for (int64_t row = first; row < std::min(n, first + kRowsAtOnce); ++row) {
        if (f.read) put_row(f, raw + row * row_bytes, k, out + row * k);
        else put_floats(f.type, raw + row * row_bytes, k, out + row * k);
      }
  });
}

// MXFP4's powers of two that f16 does not hold read as zero there: the loader lays such blocks otherwise.
const FileType* unpacked_type(std::string_view name) {
  for (const FileType& f : kFileTypes)
    if (name == f.name && f.type != WeightType::MXFP4) return &f;
  return nullptr;
}

// Bytes of n rows, after their table where the type has one; k a multiple of what a row is made of.
int64_t file_bytes(const FileType& f, int64_t n, int64_t k) {
  if (f.type == WeightType::T2) return kTableBytes + n * FileRow<2>::bytes(k);
  if (f.type == WeightType::T3) return kTableBytes + n * FileRow<3>::bytes(k);
  return n * (k / f.block * f.bytes);
}

}  // namespace

bool unpacks(std::string_view type) { return unpacked_type(type) != nullptr; }

void unpack(const uint8_t* raw, size_t raw_bytes, std::string_view type, int64_t n, int64_t k, Threads& threads, float* out, uint16_t* half) {
  const FileType* f = unpacked_type(type);
  if (!f) throw Error(ErrorKind::Usage, "rows of type '" + std::string(type) + "' are not unpacked here; formats.dequantize decodes them");
  if (k % (traits(f->type).trellis_bits() ? 32 : f->block) || raw_bytes != static_cast<size_t>(file_bytes(*f, n, k)))
    throw Error(ErrorKind::BadModelFile, std::string(type) + " rows, " + std::to_string(n) + " of " + std::to_string(k) + ", do not take " +
                                             std::to_string(raw_bytes) + " bytes");
  if (half) unpack_all(*f, raw, n, k, threads, half);
  else unpack_all(*f, raw, n, k, threads, out);
}

}  // namespace fh
