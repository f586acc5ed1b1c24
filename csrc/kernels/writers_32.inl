// Writers of the types whose 32 weights share a float scale (and minimum): Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0. Without importance
// the largest weight (or the range) alone sets the scale; with it the scale is searched.

struct Coded32 { uint8_t codes[kTileBlocks][32]; float scale[kTileBlocks], minimum[kTileBlocks]; };

LANE void put_f16(uint8_t* at, float x) {
  const uint16_t half = f32_to_f16(x);
  memcpy(at, &half, 2);
}
LANE void put_nibbles(const uint8_t* codes, uint8_t* at) {
  for (int i = 0; i < 16; ++i) at[i] = static_cast<uint8_t>((codes[i] & 15) | codes[i + 16] << 4);
}
LANE void put_fifth_bits(const uint8_t* codes, uint8_t* at) {
  uint32_t bits = 0;
  for (int i = 0; i < 32; ++i) bits |= static_cast<uint32_t>(codes[i] >> 4 & 1) << i;
  memcpy(at, &bits, 4);
}
// 1 / scale, zero for a zero scale. Of a scale so small that this is infinite, codes are zero (`usable` is): what x86 converts
// infinity and NaN to has a zero low byte, and the float16 of such a scale is zero too.
struct Reciprocal { float value; int usable; };
LANE Reciprocal reciprocal(float scale) {
  const float value = scale != 0 ? 1 / scale : 0;
  const bool usable = __builtin_fabsf(value) < __builtin_inff();
  return {usable ? value : 0, usable ? -1 : 0};
}
LANE void put_codes(Ints codes, int usable, uint8_t* to) {
  const Bytes bytes = __builtin_convertvector(codes & usable, Bytes);
  memcpy(to, &bytes, kLanes);
}

// Codes from 0 to 2 * most - 1 around `most`: x / (largest / -most) + most, halves up.
static void code_by_largest(const Tile& t, int most, Coded32& to) {
  for (int b = 0; b < kTileBlocks; b += kLanes) {
    Floats x[32];
    gather<32>(t.x + 32 * b, 32, x);
    store(to.scale + b, largest(x, 32).value / static_cast<float>(-most));
  }
  for (int b = 0; b < kTileBlocks; ++b) {
    const Reciprocal r = reciprocal(to.scale[b]);
    for (int i = 0; i < 32; i += kLanes) {
      const Ints code = whole(load(t.x + 32 * b + i) * r.value + (static_cast<float>(most) + 0.5f));
      put_codes(code < 2 * most - 1 ? code : all(2 * most - 1), r.usable, to.codes[b] + i);
    }
  }
}
// Codes from 0 to `most` over the range from the least weight to the largest.
static void code_by_range(const Tile& t, int most, Coded32& to) {
  for (int b = 0; b < kTileBlocks; b += kLanes) {
    Floats x[32];
    gather<32>(t.x + 32 * b, 32, x);
    Floats low = x[0], high = x[0];
    for (int i = 1; i < 32; ++i) {
      low = x[i] < low ? x[i] : low;
      high = x[i] > high ? x[i] : high;
    }
    store(to.scale + b, (high - low) / static_cast<float>(most));
    store(to.minimum + b, low);
  }
  for (int b = 0; b < kTileBlocks; ++b) {
    const Reciprocal r = reciprocal(to.scale[b]);
    for (int i = 0; i < 32; i += kLanes) {
      const Ints code = whole((load(t.x + 32 * b + i) - to.minimum[b]) * r.value + 0.5f);
      put_codes(code < most ? code : all(most), r.usable, to.codes[b] + i);
    }
  }
}

LANE void gather_weighted(const Tile& t, int b, Floats* x, Floats* w) {
  gather<32>(t.x + 32 * b, 32, x);
  gather<32>(t.importance + 32 * b, 32, w);
  weighted<32>(x, load(t.mean_squares + b), w);
}
static void search_symmetric(const Tile& t, int most, Coded32& to) {
  for (int b = 0; b < kTileBlocks; b += kLanes) {
    Floats x[32], w[32];
    Ints codes[32];
    gather_weighted(t, b, x, w);
    store(to.scale + b, symmetric_scale<32>(x, w, most, codes));
    scatter(codes, 32, 32, to.codes[b]);
  }
}
static void search_affine(const Tile& t, int most, Coded32& to) {
  for (int b = 0; b < kTileBlocks; b += kLanes) {
    Floats x[32], w[32];
    Ints codes[32];
    gather_weighted(t, b, x, w);
    const Affine fit = affine_scale<32>(x, w, most, {-0.9f, 0.05f, 36, false}, codes);
    store(to.scale + b, fit.scale);
    store(to.minimum + b, -fit.minimum);
    scatter(codes, 32, 32, to.codes[b]);
  }
}

static void write_q4_0(const Tile& t) {
  Coded32 c;
  t.importance ? search_symmetric(t, 8, c) : code_by_largest(t, 8, c);
  for (int b = 0; b < kTileBlocks; ++b) {
    uint8_t* at = t.out + 18 * b;
    put_f16(at, c.scale[b]);
    put_nibbles(c.codes[b], at + 2);
  }
}
static void write_q4_1(const Tile& t) {
  Coded32 c;
  t.importance ? search_affine(t, 15, c) : code_by_range(t, 15, c);
  for (int b = 0; b < kTileBlocks; ++b) {
    uint8_t* at = t.out + 20 * b;
    put_f16(at, c.scale[b]);
    put_f16(at + 2, c.minimum[b]);
    put_nibbles(c.codes[b], at + 4);
  }
}
static void write_q5_0(const Tile& t) {
  Coded32 c;
  t.importance ? search_symmetric(t, 16, c) : code_by_largest(t, 16, c);
  for (int b = 0; b < kTileBlocks; ++b) {
    uint8_t* at = t.out + 22 * b;
    put_f16(at, c.scale[b]);
    put_fifth_bits(c.codes[b], at + 2);
    put_nibbles(c.codes[b], at + 6);
  }
}
static void write_q5_1(const Tile& t) {
  Coded32 c;
  t.importance ? search_affine(t, 31, c) : code_by_range(t, 31, c);
  for (int b = 0; b < kTileBlocks; ++b) {
    uint8_t* at = t.out + 24 * b;
    put_f16(at, c.scale[b]);
    put_f16(at + 2, c.minimum[b]);
    put_fifth_bits(c.codes[b], at + 4);
    put_nibbles(c.codes[b], at + 8);
  }
}
// Importance changes nothing here.
static void write_q8_0(const Tile& t) {
  float scale[kTileBlocks];
  for (int b = 0; b < kTileBlocks; b += kLanes) {
    Floats x[32];
    gather<32>(t.x + 32 * b, 32, x);
    store(scale + b, largest(x, 32).size / 127.0f);
  }
  for (int b = 0; b < kTileBlocks; ++b) {
    uint8_t* at = t.out + 34 * b;
    const Reciprocal r = reciprocal(scale[b]);
    put_f16(at, scale[b]);
    for (int i = 0; i < 32; i += kLanes) put_codes(nearest_away(load(t.x + 32 * b + i) * r.value), r.usable, at + 2 + i);
  }
}
