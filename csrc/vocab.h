// Vocabularies: the string lists of a model file, and byte-pair merging over them. Knows no text rules: words come from
// tokenizer/core.py as bytes, already normalised and cut.
//
// A vocabulary of 150,000 tokens and as many merges costs half a second as Python strings and dictionaries, at every
// start of the process; as bytes and two hash tables it costs some hundredths.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace fh {

// Strings in one piece of memory, a copy: the file may be unmapped. All are valid UTF-8.
class Strings {
 public:
  // Reads `count` strings, each a u64 length and its bytes, from data[at, size). Throws BadModelFile naming the string.
  static Strings read(const uint8_t* data, size_t size, size_t at, size_t count);
  void add(std::string_view s);
  size_t size() const { return ends_.size(); }
  std::string_view operator[](size_t i) const {
    const size_t begin = i ? ends_[i - 1] : 0;
    return {bytes_.data() + begin, ends_[i] - begin};
  }
  size_t file_bytes() const { return bytes_.size() + 8 * ends_.size(); }   // what read() went over
 private:
  std::string bytes_;
  std::vector<size_t> ends_;
};

struct BpeRules {
  bool byte_level = false;       // symbols start as bytes, spelled in GPT-2's alphabet; otherwise as characters
  bool ignore_merges = false;    // a word that is a token as it stands wins over its merges
  bool byte_fallback = false;    // a character without a token becomes the tokens <0x00> .. of its bytes
  int32_t unk = -1;              // else this id, once for a run of them; -1: dropped
};

// Byte-pair encoding: of all adjacent symbols that merge, the pair of best rank merges first, the leftmost of equals.
class Bpe {
 public:
  // `reachable`: by id, whether ordinary text may become it; of equal texts the first such id stands.
  Bpe(std::shared_ptr<const Strings> tokens, const uint8_t* reachable, BpeRules rules);
  // Merges as lines "left right", best first. Returns the first line that joins no two tokens to a third, or -1.
  int64_t merge_by_lines(const Strings& lines);
  // Any two tokens merge whose union is a token, by the rank of the union; `rank`: by id. Of one token's splits the
  // longest left part is first (SentencePiece); at byte level the leftmost in the word is (tiktoken).
  void merge_by_rank(std::vector<int32_t> rank);
  // Appends the ids of one word, given as UTF-8.
  void encode(std::string_view word, std::vector<int32_t>& out) const;
  int32_t find(std::string_view token) const;      // its id for ordinary text, or -1

 private:
  struct Symbol { int32_t id; int32_t previous, next; uint32_t begin, end; };   // end 0: no text, never merges
  struct Union { uint64_t rank; int32_t id; };
  struct Pair { uint64_t key; uint32_t rank; int32_t id; };                     // key: left << 32 | right, ~0 free

  int64_t slot(std::string_view token) const;      // index in entries_ where it is or would be
  Union joined(const Symbol& left, const Symbol& right, std::string_view word) const;
  void split(std::string_view word, std::vector<Symbol>& symbols) const;
  void split_unknown(std::string_view c, std::vector<Symbol>& symbols) const;
  static void push(std::vector<Symbol>& symbols, int32_t id, size_t begin, size_t end);
  size_t pair_slot(uint64_t key) const;

  std::shared_ptr<const Strings> tokens_;
  BpeRules rules_;
  uint64_t seed_;                                   // a crafted vocabulary cannot aim at one slot
  struct Entry { uint32_t hash; int32_t token, id; };   // token: where its text is, -1 free; id: for ordinary text, or -1
  std::vector<Entry> entries_;
  std::vector<Pair> pairs_;
  std::vector<int32_t> rank_;
  int32_t bytes_[256];                              // ids of single bytes, or -1
};

}  // namespace fh
