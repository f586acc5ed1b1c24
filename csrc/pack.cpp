// Re-lays weight rows into panels, and reads a row back. Knows block formats and panel layouts; multiplies nothing.
//
// GGUF keeps a row's blocks together, scale beside codes; a panel keeps sixteen rows' codes for the same inputs
// together, so that one vector load serves sixteen dots. The re-lay is exact: every code and every scale survives,
// and decode_row gives the very floats the file stands for. kernels/matmul.inl describes the planes.
#include "freehold.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstring>

namespace fh {
namespace {

constexpr int64_t kMaxDim = int64_t{1} << 31;

constexpr KindInfo kInfo[kKinds] = {
    {"F32", 1, 64, 0, kActF32},          {"F16", 1, 32, 0, kActF32},          {"BF16", 1, 32, 0, kActF32},
    {"Q4_0", 32, 256, 32, kAct32},       {"Q4_1", 32, 256, 64, kAct32},       {"Q5_0", 32, 320, 32, kAct32},
    {"Q5_1", 32, 320, 64, kAct32},       {"Q8_0", 32, 512, 32, kAct32},       {"Q2_K", 256, 1024 + 512, 64, kAct256},
    {"Q4_K", 256, 2048 + 256, 64, kAct256}, {"Q5_K", 256, 2560 + 256, 64, kAct256},
    {"Q6_K", 256, 3072 + 256, 64, kAct256}, {"I8", 32, 512, 128, kAct32},
    {"Q8_0H", 32, 256, 32, kAct32, 256}, {"Q6_KH", 256, 2048 + 256, 64, kAct256, 1024},
    {"I16", kWideUnit, 32 * kWideUnit, 64, kActWide},
};

// Quads: four consecutive inputs' codes of one row as one 32-bit word, the panel's natural unit.
using Quads = std::array<uint32_t, 8>;       // 32 inputs of one row
uint32_t word(const uint8_t* codes) { uint32_t q; memcpy(&q, codes, 4); return q; }
void put(uint8_t* p, int index, int row, uint32_t value) { memcpy(p + 64 * index + 4 * row, &value, 4); }
uint32_t get(const uint8_t* p, int index, int row) { uint32_t q; memcpy(&q, p + 64 * index + 4 * row, 4); return q; }

void put_nibbles(uint8_t* p, int row, const Quads& q) {
  for (int v = 0; v < 4; ++v) put(p, v, row, (q[2 * v] & 0x0f0f0f0fu) | (q[2 * v + 1] & 0x0f0f0f0fu) << 4);
}
void get_nibbles(const uint8_t* p, int row, Quads& q) {
  for (int v = 0; v < 4; ++v) {
    const uint32_t w = get(p, v, row);
    q[2 * v] = w & 0x0f0f0f0fu;
    q[2 * v + 1] = (w >> 4) & 0x0f0f0f0fu;
  }
}
void put_bit(uint8_t* p, int row, const Quads& q) {      // bit 4 of each code
  uint32_t plane = 0;
  for (int j = 0; j < 8; ++j) plane |= ((q[j] >> 4) & 0x01010101u) << j;
  put(p, 4, row, plane);
}
void get_bit(const uint8_t* p, int row, Quads& q) {
  const uint32_t plane = get(p, 4, row);
  for (int j = 0; j < 8; ++j) q[j] |= ((plane >> j) & 0x01010101u) << 4;
}
// Two-bit planes number first, first+1: bits `shift`, `shift`+1 of each code.
void put_two(uint8_t* p, int first, int row, const Quads& q, int shift) {
  for (int h = 0; h < 2; ++h) {
    uint32_t plane = 0;
    for (int j = 0; j < 4; ++j) plane |= ((q[4 * h + j] >> shift) & 0x03030303u) << 2 * j;
    put(p, first + h, row, plane);
  }
}
void get_two(const uint8_t* p, int first, int row, Quads& q, int shift) {
  for (int j = 0; j < 8; ++j) q[j] |= ((get(p, first + j / 4, row) >> 2 * (j % 4)) & 0x03030303u) << shift;
}

// Where unit u of a panel keeps its codes and its per-row floats. Floats of 32 bytes (a scale for each row) lie in pairs
// behind two units' codes, so that every unit begins at a cache line.
struct Place { int64_t codes, aux; };
Place place(const KindInfo& info, int64_t u) {
  if (info.aux_bytes != 32) return {u * (info.unit_bytes + info.aux_bytes), u * (info.unit_bytes + info.aux_bytes) + info.unit_bytes};
  const int64_t pair = u / 2 * (2 * info.unit_bytes + 64);
  return {pair + u % 2 * info.unit_bytes, pair + 2 * info.unit_bytes + u % 2 * 32};
}

// Places 32 codes of one row (by kind) into a unit's codes at p; and back.
void put_codes(Kind kind, uint8_t* p, int row, const Quads& q) {
  switch (kind) {
    case Kind::Q4_0: case Kind::Q4_1: case Kind::Q4_K: put_nibbles(p, row, q); break;
    case Kind::Q5_0: case Kind::Q5_1: case Kind::Q5_K: put_nibbles(p, row, q); put_bit(p, row, q); break;
    case Kind::Q6_K: put_nibbles(p, row, q); put_two(p, 4, row, q, 4); break;
    case Kind::Q2_K: put_two(p, 0, row, q, 0); break;
    default: for (int j = 0; j < 8; ++j) put(p, j, row, q[j]);
  }
}
Quads get_codes(Kind kind, const uint8_t* p, int row) {
  Quads q{};
  switch (kind) {
    case Kind::Q4_0: case Kind::Q4_1: case Kind::Q4_K: get_nibbles(p, row, q); break;
    case Kind::Q5_0: case Kind::Q5_1: case Kind::Q5_K: get_nibbles(p, row, q); get_bit(p, row, q); break;
    case Kind::Q6_K: get_nibbles(p, row, q); get_two(p, 4, row, q, 4); break;
    case Kind::Q2_K: get_two(p, 0, row, q, 0); break;
    default: for (int j = 0; j < 8; ++j) q[j] = get(p, j, row);
  }
  return q;
}
// The same of a head's kind: the upper nibble in p as a 4-bit code, the rest in `low`, nibbles or two-bit planes.
int low_bits(Kind kind) { return kind == Kind::Q8_0H ? 4 : 2; }
void put_planes(Kind kind, uint8_t* p, uint8_t* low, int row, const Quads& q) {
  const int bits = low_bits(kind);
  Quads top, rest;
  for (size_t j = 0; j < 8; ++j) {
    top[j] = (q[j] >> bits) & 0x0f0f0f0fu;
    rest[j] = q[j] & (bits == 4 ? 0x0f0f0f0fu : 0x03030303u);
  }
  put_nibbles(p, row, top);
  if (bits == 4) put_nibbles(low, row, rest);
  else put_two(low, 0, row, rest, 0);
}
Quads get_planes(Kind kind, const uint8_t* p, const uint8_t* low, int row) {
  Quads top{}, rest{};
  get_nibbles(p, row, top);
  if (low_bits(kind) == 4) get_nibbles(low, row, rest);
  else get_two(low, 0, row, rest, 0);
  for (size_t j = 0; j < 8; ++j) rest[j] |= top[j] << low_bits(kind);
  return rest;
}
int code_bytes(Kind kind) {      // of 32 inputs of sixteen rows
  switch (kind) {
    case Kind::Q4_0: case Kind::Q4_1: case Kind::Q4_K: return 256;
    case Kind::Q5_0: case Kind::Q5_1: case Kind::Q5_K: return 320;
    case Kind::Q6_K: return 384;
    case Kind::Q2_K: return 128;
    case Kind::Q8_0H: case Kind::Q6_KH: return 256;
    default: return 512;
  }
}

// ---- GGUF blocks -> codes -------------------------------------------------------------------------------------
// A block of 32 inputs keeps input i in the low nibble of byte i and input i + 16 in the high one.
void split_nibbles(const uint8_t* qs, uint8_t* codes) {
  for (int i = 0; i < 16; ++i) { codes[i] = qs[i] & 15; codes[i + 16] = qs[i] >> 4; }
}
Quads to_quads(const uint8_t* codes) {
  Quads q;
  for (int j = 0; j < 8; ++j) q[j] = word(codes + 4 * j);
  return q;
}
void fifth_bits(const uint8_t* qh, uint8_t* codes) {
  uint32_t bits = word(qh);
  for (int i = 0; i < 32; ++i, bits >>= 1) codes[i] |= (bits & 1) << 4;
}

struct Panel32 {     // where one row's 32-input group goes
  uint8_t* codes; uint8_t* aux; int row;
  void half(int slot, const uint8_t* f16) const { memcpy(aux + 32 * slot + 2 * row, f16, 2); }
};

void lay_q4_0(const uint8_t* b, const Panel32& to) {
  uint8_t c[32];
  split_nibbles(b + 2, c);
  put_codes(Kind::Q4_0, to.codes, to.row, to_quads(c));
  to.half(0, b);
}
void lay_q4_1(const uint8_t* b, const Panel32& to) {
  uint8_t c[32];
  split_nibbles(b + 4, c);
  put_codes(Kind::Q4_1, to.codes, to.row, to_quads(c));
  to.half(0, b);
  to.half(1, b + 2);
}
void lay_q5_0(const uint8_t* b, const Panel32& to) {
  uint8_t c[32];
  split_nibbles(b + 6, c);
  fifth_bits(b + 2, c);
  put_codes(Kind::Q5_0, to.codes, to.row, to_quads(c));
  to.half(0, b);
}
void lay_q5_1(const uint8_t* b, const Panel32& to) {
  uint8_t c[32];
  split_nibbles(b + 8, c);
  fifth_bits(b + 4, c);
  put_codes(Kind::Q5_1, to.codes, to.row, to_quads(c));
  to.half(0, b);
  to.half(1, b + 2);
}
void lay_q8_0(const uint8_t* b, const Panel32& to) {
  Quads q = to_quads(b + 2);
  for (uint32_t& w : q) w ^= 0x80808080u;          // two's complement + 128
  put_codes(Kind::Q8_0, to.codes, to.row, q);
  to.half(0, b);
}

struct Panel256 {    // where one row's 256-input block goes
  Kind kind; uint8_t* unit; uint8_t* aux; int row;
  uint8_t* group(int g) const { return unit + g * code_bytes(kind); }
  void sub(int s, uint8_t v) const { unit[8 * code_bytes(kind) + 16 * s + row] = v; }
  void min(int subs, int s, uint8_t v) const { unit[8 * code_bytes(kind) + 16 * (subs + s) + row] = v; }
  void half(int slot, const uint8_t* f16) const { memcpy(aux + 32 * slot + 2 * row, f16, 2); }
};

// Q4_K and Q5_K: eight 6-bit scales and minima in twelve bytes; the last four borrow their top bits from the first.
void six_bit(const uint8_t* s, const Panel256& to) {
  for (int i = 0; i < 8; ++i) {
    const int lo = i & 3;
    to.sub(i, i < 4 ? s[i] & 63 : (s[lo + 8] & 15) | (s[lo] >> 6) << 4);
    to.min(8, i, i < 4 ? s[i + 4] & 63 : s[lo + 8] >> 4 | (s[lo + 4] >> 6) << 4);
  }
}
void lay_q4_k(const uint8_t* b, const Panel256& to) {
  const uint8_t* qs = b + 16;
  six_bit(b + 4, to);
  for (int g = 0; g < 8; ++g) {
    uint8_t c[32];
    for (int i = 0; i < 32; ++i) c[i] = g & 1 ? qs[32 * (g / 2) + i] >> 4 : qs[32 * (g / 2) + i] & 15;
    put_codes(Kind::Q4_K, to.group(g), to.row, to_quads(c));
  }
  to.half(0, b);
  to.half(1, b + 2);
}
void lay_q5_k(const uint8_t* b, const Panel256& to) {
  const uint8_t *qh = b + 16, *qs = b + 48;
  six_bit(b + 4, to);
  for (int g = 0; g < 8; ++g) {
    uint8_t c[32];
    for (int i = 0; i < 32; ++i) {
      const uint8_t q = qs[32 * (g / 2) + i];
      c[i] = static_cast<uint8_t>((g & 1 ? q >> 4 : q & 15) | ((qh[i] >> g) & 1) << 4);
    }
    put_codes(Kind::Q5_K, to.group(g), to.row, to_quads(c));
  }
  to.half(0, b);
  to.half(1, b + 2);
}
// Q6_K: two halves of 128; in each, low nibbles of 64 bytes and 32 bytes of two-bit tops make four groups of 32.
void lay_q6_k(const uint8_t* b, const Panel256& to) {
  for (int g = 0; g < 8; ++g) {
    const uint8_t *ql = b + 64 * (g / 4) + 32 * (g % 2), *qh = b + 128 + 32 * (g / 4);
    uint8_t c[32];
    for (int i = 0; i < 32; ++i)
      c[i] = static_cast<uint8_t>((g % 4 < 2 ? ql[i] & 15 : ql[i] >> 4) | ((qh[i] >> 2 * (g % 4)) & 3) << 4);
    put_codes(Kind::Q6_K, to.group(g), to.row, to_quads(c));
  }
  for (int s = 0; s < 16; ++s) to.sub(s, b[192 + s]);
  to.half(0, b + 208);
}
// Q3_K as Q6_K: code q in -4..3 becomes q + 32, its 6-bit scale minus 32 fits the int8 one. Exact, 6.56 for 3.44 bits.
void lay_q3_k(const uint8_t* b, const Panel256& to) {
  const uint8_t *hmask = b, *qs = b + 32, *sc = b + 96;
  for (int g = 0; g < 8; ++g) {
    uint8_t c[32];
    for (int i = 0; i < 32; ++i) {
      const int low = (qs[32 * (g / 4) + i] >> 2 * (g % 4)) & 3;
      c[i] = static_cast<uint8_t>(32 + low - ((hmask[i] >> g) & 1 ? 0 : 4));
    }
    put_codes(Kind::Q6_K, to.group(g), to.row, to_quads(c));
  }
  for (int s = 0; s < 16; ++s) {
    const int low = s < 8 ? sc[s] & 15 : sc[s - 8] >> 4, high = (sc[8 + s % 4] >> 2 * (s / 4)) & 3;
    to.sub(s, static_cast<uint8_t>((low | high << 4) - 32));
  }
  to.half(0, b + 108);
}
void lay_q2_k(const uint8_t* b, const Panel256& to) {
  for (int g = 0; g < 8; ++g) {
    uint8_t c[32];
    for (int i = 0; i < 32; ++i) c[i] = (b[16 + 32 * (g / 4) + i] >> 2 * (g % 4)) & 3;
    put_codes(Kind::Q2_K, to.group(g), to.row, to_quads(c));
  }
  for (int s = 0; s < 16; ++s) { to.sub(s, b[s] & 15); to.min(16, s, b[s] >> 4); }
  to.half(0, b + 80);
  to.half(1, b + 82);
}

// How each GGUF type is run. block: inputs and bytes of a block in the file.
struct Route {
  const char* type; Kind kind; int block, bytes;
  void (*lay32)(const uint8_t*, const Panel32&);
  void (*lay256)(const uint8_t*, const Panel256&);
};
constexpr Route kRoutes[] = {
    {"F32", Kind::F32, 1, 4, nullptr, nullptr},       {"F16", Kind::F16, 1, 2, nullptr, nullptr},
    {"BF16", Kind::BF16, 1, 2, nullptr, nullptr},     {"Q4_0", Kind::Q4_0, 32, 18, lay_q4_0, nullptr},
    {"Q4_1", Kind::Q4_1, 32, 20, lay_q4_1, nullptr},  {"Q5_0", Kind::Q5_0, 32, 22, lay_q5_0, nullptr},
    {"Q5_1", Kind::Q5_1, 32, 24, lay_q5_1, nullptr},  {"Q8_0", Kind::Q8_0, 32, 34, lay_q8_0, nullptr},
    {"Q2_K", Kind::Q2_K, 256, 84, nullptr, lay_q2_k}, {"Q3_K", Kind::Q6_K, 256, 110, nullptr, lay_q3_k},
    {"Q4_K", Kind::Q4_K, 256, 144, nullptr, lay_q4_k}, {"Q5_K", Kind::Q5_K, 256, 176, nullptr, lay_q5_k},
    {"Q6_K", Kind::Q6_K, 256, 210, nullptr, lay_q6_k},
};
const Route& route(std::string_view type) {
  for (const Route& r : kRoutes)
    if (type == r.type) return r;
  throw Error(ErrorKind::Usage, "no panels for type '" + std::string(type) + "'; lay its codes with pack_codes");
}

void lay_floats(const Route& r, const uint8_t* row, int64_t k, uint8_t* panel, int slot) {
  const int size = r.bytes;
  for (int64_t i = 0; i < k; ++i) memcpy(panel + (16 * i + slot) * size, row + i * size, static_cast<size_t>(size));
}
void lay_row(const Route& r, const uint8_t* row, int64_t k, uint8_t* panel, int slot) {
  const KindInfo& info = kInfo[static_cast<int>(r.kind)];
  if (info.unit_k == 1) return lay_floats(r, row, k, panel, slot);
  const int64_t units = k / info.unit_k;
  for (int64_t u = 0; u < units; ++u) {
    uint8_t *codes = panel + place(info, u).codes, *aux = panel + place(info, u).aux;
    if (r.lay32) r.lay32(row + u * r.bytes, {codes, aux, slot});
    else r.lay256(row + u * r.bytes, {r.kind, codes, aux, slot});
  }
}

std::shared_ptr<Matrix> make_matrix(Kind kind, int64_t n, int64_t k) {
  if (n < 1 || k < 1 || n > kMaxDim || k > kMaxDim)
    throw Error(ErrorKind::BadModelFile, "matrix of " + std::to_string(n) + " x " + std::to_string(k) + " is out of range");
  auto m = std::make_shared<Matrix>();
  m->w = {kind, n, k, panel_bytes(kind, k), nullptr, low_bytes(kind, k)};
  const __int128 total = static_cast<__int128>(m->w.panel_bytes + m->w.low_bytes) * m->w.count();
  if (total > (int64_t{1} << 46)) throw Error(ErrorKind::Capacity, "a matrix of more than 64 TB cannot be packed");
  m->memory = Memory::anonymous(static_cast<size_t>(total));
  m->w.data = m->memory->data;
  return m;
}
// Calls lay(panel number) over all panels on every thread, in chunks as threads come for them.
void each_panel(const Matrix& m, Threads& threads, const std::function<void(int64_t)>& lay) {
  std::atomic<int64_t> next{0};
  threads.run([&](int) {
    for (int64_t p; (p = next.fetch_add(1)) < m.w.count();) lay(p);
  });
}

// ---- a head's two planes ----------------------------------------------------------------------------------------
Kind in_planes(Kind kind) { return kind == Kind::Q8_0 ? Kind::Q8_0H : kind == Kind::Q6_K ? Kind::Q6_KH : kind; }

// What a row's product can differ by from the screen's for each unit of the activations' reach, where the row's low parts
// have norm `low` and its codes have norm `code`, both times the scales. By Cauchy and Schwarz over the whole row, so a
// bound costs the screen nothing a block; and the rounding of three float sums over k inputs, each term of which is
// within code * reach.
double reach_of(double low, double code, int64_t k) {
  const double terms = 2.0 * static_cast<double>(k) / 32 + 16;
  return std::max(low, code / kRestShare) * (1 + 0x1p-8) + terms * 0x1p-23 * code;
}
// Squared norms of 16 inputs: of the codes less their offset, and of low parts less their middle.
struct Norms { double code = 0, low = 0; };
Norms norms_of(const uint8_t* c, int bits) {
  Norms n;
  for (int i = 0; i < 16; ++i) {
    const double code = c[i] - (bits == 4 ? 128 : 32), low = (c[i] & ((1 << bits) - 1)) - (bits == 4 ? 8.0 : 1.5);
    n.code += code * code;
    n.low += low * low;
  }
  return n;
}

// A row's norms over its blocks, each with its scale; the row's reach lies behind the panel.
struct RowNorms {
  Norms sum;
  void add(const Norms& n, double scale) {
    sum.code += scale * scale * n.code;
    sum.low += scale * scale * n.low;
  }
  void store(Kind kind, int64_t k, uint8_t* high, int row) const {
    const auto above = std::nextafter(static_cast<float>(reach_of(std::sqrt(sum.low), std::sqrt(sum.code), k)), HUGE_VALF);
    memcpy(high + panel_bytes(kind, k) - 64 + 4 * row, &above, 4);
  }
};
float copy_scale(const uint8_t* from, uint8_t* to, int row) {
  uint16_t d;
  memcpy(&d, from + 2 * row, 2);
  memcpy(to + 2 * row, &d, 2);
  return f16_to_f32(d);
}

void split_32(int64_t k, const uint8_t* whole, uint8_t* high, uint8_t* low, int row) {
  const KindInfo &from = kInfo[static_cast<int>(Kind::Q8_0)], &to = kInfo[static_cast<int>(Kind::Q8_0H)];
  RowNorms norms;
  for (int64_t u = 0; u < k / 32; ++u) {
    const Quads q = get_codes(Kind::Q8_0, whole + place(from, u).codes, row);
    put_planes(Kind::Q8_0H, high + place(to, u).codes, low + u * to.low_bytes, row, q);
    const double d = copy_scale(whole + place(from, u).aux, high + place(to, u).aux, row);
    uint8_t c[32];
    memcpy(c, q.data(), 32);
    for (int h = 0; h < 2; ++h) norms.add(norms_of(c + 16 * h, 4), d);
  }
  norms.store(Kind::Q8_0H, k, high, row);
}
void split_256(int64_t k, const uint8_t* whole, uint8_t* high, uint8_t* low, int row) {
  const KindInfo &from = kInfo[static_cast<int>(Kind::Q6_K)], &to = kInfo[static_cast<int>(Kind::Q6_KH)];
  RowNorms norms;
  for (int64_t u = 0; u < k / 256; ++u) {
    const uint8_t* codes = whole + place(from, u).codes;
    uint8_t* p = high + place(to, u).codes;
    const double d = copy_scale(whole + place(from, u).aux, high + place(to, u).aux, row);
    for (int g = 0; g < 8; ++g) {
      const Quads q = get_codes(Kind::Q6_K, codes + g * code_bytes(Kind::Q6_K), row);
      put_planes(Kind::Q6_KH, p + g * code_bytes(Kind::Q6_KH), low + u * to.low_bytes + g * 128, row, q);
      uint8_t c[32];
      memcpy(c, q.data(), 32);
      for (int h = 0; h < 2; ++h) {
        const uint8_t sub = codes[8 * code_bytes(Kind::Q6_K) + 16 * (2 * g + h) + row];
        p[8 * code_bytes(Kind::Q6_KH) + 16 * (2 * g + h) + row] = sub;
        norms.add(norms_of(c + 16 * h, 2), d * static_cast<int8_t>(sub));
      }
    }
  }
  norms.store(Kind::Q6_KH, k, high, row);
}

class Anonymous final : public Memory {
 public:
  explicit Anonymous(size_t n) {
    // Whole 2 MB pages: a walk of 26 GB/s through 4 KB pages misses the TLB six million times a second.
    constexpr size_t kHuge = size_t{2} << 20;
    mapped_ = (std::max<size_t>(n, 1) + kHuge - 1) / kHuge * kHuge + (n >= kHuge ? kHuge : 0);
    void* p = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) throw Error(ErrorKind::Capacity, "the system refused " + std::to_string(n) + " bytes of memory");
    base_ = static_cast<uint8_t*>(p);
    data = base_;
    if (n >= kHuge) {
      data = base_ + (kHuge - reinterpret_cast<uintptr_t>(base_) % kHuge) % kHuge;
#ifdef MADV_HUGEPAGE
      madvise(data, (n + kHuge - 1) / kHuge * kHuge, MADV_HUGEPAGE);
#endif
    }
    bytes = n;
  }
  ~Anonymous() override { munmap(base_, mapped_); }
 private:
  uint8_t* base_;
  size_t mapped_;
};

float half_at(const uint8_t* aux, int slot, int row) {
  uint16_t h;
  memcpy(&h, aux + 32 * slot + 2 * row, 2);
  return f16_to_f32(h);
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
void decode_32(const Panels& w, const uint8_t* codes, const uint8_t* low, const uint8_t* aux, int row, float* out) {
  const Quads q = low ? get_planes(w.kind, codes, low, row) : get_codes(w.kind, codes, row);
  uint8_t c[32];
  memcpy(c, q.data(), 32);
  if (w.kind == Kind::I8) {
    float d[2];
    for (int h = 0; h < 2; ++h) memcpy(&d[h], aux + 64 * h + 4 * row, 4);
    for (int i = 0; i < 32; ++i) out[i] = d[i / 16] * static_cast<float>(c[i] - 128);
    return;
  }
  const bool min = w.kind == Kind::Q4_1 || w.kind == Kind::Q5_1;
  const int offset = w.kind == Kind::Q8_0 || w.kind == Kind::Q8_0H ? 128 : w.kind == Kind::Q5_0 ? 16 : w.kind == Kind::Q4_0 ? 8 : 0;
  const float d = half_at(aux, 0, row), m = min ? half_at(aux, 1, row) : 0.0f;
  for (int i = 0; i < 32; ++i) {
    const float v = d * static_cast<float>(c[i] - offset);
    out[i] = min ? v + m : v;
  }
}
void decode_256(const Panels& w, const uint8_t* unit, const uint8_t* low, const uint8_t* aux, int row, float* out) {
  const int width = code_bytes(w.kind);
  const bool signed_sub = w.kind == Kind::Q6_K || w.kind == Kind::Q6_KH, fine = signed_sub || w.kind == Kind::Q2_K;   // a sub-scale per 16
  const int subs = fine ? 16 : 8;
  const float d = half_at(aux, 0, row), dmin = signed_sub ? 0.0f : half_at(aux, 1, row);
  const uint8_t* sub = unit + 8 * width;
  for (int g = 0; g < 8; ++g) {
    const Quads q = low ? get_planes(w.kind, unit + g * width, low + g * 128, row) : get_codes(w.kind, unit + g * width, row);
    uint8_t c[32];
    memcpy(c, q.data(), 32);
    for (int i = 0; i < 32; ++i) {
      const int s = fine ? 2 * g + i / 16 : g;
      if (signed_sub) {
        out[32 * g + i] = d * static_cast<float>(static_cast<int8_t>(sub[16 * s + row])) * static_cast<float>(c[i] - 32);
      } else {
        const float scale = d * static_cast<float>(sub[16 * s + row]), low = dmin * static_cast<float>(sub[16 * (subs + s) + row]);
        out[32 * g + i] = scale * static_cast<float>(c[i]) - low;
      }
    }
  }
}

}  // namespace

const KindInfo& kind_info(Kind kind) { return kInfo[static_cast<int>(kind)]; }

std::shared_ptr<Memory> Memory::anonymous(size_t n) { return std::make_shared<Anonymous>(n); }

int64_t panel_bytes(Kind kind, int64_t k) {
  const KindInfo& info = kind_info(kind);
  if (k % info.unit_k)
    throw Error(ErrorKind::BadModelFile, std::string(info.name) + " rows must hold a multiple of " + std::to_string(info.unit_k) +
                                             " inputs, got " + std::to_string(k));
  const int64_t units = k / info.unit_k;
  const int64_t bytes = info.aux_bytes == 32 ? (units + 1) / 2 * (2 * info.unit_bytes + 64) : units * (info.unit_bytes + info.aux_bytes);
  return (bytes + 63) / 64 * 64 + (kind_info(kind).low_bytes ? 64 : 0);       // the rows' reach lies behind
}
int64_t low_bytes(Kind kind, int64_t k) { return k / kind_info(kind).unit_k * kind_info(kind).low_bytes; }

MatrixPtr pack(const uint8_t* raw, size_t raw_bytes, std::string_view type, int64_t n, int64_t k, Threads& threads, bool head) {
  const Route& r = route(type);
  std::shared_ptr<Matrix> m = make_matrix(head ? in_planes(r.kind) : r.kind, n, k);
  const int64_t row_bytes = k / r.block * r.bytes;
  if (k % r.block || raw_bytes / static_cast<size_t>(row_bytes) != static_cast<size_t>(n) || raw_bytes % static_cast<size_t>(row_bytes))
    throw Error(ErrorKind::BadModelFile, std::string(type) + " matrix of " + std::to_string(n) + " x " + std::to_string(k) +
                                             " does not take " + std::to_string(raw_bytes) + " bytes");
  each_panel(*m, threads, [&](int64_t p) {
    uint8_t* panel = const_cast<uint8_t*>(m->w.high(p));
    std::vector<uint8_t> whole(m->w.low_bytes ? static_cast<size_t>(panel_bytes(r.kind, k)) : 0);
    for (int64_t row = p * kPanelRows; row < std::min(n, (p + 1) * kPanelRows); ++row) {
      const int slot = static_cast<int>(row % kPanelRows);
      lay_row(r, raw + row * row_bytes, k, whole.empty() ? panel : whole.data(), slot);
      if (!whole.empty()) (r.lay32 ? split_32 : split_256)(k, whole.data(), panel, const_cast<uint8_t*>(m->w.low(p)), slot);
    }
  });
  return m;
}

MatrixPtr pack_codes(const int8_t* codes, const float* scales, int64_t n, int64_t k, Threads& threads) {
  std::shared_ptr<Matrix> m = make_matrix(Kind::I8, n, k);
  const KindInfo& info = kind_info(Kind::I8);
  const int64_t units = k / 32;
  each_panel(*m, threads, [&](int64_t p) {
    uint8_t* panel = m->memory->data + p * m->w.panel_bytes;
    for (int64_t row = p * kPanelRows; row < std::min(n, (p + 1) * kPanelRows); ++row) {
      const int slot = static_cast<int>(row % kPanelRows);
      for (int64_t u = 0; u < units; ++u) {
        Quads q = to_quads(reinterpret_cast<const uint8_t*>(codes) + row * k + 32 * u);
        for (uint32_t& w : q) w ^= 0x80808080u;
        const Place at = place(info, u);
        put_codes(Kind::I8, panel + at.codes, slot, q);
        for (int h = 0; h < 2; ++h) memcpy(panel + at.aux + 64 * h + 4 * slot, scales + row * (k / 16) + 2 * u + h, 4);
      }
    }
  });
  return m;
}

MatrixPtr pack_wide(const float* values, int64_t n, int64_t k, Threads& threads) {
  std::shared_ptr<Matrix> m = make_matrix(Kind::I16, n, k);
  if (!std::all_of(values, values + n * k, [](float x) { return std::isfinite(x); }))
    throw Error(ErrorKind::BadModelFile, "a matrix of " + std::to_string(n) + " x " + std::to_string(k) + " holds what is no number");
  each_panel(*m, threads, [&](int64_t p) {
    for (int64_t row = p * kPanelRows; row < std::min(n, (p + 1) * kPanelRows); ++row) {
      const int slot = static_cast<int>(row % kPanelRows);
      uint8_t* unit = m->memory->data + p * m->w.panel_bytes;
      for (const float *x = values + row * k, *end = x + k; x < end; x += kWideUnit, unit += kWideUnitBytes) {
        float most = 0.0f;
        for (int i = 0; i < kWideUnit; ++i) most = std::max(most, std::fabs(x[i]));
        const float scale = most / kWideCode, inverse = most > 1e-30f ? kWideCode / most : 0.0f;
        for (int i = 0; i < kWideUnit; ++i) {
          const auto code = static_cast<int16_t>(std::nearbyint(x[i] * inverse));
          memcpy(unit + 64 * (i / 2) + 4 * slot + 2 * (i % 2), &code, 2);
        }
        memcpy(unit + 32 * kWideUnit + 4 * slot, &scale, 4);
      }
    }
  });
  return m;
}

void decode_row(const Panels& w, int64_t row, float* out) {
  const uint8_t* panel = w.high(row / kPanelRows);
  const int slot = static_cast<int>(row % kPanelRows);
  const KindInfo& info = kind_info(w.kind);
  if (info.unit_k == 1) {
    for (int64_t i = 0; i < w.k; ++i) {
      const uint8_t* at = panel + (16 * i + slot) * (info.unit_bytes / 16);
      uint16_t h;
      if (w.kind == Kind::F32) memcpy(out + i, at, 4);
      else { memcpy(&h, at, 2); out[i] = w.kind == Kind::F16 ? f16_to_f32(h) : bf16_to_f32(h); }
    }
    return;
  }
  const int64_t units = w.k / info.unit_k;
  for (int64_t u = 0; u < units; ++u) {
    const uint8_t *codes = panel + place(info, u).codes, *aux = panel + place(info, u).aux;
    const uint8_t* low = info.low_bytes ? w.low(row / kPanelRows) + u * info.low_bytes : nullptr;
    if (w.kind == Kind::I16) decode_wide(codes, aux, slot, out + kWideUnit * u);
    else if (info.unit_k == 32) decode_32(w, codes, low, aux, slot, out + 32 * u);
    else decode_256(w, codes, low, aux, slot, out + 256 * u);
  }
}

std::vector<TypeRoute> type_routes() {
  std::vector<TypeRoute> out;
  for (const Route& r : kRoutes) {
    const KindInfo& info = kind_info(r.kind);
    const bool own = std::string_view(r.type) == info.name;
    out.push_back({r.type, info.name, own ? "own" : std::string("re-laid as ") + info.name, 8.0 * r.bytes / r.block,
                   8.0 * (info.unit_bytes + info.aux_bytes) / (16.0 * info.unit_k)});
  }
  return out;
}

}  // namespace fh
