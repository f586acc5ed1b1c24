// Re-lays rows of T2 and T3 into panels, or expands them to int8 codes (T8), and reads a row of either back. trellis.h draws
// the panels. Both stand for the same codes and scales, and every kernel multiplies both to the same bits.
#include <algorithm>
#include <atomic>
#include <cstring>

#include "freehold.h"
#include "planes.h"
#include "trellis_rows.h"

namespace fh {
namespace {

template <int K> void lay_row(const FileRow<K>& row, int in_panel, uint8_t* panel, int64_t panel_bytes) {
  using P = TrellisPanel<K>;
  const int64_t runs = P::runs(row.k);
  uint64_t word[K + 1] = {};
  for (int64_t r = 0; r < runs; ++r) {
    row.words(r, word);
    for (int j = 0; j < K; ++j) memcpy(panel + P::run(r) + P::words(in_panel) + 64 * j, &word[j], 8);
  }
  for (int64_t g = 0; g < row.k / 32; ++g) panel[P::scales(g) + in_panel] |= static_cast<uint8_t>(row.nibble(g) << (g % 2 ? 4 : 0));
  uint8_t* line = panel + panel_bytes - kRowLine;
  const uint16_t scale = row.scale();
  memcpy(line + 2 * in_panel, &scale, 2);
  line[kTailsAt + in_panel] = static_cast<uint8_t>(word[K]);
}
template <int K> void expand_row(const FileRow<K>& row, const uint8_t* table, int in_panel, uint8_t* panel, int64_t panel_bytes) {
  const WeightTraits& t = traits(WeightType::T8);
  uint64_t word[K + 1];
  for (int64_t g = 0; g < row.k / 32; ++g) {
    if (g % 2 == 0) row.words(g / 2, word);
    uint8_t codes[32];
    for (int i = 0; i < 32; ++i) codes[i] = table[TrellisPanel<K>::window(word, 32 * (g % 2) + i)];
    put_codes(Planes::Byte, panel + place(t, g).codes, in_panel, to_quads(codes));
    memcpy(panel + place(t, g).aux + 2 * in_panel, &kFactorHalves[row.nibble(g)], 2);
  }
  const uint16_t scale = row.scale();
  memcpy(panel + panel_bytes - kRowLine + 2 * in_panel, &scale, 2);
}

// A row's weights, each its scale times its code; `code(i)` and `factor(g)` say what the panel holds.
template <class Code, class Factor> void decode(const uint8_t* line, int row, int64_t k, Code code, Factor factor, float* out) {
  uint16_t d;
  memcpy(&d, line + 2 * row, 2);
  for (int64_t g = 0; g < k / 32; ++g) {
    const float scale = f16_to_f32(d) * factor(g);
    for (int64_t i = 32 * g; i < 32 * g + 32; ++i) out[i] = scale * static_cast<float>(code(i) - 128);
  }
}
template <int K> void decode_windows(const Panels& w, const uint8_t* panel, int row, float* out) {
  using P = TrellisPanel<K>;
  uint64_t word[K + 1];
  decode(panel + w.panel_bytes - kRowLine, row, w.k,
         [&](int64_t i) {
           if (i % kRunInputs == 0) P::load(panel, w.panel_bytes, i / kRunInputs, P::runs(w.k), row, word);
           return w.table()[P::window(word, static_cast<int>(i % kRunInputs))];
         },
         [&](int64_t g) { return kFactors[P::nibble(panel, g, row)]; }, out);
}
void decode_bytes(const Panels& w, const uint8_t* panel, int row, float* out) {
  const WeightTraits& t = traits(WeightType::T8);
  decode(panel + w.panel_bytes - kRowLine, row, w.k,
         [&](int64_t i) { return panel[place(t, i / 32).codes + i % 32 / 4 * 64 + 4 * row + i % 4]; },
         [&](int64_t g) {
           uint16_t f;
           memcpy(&f, panel + place(t, g).aux + 2 * row, 2);
           return f16_to_f32(f);
         }, out);
}

template <int K> MatrixPtr pack_rows(const uint8_t* raw, size_t raw_bytes, WeightType type, int64_t n, int64_t k, Threads& threads, bool expand) {
  trellis_panel_bytes(type, k);                      // refuses a k by the file's type, whatever it becomes
  std::shared_ptr<Matrix> m = make_matrix(expand ? WeightType::T8 : type, n, k);
  const int64_t row_bytes = FileRow<K>::bytes(k);
  if (static_cast<__int128>(row_bytes) * n + kTableBytes != static_cast<__int128>(raw_bytes))
    throw Error(ErrorKind::BadModelFile, std::string(traits(type).name) + " matrix of " + std::to_string(n) + " x " + std::to_string(k) +
                                             " does not take " + std::to_string(raw_bytes) + " bytes");
  uint8_t table[kTableBytes];
  for (int i = 0; i < kTableBytes; ++i) table[i] = raw[i] ^ 0x80;          // two's complement + 128
  if (std::find(table, table + kTableBytes, 0) != table + kTableBytes)
    throw Error(ErrorKind::BadModelFile, std::string("the table of a ") + traits(type).name + " matrix holds -128; -127 to 127 are allowed");
  if (!expand) memcpy(m->memory->data + m->w.count() * m->w.panel_bytes, table, kTableBytes);
  std::atomic<int64_t> next{0};
  threads.run([&](int) {
    for (int64_t p; (p = next.fetch_add(1)) < m->w.count();)
      for (int64_t row = p * kPanelRows; row < std::min(n, (p + 1) * kPanelRows); ++row) {
        const FileRow<K> from{raw + kTableBytes + row * row_bytes, k};
        const int in_panel = static_cast<int>(row % kPanelRows);
        uint8_t* panel = m->memory->data + p * m->w.panel_bytes;
        if (expand) expand_row(from, table, in_panel, panel, m->w.panel_bytes);
        else lay_row(from, in_panel, panel, m->w.panel_bytes);
      }
  });
  return m;
}

}  // namespace

int64_t trellis_panel_bytes(WeightType type, int64_t k) {
  if (k % 32)
    throw Error(ErrorKind::BadModelFile, std::string(traits(type).name) + " rows must hold a multiple of 32 inputs, got " + std::to_string(k));
  return type == WeightType::T2 ? TrellisPanel<2>::bytes(k) : TrellisPanel<3>::bytes(k);
}

MatrixPtr pack_trellis(const uint8_t* raw, size_t raw_bytes, WeightType type, int64_t n, int64_t k, Threads& threads, bool expand) {
  return type == WeightType::T2 ? pack_rows<2>(raw, raw_bytes, type, n, k, threads, expand) : pack_rows<3>(raw, raw_bytes, type, n, k, threads, expand);
}

void decode_trellis(const Panels& w, int64_t row, float* out) {
  const uint8_t* panel = w.high(row / kPanelRows);
  const int in_panel = static_cast<int>(row % kPanelRows);
  if (w.type == WeightType::T8) decode_bytes(w, panel, in_panel, out);
  else if (w.type == WeightType::T2) decode_windows<2>(w, panel, in_panel, out);
  else decode_windows<3>(w, panel, in_panel, out);
}

}  // namespace fh
