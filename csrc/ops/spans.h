// Attention's work over spans of positions, and which thread does what of it. Knows items, spans and the floats of their
// partial results; knows no softmax and no page.
#pragma once
#include <algorithm>
#include <utility>
#include <vector>

#include "ops/op.h"

namespace fh {

// Items of a step, each over `spans` spans, whose partial results lie from `partial` on. Where no item is a large share of the
// work (prefill), a thread takes an item and walks its spans. Else (decode over a long context, or beside short ones) spans
// are dealt out too, and merged in order afterwards: the same functions in the same order, the same bits.
template <class Item> struct SpanDeal {
  std::vector<Item> items;
  std::vector<std::pair<int32_t, int32_t>> pieces;   // split: (item, span)
  int64_t total = 0, largest = 0;             // floats of partial results: of all items, of one
  bool split = false;

  void clear() {
    items.clear();
    pieces.clear();
    total = largest = 0;
  }
  // `floats`: a span's partial result of this item.
  void add(Item it, int64_t floats) {
    it.partial = total;
    total += floats * it.spans;
    largest = std::max(largest, floats * it.spans);
    items.push_back(it);
  }
  void deal(int threads) {
    split = threads > 1 && largest * 4 * threads > total;
    for (size_t i = 0; split && i < items.size(); ++i)
      for (int s = 0; s < items[i].spans; ++s) pieces.emplace_back(static_cast<int32_t>(i), s);
    if (pieces.size() == items.size()) split = false;
  }
  template <class Body> void each_item(const Run& r, Phase& phase, Body f) const {
    share(r, phase, static_cast<int64_t>(items.size()), 1, [&](int64_t i, int64_t) { f(items[static_cast<size_t>(i)]); });
  }
  template <class Body> void each_piece(const Run& r, Phase& phase, Body f) const {
    share_stream(r, phase, static_cast<int64_t>(pieces.size()), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) f(items[static_cast<size_t>(pieces[static_cast<size_t>(i)].first)], pieces[static_cast<size_t>(i)].second);
    });
  }
};

}  // namespace fh
