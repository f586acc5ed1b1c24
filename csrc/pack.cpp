// Re-lays weight rows into panels, and reads a row back. Knows panel layouts; multiplies nothing.
//
// GGUF keeps a row's blocks together, scale beside codes; a panel keeps sixteen rows' codes for the same inputs
// together, so that one vector load serves sixteen dots. The re-lay is exact: every code and every scale survives,
// and decode_row gives the very floats the file stands for. weight_types.h reads the blocks, planes.h places codes.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>

#include "freehold.h"
#include "planes.h"

namespace fh {
namespace {

constexpr int64_t kMaxDim = int64_t{1} << 31;

const FileType& file_type(std::string_view name) {
  for (const FileType& f : kFileTypes)
    if (name == f.name) return f;
  throw Error(ErrorKind::Usage, "no panels for type '" + std::string(name) + "'; lay its codes with pack_codes");
}

void put_half(uint8_t* aux, int number, int row, uint16_t f16) { memcpy(aux + 32 * number + 2 * row, &f16, 2); }
float half_at(const uint8_t* aux, int number, int row) {
  uint16_t h;
  memcpy(&h, aux + 32 * number + 2 * row, 2);
  return f16_to_f32(h);
}

// ---- a head's two planes ----------------------------------------------------------------------------------------
// What a row's product can differ by from the screen's for each unit of the activations' reach, where the row's low parts
// have norm `low` and its codes have norm `code`, both times the scales. By Cauchy and Schwarz over the whole row, so a
// bound costs the screen nothing a block; and the rounding of three float sums over k inputs, each term of which is
// within code * reach.
double reach_of(double low, double code, int64_t k) {
  const double terms = 2.0 * static_cast<double>(k) / 32 + 16;
  return std::max(low, code / kRestShare) * (1 + 0x1p-8) + terms * 0x1p-23 * code;
}

// Squared norms of a row: of its codes less their offset, and of low parts less their middle, each block times its scale.
struct RowNorms {
  double code = 0, low = 0;
  void add(const WeightTraits& t, const uint8_t* codes, double scale) {    // 16 inputs
    double code_sum = 0, low_sum = 0;
    for (int i = 0; i < 16; ++i) {
      const double code = codes[i] - t.offset, low = (codes[i] & ((1 << t.low_bits()) - 1)) - (t.low_bits() == 4 ? 8.0 : 1.5);
      code_sum += code * code;
      low_sum += low * low;
    }
    code += scale * scale * code_sum;
    low += scale * scale * low_sum;
  }
  void add(const WeightTraits& t, const FileBlock& b) {
    const double d = f16_to_f32(b.d);
    for (int s = 0; s < t.unit() / 16; ++s) add(t, b.codes + 16 * s, t.sub ? d * static_cast<int8_t>(b.sub[s]) : d);
  }
  // The row's reach lies at the end of its panel of the high plane.
  void store(uint8_t* end, int row, int64_t k) const {
    const auto above = std::nextafter(static_cast<float>(reach_of(std::sqrt(low), std::sqrt(code), k)), HUGE_VALF);
    memcpy(end - 64 + 4 * row, &above, 4);
  }
};

// ---- rows into panels -------------------------------------------------------------------------------------------
// One block of row `row` into unit u of a panel.
void lay_block(const WeightTraits& t, const FileBlock& b, int64_t u, uint8_t* panel, uint8_t* low, int row) {
  uint8_t *codes = panel + place(t, u).codes, *aux = panel + place(t, u).aux, *subs = codes + t.groups() * plane_bytes(t.planes);
  for (int g = 0; g < t.groups(); ++g) {
    const Quads q = to_quads(b.codes + 32 * g);
    if (low) put_head(t, codes + g * plane_bytes(t.planes), low + u * t.low_bytes() + g * plane_bytes(t.low), row, q);
    else put_codes(t.planes, codes + g * plane_bytes(t.planes), row, q);
  }
  for (int s = 0; s < t.subs(); ++s) {
    subs[16 * s + row] = b.sub[s];
    if (t.min) subs[16 * (t.subs() + s) + row] = b.min[s];
  }
  put_half(aux, 0, row, b.d);
  if (t.min) put_half(aux, 1, row, b.dmin);
}
void lay_floats(const FileType& f, const uint8_t* from, int64_t k, uint8_t* panel, int row) {
  const int size = f.bytes;
  for (int64_t i = 0; i < k; ++i) memcpy(panel + (16 * i + row) * size, from + i * size, static_cast<size_t>(size));
}
void lay_row(const FileType& f, const Matrix& m, const uint8_t* from, int64_t row) {
  const WeightTraits& t = traits(m.w.type);
  const int64_t p = row / kPanelRows;
  const int in_panel = static_cast<int>(row % kPanelRows);
  auto* panel = const_cast<uint8_t*>(m.w.high(p));
  if (!f.read) return lay_floats(f, from, m.w.k, panel, in_panel);
  auto* low = m.w.low_bytes ? const_cast<uint8_t*>(m.w.low(p)) : nullptr;
  RowNorms norms;
  FileBlock block;
  for (int64_t u = 0; u < m.w.k / t.unit(); ++u) {
    f.read(from + u * f.bytes, block);
    lay_block(t, block, u, panel, low, in_panel);
    if (low) norms.add(t, block);
  }
  if (low) norms.store(panel + m.w.panel_bytes, in_panel, m.w.k);
}

// Calls lay(row) over all rows on every thread, a panel at a time, as threads come for them.
void each_row(const Matrix& m, Threads& threads, const std::function<void(int64_t)>& lay) {
  std::atomic<int64_t> next{0};
  threads.run([&](int) {
    for (int64_t p; (p = next.fetch_add(1)) < m.w.count();)
      for (int64_t row = p * kPanelRows; row < std::min(m.w.n, (p + 1) * kPanelRows); ++row) lay(row);
  });
}

// ---- rows out of panels -----------------------------------------------------------------------------------------
void decode_floats(const WeightTraits& t, const uint8_t* panel, int row, int64_t k, float* out) {
  for (int64_t i = 0; i < k; ++i) {
    const uint8_t* at = panel + (16 * i + row) * (t.unit_bytes() / 16);
    uint16_t h;
    if (t.planes == Planes::Float32) memcpy(out + i, at, 4);
    else { memcpy(&h, at, 2); out[i] = t.planes == Planes::Half ? f16_to_f32(h) : bf16_to_f32(h); }
  }
}
void decode_wide(const uint8_t* codes, const uint8_t* aux, int row, float* out) {
  float scale;
  memcpy(&scale, aux + 4 * row, 4);
  for (int i = 0; i < kWideUnit; ++i) {
    int16_t code;
    memcpy(&code, codes + 64 * (i / 2) + 4 * row + 2 * (i % 2), 2);
    out[i] = scale * static_cast<float>(code);
  }
}
void decode_scales16(const WeightTraits& t, const uint8_t* codes, const uint8_t* aux, int row, float* out) {
  const Quads q = get_codes(t.planes, codes, row);
  uint8_t c[32];
  memcpy(c, q.data(), 32);
  float d[2];
  for (int h = 0; h < 2; ++h) memcpy(&d[h], aux + 64 * h + 4 * row, 4);
  for (int i = 0; i < 32; ++i) out[i] = d[i / 16] * static_cast<float>(c[i] - t.offset);
}
// Units of 32 or 256 inputs; low: the unit of a head's low plane, or null.
void decode_blocks(const WeightTraits& t, const uint8_t* codes, const uint8_t* low, const uint8_t* aux, int row, float* out) {
  const int width = plane_bytes(t.planes);
  const uint8_t* subs = codes + t.groups() * width;
  const float d = half_at(aux, 0, row), dmin = t.min ? half_at(aux, 1, row) : 0.0f;
  for (int g = 0; g < t.groups(); ++g) {
    const Quads q = low ? get_head(t, codes + g * width, low + g * plane_bytes(t.low), row) : get_codes(t.planes, codes + g * width, row);
    uint8_t c[32];
    memcpy(c, q.data(), 32);
    for (int i = 0; i < 32; ++i) {
      const auto code = static_cast<float>(c[i] - t.offset);
      if (!t.sub) {
        out[32 * g + i] = t.min ? d * code + dmin : d * code;
        continue;
      }
      const int s = (32 * g + i) / t.sub;
      const uint8_t sub = subs[16 * s + row];
      const float scaled = d * (t.signed_sub ? static_cast<float>(static_cast<int8_t>(sub)) : static_cast<float>(sub)) * code;
      out[32 * g + i] = t.min ? scaled - dmin * static_cast<float>(subs[16 * (t.subs() + s) + row]) : scaled;
    }
  }
}

}  // namespace

int64_t panel_bytes(WeightType type, int64_t k) {
  const WeightTraits& t = traits(type);
  if (t.trellis_bits()) return trellis_panel_bytes(type, k);
  if (k % t.unit())
    throw Error(ErrorKind::BadModelFile, std::string(t.name) + " rows must hold a multiple of " + std::to_string(t.unit()) +
                                             " inputs, got " + std::to_string(k));
  const int64_t units = k / t.unit();
  const int64_t bytes = t.aux_bytes() == 32 ? (units + 1) / 2 * (2 * t.unit_bytes() + 64) : units * (t.unit_bytes() + t.aux_bytes());
  const bool line = t.low_bytes() || t.form == Form::Rows32;      // the rows' reach, or their scales
  return (bytes + 63) / 64 * 64 + (line ? kRowLine : 0);
}
std::shared_ptr<Matrix> make_matrix(WeightType type, int64_t n, int64_t k) {
  if (n < 1 || k < 1 || n > kMaxDim || k > kMaxDim)
    throw Error(ErrorKind::BadModelFile, "matrix of " + std::to_string(n) + " x " + std::to_string(k) + " is out of range");
  auto m = std::make_shared<Matrix>();
  m->w = {type, n, k, panel_bytes(type, k), nullptr, low_bytes(type, k)};
  const __int128 total = static_cast<__int128>(m->w.panel_bytes + m->w.low_bytes) * m->w.count() + m->w.table_bytes();
  if (total > (int64_t{1} << 46)) throw Error(ErrorKind::Capacity, "a matrix of more than 64 TB cannot be packed");
  m->memory = Memory::anonymous(static_cast<size_t>(total));
  m->w.data = m->memory->data;
  return m;
}

int64_t low_bytes(WeightType type, int64_t k) { return k / traits(type).unit() * traits(type).low_bytes(); }

MatrixPtr pack(const uint8_t* raw, size_t raw_bytes, std::string_view type, int64_t n, int64_t k, Threads& threads, bool head) {
  const FileType& f = file_type(type);
  if (traits(f.type).trellis_bits()) return pack_trellis(raw, raw_bytes, f.type, n, k, threads, !kernels()->trellis);
  const WeightType in_planes = traits(f.type).head;
  std::shared_ptr<Matrix> m = make_matrix(head && in_planes != WeightType::kCount ? in_planes : f.type, n, k);
  const int64_t row_bytes = k / f.block * f.bytes;
  if (k % f.block || raw_bytes / static_cast<size_t>(row_bytes) != static_cast<size_t>(n) || raw_bytes % static_cast<size_t>(row_bytes))
    throw Error(ErrorKind::BadModelFile, std::string(type) + " matrix of " + std::to_string(n) + " x " + std::to_string(k) +
                                             " does not take " + std::to_string(raw_bytes) + " bytes");
  each_row(*m, threads, [&](int64_t row) { lay_row(f, *m, raw + row * row_bytes, row); });
  return m;
}

MatrixPtr pack_codes(const int8_t* codes, const float* scales, int64_t n, int64_t k, Threads& threads) {
  std::shared_ptr<Matrix> m = make_matrix(WeightType::I8, n, k);
  const WeightTraits& t = traits(WeightType::I8);
  each_row(*m, threads, [&](int64_t row) {
    uint8_t* panel = m->memory->data + row / kPanelRows * m->w.panel_bytes;
    const int in_panel = static_cast<int>(row % kPanelRows);
    for (int64_t u = 0; u < k / 32; ++u) {
      Quads q = to_quads(reinterpret_cast<const uint8_t*>(codes) + row * k + 32 * u);
      for (uint32_t& w : q) w ^= 0x80808080u;          // two's complement + 128
      const UnitPlace at = place(t, u);
      put_codes(t.planes, panel + at.codes, in_panel, q);
      for (int h = 0; h < 2; ++h) memcpy(panel + at.aux + 64 * h + 4 * in_panel, scales + row * (k / 16) + 2 * u + h, 4);
    }
  });
  return m;
}

MatrixPtr pack_wide(const float* values, int64_t n, int64_t k, Threads& threads) {
  std::shared_ptr<Matrix> m = make_matrix(WeightType::I16, n, k);
  if (!std::all_of(values, values + n * k, [](float x) { return std::isfinite(x); }))
    throw Error(ErrorKind::BadModelFile, "a matrix of " + std::to_string(n) + " x " + std::to_string(k) + " holds values that are not finite");
  each_row(*m, threads, [&](int64_t row) {
    uint8_t* unit = m->memory->data + row / kPanelRows * m->w.panel_bytes;
    const int in_panel = static_cast<int>(row % kPanelRows);
    for (const float *x = values + row * k, *end = x + k; x < end; x += kWideUnit, unit += kWideUnitBytes) {
      float most = 0.0f;
      for (int i = 0; i < kWideUnit; ++i) most = std::max(most, std::fabs(x[i]));
      const float scale = most / kWideCode, inverse = most > 1e-30f ? kWideCode / most : 0.0f;
      for (int i = 0; i < kWideUnit; ++i) {
        const auto code = static_cast<int16_t>(std::nearbyint(x[i] * inverse));
        memcpy(unit + 64 * (i / 2) + 4 * in_panel + 2 * (i % 2), &code, 2);
      }
      memcpy(unit + 32 * kWideUnit + 4 * in_panel, &scale, 4);
    }
  });
  return m;
}

void decode_row(const Panels& w, int64_t row, float* out) {
  const WeightTraits& t = traits(w.type);
  const uint8_t* panel = w.high(row / kPanelRows);
  const int in_panel = static_cast<int>(row % kPanelRows);
  if (t.form == Form::Trellis || t.form == Form::Rows32) return decode_trellis(w, row, out);
  if (t.form == Form::Floats) return decode_floats(t, panel, in_panel, w.k, out);
  for (int64_t u = 0; u < w.k / t.unit(); ++u, out += t.unit()) {
    const uint8_t *codes = panel + place(t, u).codes, *aux = panel + place(t, u).aux;
    const uint8_t* low = w.low_bytes ? w.low(row / kPanelRows) + u * t.low_bytes() : nullptr;
    if (t.form == Form::Wide) decode_wide(codes, aux, in_panel, out);
    else if (t.form == Form::Scales16) decode_scales16(t, codes, aux, in_panel, out);
    else decode_blocks(t, codes, low, aux, in_panel, out);
  }
}

std::vector<TypeRoute> type_routes() {
  std::vector<TypeRoute> out;
  for (const FileType& f : kFileTypes) {
    const bool expanded = traits(f.type).trellis_bits() && !kernels()->trellis;
    const WeightTraits& t = traits(expanded ? WeightType::T8 : f.type);
    const bool own = std::string_view(f.name) == t.name;
    out.push_back({f.name, t.name, own ? "own" : expanded ? "expanded to int8" : std::string("re-laid as ") + t.name, 8.0 * f.bytes / f.block,
                   8.0 * (t.unit_bytes() + t.aux_bytes()) / (16.0 * t.unit())});
  }
  return out;
}

}  // namespace fh
