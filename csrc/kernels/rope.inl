// Rotary embedding of heads, and one position's keys and values written into a cache page.
// Knows cos and sin as given, and the page layout in kernels.h; a few kilobytes a token, bound by memory.

static void rotate_halves(float* x, int half, const float* cos, const float* sin) {
  float* y = x + half;
  int i = 0;
  for (; i + 16 <= half; i += 16) {
    const F a = fload(x + i), b = fload(y + i), c = fload(cos + i), s = fload(sin + i);
    fstore(x + i, fnma(b, s, mul(a, c)));
    fstore(y + i, fma(a, s, mul(b, c)));
  }
  const int rest = half - i;
  if (!rest) return;
  const F a = fload_n(x + i, rest), b = fload_n(y + i, rest), c = fload_n(cos + i, rest), s = fload_n(sin + i, rest);
  fstore_n(x + i, fnma(b, s, mul(a, c)), rest);
  fstore_n(y + i, fma(a, s, mul(b, c)), rest);
}

// Plain C++: the vocabulary has no lane shuffle, and the compiler finds the right ones here.
static void rotate_pairs(float* x, int half, const float* cos, const float* sin) {
  for (int i = 0; i < half; ++i) {
    const float a = x[2 * i], b = x[2 * i + 1];
    x[2 * i] = a * cos[i] - b * sin[i];
    x[2 * i + 1] = b * cos[i] + a * sin[i];
  }
}

static void rope(float* x, int heads, int d, int rot, const float* cos, const float* sin, bool adjacent) {
  for (int h = 0; h < heads; ++h) {
    float* head = x + static_cast<int64_t>(h) * d;
    if (adjacent) rotate_pairs(head, rot / 2, cos, sin);
    else rotate_halves(head, rot / 2, cos, sin);
  }
}

// Sixteen floats (or the last n) as the cache keeps them. Beyond 65504 a half is infinite, which the logits' check
// reports.
OP void narrow(const float* x, int n, uint16_t* out) { store_f16(out, n < 16 ? fload_n(x, n) : fload(x)); }
OP void narrow(const float* x, int n, float* out) { memcpy(out, x, sizeof(float) * static_cast<size_t>(n)); }

template <class E>
static void store_key(const float* k, int d, E* keys, int slot) {
  E part[16];
  for (int i = 0; i < d; i += 16) {
    const int n = d - i < 16 ? d - i : 16;
    narrow(k + i, n, part);
    for (int j = 0; j < n; ++j) keys[(i + j) * kBlockTokens + slot] = part[j];
  }
}

template <class E>
static void store_value(const float* v, int dv, E* row) {
  int i = 0;
  for (; i + 16 <= dv; i += 16) narrow(v + i, 16, row + i);
  if (i == dv) return;
  E part[16];
  narrow(v + i, dv - i, part);
  memcpy(row + i, part, sizeof(E) * static_cast<size_t>(dv - i));
}

template <class E>
static void store_heads(const float* k, const float* v, int kv_heads, int d, int dv, E* head, int slot) {
  for (int h = 0; h < kv_heads; ++h) {
    store_key(k + static_cast<int64_t>(h) * d, d, head, slot);
    head += static_cast<int64_t>(d) * kBlockTokens;
    store_value(v + static_cast<int64_t>(h) * dv, dv, head + static_cast<int64_t>(slot) * dv);
    head += static_cast<int64_t>(dv) * kBlockTokens;
  }
}

// Codes as bytes, offset by 128; the scale is NaN for NaN or infinity.
OP float head_codes(const float* x, int n, uint8_t* codes) {
  float top = 0.0f, bad = 0.0f;
  for (int i = 0; i < n; ++i) {
    const float v = x[i] < 0.0f ? -x[i] : x[i];
    top = v > top ? v : top;
    bad += x[i] * 0.0f;
  }
  const bool zero = !(top > 1e-30f) || bad != bad;           // as activations: the inverse must stay finite
  const F inverse = fset(zero ? 0.0f : 127.0f / top);
  for (int i = 0; i < n; i += 16) {
    const int rest = n - i < 16 ? n - i : 16;
    int8_t part[16];
    store_i8(part, zero ? izero() : to_int(mul(rest < 16 ? fload_n(x + i, rest) : fload(x + i), inverse)));
    for (int j = 0; j < rest; ++j) codes[i + j] = static_cast<uint8_t>(part[j] + 128);
  }
  return bad != bad ? bad : zero ? 0.0f : top / 127.0f;
}

static void store_codes(const float* k, const float* v, int kv_heads, int d, int dv, uint8_t* head, int slot) {
  uint8_t codes[kMaxCodeWidth];
  const int64_t row = (dv + 15) / 16 * 64;
  for (int h = 0; h < kv_heads; ++h, k += d, v += dv, head += kv_head_bytes(KvType::Q8, d, dv)) {
    float* scales = reinterpret_cast<float*>(head + kv_scales_at(d, dv));
    scales[slot] = head_codes(k, d, codes);
    for (int e = 0; e < d; ++e) head[e / 4 * (4 * kBlockTokens) + slot * 4 + e % 4] = codes[e];
    scales[kBlockTokens + slot] = head_codes(v, dv, codes);
    uint8_t* values = head + kv_values_at(KvType::Q8, d) + slot / 4 * row + slot % 4;
    for (int c = 0; c < dv; ++c) values[4 * c] = codes[c];
  }
}

static void kv_store(const float* k, const float* v, int kv_heads, int d, int dv, KvType type, uint8_t* page, int slot) {
  switch (type) {
    case KvType::F16: return store_heads(k, v, kv_heads, d, dv, reinterpret_cast<uint16_t*>(page), slot);
    case KvType::F32: return store_heads(k, v, kv_heads, d, dv, reinterpret_cast<float*>(page), slot);
    case KvType::Q8: return store_codes(k, v, kv_heads, d, dv, page, slot);
  }
}

static void fill_rope(Kernels& t) {
  t.rope = rope;
  t.kv_store = kv_store;
}
