// The KV cache's blocks: one stretch of lazily touched memory, each block with all layers' pages in a row.
// A page of its own for each layer and block would do too, but the kernel gives memory in pieces of 2 MB: with each
// layer's pages in a row, the block that begins a new piece begins one in every layer at once, and its step waits until
// all are zeroed (24 layers: 96 MB, 130 ms in one step). With blocks in a row it begins one.
#include <algorithm>
#include <cstring>

#include "freehold.h"

namespace fh {
namespace {

constexpr int kMaxLayers = 4096;
[[noreturn]] void refuse(const std::string& what) { throw Error(ErrorKind::Usage, "KV cache: " + what); }

}  // namespace

KvCache::KvCache(std::vector<KvLayer> layers, int64_t blocks, KvType type)
    : layers_(std::move(layers)), blocks_(blocks), type_(type) {
  if (layers_.empty() || layers_.size() > kMaxLayers) refuse("the cache has 1 to 4096 layers, got " + std::to_string(layers_.size()));
  if (blocks < 1 || blocks > INT32_MAX / kBlockTokens) refuse("a cache of " + std::to_string(blocks) + " blocks is out of range");
  for (size_t i = 0; i < layers_.size(); ++i) {
    const KvLayer& l = layers_[i];
    if (l.kv_heads < 1 || l.d < 1 || l.dv < 1 || l.kv_heads > 65536 || l.d > 65536 || l.dv > 65536) refuse("layer " + std::to_string(i) + " has no sane head shape");
    if (type == KvType::Q8 && std::max(l.d, l.dv) > kMaxCodeWidth)
      refuse("heads of " + std::to_string(std::max(l.d, l.dv)) + " do not fit q8, which takes " + std::to_string(kMaxCodeWidth) + "; use f16");
    offset_.push_back(static_cast<size_t>(block_bytes_));
    block_bytes_ += (l.kv_heads * kv_head_bytes(type, l.d, l.dv) + 63) / 64 * 64;
  }
  const __int128 total = static_cast<__int128>(block_bytes_) * blocks;
  if (total > (static_cast<__int128>(1) << 46)) throw Error(ErrorKind::Capacity, "a KV cache of more than 64 TB cannot be reserved");
  memory_ = Memory::anonymous(static_cast<size_t>(total));
}
const KvLayer& KvCache::layer(int i) const { return layers_.at(static_cast<size_t>(i)); }
KvType kv_type_named(std::string_view name) {
  if (name == "f16") return KvType::F16;
  if (name == "f32") return KvType::F32;
  if (name == "q8") return KvType::Q8;
  refuse("no type " + std::string(name) + "; there are f16, f32 and q8");
}
uint8_t* KvCache::pages(int i) const { return memory_->data + offset_[static_cast<size_t>(i)]; }
uint8_t* KvCache::at(int64_t block) const { return memory_->data + block * block_bytes_; }

void KvCache::check(int64_t block) const {
  if (block < 0 || block >= blocks_) refuse("no block " + std::to_string(block) + "; there are " + std::to_string(blocks_));
}
void KvCache::copy(const std::vector<std::pair<int64_t, int64_t>>& from_to) {
  for (const auto& [from, to] : from_to) {
    check(from);
    check(to);
  }
  for (const auto& [from, to] : from_to) std::memmove(at(to), at(from), static_cast<size_t>(block_bytes_));   // from may be to
}
void KvCache::read_block(int64_t block, uint8_t* out) const {
  check(block);
  std::memcpy(out, at(block), static_cast<size_t>(block_bytes_));
}
void KvCache::write_block(int64_t block, const uint8_t* in, size_t bytes) {
  check(block);
  if (bytes != static_cast<size_t>(block_bytes_))
    refuse("a block has " + std::to_string(block_bytes_) + " bytes, got " + std::to_string(bytes));
  std::memcpy(at(block), in, bytes);
}

}  // namespace fh
