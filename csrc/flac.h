// FLAC: bytes of a file become samples, one frame at a time. Trusts nothing: every read is checked against the end, every
// sample against the width that its subframe states, and memory is that of one frame (65,536 samples a channel).
// Knows one format, and no rate or channel that a model wants. Source: RFC 9639.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace fh {

// What the file states of itself. `total` 0: not stated. `md5` of zeros: not stated.
struct FlacInfo {
  uint32_t rate = 0, channels = 0, bits = 0;
  uint64_t total = 0;                        // samples of one channel
  std::array<uint8_t, 16> md5{};
};

// Refers to the bytes, which must outlive it. Throws Error(Usage), which names what is wrong and at which sample.
class FlacReader {
 public:
  FlacReader(const uint8_t* data, size_t size);       // reads the metadata
  const FlacInfo& info() const { return info_; }
  // Appends the next frames, until `mono` has `most` samples or the file ends: means of the channels from -1 to 1, and
  // what the MD5 is of: little-endian samples, channel beside channel. Returns whether anything was appended.
  bool read(size_t most, std::vector<float>& mono, std::vector<uint8_t>& pcm);
  uint64_t decoded() const { return decoded_; }       // samples of one channel so far

 private:
  struct Bits;
  struct Header { uint32_t block = 0, assignment = 0; };
  Header frame_header(Bits& bits) const;
  void subframe(Bits& bits, uint32_t width, std::vector<int64_t>& out, uint32_t block) const;
  void residual(Bits& bits, int64_t* out, uint32_t block, uint32_t order) const;
  bool ended() const;
  void frame(std::vector<float>& mono, std::vector<uint8_t>& pcm);
  [[noreturn]] void fail(const char* what) const;

  const uint8_t* data_;
  size_t size_, at_ = 0;
  FlacInfo info_;
  uint64_t decoded_ = 0;
  std::vector<std::vector<int64_t>> channels_;
};

}  // namespace fh
