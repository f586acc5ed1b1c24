// Vocabularies and byte-pair merging.
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bind/bind.h"
#include "vocab.h"

namespace fh {
namespace {

// Words of a text: bytes, and for each byte the number of its word (non-decreasing).
std::vector<int32_t> bpe_encode(const Bpe& bpe, nb::bytes text, const std::vector<int32_t>& words) {
  const std::string_view bytes(text.c_str(), text.size());
  if (words.size() != bytes.size()) throw Error(ErrorKind::Usage, "one word number for each byte");
  nb::gil_scoped_release free;
  std::vector<int32_t> ids;
  for (size_t begin = 0, end; begin < bytes.size(); begin = end) {
    end = begin + 1;
    while (end < bytes.size() && words[end] == words[begin]) ++end;
    bpe.encode(bytes.substr(begin, end - begin), ids);
  }
  return ids;
}

}  // namespace

void bind_vocab(nb::module_& m) {
  nb::class_<Strings>(m, "Strings", nb::sig("class Strings(Sequence[str])"), "A long list of strings as bytes: a vocabulary, or its merges. Immutable.")
      .def(nb::new_([](const std::vector<std::string>& texts) {
        auto s = std::make_shared<Strings>();
        for (const std::string& t : texts) s->add(t);
        return s;
      }), "texts"_a)
      .def_static("read", [](In<uint8_t, 1> data, size_t at, size_t count) {
        nb::gil_scoped_release free;
        return std::make_shared<Strings>(Strings::read(data.data(), data.size(), at, count));
      }, "data"_a, "at"_a, "count"_a,
         "Copy `count` strings, each a u64 length and its UTF-8 bytes; raises BadModelFile naming the string.")
      .def_prop_ro("file_bytes", &Strings::file_bytes, "Bytes that `read` went over.")
      .def("__len__", &Strings::size)
      .def("__getitem__", [](const Strings& s, int64_t i) {
        const auto n = static_cast<int64_t>(s.size());
        if (i < -n || i >= n) throw nb::index_error();
        const std::string_view text = s[static_cast<size_t>(i < 0 ? i + n : i)];
        return nb::str(text.data(), text.size());
      }, "index"_a)
      .def("index", [](const Strings& s, const std::string& text) {
        for (size_t i = 0; i < s.size(); ++i)
          if (s[i] == text) return i;
        throw nb::value_error("no such string");
      }, "text"_a, "Return the first place of `text`; raises ValueError. Looks at all of them: some tenths of a millisecond.");
  nb::class_<Bpe>(m, "Bpe", "Byte-pair encoding over a vocabulary: the pair of best rank merges first, the leftmost of equals.")
      .def("__init__", [](Bpe* self, std::shared_ptr<Strings> tokens, In<uint8_t, 1> reachable, bool byte_level, bool ignore_merges,
                          bool byte_fallback, int32_t unk) {
        if (reachable.size() != tokens->size() || tokens->size() > INT32_MAX) throw Error(ErrorKind::Usage, "one flag for each token");
        nb::gil_scoped_release free;
        new (self) Bpe(tokens, reachable.data(), {byte_level, ignore_merges, byte_fallback, unk});
      }, "tokens"_a, "reachable"_a, "byte_level"_a, "ignore_merges"_a = false, "byte_fallback"_a = false, "unk"_a = -1,
         "`reachable`: for each id, whether ordinary text may become it.")
      .def("merge_by_lines", &Bpe::merge_by_lines, "lines"_a, nb::call_guard<nb::gil_scoped_release>(),
         "Take merges \"left right\", best first; return the first line that joins no two tokens, or -1.")
      .def("merge_by_rank", [](Bpe& self, In<int32_t, 1> rank) {
        self.merge_by_rank({rank.data(), rank.data() + rank.size()});
      }, "rank"_a, "Let any two tokens merge whose union is a token, the lowest rank first; `rank` by id.")
      .def("encode", &bpe_encode, "text"_a, "words"_a, nb::sig("def encode(self, text: bytes, words: Sequence[int | None]) -> list[int]"),
           R"(Encode words given as UTF-8; `words` numbers the word of each byte.

Its type is the tokenizers package's; None is a TypeError.)")
      .def("find", [](const Bpe& self, const std::string& token) { return self.find(token); }, "token"_a, "Return the id of a token that ordinary text may become, or -1.");
}

}  // namespace fh
