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

static void kv_store(const float* k, const float* v, int kv_heads, int d, int dv, bool f32, uint8_t* page, int slot) {
  if (f32) store_heads(k, v, kv_heads, d, dv, reinterpret_cast<float*>(page), slot);
  else store_heads(k, v, kv_heads, d, dv, reinterpret_cast<uint16_t*>(page), slot);
}

static void fill_rope(Kernels& t) {
  t.rope = rope;
  t.kv_store = kv_store;
}
