// Writers of the types whose 256 weights share one or two float16s, and whose groups of 16 or 32 have integer scales under
// them: Q2_K to Q6_K. Three passes: each group's scale is searched, the block's groups' scales are rounded against each other,
// and the weights are rounded by what is left of their group's scale. A group whose scale rounds to zero keeps its first codes.

// What the first two passes leave of sixteen blocks; groups one after another, block by block.
template <int N> struct Groups {
  static constexpr int kCount = 256 / N;                            // of a block
  float scale[kTileBlocks * kCount], minimum[kTileBlocks * kCount], weight[kTileBlocks * kCount];
  Ints first[kTileBlocks * 256 / kLanes];                           // the first codes, in lanes: see first_code
  uint8_t first_code(int group, int i) const {
    return static_cast<uint8_t>(first[group / kLanes * N + i][group % kLanes]);
  }
};

// Mean squares of each of a tile's blocks, times `factor`: the order is a factor, the sum, a division.
LANE void block_mean_squares(const Tile& t, float factor, float* out) {
  for (int b = 0; b < kTileBlocks; b += kLanes) {
    Floats sum = all(0.0f);
    for (int c = 0; c < 256; c += 16) {
      Floats x[16];
      gather<16>(t.x + 256 * b + c, 256, x);
      for (int i = 0; i < 16; ++i) sum += x[i] * x[i];
    }
    store(out + b, factor * sum / 256.0f);
  }
}
// The first pass: search(x, w, group, codes) gives kLanes groups' scales (and keeps their minima), from the group `group` on.
template <int N, class Search> LANE void each_group(const Tile& t, Groups<N>& g, Search search) {
  for (int group = 0; group < kTileBlocks * g.kCount; group += kLanes) {
    Floats x[N], w[N];
    gather<N>(t.x + N * group, N, x);
    if (t.importance) gather<N>(t.importance + N * group, N, w);
    store(g.scale + group, search(x, w, group, g.first + group / kLanes * N));
  }
}
// Importance, as most types take it; mean_squares is one for each block.
template <int N> LANE void weigh(Groups<N>& g, const Floats* x, const float* mean_squares, int group, Floats* w) {
  float each[kLanes];
  for (int l = 0; l < kLanes; ++l) each[l] = mean_squares[(group + l) / g.kCount];
  weighted<N>(x, load(each), w);
  Floats sum = all(0.0f);
  for (int i = 0; i < N; ++i) sum += w[i];
  store(g.weight + group, sum);
}

// A block's groups rounded against each other: integers and the float16 that they count in.
struct Rounded { uint8_t value[kTileBlocks][16]; float unit[kTileBlocks]; };
template <int N> LANE void round_positive(const float* values, const float* weights, int most, Rounded& to) {
  constexpr int kCount = 256 / N;
  for (int b = 0; b < kTileBlocks; b += kLanes) {
    Floats v[kCount], w[kCount];
    Ints codes[kCount];
    gather<kCount>(values + kCount * b, kCount, v);
    gather<kCount>(weights + kCount * b, kCount, w);
    store(to.unit + b, positive_scale<kCount>(v, w, most, codes));
    scatter(codes, kCount, 16, to.value[b]);
  }
}
// The same by the greatest alone.
template <int N> LANE void round_by_greatest(const float* values, int most, Rounded& to) {
  constexpr int kCount = 256 / N;
  for (int b = 0; b < kTileBlocks; b += kLanes) {
    Floats v[kCount], top = all(0.0f);
    gather<kCount>(values + kCount * b, kCount, v);
    for (int i = 0; i < kCount; ++i) top = v[i] > top ? v[i] : top;
    const Ints some = top > all(0.0f);
    const Floats inverse = some ? static_cast<float>(most) / top : all(0.0f);
    store(to.unit + b, some ? top / static_cast<float>(most) : all(0.0f));
    for (int i = 0; i < kCount; ++i) {
      const Ints code = nearest(inverse * v[i]) & 255;
      for (int l = 0; l < kLanes; ++l) to.value[b + l][i] = static_cast<uint8_t>(code[l] < most ? code[l] : most);
    }
  }
}

LANE float half(float x) { return f16_to_f32(f32_to_f16(x)); }

// The third pass for one block: codes from `low` to `high`, kept from zero on. scale(group) and minimum(group) as floats.
template <int N, class Scale, class Minimum>
LANE void code_block(const float* x, const Groups<N>& g, int block, int low, int high, Scale scale, Minimum minimum, uint8_t* codes) {
  for (int j = 0; j < g.kCount; ++j) {
    const float d = scale(j), m = minimum(j);
    uint8_t* to = codes + N * j;
    if (d == 0) {
      for (int i = 0; i < N; ++i) to[i] = g.first_code(block * g.kCount + j, i);
      continue;
    }
    for (int i = 0; i < N; i += kLanes) {
      const Ints code = clamped(nearest((load(x + N * j + i) + m) / d), low, high) - low;
      const Bytes bytes = __builtin_convertvector(code, Bytes);
      memcpy(to + i, &bytes, kLanes);
    }
  }
}
LANE void put_crumbs(const uint8_t* codes, uint8_t* at) {
  for (int h = 0; h < 2; ++h, codes += 128, at += 32)
    for (int i = 0; i < 32; ++i) at[i] = static_cast<uint8_t>((codes[i] & 3) | (codes[i + 32] & 3) << 2 | (codes[i + 64] & 3) << 4 | (codes[i + 96] & 3) << 6);
}
// One bit of each of 256 codes: bit g of byte i is that of weight 32 * g + i.
LANE void put_bit(const uint8_t* codes, int bit, uint8_t* at) {
  memset(at, 0, 32);
  for (int g = 0; g < 8; ++g)
    for (int i = 0; i < 32; ++i) at[i] = static_cast<uint8_t>(at[i] | (codes[32 * g + i] >> bit & 1) << g);
}

static void write_q2_k(const Tile& t) {
  Groups<16> g;
  Rounded sub, min;
  float spread[kTileBlocks];
  if (t.importance) block_mean_squares(t, 1, spread);
  each_group(t, g, [&](const Floats* x, Floats* w, int group, Ints* codes) LANE_CALL {
    if (t.importance) weigh(g, x, spread, group, w);
    else
      for (int i = 0; i < 16; ++i) w[i] = size_of(x[i]);
    const Affine fit = t.importance ? affine_scale<16>(x, w, 3, {-0.9f, 0.05f, 36, false}, codes) : affine_scale<16>(x, w, 3, {-0.5f, 0.1f, 15, true}, codes);
    store(g.minimum + group, fit.minimum);
    return fit.scale;
  });
  if (t.importance) {
    round_positive<16>(g.scale, g.weight, 15, sub);
    round_positive<16>(g.minimum, g.weight, 15, min);
  } else {
    round_by_greatest<16>(g.scale, 15, sub);
    round_by_greatest<16>(g.minimum, 15, min);
  }
  for (int b = 0; b < kTileBlocks; ++b) {
    uint8_t codes[256], *at = t.out + 84 * b;
    const float d = half(sub.unit[b]), dmin = half(min.unit[b]);
    for (int j = 0; j < 16; ++j) at[j] = static_cast<uint8_t>(sub.value[b][j] | min.value[b][j] << 4);
    code_block(t.x + 256 * b, g, b, 0, 3, [&](int j) { return d * static_cast<float>(at[j] & 15); }, [&](int j) { return dmin * static_cast<float>(at[j] >> 4); }, codes);
    put_crumbs(codes, at + 16);
    put_f16(at + 80, sub.unit[b]);
    put_f16(at + 82, min.unit[b]);
  }
}

// Scales of either sign, rounded by the greatest in size to -least..least - 1, which takes the sign: `least` is -32 or -128.
LANE float greatest_in_size(const float* v) {
  float size = 0, value = 0;
  for (int i = 0; i < 16; ++i)
    if (__builtin_fabsf(v[i]) > size) {
      size = __builtin_fabsf(v[i]);
      value = v[i];
    }
  return value;
}
LANE int nearest_int(float x) {
  const float sum = x + 12582912.0f;
  int bits;
  memcpy(&bits, &sum, 4);
  return (bits & 0x7fffff) - 0x400000;
}

static void round_q3_scales(const Tile& t, const Groups<16>& g, Rounded& sub) {
  if (t.importance) {
    for (int b = 0; b < kTileBlocks; b += kLanes) {
      Floats v[16], w[16];
      Ints codes[16];
      gather<16>(g.scale + 16 * b, 16, v);
      gather<16>(g.weight + 16 * b, 16, w);
      store(sub.unit + b, symmetric_scale<16>(v, w, 32, codes));
      scatter(codes, 16, 16, sub.value[b]);
    }
    return;
  }
  for (int b = 0; b < kTileBlocks; ++b) {
    const float* v = g.scale + 16 * b;
    const float greatest = greatest_in_size(v), inverse = greatest != 0 ? -32.0f / greatest : 0;
    sub.unit[b] = greatest != 0 ? 1 / inverse : 0;
    for (int j = 0; j < 16; ++j) {
      const int q = static_cast<int8_t>(nearest_int(inverse * v[j]));
      sub.value[b][j] = static_cast<uint8_t>(greatest != 0 ? (q > 31 ? 31 : q < -32 ? -32 : q) + 32 : 0);
    }
  }
}
static void write_q3_k(const Tile& t) {
  Groups<16> g;
  Rounded sub;
  float spread[kTileBlocks];
  if (t.importance) block_mean_squares(t, 2, spread);
  each_group(t, g, [&](const Floats* x, Floats* w, int group, Ints* codes) LANE_CALL {
    if (!t.importance) return descended_scale<16>(x, 4, codes);
    weigh(g, x, spread, group, w);
    return symmetric_scale<16>(x, w, 4, codes);
  });
  round_q3_scales(t, g, sub);
  for (int b = 0; b < kTileBlocks; ++b) {
    uint8_t codes[256], *at = t.out + 110 * b;
    const float d = half(sub.unit[b]);
    const uint8_t* s = sub.value[b];
    code_block(t.x + 256 * b, g, b, -4, 3, [&](int j) { return d * static_cast<float>(s[j] - 32); }, [](int) { return 0.0f; }, codes);
    put_bit(codes, 2, at);
    put_crumbs(codes, at + 32);
    memset(at + 96, 0, 12);
    for (int j = 0; j < 16; ++j) {
      at[96 + j % 8] = static_cast<uint8_t>(at[96 + j % 8] | (s[j] & 15) << (j < 8 ? 0 : 4));
      at[104 + j % 4] = static_cast<uint8_t>(at[104 + j % 4] | (s[j] >> 4) << 2 * (j / 4));
    }
    put_f16(at + 108, sub.unit[b]);
  }
}

// Q4_K's and Q5_K's first two passes. Trials are those without importance.
LANE void fit_affine_32(const Tile& t, int most, const Trials& trials, Groups<32>& g, Rounded& sub, Rounded& min) {
  float spread[kTileBlocks];
  if (t.importance) block_mean_squares(t, 2, spread);
  each_group(t, g, [&](const Floats* x, Floats* w, int group, Ints* codes) LANE_CALL {
    if (t.importance) weigh(g, x, spread, group, w);
    else {
      Floats sum = all(0.0f);
      for (int i = 0; i < 32; ++i) sum += x[i] * x[i];
      const Floats mean = root(sum / 32.0f);
      for (int i = 0; i < 32; ++i) w[i] = mean + size_of(x[i]);
    }
    const Affine fit = affine_scale<32>(x, w, most, t.importance ? Trials{-0.9f, 0.05f, 36, false} : trials, codes);
    store(g.minimum + group, fit.minimum);
    return fit.scale;
  });
  if (t.importance) {
    round_positive<32>(g.scale, g.weight, 63, sub);
    round_positive<32>(g.minimum, g.weight, 63, min);
  } else {
    round_by_greatest<32>(g.scale, 63, sub);
    round_by_greatest<32>(g.minimum, 63, min);
  }
}
// The header that both share: two float16s, then eight 6-bit scales and minima in twelve bytes; and the codes, by what a reader
// finds in those bytes. Importance that leaves a group two weights can make a scale negative: then a code is a byte above 63,
// whose upper bits spill into the last four scales.
LANE void head_and_codes(const Tile& t, const Groups<32>& g, int b, int most, const Rounded& sub, const Rounded& min, uint8_t* at, uint8_t* codes) {
  const uint8_t *s = sub.value[b], *m = min.value[b];
  uint8_t* packed = at + 4;
  put_f16(at, sub.unit[b]);
  put_f16(at + 2, min.unit[b]);
  for (int i = 0; i < 4; ++i) {
    packed[i] = static_cast<uint8_t>(s[i] | (s[i + 4] >> 4) << 6);
    packed[i + 4] = static_cast<uint8_t>(m[i] | (m[i + 4] >> 4) << 6);
    packed[i + 8] = static_cast<uint8_t>((s[i + 4] & 15) | (m[i + 4] & 15) << 4);
  }
  const float d = half(sub.unit[b]), dmin = half(min.unit[b]);
  const auto scale = [&](int j) { return d * static_cast<float>(j < 4 ? packed[j] & 63 : (packed[j + 4] & 15) | packed[j - 4] >> 6 << 4); };
  const auto minimum = [&](int j) { return dmin * static_cast<float>(j < 4 ? packed[j + 4] & 63 : packed[j + 4] >> 4 | packed[j] >> 6 << 4); };
  code_block(t.x + 256 * b, g, b, 0, most, scale, minimum, codes);
}
LANE void put_pairs(const uint8_t* codes, uint8_t* at) {
  for (int h = 0; h < 4; ++h)
    for (int i = 0; i < 32; ++i) at[32 * h + i] = static_cast<uint8_t>((codes[64 * h + i] & 15) | codes[64 * h + 32 + i] << 4);
}

static void write_q4_k(const Tile& t) {
  Groups<32> g;
  Rounded sub, min;
  fit_affine_32(t, 15, {-1.0f, 0.1f, 20, false}, g, sub, min);
  for (int b = 0; b < kTileBlocks; ++b) {
    uint8_t codes[256], *at = t.out + 144 * b;
    head_and_codes(t, g, b, 15, sub, min, at, codes);
    put_pairs(codes, at + 16);
  }
}
static void write_q5_k(const Tile& t) {
  Groups<32> g;
  Rounded sub, min;
  fit_affine_32(t, 31, {-0.5f, 0.1f, 15, false}, g, sub, min);
  for (int b = 0; b < kTileBlocks; ++b)
    for (int j = 0; j < 8; ++j) {
      sub.value[b][j] = sub.value[b][j] < 63 ? sub.value[b][j] : 63;
      min.value[b][j] = min.value[b][j] < 63 ? min.value[b][j] : 63;
    }
  for (int b = 0; b < kTileBlocks; ++b) {
    uint8_t codes[256], *at = t.out + 176 * b;
    head_and_codes(t, g, b, 31, sub, min, at, codes);
    put_bit(codes, 4, at + 16);
    put_pairs(codes, at + 48);
  }
}

static void write_q6_k(const Tile& t) {
  Groups<16> g;
  each_group(t, g, [&](const Floats* x, Floats* w, int, Ints* codes) LANE_CALL {
    if (!t.importance)
      for (int i = 0; i < 16; ++i) w[i] = x[i] * x[i];
    return symmetric_scale<16>(x, w, 32, codes);
  });
  for (int b = 0; b < kTileBlocks; ++b) {
    uint8_t codes[256], *at = t.out + 210 * b;
    const float *v = g.scale + 16 * b, greatest = greatest_in_size(v);
    if (__builtin_fabsf(greatest) < kNothing) {
      memset(at, 0, 210);
      continue;
    }
    const float inverse = -128.0f / greatest, d = half(1 / inverse);
    int8_t s[16];
    for (int j = 0; j < 16; ++j) {
      const int q = nearest_int(inverse * v[j]);
      s[j] = static_cast<int8_t>(q < 127 ? q : 127);
    }
    code_block(t.x + 256 * b, g, b, -32, 31, [&](int j) { return d * static_cast<float>(s[j]); }, [](int) { return 0.0f; }, codes);
    for (int h = 0; h < 2; ++h)
      for (int i = 0; i < 64; ++i) at[64 * h + i] = static_cast<uint8_t>((codes[128 * h + i] & 15) | codes[128 * h + 64 + i] << 4);
    for (int h = 0; h < 2; ++h)
      for (int i = 0; i < 32; ++i) {
        const uint8_t* c = codes + 128 * h + i;
        at[128 + 32 * h + i] = static_cast<uint8_t>(c[0] >> 4 | (c[32] >> 4) << 2 | (c[64] >> 4) << 4 | (c[96] >> 4) << 6);
      }
    memcpy(at + 192, s, 16);
    put_f16(at + 208, 1 / inverse);
  }
}
