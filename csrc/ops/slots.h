// Rows of activations by expert. A slot is one row at one of its experts; slots lie by expert, and an expert's slots are
// its block, a matrix of activations by itself: its weights are multiplied as any matrix is, by panels for few rows, else
// as a gemm. Knows slots and blocks; knows neither routers nor what the products are for.
#pragma once
#include <algorithm>
#include <cstring>
#include <vector>

#include "ops/matmul.h"

namespace fh {

// The slots of one expert.
struct Block { int expert; int64_t first, rows; };

// What all experts ops of a plan share: one runs at a time, and all but counts is read inside claimed work.
struct ExpertScratch {
  ActScratch in, mid;                         // by slot: what gate and up read, and what down reads
  std::vector<float> hidden;                  // [slots][inner]
  std::vector<Block> blocks;                  // those with rows, by ascending expert
  std::vector<int32_t> row, block, slot;      // of a slot: its row and block; [rows][top_k]: a row's slots
  std::vector<float> weight;                  // of a slot
  std::vector<int64_t> fill;                  // [experts]: slots dealt so far
  void allocate(int64_t count, int64_t experts, int64_t inner) {
    const auto grow = [](auto& v, int64_t n) { v.resize(std::max(v.size(), static_cast<size_t>(n))); };
    most_slots = std::max(most_slots, count);
    in.allocate(most_slots, 0);
    mid.allocate(most_slots, 0);
    grow(hidden, count * inner);
    for (auto* v : {&row, &block, &slot}) grow(*v, count);
    grow(weight, count);
    grow(fill, experts);
    blocks.reserve(static_cast<size_t>(experts));
  }
  int64_t most_slots = 0;
};

// Activations by slot, in the forms some weights want. A block of gemm_rows rows or more lies by units, a smaller one by rows;
// blocks are k rounded up to units apart for each slot.
struct Slots {
  Input in;                                   // of the block scratch; its norm and x are not used
  int64_t stride() const { return (in.k + kUnitInputs - 1) / kUnitInputs * kUnitInputs; }
  static bool by_units(const Run& r, const Block& b) { return b.rows >= r.k->gemm_rows; }
  // Where unit u of row i of a block lies.
  int64_t at(const Run& r, const Block& b, int64_t i, int64_t u) const {
    return b.first * stride() + (by_units(r, b) ? (u * b.rows + i) * kUnitInputs : i * in.k + u * kUnitInputs);
  }
  template <class Body> void each_unit(Body f) const {
    for (int64_t u = 0; u * kUnitInputs < in.k; ++u) f(u, std::min(kUnitInputs, in.k - u * kUnitInputs));
  }
  void quantize(Run& r, const float* src, const Block& b, int64_t i) const {
    each_unit([&](int64_t u, int64_t n) { in.quantize(r, src + u * kUnitInputs, at(r, b, i, u), n); });
  }
  // What lies at row i of block b, to row j of block c as well.
  void copy(const Run& r, const Block& b, int64_t i, const Block& c, int64_t j) const {
    ActScratch& s = *in.scratch;
    const auto move = [](auto& v, int64_t from, int64_t to, int64_t n) {
      std::memcpy(v.data() + to, v.data() + from, static_cast<size_t>(n) * sizeof(v[0]));
    };
    each_unit([&](int64_t u, int64_t n) {
      const int64_t from = at(r, b, i, u), to = at(r, c, j, u);
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
  // A block's rows as `w` wants them; floats [slots][k] lie apart.
  Acts acts(const Run& r, const Matrix& w, const Block& b, const float* floats) const {
    const ActScratch& s = *in.scratch;
    const int64_t base = b.first * stride();
    Acts a;
    a.k = in.k;
    a.ahead = r.ahead;
    switch (kind_info(w.w.kind).act) {
      case kAct32:
        a.q = s.q32.data() + base; a.scale = s.scale32.data() + base / 32;
        a.sum16 = s.sum32.data() + base / 16; a.fsum32 = s.fsum32.data() + base / 32;
        break;
      case kAct256: a.q = s.q256.data() + base; a.scale = s.scale256.data() + base / 256; a.sum16 = s.sum256.data() + base / 16; break;
      default: a.f32 = floats + b.first * in.k;
    }
    if (!a.f32 && by_units(r, b)) a.rows = b.rows;
    return a;
  }
  // Panels [p0, p1) of w times rows [t0, t0 + nt) of a block: y [p1-p0][nt][16].
  void multiply(const Run& r, const Matrix& w, int64_t p0, int64_t p1, const Block& b, const float* floats, int64_t t0, int64_t nt, float* y,
                const uint8_t* next) const {
    Acts a = acts(r, w, b, floats);
    a.next = next;
    multiply_rows(r, w, p0, p1, a, t0, nt, y);
  }
};

}  // namespace fh
