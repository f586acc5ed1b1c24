// Writers of the types whose 4-bit codes choose from a table of sixteen uneven values: IQ4_NL (32 weights to a float16) and
// IQ4_XS (256 to a float16, 32 to a 6-bit scale).

constexpr int kValues[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

// The code of the nearest value, the upper of two as near: how many of the fifteen midpoints x is not below. Midpoints and
// distances to them are exact in float32, so that comparing with a midpoint is comparing the two distances. NaN is below none:
// it is zero times the infinite reciprocal of a scale that importance has made all but zero.
LANE Ints nearest_code(Floats x) {
  Ints code = all(15);
  for (int k = 1; k < 16; ++k) code += x < all(0.5f * static_cast<float>(kValues[k - 1] + kValues[k]));
  return code;
}
// The value itself.
LANE Floats nearest_value(Floats x) {
  Floats value = all(static_cast<float>(kValues[0]));
  for (int k = 1; k < 16; ++k)
    value = x < all(0.5f * static_cast<float>(kValues[k - 1] + kValues[k])) ? value : all(static_cast<float>(kValues[k]));
  return value;
}

// x ~ scale * value: the largest weight at -127 or near it, fifteen trials besides.
LANE Floats table_scale(const Floats* x, const Floats* w) {
  const Largest top = largest(x, 32);
  Floats vx, vv;
  const auto sum = [&](Floats inverse) LANE_CALL {
    vx = vv = all(0.0f);
    for (int i = 0; i < 32; ++i) {
      const Floats v = nearest_value(inverse * x[i]), wv = w[i] * v;
      vx += wv * x[i];
      vv += wv * v;
    }
  };
  sum(1.0f / (-top.value / static_cast<float>(kValues[0])));
  Floats scale = vv > all(0.0f) ? vx / vv : all(0.0f);
  Floats best = scale * vx;
  for (int step = -7; step <= 7; ++step) {
    sum(static_cast<float>(step + kValues[0]) / top.value);
    const Ints better = (vv > all(0.0f)) & (vx * vx > best * vv);
    scale = better ? vx / vv : scale;
    best = better ? scale * vx : best;
  }
  return top.size < all(kNothing) ? all(0.0f) : scale;
}
// Scales of a tile's groups of 32: `count` a block, which sigma2 is taken over.
template <int kCount> LANE void table_scales(const Tile& t, float* scales) {
  float spread[kTileBlocks];
  if (t.importance)
    for (int b = 0; b < kTileBlocks; b += kLanes) {
      Floats sum = all(0.0f), x[32];
      for (int j = 0; j < kCount; ++j) {
        gather<32>(t.x + 32 * (kCount * b + j), 32 * kCount, x);
        for (int i = 0; i < 32; ++i) sum += x[i] * x[i];
      }
      store(spread + b, sum * (2.0f / (32 * kCount)));
    }
  for (int group = 0; group < kTileBlocks * kCount; group += kLanes) {
    Floats x[32], w[32];
    gather<32>(t.x + 32 * group, 32, x);
    if (t.importance) {
      float each[kLanes];
      for (int l = 0; l < kLanes; ++l) each[l] = spread[(group + l) / kCount];
      gather<32>(t.importance + 32 * group, 32, w);
      weighted<32>(x, load(each), w);
    } else
      for (int i = 0; i < 32; ++i) w[i] = x[i] * x[i];
    store(scales + group, table_scale(x, w));
  }
}
// 32 weights' nibbles by 1 / scale.
LANE void put_table_codes(const float* x, float inverse, uint8_t* at) {
  uint8_t codes[32];
  for (int i = 0; i < 32; i += kLanes) {
    const Bytes bytes = __builtin_convertvector(nearest_code(inverse * load(x + i)), Bytes);
    memcpy(codes + i, &bytes, kLanes);
  }
  put_nibbles(codes, at);
}

static void write_iq4_nl(const Tile& t) {
  float scales[kTileBlocks];
  table_scales<1>(t, scales);
  for (int b = 0; b < kTileBlocks; ++b) {
    uint8_t* at = t.out + 18 * b;
    put_f16(at, scales[b]);
    put_table_codes(t.x + 32 * b, scales[b] != 0 ? 1 / scales[b] : 0, at + 2);
  }
}
static void write_iq4_xs(const Tile& t) {
  float scales[kTileBlocks * 8];
  table_scales<8>(t, scales);
  for (int b = 0; b < kTileBlocks; ++b) {
    const float* v = scales + 8 * b;
    float size = 0, greatest = 0;
    for (int j = 0; j < 8; ++j)
      if (__builtin_fabsf(v[j]) > size) {
        size = __builtin_fabsf(v[j]);
        greatest = v[j];
      }
    const float d = -greatest / 32, inverse = d != 0 ? 1 / d : 0;
    uint8_t* at = t.out + 136 * b;
    memset(at, 0, 8);
    put_f16(at, d);
    for (int j = 0; j < 8; ++j) {
      int q = nearest_int(inverse * v[j]);
      q = q > 31 ? 31 : q < -32 ? -32 : q;
      const float unit = d * static_cast<float>(q);
      put_table_codes(t.x + 256 * b + 32 * j, unit != 0 ? 1 / unit : 0, at + 8 + 16 * j);
      const int code = q + 32;
      at[4 + j / 2] = static_cast<uint8_t>(at[4 + j / 2] | (code & 15) << (j & 1 ? 4 : 0));
      at[2 + j / 4] = static_cast<uint8_t>(at[2 + j / 4] | (code >> 4) << 2 * (j % 4));
    }
  }
}
