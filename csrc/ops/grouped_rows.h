// Rows of activations grouped by expert. An assignment is one row at one of its experts; assignments lie by expert, and an
// expert's assignments are its group, a matrix of activations by itself: its weights are multiplied as any matrix is, by
// panels for few rows, else as a gemm. Knows groups and rows; knows neither routers nor what the products are for.
#pragma once
#include <algorithm>
#include <cstring>
#include <vector>

#include "ops/matmul.h"

namespace fh {

// The assignments of one expert: [first, first + rows).
struct Group { int expert; int64_t first, rows; };

// What all experts ops of a plan share. One op runs at a time, and all of this is read inside claimed work only.
struct ExpertScratch {
  ActScratch in, mid;                         // by assignment: what gate and up read, and what down reads
  std::vector<float> hidden;                  // [assignments][intermediate]
  std::vector<Group> groups;                  // those with rows, by ascending expert
  std::vector<int32_t> row, group;            // of an assignment
  std::vector<float> weight;                  // of an assignment
  std::vector<int32_t> place;                 // [rows][top_k]: a row's assignments
  std::vector<int64_t> filled;                // [experts], while rows are assigned
  int64_t most = 0;                           // assignments there is memory for
  void allocate(int64_t assignments, int64_t experts, int64_t inner) {
    const auto grow = [](auto& v, int64_t n) { v.resize(std::max(v.size(), static_cast<size_t>(n))); };
    most = std::max(most, assignments);
    in.allocate(most, 0);
    mid.allocate(most, 0);
    grow(hidden, assignments * inner);
    for (auto* v : {&row, &group, &place}) grow(*v, assignments);
    grow(weight, assignments);
    grow(filled, experts);
    groups.reserve(static_cast<size_t>(experts));
  }
};

// Activations by assignment, in the forms that some weights want. A group of gemm_rows rows or more lies by units, a smaller
// one by rows; an assignment takes k inputs, rounded up to units.
struct GroupedRows {
  Input in;                                   // of the grouped scratch; its norm and x are not used
  int64_t stride() const { return (in.k + kUnitInputs - 1) / kUnitInputs * kUnitInputs; }
  static bool by_units(const Run& r, const Group& g) { return g.rows >= r.k->gemm_rows; }
  // Where unit u of row i of a group lies.
  int64_t at(const Run& r, const Group& g, int64_t i, int64_t u) const {
    return g.first * stride() + (by_units(r, g) ? (u * g.rows + i) * kUnitInputs : i * in.k + u * kUnitInputs);
  }
  template <class Body> void each_unit(Body f) const {
    for (int64_t u = 0; u * kUnitInputs < in.k; ++u) f(u, std::min(kUnitInputs, in.k - u * kUnitInputs));
  }
  void quantize(Run& r, const float* src, const Group& g, int64_t i) const {
    each_unit([&](int64_t u, int64_t n) { in.quantize(r, src + u * kUnitInputs, at(r, g, i, u), n); });
  }
  // What lies at row i of group g, to row j of group h as well.
  void copy(const Run& r, const Group& g, int64_t i, const Group& h, int64_t j) const {
    ActScratch& s = *in.scratch;
    const auto move = [](auto& v, int64_t from, int64_t to, int64_t n) {
      std::memcpy(v.data() + to, v.data() + from, static_cast<size_t>(n) * sizeof(v[0]));
    };
    each_unit([&](int64_t u, int64_t n) {
      const int64_t from = at(r, g, i, u), to = at(r, h, j, u);
      if (in.want[kAct32]) {
        move(s.q32, from, to, n);
        move(s.scale32, from / 32, to / 32, n / 32);
        move(s.fsum32, from / 32, to / 32, n / 32);
        move(s.sum32, from / 16, to / 16, n / 16);
      }
      if (in.want[kAct256]) {
        move(s.q256, from, to, n);
        move(s.scale256, from / 256, to / 256, n / 256);
        move(s.sum256, from / 16, to / 16, n / 16);
      }
    });
  }
  // A group's rows as `w` wants them; floats [assignments][k] lie apart.
  Acts acts(const Run& r, const Matrix& w, const Group& g, const float* floats) const {
    const ActScratch& s = *in.scratch;
    const int64_t base = g.first * stride();
    Acts a;
    a.k = in.k;
    a.ahead = r.ahead;
    switch (traits(w.w.type).act()) {
      case kAct32:
        a.q = s.q32.data() + base; a.scale = s.scale32.data() + base / 32;
        a.sum16 = s.sum32.data() + base / 16; a.fsum32 = s.fsum32.data() + base / 32;
        break;
      case kAct256: a.q = s.q256.data() + base; a.scale = s.scale256.data() + base / 256; a.sum16 = s.sum256.data() + base / 16; break;
      default: a.f32 = floats + g.first * in.k;
    }
    if (!a.f32 && by_units(r, g)) a.rows = g.rows;
    return a;
  }
  // Panels [p0, p1) of w times rows [t0, t0 + nt) of a group: y [p1-p0][nt][16].
  void multiply(const Run& r, const Matrix& w, int64_t p0, int64_t p1, const Group& g, const float* floats, int64_t t0, int64_t nt, float* y,
                const uint8_t* next) const {
    Acts a = acts(r, w, g, floats);
    a.next = next;
    multiply_rows(r, w, p0, p1, a, t0, nt, y);
  }
};

}  // namespace fh
