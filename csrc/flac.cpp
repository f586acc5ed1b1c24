// See flac.h. Sections of RFC 9639 are named where their arithmetic is.
#include "flac.h"

#include <algorithm>
#include <bit>
#include <cstdio>
#include <cstring>
#include <string>

#include "freehold.h"

namespace fh {
namespace {

constexpr uint32_t kMaxOrder = 32, kWidest = 33;   // of a predictor; bits of a side channel of 32 bits

// Polynomials of 9.1.8 and 9.3, high bit first, from zero.
template <class T, T Polynomial> constexpr std::array<T, 256> crc_table() {
  std::array<T, 256> table{};
  constexpr int kTop = 8 * sizeof(T) - 1;
  for (int i = 0; i < 256; ++i) {
    T value = static_cast<T>(static_cast<T>(i) << (8 * sizeof(T) - 8));
    for (int bit = 0; bit < 8; ++bit) value = static_cast<T>((value << 1) ^ ((value >> kTop & 1) ? Polynomial : 0));
    table[i] = value;
  }
  return table;
}
constexpr auto kCrc8 = crc_table<uint8_t, 0x07>();
constexpr auto kCrc16 = crc_table<uint16_t, 0x8005>();

uint8_t crc8(const uint8_t* data, size_t size) {
  uint8_t crc = 0;
  for (size_t i = 0; i < size; ++i) crc = kCrc8[crc ^ data[i]];
  return crc;
}

uint16_t crc16(const uint8_t* data, size_t size) {
  uint16_t crc = 0;
  for (size_t i = 0; i < size; ++i) crc = static_cast<uint16_t>((crc << 8) ^ kCrc16[(crc >> 8) ^ data[i]]);
  return crc;
}

uint64_t big_endian(const uint8_t* p, int bytes) {
  uint64_t value = 0;
  for (int i = 0; i < bytes; ++i) value = value << 8 | p[i];
  return value;
}

struct CutShort {};   // the bytes ended within a frame

}  // namespace

// Bits from high to low. A word of 64 is filled from whole bytes; what lies beyond the end is never read.
struct FlacReader::Bits {
  const uint8_t* data;
  size_t size, at;                 // at: the next byte that is not in `word`
  uint64_t word = 0;               // the next bits, at the top
  uint32_t left = 0;               // how many

  void fill() {
    if (size - at >= 8 && left <= 56) {
      // Bits beyond `left` may be those of the next byte already, which a later fill writes again.
      word |= big_endian(data + at, 8) >> left;
      const uint32_t bytes = (64 - left) / 8;
      at += bytes;
      left += 8 * bytes;
      return;
    }
    while (left <= 56 && at < size) {
      word |= static_cast<uint64_t>(data[at++]) << (56 - left);
      left += 8;
    }
  }
  uint64_t take(uint32_t n) {      // n <= 56
    if (n == 0) return 0;
    if (left < n) {
      fill();
      if (left < n) throw CutShort();
    }
    const uint64_t value = word >> (64 - n);
    word <<= n;
    left -= n;
    return value;
  }
  int64_t take_signed(uint32_t n) {
    const uint64_t value = take(n);
    if (n == 0) return 0;
    return static_cast<int64_t>(value << (64 - n)) >> (64 - n);
  }
  // Zeros before the next one, which is taken too. `most`: more of them are no valid code.
  uint64_t unary(uint64_t most) {
    for (uint64_t zeros = 0;;) {
      if (left == 0) {
        fill();
        if (left == 0) throw CutShort();
      }
      const auto leading = static_cast<uint32_t>(std::countl_zero(word));
      if (leading < left) {
        word = leading == 63 ? 0 : word << (leading + 1);
        left -= leading + 1;
        return zeros + leading;
      }
      zeros += left;
      if (zeros > most) return zeros;
      word = 0;
      left = 0;
    }
  }
  void align() { take(left % 8); }
  size_t position() const { return at - left / 8; }   // of the next byte, when aligned
};

void FlacReader::fail(const char* what) const {
  const double seconds = info_.rate ? static_cast<double>(decoded_) / info_.rate : 0;
  char where[48];
  std::snprintf(where, sizeof where, " (at %.1f s)", seconds);
  throw Error(ErrorKind::Usage, std::string("the FLAC file ") + what + where + "\nsend it whole, or encode it again");
}

// 8: "fLaC", then blocks of metadata: a bit for the last, 7 bits of kind, 24 of length. The first is STREAMINFO.
FlacReader::FlacReader(const uint8_t* data, size_t size) : data_(data), size_(size) {
  if (size < 4 || std::memcmp(data, "fLaC", 4) != 0) fail("does not begin as FLAC does");
  at_ = 4;
  for (bool last = false, first = true; !last; first = false) {
    if (size_ - at_ < 4) fail("is cut short in its metadata");
    last = data_[at_] & 0x80;
    const uint32_t kind = data_[at_] & 0x7F;
    const auto length = static_cast<size_t>(big_endian(data_ + at_ + 1, 3));
    at_ += 4;
    if (length > size_ - at_) fail("is cut short in its metadata");
    if (first != (kind == 0) || (first && length != 34)) fail("has no valid STREAMINFO block first, or has two");
    if (first) {
      const uint64_t fields = big_endian(data_ + at_ + 10, 8);   // 8.2: 20 bits, 3, 5, 36
      info_.rate = static_cast<uint32_t>(fields >> 44);
      info_.channels = static_cast<uint32_t>(fields >> 41 & 7) + 1;
      info_.bits = static_cast<uint32_t>(fields >> 36 & 31) + 1;
      info_.total = fields & 0xFFFFFFFFFULL;
      std::memcpy(info_.md5.data(), data_ + at_ + 18, 16);
      if (info_.bits < 4) fail("states less than 4 bits a sample");
    }
    at_ += length;
  }
  channels_.resize(info_.channels);
}

// A tag behind the frames, ID3v1 or APE, ends the file too.
bool FlacReader::ended() const {
  const size_t left = size_ - at_;
  if (info_.total) return decoded_ >= info_.total;
  return left == 0 || (left >= 3 && std::memcmp(data_ + at_, "TAG", 3) == 0) ||
         (left >= 8 && std::memcmp(data_ + at_, "APETAGEX", 8) == 0);
}

bool FlacReader::read(size_t most, std::vector<float>& mono, std::vector<uint8_t>& pcm) {
  const uint64_t before = decoded_;
  while (mono.size() < most && !ended()) {
    if (at_ == size_) fail("is cut short: it has fewer samples than its header states");
    try {
      frame(mono, pcm);
    } catch (const CutShort&) {
      fail("is cut short within a frame");
    }
    if (info_.total && decoded_ > info_.total) fail("has more samples than its header states");
  }
  return decoded_ != before;
}

// 9.1: sync code, sizes, a number in the manner of UTF-8, sizes that did not fit, CRC-8.
FlacReader::Header FlacReader::frame_header(Bits& bits) const {
  const size_t begin = bits.position();
  if (bits.take(15) != 0x7FFC) fail("has something else where a frame should begin");
  bits.take(1);                                            // whether blocks vary: each states its size anyway
  const auto block_code = static_cast<uint32_t>(bits.take(4)), rate_code = static_cast<uint32_t>(bits.take(4));
  Header header;
  header.assignment = static_cast<uint32_t>(bits.take(4));
  const auto width_code = static_cast<uint32_t>(bits.take(3));
  if (bits.take(1) != 0) fail("uses a reserved bit of a frame's header");
  const auto lead = static_cast<uint8_t>(bits.take(8));
  const int ones = std::countl_one(lead);
  if (ones == 1 || ones == 8) fail("has a frame whose number is not valid");
  for (int i = 1; i < ones; ++i)
    if (bits.take(8) >> 6 != 2) fail("has a frame whose number is not valid");
  if (block_code == 0) fail("uses a reserved size of blocks");
  else if (block_code == 1) header.block = 192;
  else if (block_code <= 5) header.block = 144u << block_code;
  else if (block_code == 6) header.block = static_cast<uint32_t>(bits.take(8)) + 1;
  else if (block_code == 7) header.block = static_cast<uint32_t>(bits.take(16)) + 1;
  else header.block = 1u << block_code;
  static constexpr uint32_t kRates[] = {0, 88200, 176400, 192000, 8000, 16000, 22050, 24000, 32000, 44100, 48000, 96000};
  uint64_t rate = rate_code < 12 ? kRates[rate_code] : 0;
  if (rate_code == 12) rate = bits.take(8) * 1000;
  else if (rate_code == 13) rate = bits.take(16);
  else if (rate_code == 14) rate = bits.take(16) * 10;
  else if (rate_code == 15) fail("uses a reserved rate");
  if (rate_code != 0 && rate != info_.rate) fail("changes its rate");
  static constexpr uint32_t kWidths[] = {0, 8, 12, 0, 16, 20, 24, 32};
  if (width_code == 3) fail("uses a reserved width of samples");
  if (width_code != 0 && kWidths[width_code] != info_.bits) fail("changes the width of its samples");
  if (header.assignment > 10) fail("uses a reserved assignment of channels");
  if ((header.assignment < 8 ? header.assignment + 1 : 2) != info_.channels) fail("changes its number of channels");
  const size_t end = bits.position();
  if (bits.take(8) != crc8(data_ + begin, end - begin)) fail("is damaged: a frame's header does not match its CRC");
  return header;
}

// 9.2.7: partitions of Rice codes with 4 or 5 bits of parameter; all ones: numbers of a stated width.
void FlacReader::residual(Bits& bits, int64_t* out, uint32_t block, uint32_t order) const {
  const auto method = static_cast<uint32_t>(bits.take(2));
  if (method > 1) fail("uses a reserved code of residuals");
  const uint32_t parameter_bits = method ? 5 : 4, escape = method ? 31 : 15;
  const auto partition_order = static_cast<uint32_t>(bits.take(4));
  const uint32_t size = block >> partition_order;
  if ((size << partition_order) != block || size < order) fail("has partitions that do not fit their block");
  for (uint32_t i = order, end = size; end <= block; end += size) {
    const auto parameter = static_cast<uint32_t>(bits.take(parameter_bits));
    if (parameter == escape) {
      const auto width = static_cast<uint32_t>(bits.take(5));
      for (; i < end; ++i) out[i] = bits.take_signed(width);
      continue;
    }
    const uint64_t most = UINT32_MAX >> parameter;         // so that a folded residual has 32 bits
    for (; i < end; ++i) {
      const uint64_t high = bits.unary(most);
      if (high > most) fail("has a residual of more than 32 bits");
      const uint64_t folded = high << parameter | bits.take(parameter);
      out[i] = static_cast<int64_t>(folded >> 1) ^ -static_cast<int64_t>(folded & 1);
    }
  }
}

// 9.2: a zero, six bits of kind, wasted bits. Sums stay below 2^52: 32 products of 15 bits with checked samples of 33.
void FlacReader::subframe(Bits& bits, uint32_t width, std::vector<int64_t>& out, uint32_t block) const {
  if (bits.take(1) != 0) fail("has a subframe that begins with a one");
  const auto kind = static_cast<uint32_t>(bits.take(6));
  uint32_t wasted = 0;
  if (bits.take(1)) {
    const uint64_t zeros = bits.unary(kWidest);
    if (zeros + 1 >= width) fail("has a subframe of wasted bits alone");
    wasted = static_cast<uint32_t>(zeros) + 1;
    width -= wasted;
  }
  out.resize(block);
  int64_t* const samples = out.data();
  const int64_t highest = (int64_t{1} << (width - 1)) - 1, lowest = -highest - 1;
  if (kind == 0) {
    std::fill(out.begin(), out.end(), bits.take_signed(width));
  } else if (kind == 1) {
    for (uint32_t i = 0; i < block; ++i) samples[i] = bits.take_signed(width);
  } else if ((kind >= 8 && kind <= 12) || kind >= 32) {
    const bool fixed = kind < 32;
    const uint32_t order = fixed ? kind - 8 : kind - 31;
    if (order > block) fail("has a predictor that is longer than its block");
    for (uint32_t i = 0; i < order; ++i) samples[i] = bits.take_signed(width);
    // 9.2.5: the differences of order 0 to 4, as a predictor of whole numbers.
    static constexpr int32_t kFixed[5][4] = {{}, {1}, {2, -1}, {3, -3, 1}, {4, -6, 4, -1}};
    int64_t weights[kMaxOrder] = {};
    uint32_t shift = 0;
    if (fixed) {
      for (uint32_t j = 0; j < order; ++j) weights[j] = kFixed[order][j];
    } else {
      const auto precision = static_cast<uint32_t>(bits.take(4)) + 1;
      if (precision == 16) fail("uses a reserved precision of weights");
      const int64_t signed_shift = bits.take_signed(5);
      if (signed_shift < 0) fail("has a predictor with a negative shift");
      shift = static_cast<uint32_t>(signed_shift);
      for (uint32_t j = 0; j < order; ++j) weights[j] = bits.take_signed(precision);
    }
    residual(bits, samples, block, order);
    for (uint32_t i = order; i < block; ++i) {
      int64_t sum = 0;
      for (uint32_t j = 0; j < order; ++j) sum += weights[j] * samples[i - 1 - j];
      const int64_t value = samples[i] + (sum >> shift);
      if (value > highest || value < lowest) fail("is damaged: a sample is outside its width");
      samples[i] = value;
    }
  } else {
    fail("uses a reserved kind of subframe");
  }
  if (wasted)
    for (int64_t& sample : out) sample *= int64_t{1} << wasted;
}

void FlacReader::frame(std::vector<float>& mono, std::vector<uint8_t>& pcm) {
  Bits bits{data_, size_, at_};
  const Header header = frame_header(bits);
  const uint32_t block = header.block;
  for (uint32_t c = 0; c < info_.channels; ++c) {
    const bool side = (header.assignment == 9 && c == 0) || ((header.assignment == 8 || header.assignment == 10) && c == 1);
    subframe(bits, info_.bits + side, channels_[c], block);
  }
  bits.align();
  const size_t end = bits.position();
  if (bits.take(16) != crc16(data_ + at_, end - at_)) fail("is damaged: a frame does not match its CRC");
  if (header.assignment >= 8) {                            // 4.2: left and side, side and right, mid and side
    std::vector<int64_t>&a = channels_[0], &b = channels_[1];
    for (uint32_t i = 0; i < block; ++i) {
      if (header.assignment == 8) b[i] = a[i] - b[i];
      else if (header.assignment == 9) a[i] += b[i];
      else {
        const int64_t side = b[i], mid = a[i] * 2 + (side & 1);
        a[i] = (mid + side) >> 1;
        b[i] = (mid - side) >> 1;
      }
    }
  }
  const uint32_t bytes = (info_.bits + 7) / 8;
  const size_t before = pcm.size();
  pcm.resize(before + size_t{block} * info_.channels * bytes);
  uint8_t* to = pcm.data() + before;
  const double scale = 1.0 / (static_cast<double>(int64_t{1} << (info_.bits - 1)) * info_.channels);
  const size_t first = mono.size();
  mono.resize(first + block);
  for (uint32_t i = 0; i < block; ++i) {
    int64_t sum = 0;
    for (uint32_t c = 0; c < info_.channels; ++c) {
      const int64_t sample = channels_[c][i];
      sum += sample;
      for (uint32_t byte = 0; byte < bytes; ++byte) *to++ = static_cast<uint8_t>(static_cast<uint64_t>(sample) >> (8 * byte));
    }
    mono[first + i] = static_cast<float>(static_cast<double>(sum) * scale);
  }
  at_ = bits.position();
  decoded_ += block;
}

}  // namespace fh
