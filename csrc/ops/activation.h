// What stands between an expert's two halves, with a gate or without one. Knows sums of panels; knows no weights.
#pragma once
#include <algorithm>
#include <cmath>
#include <string>

#include "ops/op.h"

namespace fh {

// min(silu(gate), limit) * clamp(up, +-limit), as silu of a gate that is cut where silu reaches the limit: from there on it grows.
struct SiluLimit {
  float limit = 0, gate = 0;                  // 0: there is none

  // Throws Usage for a limit below 0.
  static SiluLimit of(float limit) {
    if (!(limit >= 0)) refuse("a limit must be 0 (none) or more");
    if (limit == 0) return {};
    double x = limit + 0.3;                   // silu(x) is above x - 0.28, and nearly straight there
    for (int i = 0; i < 32; ++i) {
      const double s = 1 / (1 + std::exp(-x));
      x -= (x * s - limit) / (s + x * s * (1 - s));
    }
    return {limit, static_cast<float>(x)};
  }
  void cut(float* gates, float* ups, int64_t n) const {      // NaN stays
    if (!limit) return;
    for (int64_t i = 0; i < n; ++i) gates[i] = gates[i] > gate ? gate : gates[i];
    for (int64_t i = 0; i < n; ++i) ups[i] = ups[i] > limit ? limit : ups[i] < -limit ? -limit : ups[i];
  }
};

// silu, gelu: act(gate) * up; silu may have a limit. clamped (gpt-oss): gate <= limit, up within +-limit, (up + 1) * gate * sigmoid(alpha * gate).
// relu2, which has no gate: max(up, 0)^2.
struct Activation {
  enum Kind : uint8_t { Silu, Gelu, Clamped, Relu2 } kind = Silu;
  float limit = 0, alpha = 1;
  SiluLimit silu;

  bool gated() const { return kind != Relu2; }
  // Throws Usage for a name that is not one of these, or one that does not fit the presence of a gate.
  static Activation of(const std::string& name, bool gate, float limit, float alpha) {
    const char* const names[] = {"silu", "gelu", "clamped", "relu2"};
    for (int i = 0; i < 4; ++i)
      if (name == names[i]) {
        const Activation found{static_cast<Kind>(i), limit, alpha, i == Silu ? SiluLimit::of(limit) : SiluLimit{}};
        if (found.gated() != gate) refuse("act " + name + (gate ? " takes no gate" : " needs a gate"));
        if (i == Clamped && !(limit > 0 && alpha > 0)) refuse("act clamped needs a limit and an alpha above 0");
        return found;
      }
    throw Error(ErrorKind::Usage, "act must be 'silu', 'gelu', 'clamped' or 'relu2', got '" + name + "'");
  }
  // Sums [panels][nt][16], `width` columns of them, to nt rows of y, ld apart; gates and ups are overwritten.
  void store(const Kernels& k, float* gates, float* ups, int64_t width, int64_t nt, float* y, int64_t ld) const {
    const int64_t n = (width + kPanelRows - 1) / kPanelRows * kPanelRows * nt;
    switch (kind) {
      case Gelu: return k.gelu_rows(gates, ups, width, nt, y, ld);
      case Relu2:
        for (int64_t i = 0; i < n; ++i) ups[i] = ups[i] < 0 ? 0 : ups[i] * ups[i];
        return k.store_rows(ups, width, nt, nullptr, false, y, ld);
      case Clamped:                           // as silu(alpha * gate) * ((up + 1) / alpha)
        for (int64_t i = 0; i < n; ++i) gates[i] = std::min(gates[i], limit) * alpha;
        for (int64_t i = 0; i < n; ++i) ups[i] = (std::clamp(ups[i], -limit, limit) + 1) / alpha;
        return k.silu_rows(gates, ups, width, nt, y, ld);
      default:
        silu.cut(gates, ups, n);
        return k.silu_rows(gates, ups, width, nt, y, ld);
    }
  }
};

// Adds rows' bias [..] to sums [panels][nt][16]. Sixteen at a time: a kernel's add would be a call for each.
inline void add_bias(float* sums, int64_t panels, int64_t nt, const float* bias) {
  for (int64_t p = 0; p < panels; ++p, bias += kPanelRows)
    for (int64_t t = 0; t < nt; ++t, sums += kPanelRows)
      for (int i = 0; i < kPanelRows; ++i) sums[i] += bias[i];
}

}  // namespace fh
