// Counts the parts of a JSON text without the interpreter, so that a long body of one client keeps no other waiting.
#include "bind.h"

#include <nanobind/stl/tuple.h>

#include <array>
#include <cstdint>
#include <string_view>
#include <tuple>

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
}

}  // namespace fh
