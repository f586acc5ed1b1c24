// The searches for a group's scale, kLanes groups at a time. A search rounds the weights at some scales near the one that the
// largest of them asks for, and keeps what leaves the least weighted squared error.
//
// The searches are ggml's (ggml-quants.c): which scales are tried, how a tie ends and in which order the products of a term are
// multiplied are all part of the result. Only a scale is kept from a trial; codes follow from it once, at the end.

constexpr float kNothing = 1e-15f;         // groups whose largest weight is smaller are zero

struct Largest { Floats size, value; };    // the first of the largest in size, with its sign
LANE Largest largest(const Floats* x, int n) {
  Largest r{all(0.0f), all(0.0f)};
  for (int i = 0; i < n; ++i) {
    const Floats size = size_of(x[i]);
    const Ints more = size > r.size;
    r.size = more ? size : r.size;
    r.value = more ? x[i] : r.value;
  }
  return r;
}

// x ~ scale * (code - most), codes from 0 to 2 * most - 1.
template <int N> LANE Floats symmetric_scale(const Floats* x, const Floats* w, int most, Ints* codes) {
  const Largest top = largest(x, N);
  Floats wx[N], xq, qq;
  for (int i = 0; i < N; ++i) wx[i] = w[i] * x[i];
  const auto round = [&](Floats inverse, Floats v) LANE_CALL { return clamped(nearest(inverse * v), -most, most - 1); };
  const auto sum = [&](Floats inverse) LANE_CALL {
    xq = qq = all(0.0f);
    for (int i = 0; i < N; ++i) {
      const Floats q = real(round(inverse, x[i]));
      xq += wx[i] * q;
      qq += w[i] * q * q;
    }
  };
  Floats inverse = static_cast<float>(-most) / top.value;
  sum(inverse);
  Floats scale = qq != all(0.0f) ? xq / qq : all(0.0f);
  Floats best = scale * xq;
  for (int step = -9; step <= 9; ++step) {
    if (step == 0) continue;
    const Floats trial = -(static_cast<float>(most) + 0.1f * static_cast<float>(step)) / top.value;
    sum(trial);
    const Ints better = (qq > all(0.0f)) & (xq * xq > best * qq);
    inverse = better ? trial : inverse;
    scale = better ? xq / qq : scale;
    best = better ? scale * xq : best;
  }
  const Ints none = top.size < all(kNothing);
  for (int i = 0; i < N; ++i) codes[i] = none ? all(0) : round(inverse, x[i]) + most;
  return none ? all(0.0f) : scale;
}

// The same by descent, each squared error weighted by the weight's own square: the codes at the largest weight's scale, then,
// one by one, each moved to where the others' best scale puts it, where that helps; five rounds at most.
template <int N> LANE Floats descended_scale(const Floats* x, int most, Ints* codes) {
  const Largest top = largest(x, N);
  const Floats inverse = static_cast<float>(-most) / top.value;
  Floats xq = all(0.0f), qq = all(0.0f);
  for (int i = 0; i < N; ++i) {
    codes[i] = clamped(nearest(inverse * x[i]), -most, most - 1);
    const Floats q = real(codes[i]), w = x[i] * x[i];
    xq += w * x[i] * q;
    qq += w * q * q;
  }
  for (int round = 0; round < 5; ++round) {
    Ints changed = all(0);
    for (int i = 0; i < N; ++i) {
      const Floats w = x[i] * x[i], wx = w * x[i], q = real(codes[i]);
      const Floats rest_xq = xq - wx * q, rest_qq = qq - w * q * q;
      const Ints moved = clamped(nearest(x[i] * rest_qq / rest_xq), -most, most - 1);
      const Floats to = real(moved);
      const Floats new_xq = rest_xq + wx * to, new_qq = rest_qq + w * to * to;
      const Ints better = (rest_xq > all(0.0f)) & (moved != codes[i]) & (new_qq > all(0.0f)) & (new_xq * new_xq * qq > xq * xq * new_qq);
      codes[i] = better ? moved : codes[i];
      xq = better ? new_xq : xq;
      qq = better ? new_qq : qq;
      changed |= better;
    }
    if (!any(changed)) break;              // a lane without a change in a round has none in the next
  }
  const Ints none = top.size < all(kNothing);
  for (int i = 0; i < N; ++i) codes[i] = none ? all(0) : codes[i] + most;
  return none ? all(0.0f) : qq > all(0.0f) ? xq / qq : all(0.0f);
}

// Scales that a search for scale and minimum tries: (first + step * i + most) over the range, i from 0 to `steps`.
// Distance: by how far, not how far squared.
struct Trials { float first, step; int steps; bool distance; };

// x ~ scale * code - minimum, codes from 0 to `most`, minimum >= 0.
struct Affine { Floats scale, minimum; };
template <int N> LANE Affine affine_scale(const Floats* x, const Floats* w, int most, const Trials& trials, Ints* codes) {
  Floats low = x[0], high = x[0], sum_w = w[0], sum_x = sum_w * x[0];
  for (int i = 1; i < N; ++i) {
    low = x[i] < low ? x[i] : low;
    high = x[i] > high ? x[i] : high;
    sum_w += w[i];
    sum_x += w[i] * x[i];
  }
  low = low > all(0.0f) ? all(0.0f) : low;
  Floats q[N];
  const auto round = [&](Floats inverse, Floats from, Floats v) LANE_CALL { return clamped(nearest(inverse * (v - from)), 0, most); };
  const auto error = [&](Floats scale, Floats from) LANE_CALL {
    Floats sum = all(0.0f);
    for (int i = 0; i < N; ++i) {
      const Floats off = scale * q[i] + from - x[i];
      sum += w[i] * (trials.distance ? size_of(off) : off * off);
    }
    return sum;
  };
  const Ints none = high == low;
  const Floats empty = -low;
  Floats inverse = static_cast<float>(most) / (high - low), from = low;      // what codes follow from
  Floats scale = 1.0f / inverse;
  for (int i = 0; i < N; ++i) q[i] = real(round(inverse, from, x[i]));
  Floats least = error(scale, low);
  for (int step = 0; step <= trials.steps; ++step) {
    // The range is that of the best minimum yet, not of the weights.
    const Floats trial = (trials.first + trials.step * static_cast<float>(step) + static_cast<float>(most)) / (high - low);
    Floats sq = all(0.0f), sqq = all(0.0f), sxq = all(0.0f);
    for (int i = 0; i < N; ++i) {
      q[i] = real(round(trial, low, x[i]));
      const Floats wq = w[i] * q[i];
      sq += wq;
      sqq += wq * q[i];
      sxq += wq * x[i];
    }
    const Floats d = sum_w * sqq - sq * sq;
    Floats fit = (sum_w * sxq - sum_x * sq) / d, fit_low = (sqq * sum_x - sq * sxq) / d;
    const Ints above = fit_low > all(0.0f);
    fit = above ? sxq / sqq : fit;
    fit_low = above ? all(0.0f) : fit_low;
    const Floats off = error(fit, fit_low);
    const Ints better = (d > all(0.0f)) & (off < least);
    inverse = better ? trial : inverse;
    from = better ? low : from;
    least = better ? off : least;
    scale = better ? fit : scale;
    low = better ? fit_low : low;
  }
  for (int i = 0; i < N; ++i) codes[i] = none ? all(0) : round(inverse, from, x[i]);
  return {none ? all(0.0f) : scale, none ? empty : -low};
}

// x ~ scale * code, x >= 0, codes from 0 to `most` in a byte each: how a block's scales and minima are themselves kept.
template <int N> LANE Floats positive_scale(const Floats* x, const Floats* w, int most, Ints* codes) {
  Floats top = all(0.0f);
  for (int i = 0; i < N; ++i) top = top > x[i] ? top : x[i];
  const auto below = [most](Ints a) LANE_CALL { return a < all(most) ? a : all(most); };
  const auto error = [&](Floats scale, Floats inverse, bool cut) LANE_CALL {
    Floats sum = all(0.0f);
    for (int i = 0; i < N; ++i) {
      const Ints q = nearest(inverse * x[i]);
      const Floats off = x[i] - scale * real(cut ? below(q) : q & 255);
      sum += w[i] * off * off;
    }
    return sum;
  };
  Floats inverse = static_cast<float>(most) / top;
  const Floats first = inverse;
  Floats least = error(1.0f / first, first, false);
  for (int step = -4; step <= 4; ++step) {
    if (step == 0) continue;
    const Floats trial = (0.1f * static_cast<float>(step) + static_cast<float>(most)) / top;
    const Floats off = error(1.0f / trial, trial, true);
    const Ints better = off < least;
    least = better ? off : least;
    inverse = better ? trial : inverse;
  }
  Floats xq = all(0.0f), qq = all(0.0f);
  for (int i = 0; i < N; ++i) {
    const Ints code = below(nearest(inverse * x[i]));
    const Floats q = real(code);
    codes[i] = code & 255;
    xq += w[i] * x[i] * q;
    qq += w[i] * q * q;
  }
  for (int round = 0; round < 5; ++round) {
    Ints changed = all(0);
    for (int i = 0; i < N; ++i) {
      const Floats wx = w[i] * x[i], q = real(codes[i]);
      const Floats rest_xq = xq - wx * q, rest_qq = qq - w[i] * q * q;
      const Ints moved = below(nearest(x[i] * rest_qq / rest_xq));
      const Floats to = real(moved);
      const Floats new_xq = rest_xq + wx * to, new_qq = rest_qq + w[i] * to * to;
      const Ints better = (rest_xq > all(0.0f)) & (rest_qq > all(0.0f)) & (moved != codes[i]) & (new_xq * new_xq * qq > xq * xq * new_qq);
      codes[i] = better ? moved & 255 : codes[i];
      xq = better ? new_xq : xq;
      qq = better ? new_qq : qq;
      changed |= better;
    }
    if (!any(changed)) break;
  }
  const Ints none = top < all(kNothing);
  for (int i = 0; i < N; ++i) codes[i] = none ? all(0) : codes[i];
  return none ? all(0.0f) : qq > all(0.0f) ? xq / qq : all(0.0f);
}

// How much each squared error counts under importance: a column's weight times a soft size of the weight itself.
template <int N> LANE void weighted(const Floats* x, Floats mean_square, Floats* w) {
  for (int i = 0; i < N; ++i) w[i] = w[i] * root(mean_square + x[i] * x[i]);
}
