// String lists and byte-pair merging. The order of merges is the `tokenizers` library's, which tests compare with.
#include "vocab.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstdio>
#include <cstring>
#include <queue>
#include <random>

#include "freehold.h"

namespace fh {
namespace {

// Length of the UTF-8 character at s[0, n), 0 when there is none: no overlong forms, no surrogates, up to U+10FFFF.
size_t character(const uint8_t* s, size_t n) {
  const uint8_t c = s[0];
  if (c < 0x80) return 1;
  const size_t length = c >= 0xC2 && c < 0xE0 ? 2 : c >= 0xE0 && c < 0xF0 ? 3 : c >= 0xF0 && c < 0xF5 ? 4 : 0;
  if (!length || n < length) return 0;
  for (size_t i = 1; i < length; ++i)
    if ((s[i] & 0xC0) != 0x80) return 0;
  if ((c == 0xE0 && s[1] < 0xA0) || (c == 0xED && s[1] > 0x9F) || (c == 0xF0 && s[1] < 0x90) || (c == 0xF4 && s[1] > 0x8F)) return 0;
  return length;
}
bool is_utf8(const uint8_t* s, size_t n) {
  for (size_t i = 0, step; i < n; i += step)
    if (!(step = character(s + i, n - i))) return false;
  return true;
}
size_t character(std::string_view s, size_t at) {     // in text known to be UTF-8
  return std::max<size_t>(1, character(reinterpret_cast<const uint8_t*>(s.data()) + at, s.size() - at));
}

uint64_t mix(uint64_t x) {
  x ^= x >> 32;
  x *= 0xD6E8FEB86659FD93u;
  return x ^ x >> 32;
}
uint64_t hash(std::string_view s, uint64_t seed) {
  uint64_t h = seed ^ s.size();
  for (size_t i = 0; i < s.size(); i += 8) {
    uint64_t word = 0;
    std::memcpy(&word, s.data() + i, std::min<size_t>(8, s.size() - i));
    h = mix(h ^ word) * 0x9E3779B97F4A7C15u;
  }
  return mix(h);
}

// GPT-2's printable stand-in for a byte, as UTF-8: printable Latin-1 is itself, the rest follows from U+0100.
std::string stand_in(int byte) {
  const auto itself = [](int b) { return (b >= 0x21 && b < 0x7F) || (b >= 0xA1 && b < 0xAD) || b >= 0xAE; };
  int code = byte;
  if (!itself(byte)) {
    code = 0x100;
    for (int b = 0; b < byte; ++b) code += !itself(b);
  }
  if (code < 0x80) return {static_cast<char>(code)};
  return {static_cast<char>(0xC0 | code >> 6), static_cast<char>(0x80 | (code & 0x3F))};
}

// A text in GPT-2's alphabet.
std::string spelled(std::string_view bytes) {
  static const auto table = [] {
    std::array<std::string, 256> t;
    for (int b = 0; b < 256; ++b) t[static_cast<size_t>(b)] = stand_in(b);
    return t;
  }();
  std::string text;
  for (const char b : bytes) text += table[static_cast<uint8_t>(b)];
  return text;
}

}  // namespace

// ---- strings ---------------------------------------------------------------------------------------------------
Strings Strings::read(const uint8_t* data, size_t size, size_t at, size_t count) {
  const auto bad = [](size_t i, const char* what) { throw Error(ErrorKind::BadModelFile, "string " + std::to_string(i) + " " + what); };
  if (at > size || count > (size - at) / 8) throw Error(ErrorKind::BadModelFile, std::to_string(count) + " strings are announced and cannot follow");
  Strings out;
  out.ends_.reserve(count);
  out.bytes_.reserve(std::min(size - at, 16 * count));
  for (size_t i = 0; i < count; ++i) {
    uint64_t length;
    if (size - at < sizeof length) bad(i, "runs past the file's end");
    std::memcpy(&length, data + at, sizeof length);
    at += sizeof length;
    if (length > size - at) bad(i, "runs past the file's end");
    if (!is_utf8(data + at, length)) bad(i, "is not UTF-8");
    out.add({reinterpret_cast<const char*>(data + at), length});
    at += length;
  }
  return out;
}

void Strings::add(std::string_view s) {
  bytes_.append(s);
  ends_.push_back(bytes_.size());
}

// ---- tables ----------------------------------------------------------------------------------------------------
Bpe::Bpe(std::shared_ptr<const Strings> tokens, const uint8_t* reachable, BpeRules rules)
    : tokens_(std::move(tokens)), rules_(rules), seed_(std::random_device{}()) {
  entries_.assign(std::bit_ceil(2 * tokens_->size() + 2), {0, -1, -1});
  for (size_t i = 0; i < tokens_->size(); ++i) {
    const std::string_view text = (*tokens_)[i];
    Entry& e = entries_[static_cast<size_t>(slot(text))];
    if (e.token < 0) e = {static_cast<uint32_t>(hash(text, seed_)), static_cast<int32_t>(i), -1};
    if (e.id < 0 && reachable[i]) e.id = static_cast<int32_t>(i);
  }
  if (rules_.unk >= static_cast<int32_t>(tokens_->size())) throw Error(ErrorKind::Usage, "unk is not a token");
  if (rules_.unk >= 0) rules_.unk = find((*tokens_)[static_cast<size_t>(rules_.unk)]);
  for (int b = 0; b < 256; ++b) {
    char name[8];
    std::snprintf(name, sizeof name, "<0x%02X>", static_cast<unsigned>(b));
    bytes_[b] = find(rules_.byte_level ? stand_in(b) : std::string(name));
  }
}

int64_t Bpe::slot(std::string_view token) const {
  const uint64_t h = hash(token, seed_);
  const size_t mask = entries_.size() - 1;
  for (size_t i = h >> 32 & mask;; i = (i + 1) & mask) {
    const Entry& e = entries_[i];
    if (e.token < 0 || (e.hash == static_cast<uint32_t>(h) && (*tokens_)[static_cast<size_t>(e.token)] == token)) return static_cast<int64_t>(i);
  }
}

int32_t Bpe::find(std::string_view token) const {
  return entries_[static_cast<size_t>(slot(token))].id;      // -1 in a free slot too
}

size_t Bpe::pair_slot(uint64_t key) const {
  const size_t mask = pairs_.size() - 1;
  size_t i = (mix(key ^ seed_) * 0x9E3779B97F4A7C15u >> 32) & mask;
  while (pairs_[i].key != key && pairs_[i].key != ~uint64_t{0}) i = (i + 1) & mask;
  return i;
}

int64_t Bpe::merge_by_lines(const Strings& lines) {
  pairs_.assign(std::bit_ceil(2 * lines.size() + 2), {~uint64_t{0}, 0, -1});
  std::string text;
  for (size_t i = 0; i < lines.size(); ++i) {
    const std::string_view line = lines[i];
    const size_t cut = line.find(' ', 1);
    if (cut == std::string_view::npos || cut + 1 == line.size()) return static_cast<int64_t>(i);
    const std::string_view left = line.substr(0, cut), right = line.substr(cut + 1);
    text.assign(left).append(right);
    const Entry &l = entries_[static_cast<size_t>(slot(left))], &r = entries_[static_cast<size_t>(slot(right))],
                &u = entries_[static_cast<size_t>(slot(text))];
    if (l.token < 0 || r.token < 0 || u.token < 0) return static_cast<int64_t>(i);
    if (l.id < 0 || r.id < 0 || u.id < 0) continue;
    const uint64_t key = static_cast<uint64_t>(l.id) << 32 | static_cast<uint32_t>(r.id);
    pairs_[pair_slot(key)] = {key, static_cast<uint32_t>(i), u.id};
  }
  return -1;
}

void Bpe::merge_by_rank(std::vector<int32_t> rank) {
  if (rank.size() != tokens_->size()) throw Error(ErrorKind::Usage, "one rank for each token");
  rank_ = std::move(rank);
}

// ---- encoding --------------------------------------------------------------------------------------------------
Bpe::Union Bpe::joined(const Symbol& left, const Symbol& right, std::string_view word) const {
  if (rank_.empty()) {
    if (pairs_.empty()) return {0, -1};
    const Pair& p = pairs_[pair_slot(static_cast<uint64_t>(left.id) << 32 | static_cast<uint32_t>(right.id))];
    return {p.rank, p.id};
  }
  if (!left.end || !right.end) return {0, -1};
  int32_t id;
  if (rules_.byte_level) {
    id = find(spelled(word.substr(left.begin, right.end - left.begin)));
    return id < 0 ? Union{0, -1} : Union{static_cast<uint64_t>(rank_[static_cast<size_t>(id)]), id};
  }
  if (left.end == right.begin) id = find(word.substr(left.begin, right.end - left.begin));
  else id = find(std::string(word.substr(left.begin, left.end - left.begin)) + std::string(word.substr(right.begin, right.end - right.begin)));
  if (id < 0) return {0, -1};
  return {static_cast<uint64_t>(rank_[static_cast<size_t>(id)]) << 32 | (UINT32_MAX - (left.end - left.begin)), id};
}

void Bpe::push(std::vector<Symbol>& symbols, int32_t id, size_t begin, size_t end) {
  const auto n = static_cast<int32_t>(symbols.size());
  if (n) symbols.back().next = n;
  symbols.push_back({id, n - 1, -1, static_cast<uint32_t>(begin), static_cast<uint32_t>(end)});
}

void Bpe::split(std::string_view word, std::vector<Symbol>& symbols) const {
  if (rules_.byte_level) {
    for (size_t i = 0; i < word.size(); ++i)
      if (const int32_t id = bytes_[static_cast<uint8_t>(word[i])]; id >= 0) push(symbols, id, i, i + 1);
    return;
  }
  for (size_t i = 0, step; i < word.size(); i += step) {
    step = character(word, i);
    const int32_t id = find(word.substr(i, step));
    if (id >= 0) push(symbols, id, i, i + step);
    else split_unknown(word.substr(i, step), symbols);
  }
}

void Bpe::split_unknown(std::string_view c, std::vector<Symbol>& symbols) const {
  if (rules_.byte_fallback && std::all_of(c.begin(), c.end(), [&](char b) { return bytes_[static_cast<uint8_t>(b)] >= 0; })) {
    for (const char b : c) push(symbols, bytes_[static_cast<uint8_t>(b)], 0, 0);
    return;
  }
  const bool goes_on = !symbols.empty() && symbols.back().id == rules_.unk && !symbols.back().end;
  if (rules_.unk >= 0 && !goes_on) push(symbols, rules_.unk, 0, 0);
}

void Bpe::encode(std::string_view word, std::vector<int32_t>& out) const {
  if (word.size() > INT32_MAX) throw Error(ErrorKind::Usage, "a word of more than 2 GB cannot be encoded");
  if (rules_.ignore_merges) {
    if (const int32_t id = rules_.byte_level ? find(spelled(word)) : find(word); id >= 0) return out.push_back(id);
  }
  std::vector<Symbol> symbols;
  split(word, symbols);
  struct Merge {
    uint64_t rank;
    int32_t at, id;
    bool operator>(const Merge& o) const { return rank != o.rank ? rank > o.rank : at > o.at; }
  };
  std::priority_queue<Merge, std::vector<Merge>, std::greater<>> queue;
  const auto offer = [&](int32_t at) {
    if (at < 0 || symbols[static_cast<size_t>(at)].next < 0) return;
    const Symbol& left = symbols[static_cast<size_t>(at)];
    if (const Union u = joined(left, symbols[static_cast<size_t>(left.next)], word); u.id >= 0) queue.push({u.rank, at, u.id});
  };
  for (size_t i = 0; i + 1 < symbols.size(); ++i) offer(static_cast<int32_t>(i));
  while (!queue.empty()) {
    const Merge m = queue.top();
    queue.pop();
    Symbol& left = symbols[static_cast<size_t>(m.at)];
    if (left.id < 0 || left.next < 0) continue;
    Symbol& right = symbols[static_cast<size_t>(left.next)];
    if (joined(left, right, word).id != m.id) continue;       // one of the two has merged elsewhere since
    left = {m.id, left.previous, right.next, left.begin, right.end};
    right.id = -1;
    if (left.next >= 0) symbols[static_cast<size_t>(left.next)].previous = m.at;
    offer(left.previous);
    offer(m.at);
  }
  for (const Symbol& s : symbols)
    if (s.id >= 0) out.push_back(s.id);
}

}  // namespace fh
