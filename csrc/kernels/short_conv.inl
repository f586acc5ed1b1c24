// Inputs go through a ring of `taps` rows in L1, so a row of x is read once and `from` may be `to`.
template <bool Silu> static void convolve_as(const ConvArgs& a) {
  alignas(64) float ring[kConvTaps][kConvChannels];
  const int taps = a.taps, keep = taps - 1, n = a.channels;
  const auto next = [taps](int i) { return i + 1 == taps ? 0 : i + 1; };
  for (int j = 0; j < keep; ++j)
    for (int c = 0; c < n; c += 16) fstore(ring[j] + c, a.from ? fload(a.from + j * a.state_stride + c) : fzero());
  int newest = keep;
  for (int64_t t = 0; t < a.tokens; ++t, newest = next(newest))
    for (int c = 0; c < n; c += 16) {
      const int64_t at = t * a.stride + c;
      const F x = fload(a.x + at);
      fstore(ring[newest] + c, a.gate_in ? mul(x, fload(a.gate_in + at)) : x);
      F y = a.bias ? fload(a.bias + c) : fzero();
      for (int j = 0, i = next(newest); j < taps; ++j, i = next(i)) y = fma(fload(a.weight + j * a.weight_stride + c), fload(ring[i] + c), y);
      if (Silu) y = fsilu(y);
      fstore(a.out + at, a.gate_out ? mul(y, fload(a.gate_out + at)) : y);
    }
  for (int j = 0, i = next(newest); j < keep; ++j, i = next(i))
    for (int c = 0; c < n; c += 16) fstore(a.to + j * a.state_stride + c, fload(ring[i] + c));
}
static void convolve(const ConvArgs& a) { a.silu ? convolve_as<true>(a) : convolve_as<false>(a); }

static const ConvKernels kConvTable{convolve};
