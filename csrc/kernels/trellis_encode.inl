// The trellis encoder over the vector vocabulary; a vector is sixteen rows, and all vectors of a call go through it alike.

static int64_t lesser(int64_t a, int64_t b) { return a < b ? a : b; }

// One column, from the end: costs to go `next` [2^(7 - K)][16] to `now`. With Keep, the code chosen for each kept state goes to
// `picks`, as bytes in the same order.
template <int K, bool Keep> static void step_back(const float* table, F target, F scale, const float* next, float* now, int8_t* picks) {
  constexpr int kKept = kTrellisStates >> K;
  for (int r = 0; r < kKept; ++r) {
    F best = fzero(), pick = fzero();
    for (int e = 0; e < 1 << K; ++e) {
      const int state = r + e * kKept;
      const F off = fnma(fset(table[state]), scale, target), cost = fma(off, off, fload(next + 16 * (state >> K)));
      if (Keep && e) pick = select_lt(cost, best, fset(static_cast<float>(e)), pick);
      best = e ? fmin(cost, best) : cost;
    }
    fstore(now + 16 * r, best);
    if (Keep) store_i8(picks + 16 * r, to_int(pick));
  }
}

// What a call works with: its arguments, its scratch, and where each row's path stands.
template <int K> struct Encoder {
  static constexpr int kKept = kTrellisStates >> K;
  const TrellisArgs& a;
  const TrellisScratch& s;
  const TrellisOut& out;
  const int64_t first;                                       // row
  const int n;                                               // rows
  const int64_t groups;
  float row_scale[kTrellisRows], table_peak = 0;
  uint8_t state[kTrellisRows];
  alignas(64) float costs[2][kKept * 16];
  alignas(64) int8_t picks[kTrellisBlockMost][kKept * 16];

  Encoder(const TrellisArgs& args, const TrellisScratch& scratch, const TrellisOut& to, int64_t first_row, int rows)
      : a(args), s(scratch), out(to), first(first_row), n(rows), groups(args.cols / kTrellisGroup) {
    for (int i = 0; i < kTrellisStates; ++i) table_peak = table_peak < std::fabs(a.table[i]) ? std::fabs(a.table[i]) : table_peak;
  }

  float* target(int64_t j) const { return s.target + j * kTrellisRows; }
  float* scale(int64_t j) const { return s.scale + j / kTrellisGroup * kTrellisRows; }

  float weight(int r, int64_t j) const { return r < n ? a.weights[(first + r) * a.cols + j] : 0.0f; }

  void load() const {
    for (int64_t j = 0; j < a.cols; ++j)
      for (int r = 0; r < kTrellisRows; ++r) target(j)[r] = weight(r, j);
  }

  // The weighted root mean square of a group of targets, times the table's unit, for sixteen rows.
  F begin_scale(int64_t g, int v) const {
    F sum = fzero();
    float all = 0;
    for (int64_t j = g * kTrellisGroup; j < (g + 1) * kTrellisGroup; ++j) {
      const F x = mul(fload(target(j) + v), fset(s.root[j]));
      sum = fma(x, x, sum);
      all += a.importance[j];
    }
    F mean = div(sum, fset(all));
    alignas(64) float x[16];
    fstore(x, mean);
    for (float& y : x) y = std::sqrt(y) * a.unit;
    return fload(x);
  }

  // The least scale that a group's largest target, of whatever importance, can be had with.
  F peak_scale(int64_t g, int v) const {
    F most = fzero();
    for (int64_t j = g * kTrellisGroup; j < (g + 1) * kTrellisGroup; ++j) {
      const F x = fload(target(j) + v);
      most = fmax(most, fmax(x, sub(fzero(), x)));
    }
    return mul(most, fset(1.0f / table_peak));
  }

  // A row's scale leaves room above the largest group's, for the search and for errors that are pushed onto it, and lets one
  // outlier among small weights be had.
  void choose_row_scales() {
    for (int v = 0; v < kTrellisRows; v += 16) {
      F most = fzero();
      for (int64_t g = 0; g < groups; ++g) most = fmax(most, fmax(mul(begin_scale(g, v), fset(1.0f / kFactors[2])), peak_scale(g, v)));
      fstore(row_scale + v, most);
    }
    constexpr uint32_t kFree = (1u << (7 - K)) - 1;          // low bits that the file uses for the stream
    for (int r = 0; r < kTrellisRows; ++r) {
      const uint32_t near = f32_to_f16(row_scale[r] < 60000.0f ? row_scale[r] : 60000.0f) + (kFree + 1) / 2;
      out.row_scales[r] = static_cast<uint16_t>(near & ~kFree);
      row_scale[r] = f16_to_f32(out.row_scales[r]);
    }
  }

  // The cost of a group under some scales, its path free at both ends.
  F group_cost(int64_t g, int v, F scales) {
    float *next = costs[0], *now = costs[1];
    for (int r = 0; r < kKept; ++r) fstore(next + 16 * r, fzero());
    for (int64_t j = (g + 1) * kTrellisGroup; j-- > g * kTrellisGroup;) {
      const F root = fset(s.root[j]);
      step_back<K, false>(a.table, mul(fload(target(j) + v), root), mul(scales, root), next, now, nullptr);
      float* const spent = next;
      next = now;
      now = spent;
    }
    F least = fload(next);
    for (int r = 1; r < kKept; ++r) least = fmin(fload(next + 16 * r), least);
    return least;
  }

  void choose_scales(int64_t g) {
    for (int v = 0; v < kTrellisRows; v += 16) {
      alignas(64) float begin[16], peak[16], tried[16], cost[16], least[16];
      fstore(begin, begin_scale(g, v));
      fstore(peak, peak_scale(g, v));
      int code[16], chosen[16], above[16], most_above = a.spread;   // codes below the first that are tried: an outlier needs more
      for (int r = 0; r < 16; ++r) {
        code[r] = 0;
        while (code[r] + 1 < kTrellisScales && begin[r] * begin[r] < row_scale[v + r] * row_scale[v + r] * kFactors[code[r]] * kFactors[code[r] + 1]) ++code[r];
        above[r] = a.spread;
        while (a.spread && code[r] - above[r] > 0 && row_scale[v + r] * kFactors[code[r] - above[r]] < peak[r]) ++above[r];
        if (above[r] > most_above) most_above = above[r];
      }
      for (int t = -most_above; t <= a.spread; ++t) {
        int c[16];
        for (int r = 0; r < 16; ++r) {
          c[r] = code[r] + t < 0 ? 0 : code[r] + t < kTrellisScales ? code[r] + t : kTrellisScales - 1;
          tried[r] = row_scale[v + r] * kFactors[c[r]];
        }
        if (a.spread) fstore(cost, group_cost(g, v, fload(tried)));
        for (int r = 0; r < 16; ++r)
          if (t == -above[r] || (t > -above[r] && cost[r] < least[r])) {
            chosen[r] = c[r];
            least[r] = a.spread ? cost[r] : 0;
          }
      }
      for (int r = 0; r < 16; ++r) {
        out.scale_codes[g * kTrellisRows + v + r] = static_cast<uint8_t>(chosen[r]);
        s.scale[g * kTrellisRows + v + r] = row_scale[v + r] * kFactors[chosen[r]];
      }
    }
  }

  // Chooses the states of columns [j, j + block), with columns up to `end` in view.
  void choose_states(int64_t j, int block, int64_t end) {
    for (int v = 0; v < kTrellisRows; v += 16) {
      float *next = costs[0], *now = costs[1];
      for (int r = 0; r < kKept; ++r) fstore(next + 16 * r, fzero());
      for (int64_t i = end; i-- > j;) {
        const F root = fset(s.root[i]), x = mul(fload(target(i) + v), root), unit = mul(fload(scale(i) + v), root);
        if (i < j + block) step_back<K, true>(a.table, x, unit, next, now, picks[i - j]);
        else step_back<K, false>(a.table, x, unit, next, now, nullptr);
        float* const spent = next;
      next = now;
      now = spent;
      }
      for (int r = 0; r < 16; ++r) {
        int kept = state[v + r] >> K;
        if (j == 0)
          for (int k = kept = 0; k < kKept; ++k)
            if (next[16 * k + r] < next[16 * kept + r]) kept = k;
        for (int i = 0; i < block; ++i) {
          const int now_in = kept + picks[i][16 * kept + r] * kKept;
          out.states[(j + i) * kTrellisRows + v + r] = static_cast<uint8_t>(now_in);
          state[v + r] = static_cast<uint8_t>(now_in);
          kept = now_in >> K;
        }
      }
    }
  }

  // A block's errors against the weights themselves, and what they add to the targets up to `end`.
  void push_near(int64_t j, int block, int64_t batch, int64_t end) {
    for (int i = 0; i < block; ++i) {
      float* error = s.error + (j + i - batch) * kTrellisRows;
      for (int r = 0; r < kTrellisRows; ++r) error[r] = weight(r, j + i) - a.table[out.states[(j + i) * kTrellisRows + r]] * scale(j + i)[r];
    }
    if (!a.feedback) return;
    const int64_t base = j / a.width * a.width;
    for (int64_t to = j + block; to < end; ++to)
      for (int v = 0; v < kTrellisRows; v += 16) {
        F x = fload(target(to) + v);
        for (int i = 0; i < block; ++i) x = fma(fset(a.feedback[(j + i) * a.width + to - base]), fload(s.error + (j + i - batch) * kTrellisRows + v), x);
        fstore(target(to) + v, x);
      }
  }

  // A batch's errors onto columns from `to` on: tiles of 32 rows by `Wide` columns, so that a coefficient is loaded for 32 products.
  template <int Wide> void push_tile(int64_t batch, int64_t columns, int64_t to) const {
    const float* feedback = a.feedback + batch * a.width + to - batch / a.width * a.width;
    for (int v = 0; v < kTrellisRows; v += 32) {
      F x[Wide], y[Wide];
      for (int c = 0; c < Wide; ++c) {
        x[c] = fload(target(to + c) + v);
        y[c] = fload(target(to + c) + v + 16);
      }
      for (int64_t i = 0; i < columns; ++i) {
        const F ex = fload(s.error + i * kTrellisRows + v), ey = fload(s.error + i * kTrellisRows + v + 16);
        for (int c = 0; c < Wide; ++c) {
          const F u = fset(feedback[i * a.width + c]);
          x[c] = fma(u, ex, x[c]);
          y[c] = fma(u, ey, y[c]);
        }
      }
      for (int c = 0; c < Wide; ++c) {
        fstore(target(to + c) + v, x[c]);
        fstore(target(to + c) + v + 16, y[c]);
      }
    }
  }

  void encode() {
    load();
    choose_row_scales();
    int64_t decided = 0;                                     // groups whose scales are chosen
    for (int64_t batch = 0; batch < a.cols; batch += kTrellisBatch) {
      const int64_t stop = lesser(batch + kTrellisBatch, a.cols);
      const int64_t whole = a.feedback ? lesser(batch / a.width * a.width + a.width, a.cols) : a.cols;   // feedback ends there
      const int64_t near = lesser(stop + kTrellisNear, whole);
      for (int64_t j = batch; j < stop; j += a.block) {
        const int block = static_cast<int>(lesser(a.block, stop - j));
        const int64_t end = lesser(j + block + a.ahead, a.cols);
        for (; decided * kTrellisGroup < end; ++decided) choose_scales(decided);
        choose_states(j, block, end);
        push_near(j, block, batch, near);
      }
      if (!a.feedback) continue;
      int64_t to = near;
      for (; to + 8 <= whole; to += 8) push_tile<8>(batch, stop - batch, to);
      for (; to < whole; ++to) push_tile<1>(batch, stop - batch, to);
    }
  }
};

template <int K> static void encode_as(const TrellisArgs& a, int64_t first, int n, const TrellisScratch& s, const TrellisOut& out) {
  Encoder<K>{a, s, out, first, n}.encode();
}
static void encode(const TrellisArgs& a, int64_t first, int n, const TrellisScratch& s, const TrellisOut& out) {
  a.bits == 2 ? encode_as<2>(a, first, n, s, out) : encode_as<3>(a, first, n, s, out);
}

static const TrellisKernels kTrellisTable{encode};
