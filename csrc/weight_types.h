// The weight types: a traits row each, and how a block of a model file is read into codes.
// Read by pack.cpp, the kernels (matmul, gemm, AMX, which choose their templates by it), the ops and the binding.
//
// To add one: an enumerator, its row in kWeightTypes and, if files hold it, a reader with its row in kFileTypes, all here;
// the loader's NumPy side has the file's layout in formats/blocks.py. Only a new way to keep codes (Planes) needs more:
// planes.h writes and reads it, and kernels/matmul.inl unpacks it.
#pragma once
#include <cstdint>
#include <cstring>

namespace fh {

// How a matrix lies in memory. Names follow GGUF where the arithmetic is the same.
enum class WeightType : uint8_t {
  F32, F16, BF16,                     // floats, [K][16]
  Q4_0, Q4_1, Q5_0, Q5_1, Q8_0,       // 32 inputs share a float scale (and minimum)
  Q2_K, Q4_K, Q5_K, Q6_K,             // 256 inputs share a float scale; 16 or 32 an integer one
  I8,                                 // int8 codes, one float32 scale per 16 inputs: codebook types re-laid
  Q8_0H, Q6_KH,                       // heads: the same codes in two planes, of which the high one alone can be read
  I16,                                // int16 codes, one float32 scale per 128 inputs: float weights of encoders
  MXFP4,                              // 4-bit floats of a table, 32 inputs share a float scale
  T2, T3,                             // windows of a bit stream into a table: trellis.h
  T8,                                 // the same as int8 codes, for machines whose kernels do not decode those at speed
  kCount,
};
constexpr int kWeightTypeCount = static_cast<int>(WeightType::kCount);

// The loops that multiply a weight type. They fix the block of inputs that share a row's floats, and what those are:
// none; f16 per 32 or 256 inputs; float32 per 16; the first two again in a head's two planes; float32 per 128 (int16 codes);
// a factor per 32 inputs and f16 per row, of windows (T2, T3) or bytes (T8).
enum class Form : uint8_t { Floats, Blocks32, Blocks256, Scales16, Head32, Head256, Wide, Trellis, Rows32 };

// How 32 inputs' codes of sixteen rows lie: kernels/matmul.inl draws the planes. Float elements for Form::Floats.
enum class Planes : uint8_t { None, Float32, Half, BFloat, Nibble, Nibble1, Nibble2, TwoBit, Byte, Wide, E2M1, Trellis2, Trellis3 };
constexpr int plane_bytes(Planes p) {
  switch (p) {
    case Planes::TwoBit: case Planes::Trellis2: return 128;
    case Planes::Trellis3: return 192;
    case Planes::Nibble: case Planes::E2M1: return 256;
    case Planes::Nibble1: return 320;
    case Planes::Nibble2: return 384;
    case Planes::Byte: return 512;
    case Planes::Wide: return 1024;
    default: return 0;
  }
}

// Planes::E2M1: what a nibble's 4-bit float, doubled, is as a code with offset 12.
constexpr uint8_t kE2m1Codes[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};

// The forms in which activations meet weights: floats; int8 with a scale per 32 or per 256 inputs; int16 per 128; bfloat16, which
// no weight type wants by itself: see Kernels::gemm_rounded.
constexpr int kActF32 = 0, kAct32 = 1, kAct256 = 2, kActWide = 3, kActRounded = 4, kActs = 5;
// Wide codes: int16 within +-4095, 128 inputs to a scale; encoder.inl says why.
constexpr int kWideUnit = 128, kWideCode = 4095;

// The arithmetic: value = d * (sub * (code - offset)) - minimum (Blocks32: + minimum). All compile-time in the kernels.
// A panel is units one after another, each covering unit() inputs of 16 rows: codes, integer sub-scales, then the rows'
// floats. Where those take 32 bytes, two units' codes come first and then both units' floats, to keep to cache lines.
// Floats after all of a panel's codes, a stream of their own, missed the cache: 30 GB/s where this way gives 45.
struct WeightTraits {
  const char* name;
  Form form;
  Planes planes;
  int offset = 0;
  bool min = false;          // a minimum (Blocks32: f16; Blocks256: integers under a second f16) beside each scale
  int sub = 0;               // inputs that share an integer sub-scale; 0: there are none
  bool signed_sub = false;
  WeightType head = WeightType::kCount;   // the same codes in two planes, for an output head
  Planes low = Planes::None;              // of a head: the bits under the upper nibble

  constexpr int unit() const {            // inputs
    return form == Form::Floats ? 1 : form == Form::Wide ? kWideUnit : form == Form::Blocks256 || form == Form::Head256 || form == Form::Trellis ? 256 : 32;
  }
  constexpr int groups() const { return unit() / 32; }
  constexpr int subs() const { return sub ? unit() / sub : 0; }
  constexpr int unit_bytes() const {      // codes and sub-scales
    if (form == Form::Floats) return planes == Planes::Float32 ? 64 : 32;
    return groups() * plane_bytes(planes) + 16 * subs() * (min ? 2 : 1);
  }
  constexpr int aux_bytes() const {       // float scales and minima; of 256 inputs always room for both, one cache line
    switch (form) {
      case Form::Floats: return 0;
      case Form::Blocks32: case Form::Head32: case Form::Rows32: return min ? 64 : 32;
      case Form::Scales16: return 128;
      default: return 64;
    }
  }
  constexpr int trellis_bits() const { return planes == Planes::Trellis2 ? 2 : planes == Planes::Trellis3 ? 3 : 0; }
  constexpr int low_bytes() const { return groups() * plane_bytes(low); }
  constexpr int low_bits() const { return low == Planes::Nibble ? 4 : low == Planes::TwoBit ? 2 : 0; }
  constexpr int act() const {
    switch (form) {
      case Form::Floats: return kActF32;
      case Form::Wide: return kActWide;
      case Form::Blocks256: case Form::Head256: return kAct256;
      default: return kAct32;
    }
  }
};

constexpr WeightTraits kWeightTypes[kWeightTypeCount] = {
    {.name = "F32", .form = Form::Floats, .planes = Planes::Float32},
    {.name = "F16", .form = Form::Floats, .planes = Planes::Half},
    {.name = "BF16", .form = Form::Floats, .planes = Planes::BFloat},
    {.name = "Q4_0", .form = Form::Blocks32, .planes = Planes::Nibble, .offset = 8},
    {.name = "Q4_1", .form = Form::Blocks32, .planes = Planes::Nibble, .min = true},
    {.name = "Q5_0", .form = Form::Blocks32, .planes = Planes::Nibble1, .offset = 16},
    {.name = "Q5_1", .form = Form::Blocks32, .planes = Planes::Nibble1, .min = true},
    {.name = "Q8_0", .form = Form::Blocks32, .planes = Planes::Byte, .offset = 128, .head = WeightType::Q8_0H},
    {.name = "Q2_K", .form = Form::Blocks256, .planes = Planes::TwoBit, .min = true, .sub = 16},
    {.name = "Q4_K", .form = Form::Blocks256, .planes = Planes::Nibble, .min = true, .sub = 32},
    {.name = "Q5_K", .form = Form::Blocks256, .planes = Planes::Nibble1, .min = true, .sub = 32},
    {.name = "Q6_K", .form = Form::Blocks256, .planes = Planes::Nibble2, .offset = 32, .sub = 16, .signed_sub = true, .head = WeightType::Q6_KH},
    {.name = "I8", .form = Form::Scales16, .planes = Planes::Byte, .offset = 128},
    {.name = "Q8_0H", .form = Form::Head32, .planes = Planes::Nibble, .offset = 128, .low = Planes::Nibble},
    {.name = "Q6_KH", .form = Form::Head256, .planes = Planes::Nibble, .offset = 32, .sub = 16, .signed_sub = true, .low = Planes::TwoBit},
    {.name = "I16", .form = Form::Wide, .planes = Planes::Wide},
    {.name = "MXFP4", .form = Form::Blocks32, .planes = Planes::E2M1, .offset = 12},
    {.name = "T2", .form = Form::Trellis, .planes = Planes::Trellis2, .offset = 128},
    {.name = "T3", .form = Form::Trellis, .planes = Planes::Trellis3, .offset = 128},
    {.name = "T8", .form = Form::Rows32, .planes = Planes::Byte, .offset = 128},
};
constexpr const WeightTraits& traits(WeightType type) { return kWeightTypes[static_cast<int>(type)]; }
static_assert(kWeightTypes[kWeightTypeCount - 1].name, "kWeightTypes has a row for each weight type");

// ---- blocks of model files -------------------------------------------------------------------------------------
// A block as every type is read: codes in order of inputs, integer scales (and minima) per `sub` inputs, f16 floats.
struct FileBlock {
  uint8_t codes[256];
  uint8_t sub[16], min[16];
  uint16_t d, dmin;
};

// 32 inputs keep input i in the low nibble of byte i and input i + 16 in the high one.
inline void split_nibbles(const uint8_t* qs, uint8_t* codes) {
  for (int i = 0; i < 16; ++i) { codes[i] = qs[i] & 15; codes[i + 16] = qs[i] >> 4; }
}
inline void fifth_bits(const uint8_t* qh, uint8_t* codes) {
  for (int i = 0; i < 32; ++i) codes[i] |= static_cast<uint8_t>((qh[i / 8] >> (i % 8) & 1) << 4);
}
inline void f16s(const uint8_t* at, uint16_t& first, uint16_t* second = nullptr) {
  memcpy(&first, at, 2);
  if (second) memcpy(second, at + 2, 2);
}

inline void read_q4_0(const uint8_t* b, FileBlock& to) { f16s(b, to.d); split_nibbles(b + 2, to.codes); }
inline void read_q4_1(const uint8_t* b, FileBlock& to) { f16s(b, to.d, &to.dmin); split_nibbles(b + 4, to.codes); }
inline void read_q5_0(const uint8_t* b, FileBlock& to) { f16s(b, to.d); split_nibbles(b + 6, to.codes); fifth_bits(b + 2, to.codes); }
inline void read_q5_1(const uint8_t* b, FileBlock& to) { f16s(b, to.d, &to.dmin); split_nibbles(b + 8, to.codes); fifth_bits(b + 4, to.codes); }
inline void read_q8_0(const uint8_t* b, FileBlock& to) {
  f16s(b, to.d);
  for (int i = 0; i < 32; ++i) to.codes[i] = b[2 + i] ^ 0x80;          // two's complement + 128
}
// Q4_K and Q5_K: eight 6-bit scales and minima in twelve bytes; the last four borrow their top bits from the first.
inline void six_bit(const uint8_t* s, FileBlock& to) {
  for (int i = 0; i < 8; ++i) {
    const int lo = i & 3;
    to.sub[i] = static_cast<uint8_t>(i < 4 ? s[i] & 63 : (s[lo + 8] & 15) | (s[lo] >> 6) << 4);
    to.min[i] = static_cast<uint8_t>(i < 4 ? s[i + 4] & 63 : s[lo + 8] >> 4 | (s[lo + 4] >> 6) << 4);
  }
}
inline void read_q4_k(const uint8_t* b, FileBlock& to) {
  f16s(b, to.d, &to.dmin);
  six_bit(b + 4, to);
  for (int i = 0; i < 256; ++i) {
    const uint8_t q = b[16 + 32 * (i / 64) + i % 32];
    to.codes[i] = i / 32 & 1 ? q >> 4 : q & 15;
  }
}
inline void read_q5_k(const uint8_t* b, FileBlock& to) {
  f16s(b, to.d, &to.dmin);
  six_bit(b + 4, to);
  for (int i = 0; i < 256; ++i) {
    const int g = i / 32;
    const uint8_t q = b[48 + 32 * (g / 2) + i % 32];
    to.codes[i] = static_cast<uint8_t>((g & 1 ? q >> 4 : q & 15) | ((b[16 + i % 32] >> g) & 1) << 4);
  }
}
// Q6_K: two halves of 128; in each, low nibbles of 64 bytes and 32 bytes of two-bit tops make four groups of 32.
inline void read_q6_k(const uint8_t* b, FileBlock& to) {
  for (int g = 0; g < 8; ++g) {
    const uint8_t *ql = b + 64 * (g / 4) + 32 * (g % 2), *qh = b + 128 + 32 * (g / 4);
    for (int i = 0; i < 32; ++i)
      to.codes[32 * g + i] = static_cast<uint8_t>((g % 4 < 2 ? ql[i] & 15 : ql[i] >> 4) | ((qh[i] >> 2 * (g % 4)) & 3) << 4);
  }
  memcpy(to.sub, b + 192, 16);
  f16s(b + 208, to.d);
}
// Q3_K as Q6_K: code q in -4..3 becomes q + 32, its 6-bit scale minus 32 fits the int8 one. Exact, 6.56 for 3.44 bits.
inline void read_q3_k(const uint8_t* b, FileBlock& to) {
  const uint8_t *hmask = b, *qs = b + 32, *sc = b + 96;
  for (int i = 0; i < 256; ++i) {
    const int g = i / 32, low = (qs[32 * (g / 4) + i % 32] >> 2 * (g % 4)) & 3;
    to.codes[i] = static_cast<uint8_t>(32 + low - ((hmask[i % 32] >> g) & 1 ? 0 : 4));
  }
  for (int s = 0; s < 16; ++s) {
    const int low = s < 8 ? sc[s] & 15 : sc[s - 8] >> 4, high = (sc[8 + s % 4] >> 2 * (s / 4)) & 3;
    to.sub[s] = static_cast<uint8_t>((low | high << 4) - 32);
  }
  f16s(b + 108, to.d);
}
inline void read_q2_k(const uint8_t* b, FileBlock& to) {
  for (int i = 0; i < 256; ++i) to.codes[i] = (b[16 + 32 * (i / 128) + i % 32] >> 2 * (i / 32 % 4)) & 3;
  for (int s = 0; s < 16; ++s) { to.sub[s] = b[s] & 15; to.min[s] = b[s] >> 4; }
  f16s(b + 80, to.d, &to.dmin);
}

// MXFP4: a power of two, half of which as f16 is exact from 2^-24 to 2^15 (the loader lays others as I8; zero where all
// codes are), and nibbles that stay what they are: the kernels look them up.
inline void read_mxfp4(const uint8_t* b, FileBlock& to) {
  const int e = b[0];
  to.d = static_cast<uint16_t>(e < 104 || e > 143 ? 0 : e < 114 ? 1 << (e - 104) : (e - 113) << 10);
  split_nibbles(b + 1, to.codes);
}

// How each GGUF type is run; types that are not here are decoded to codes (I8) by the loader.
struct FileType {
  const char* name;
  WeightType type;
  int block, bytes;                                        // inputs and bytes of a block in the file
  void (*read)(const uint8_t* block, FileBlock& to) = nullptr; // floats lie as they are
};
constexpr FileType kFileTypes[] = {
    {"F32", WeightType::F32, 1, 4},
    {"F16", WeightType::F16, 1, 2},
    {"BF16", WeightType::BF16, 1, 2},
    {"Q4_0", WeightType::Q4_0, 32, 18, read_q4_0},
    {"Q4_1", WeightType::Q4_1, 32, 20, read_q4_1},
    {"Q5_0", WeightType::Q5_0, 32, 22, read_q5_0},
    {"Q5_1", WeightType::Q5_1, 32, 24, read_q5_1},
    {"Q8_0", WeightType::Q8_0, 32, 34, read_q8_0},
    {"Q2_K", WeightType::Q2_K, 256, 84, read_q2_k},
    {"Q3_K", WeightType::Q6_K, 256, 110, read_q3_k},
    {"Q4_K", WeightType::Q4_K, 256, 144, read_q4_k},
    {"Q5_K", WeightType::Q5_K, 256, 176, read_q5_k},
    {"Q6_K", WeightType::Q6_K, 256, 210, read_q6_k},
    {"MXFP4", WeightType::MXFP4, 32, 17, read_mxfp4},
    {"T2", WeightType::T2, 64, 17},                          // and 2 bytes a row, and a table: pack_trellis.cpp
    {"T3", WeightType::T3, 64, 25},
};

}  // namespace fh
