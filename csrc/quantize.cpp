// Rounds float rows to blocks of a GGUF weight type, by least squares: how weights that a repository holds as floats
// become smaller when they are packed. Knows the blocks of three types (the readers in weight_types.h invert them);
// knows no panels. Plain loops in a fixed order, so that every machine makes the same bytes.
//
// A sub-block's scale is searched: each of some scales near max|x| / max|q| gives codes, and the codes a best scale; the
// pair with the least squared error is kept. A squared error counts half by itself, half by the weight's own square:
// inputs being equal, large weights decide a dot product.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>

#include "freehold.h"
#include "weight_types.h"

namespace fh {
namespace {

// To the nearest integer, of halves the even one; |x| < 2^22.
float nearest(float x) { return (x + 12582912.0f) - 12582912.0f; }
float clamped(float x, float low, float high) { return std::min(std::max(x, low), high); }
void put_f16(uint8_t* at, uint16_t f16) { memcpy(at, &f16, 2); }

// How much each squared error counts, for n weights.
void importance(const float* x, int n, float* w) {
  float sum = 0;
  for (int i = 0; i < n; ++i) sum += x[i] * x[i];
  for (int i = 0; i < n; ++i) w[i] = sum / static_cast<float>(n) + x[i] * x[i];
}

// The scale s of sixteen weights x ~ s * q, q in [-32, 31]; negative where the greatest weight in size is positive.
float symmetric_scale(const float* x) {
  float greatest = 0, w[16];
  for (int i = 0; i < 16; ++i)
    if (std::fabs(x[i]) > std::fabs(greatest)) greatest = x[i];
  if (greatest == 0) return 0;
  importance(x, 16, w);
  float best = 0, scale = 0;
  for (int step = -9; step <= 9; ++step) {
    const float inverse = -(32.0f + 0.1f * static_cast<float>(step)) / greatest;
    float xq = 0, qq = 0;
    for (int i = 0; i < 16; ++i) {
      const float q = clamped(nearest(inverse * x[i]), -32, 31);
      xq += w[i] * x[i] * q;
      qq += w[i] * q * q;
    }
    if (qq > 0 && xq * xq > best * qq) {      // the error falls by xq^2 / qq
      best = xq * xq / qq;
      scale = xq / qq;
    }
  }
  return scale;
}

// Scale and minimum of 32 weights x ~ scale * q - minimum, q in [0, 15], minimum >= 0.
struct Affine { float scale = 0, minimum = 0; };
Affine affine_scale(const float* x) {
  float low = 0, high = 0, w[32];
  for (int i = 0; i < 32; ++i) {
    low = std::min(low, x[i]);
    high = std::max(high, x[i]);
  }
  if (high == low) return {};
  importance(x, 32, w);
  Affine best;
  float least = INFINITY;
  for (int step = -8; step <= 6; ++step) {
    const float inverse = (15.0f + 0.2f * static_cast<float>(step)) / (high - low);
    float q[32], sw = 0, sq = 0, sqq = 0, sx = 0, sxq = 0;
    for (int i = 0; i < 32; ++i) {
      q[i] = clamped(nearest(inverse * (x[i] - low)), 0, 15);
      sw += w[i];
      sq += w[i] * q[i];
      sqq += w[i] * q[i] * q[i];
      sx += w[i] * x[i];
      sxq += w[i] * x[i] * q[i];
    }
    const float d = sw * sqq - sq * sq;       // 0 where all codes are the same
    Affine fit{(high - low) / 15, -low};
    if (d > 0) fit = {(sw * sxq - sx * sq) / d, -(sqq * sx - sq * sxq) / d};
    if (sqq > 0 && !(d > 0 && fit.minimum >= 0)) fit = {sxq / sqq, 0};
    float error = 0;
    for (int i = 0; i < 32; ++i) {
      const float off = fit.scale * q[i] - fit.minimum - x[i];
      error += w[i] * off * off;
    }
    if (fit.scale > 0 && error < least) {
      least = error;
      best = fit;
    }
  }
  return best;
}

void write_q8_0(const float* x, uint8_t* b) {
  float most = 0;
  for (int i = 0; i < 32; ++i) most = std::max(most, std::fabs(x[i]));
  const uint16_t d = f32_to_f16(most / 127.0f);
  const float inverse = f16_to_f32(d) > 0 ? 1.0f / f16_to_f32(d) : 0;
  put_f16(b, d);
  for (int i = 0; i < 32; ++i) b[2 + i] = static_cast<uint8_t>(static_cast<int8_t>(clamped(nearest(x[i] * inverse), -127, 127)));
}

void write_q6_k(const float* x, uint8_t* b) {
  float scale[16], greatest = 0;
  for (int s = 0; s < 16; ++s) {
    scale[s] = symmetric_scale(x + 16 * s);
    if (std::fabs(scale[s]) > std::fabs(greatest)) greatest = scale[s];
  }
  memset(b, 0, 210);
  const uint16_t half = f32_to_f16(greatest / -128.0f);
  const float d = f16_to_f32(half);
  put_f16(b + 208, half);
  if (d == 0) return;
  for (int s = 0; s < 16; ++s) {
    const float sub = clamped(nearest(scale[s] / d), -128, 127);
    b[192 + s] = static_cast<uint8_t>(static_cast<int8_t>(sub));
    const float unit = d * sub;
    for (int i = 16 * s; i < 16 * s + 16; ++i) {
      const auto q = static_cast<uint8_t>(unit != 0 ? clamped(nearest(x[i] / unit), -32, 31) + 32 : 32);
      const int g = i / 32, at = i % 32;
      b[64 * (g / 4) + 32 * (g % 2) + at] |= static_cast<uint8_t>((q & 15) << (g % 4 < 2 ? 0 : 4));
      b[128 + 32 * (g / 4) + at] |= static_cast<uint8_t>((q >> 4) << 2 * (g % 4));
    }
  }
}

// Eight 6-bit scales and minima in twelve bytes: see six_bit() in weight_types.h.
void write_six_bit(const uint8_t* sub, const uint8_t* min, uint8_t* to) {
  for (int i = 0; i < 4; ++i) {
    to[i] = static_cast<uint8_t>(sub[i] | (sub[i + 4] >> 4) << 6);
    to[i + 4] = static_cast<uint8_t>(min[i] | (min[i + 4] >> 4) << 6);
    to[i + 8] = static_cast<uint8_t>((sub[i + 4] & 15) | (min[i + 4] & 15) << 4);
  }
}

void write_q4_k(const float* x, uint8_t* b) {
  Affine fit[8];
  float scale = 0, minimum = 0;
  for (int s = 0; s < 8; ++s) {
    fit[s] = affine_scale(x + 32 * s);
    scale = std::max(scale, fit[s].scale);
    minimum = std::max(minimum, fit[s].minimum);
  }
  const uint16_t half = f32_to_f16(scale / 63.0f), half_min = f32_to_f16(minimum / 63.0f);
  const float d = f16_to_f32(half), dmin = f16_to_f32(half_min);
  uint8_t sub[8], min[8];
  memset(b, 0, 144);
  put_f16(b, half);
  put_f16(b + 2, half_min);
  for (int s = 0; s < 8; ++s) {
    sub[s] = static_cast<uint8_t>(d > 0 ? clamped(nearest(fit[s].scale / d), 0, 63) : 0);
    min[s] = static_cast<uint8_t>(dmin > 0 ? clamped(nearest(fit[s].minimum / dmin), 0, 63) : 0);
    const float unit = d * sub[s], offset = dmin * min[s];
    for (int i = 0; i < 32; ++i) {
      const auto q = static_cast<uint8_t>(unit > 0 ? clamped(nearest((x[32 * s + i] + offset) / unit), 0, 15) : 0);
      b[16 + 32 * (s / 2) + i] |= static_cast<uint8_t>(q << (s & 1 ? 4 : 0));
    }
  }
  write_six_bit(sub, min, b + 4);
}

struct Writer { const char* name; int inputs, bytes; void (*write)(const float*, uint8_t*); };
constexpr Writer kWriters[] = {{"Q8_0", 32, 34, write_q8_0}, {"Q6_K", 256, 210, write_q6_k}, {"Q4_K", 256, 144, write_q4_k}};

const Writer& writer(std::string_view type) {
  for (const Writer& w : kWriters)
    if (type == w.name) return w;
  throw Error(ErrorKind::Usage, "floats are not rounded to '" + std::string(type) + "'; to Q8_0, Q6_K and Q4_K they are");
}

}  // namespace

int64_t quantized_row_bytes(std::string_view type, int64_t k) {
  const Writer& w = writer(type);
  if (k < 1 || k % w.inputs) throw Error(ErrorKind::Usage, "rows of " + std::to_string(k) + " do not divide into blocks of " + std::to_string(w.inputs) + ", which " + std::string(type) + " has");
  return k / w.inputs * w.bytes;
}

void quantize_rows(const float* values, int64_t n, int64_t k, std::string_view type, Threads& threads, uint8_t* out) {
  const Writer& w = writer(type);
  const int64_t bytes = quantized_row_bytes(type, k), blocks = k / w.inputs;
  std::atomic<int64_t> next{0};
  threads.run([&](int) {
    for (int64_t row; (row = next.fetch_add(1)) < n;)
      for (int64_t i = 0; i < blocks; ++i) w.write(values + row * k + i * w.inputs, out + row * bytes + i * w.bytes);
  });
}

}  // namespace fh
