// Float rows to rows of T2 and T3: cuts a matrix into calls of the encoder's kernel, and writes what it chose as a file has it.
// Knows the bytes of a row; knows no table's training, no calibration and no file.
#include <atomic>
#include <cmath>
#include <cstring>

#include "freehold.h"
#include "kernels/trellis_encode.h"

namespace fh {
namespace {

// What one thread works in.
struct Room {
  explicit Room(int64_t cols)
      : floats(static_cast<size_t>((cols + kTrellisBatch + cols / kTrellisGroup) * kTrellisRows + cols) + 16),
        bytes(static_cast<size_t>((cols + cols / kTrellisGroup) * kTrellisRows)) {
    float* at = floats.data();
    at += (64 - reinterpret_cast<uintptr_t>(at) % 64) % 64 / sizeof(float);
    const auto take = [&at](int64_t n) { float* got = at; at += n; return got; };
    scratch.target = take(cols * kTrellisRows);
    scratch.error = take(kTrellisBatch * kTrellisRows);
    scratch.scale = take(cols / kTrellisGroup * kTrellisRows);
    scratch.root = take(cols);
    out = {bytes.data(), bytes.data() + cols * kTrellisRows, row_scales};
  }
  std::vector<float> floats;
  std::vector<uint8_t> bytes;
  uint16_t row_scales[kTrellisRows];
  TrellisScratch scratch;
  TrellisOut out;
};

// A row: its scale, whose free low bits end the stream, the groups' scale codes in nibbles, then the stream, lowest bit first.
void write_row(const TrellisOut& from, int row, int64_t cols, int bits, uint8_t* to) {
  const int64_t groups = cols / kTrellisGroup, stream = bits * cols;
  uint8_t* nibbles = to + 2;
  uint8_t* bytes = nibbles + (groups + 1) / 2;
  memset(nibbles, 0, static_cast<size_t>((groups + 1) / 2 + stream / 8));
  for (int64_t g = 0; g < groups; ++g) nibbles[g / 2] |= static_cast<uint8_t>(from.scale_codes[g * kTrellisRows + row] << 4 * (g % 2));
  uint32_t last = 0;                                   // the bits past the stream's bytes
  const auto put = [&](int64_t at, uint32_t value, int n) {
    for (int b = 0; b < n; ++b, ++at)
      if (value >> b & 1) {
        if (at < stream) bytes[at / 8] |= static_cast<uint8_t>(1 << at % 8);
        else last |= 1u << (at - stream);
      }
  };
  put(0, from.states[row], 7);
  for (int64_t i = 1; i < cols; ++i) put(bits * i + 7 - bits, from.states[i * kTrellisRows + row] >> (7 - bits), bits);
  const auto word = static_cast<uint16_t>(from.row_scales[row] | last);
  memcpy(to, &word, 2);
}

void check(const TrellisRequest& q) {
  const auto refuse = [](const std::string& text) { throw Error(ErrorKind::Usage, text); };
  if (q.bits != 2 && q.bits != 3) refuse("a trellis has 2 or 3 bits a weight, not " + std::to_string(q.bits));
  if (q.cols < kTrellisGroup || q.cols % kTrellisGroup) refuse("rows of " + std::to_string(q.cols) + " do not divide into groups of 32");
  if (q.block < 1 || q.block > kTrellisBlockMost) refuse("a block has 1 to 32 columns, not " + std::to_string(q.block));
  if (q.ahead < 0 || q.ahead > kTrellisAheadMost) refuse("0 to 32 columns are looked at ahead, not " + std::to_string(q.ahead));
  if (q.spread < 0 || q.spread >= kTrellisScales) refuse("0 to 15 scales are tried on each side, not " + std::to_string(q.spread));
  if (q.feedback && q.width != q.cols && (q.width < 1 || q.width % kTrellisBatch)) refuse("feedback over " + std::to_string(q.width) + " columns: all of a row's, or a multiple of 128");
}

}  // namespace

int64_t trellis_row_bytes(int bits, int64_t cols) { return 2 + (cols / kTrellisGroup + 1) / 2 + bits * cols / 8; }

void trellis_encode(const TrellisRequest& q, Threads& threads, uint8_t* out, float* values) {
  check(q);
  const TrellisKernels& kernel = trellis_kernels(q.by ? *q.by : *kernels());
  float table[kTrellisStates];
  for (int i = 0; i < kTrellisStates; ++i) table[i] = q.table[i];
  const TrellisArgs args{q.weights, q.rows, q.cols, q.importance, q.feedback, q.width, table, q.unit, q.bits, q.block, q.ahead, q.spread};
  const int64_t bytes = trellis_row_bytes(q.bits, q.cols);
  std::atomic<int64_t> next{0};
  threads.run([&](int) {
    if (next.load() >= q.rows) return;
    Room room(q.cols);
    for (int64_t j = 0; j < q.cols; ++j) room.scratch.root[j] = std::sqrt(q.importance[j]);
    for (int64_t first; (first = next.fetch_add(kTrellisRows)) < q.rows;) {
      const int n = static_cast<int>(std::min<int64_t>(kTrellisRows, q.rows - first));
      kernel.encode(args, first, n, room.scratch, room.out);
      for (int r = 0; r < n; ++r) {
        write_row(room.out, r, q.cols, q.bits, out + (first + r) * bytes);
        if (values)
          for (int64_t j = 0; j < q.cols; ++j)
            values[(first + r) * q.cols + j] = table[room.out.states[j * kTrellisRows + r]] * room.scratch.scale[j / kTrellisGroup * kTrellisRows + r];
      }
    }
  });
}

}  // namespace fh
