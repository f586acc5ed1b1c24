// Counts and cuts a JSON text without the interpreter, so that a long body of one client keeps no other waiting.
#include "bind.h"

#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

namespace fh {
namespace {

struct JsonCounts {
  uint64_t containers = 0, names = 0, commas = 0, backslashes = 0;
  bool wide = false;
};

// What ends a run of plain bytes: inside a string a quote or a backslash, outside one a quote or punctuation.
constexpr std::array<bool, 256> stops_at(std::string_view signs) {
  std::array<bool, 256> stops{};
  for (char sign : signs) stops[static_cast<uint8_t>(sign)] = true;
  return stops;
}
constexpr auto kInside = stops_at("\"\\"), kOutside = stops_at("\"\\[{:,");

JsonCounts count(const uint8_t* at, const uint8_t* end) {
  JsonCounts counts;
  bool inside = false;
  uint8_t all = 0;   // the bytes, or-ed: bit 7 tells of one beyond ASCII
  while (at < end) {
    const auto& stops = inside ? kInside : kOutside;
    while (at < end && !stops[*at]) all |= *at++;
    if (at == end) break;
    switch (*at++) {
      case '"': inside = !inside; break;
      case '[': case '{': ++counts.containers; break;
      case ':': ++counts.names; break;
      case ',': ++counts.commas; break;
      default:   // a backslash: inside a string the next byte belongs to it
        ++counts.backslashes;
        if (!inside || at == end) break;
        counts.wide |= *at == 'u';
        counts.backslashes += *at == '\\';
        all |= *at++;
    }
  }
  counts.wide |= all >= 0x80;
  return counts;
}

constexpr auto kBetween = stops_at("\"[{]},");

bool is_space(uint8_t sign) { return sign == ' ' || sign == '\n' || sign == '\t' || sign == '\r'; }

[[noreturn]] void malformed(const char* what, size_t at) {
  throw std::invalid_argument("JSON is malformed: " + std::string(what) + " (byte " + std::to_string(at) + ")");
}

// Returns begin and end of each piece: items of the list or object in text[begin, end) that are shorter than `piece`
// together, or one longer item by itself. Items are separated by brackets and quotes alone: the caller that parses the
// pieces finds all else that is wrong with them, but an item that is missing, which this refuses.
std::vector<size_t> cut(const uint8_t* text, size_t begin, size_t end, size_t piece) {
  std::vector<size_t> pieces;
  size_t at = begin;
  while (at < end && is_space(text[at])) ++at;
  if (at == end || (text[at] != '[' && text[at] != '{')) malformed("a list or an object was expected", at);
  const uint8_t last = text[at++] == '[' ? ']' : '}';
  size_t depth = 1, first = at, item = at;   // where the piece and the item begin
  bool solid = false;                        // whether the item has a text, a list or an object
  auto close = [&](size_t stop, bool only) {
    if (!solid && !only) {
      size_t from = item;
      while (from < stop && is_space(text[from])) ++from;
      if (from == stop) malformed("a value is missing", stop);
    }
    if (stop - item > piece) {
      if (item > first) pieces.insert(pieces.end(), {first, item - 1});
      pieces.insert(pieces.end(), {item, stop});
      first = stop + 1;
    } else if (stop - first > piece) {
      pieces.insert(pieces.end(), {first, item - 1});
      first = item;
    }
    item = stop + 1;
    solid = false;
  };
  for (; at < end; ++at) {
    while (at < end && !kBetween[text[at]]) ++at;
    if (at == end) break;
    switch (text[at]) {
      case '"':
        for (++at; at < end && text[at] != '"'; ++at) at += text[at] == '\\';
        solid = true;
        break;
      case '[': case '{': ++depth; solid = true; break;
      case ',':
        if (depth == 1) close(at, false);
        break;
      default:
        if (--depth > 0) break;
        if (text[at] != last) malformed("another bracket was expected", at);
        close(at, pieces.empty() && first == item);
        if (first <= at) pieces.insert(pieces.end(), {first, at});
        for (++at; at < end; ++at)
          if (!is_space(text[at])) malformed("something follows the end", at);
        return pieces;
    }
  }
  throw std::invalid_argument("Input data was truncated");
}

}  // namespace

void bind_json(nb::module_& m) {
  m.def("count_json",
        [](nb::bytes text) {
          const auto* data = reinterpret_cast<const uint8_t*>(text.c_str());
          JsonCounts counts;
          {
            nb::gil_scoped_release free;
            counts = count(data, data + text.size());
          }
          return std::make_tuple(counts.containers, counts.names, counts.containers + counts.commas, counts.backslashes, counts.wide);
        },
        "text"_a,
        R"(Return how many (lists and objects, names, values, backslashes) a JSON text has, and whether it is wide.

Punctuation inside strings does not count; backslashes do, wherever they are. Values: items of lists and objects, at
most. Wide: a string may hold a character beyond ASCII. What is no JSON gives some numbers.)");
  m.def("cut_json",
        [](nb::bytes text, size_t begin, size_t end, size_t piece) {
          if (begin > end || end > text.size()) throw std::invalid_argument("begin and end are not of this text");
          nb::gil_scoped_release free;
          return cut(reinterpret_cast<const uint8_t*>(text.c_str()), begin, end, piece);
        },
        "text"_a, "begin"_a, "end"_a, "piece"_a,
        R"(Return begin and end of each piece of the list or object in text[begin:end], one after the other.

A piece is items of less than `piece` bytes together, or one longer item. Only brackets, quotes and commas are
looked at: pieces may be no JSON. Raises ValueError where an item is missing, the text ends early or something
follows it.)");
}

}  // namespace fh
