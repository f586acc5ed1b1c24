// The KV cache's blocks: one stretch of lazily touched memory, each block with all layers' pages in a row; and the slots of
// recurrent layers' states, laid the same way.
// A page of its own for each layer and block would do too, but the kernel gives memory in pieces of 2 MB: with each
// layer's pages in a row, the block that begins a new piece begins one in every layer at once, and its step waits until
// all are zeroed (24 layers: 96 MB, 130 ms in one step). With blocks in a row it begins one.
#include <algorithm>
#include <cstring>

#include "freehold.h"

namespace fh {
namespace {

constexpr int kMaxLayers = 4096;
constexpr int64_t kMaxStateFloats = int64_t{1} << 30;
[[noreturn]] void refuse(const std::string& what) { throw Error(ErrorKind::Usage, "KV cache: " + what); }

}  // namespace

KvCache::KvCache(std::vector<KvLayer> layers, int64_t blocks, KvType type, std::vector<int> windows, int64_t window_blocks,
                 std::vector<StateLayer> states, int64_t slots) : type_(type) {
  if (layers.empty() || layers.size() > kMaxLayers) refuse("the cache has 1 to 4096 layers, got " + std::to_string(layers.size()));
  if (blocks < 1 || blocks > INT32_MAX / kBlockTokens) refuse("a cache of " + std::to_string(blocks) + " blocks is out of range");
  if (window_blocks < 0 || window_blocks > blocks) refuse(std::to_string(window_blocks) + " window blocks for " + std::to_string(blocks) + " blocks are out of range");
  if (window_blocks && windows.size() != layers.size()) refuse("window blocks need a window for each layer, 0 for none");
  blocks_.count = blocks;
  window_blocks_.count = window_blocks;
  for (size_t i = 0; i < layers.size(); ++i) {
    const KvLayer& l = layers[i];
    const bool none = !l.kv_heads && !l.d && !l.dv;
    if (!none && (l.kv_heads < 1 || l.d < 1 || l.dv < 0 || l.kv_heads > 65536 || l.d > 65536 || l.dv > 65536)) refuse("layer " + std::to_string(i) + " has heads out of range");
    if (type == KvType::Q8 && l.d && !l.dv) refuse("latent attention does not fit q8: its keys are its values too; use f16");
    if (type == KvType::Q8 && std::max(l.d, l.dv) > kMaxCodeWidth)
      refuse("heads of " + std::to_string(std::max(l.d, l.dv)) + " do not fit q8, which takes " + std::to_string(kMaxCodeWidth) + "; use f16");
    const bool windowed = !none && window_blocks && windows[i] > 0;
    if (windowed && !l.dv) refuse("layer " + std::to_string(i) + " keeps latents of all positions; it has no window");
    if (windowed) window_ = std::max(window_, windows[i]);
    Region& r = windowed ? window_blocks_ : blocks_;
    layers_.push_back({l, windowed, static_cast<size_t>(r.bytes), {}, 0});
    if (!none) r.bytes += (l.kv_heads * kv_head_bytes(type, l.d, l.dv) + 63) / 64 * 64;
  }
  if (window_blocks && !window_) refuse("window blocks, but no layer has a window");
  add_states(states, slots);
  blocks_.reserve();
  window_blocks_.reserve();
  slots_.reserve();
}
void KvCache::add_states(const std::vector<StateLayer>& states, int64_t slots) {
  if (slots < 0 || slots > INT32_MAX) refuse(std::to_string(slots) + " slots are out of range");
  if (slots && states.size() != layers_.size()) refuse("slots need the sizes of a state for each layer, 0 for none");
  slots_.count = slots;
  for (size_t i = 0; slots && i < states.size(); ++i) {
    const StateLayer& s = states[i];
    if (s.conv < 0 || s.state < 0 || s.conv > kMaxStateFloats || s.state > kMaxStateFloats) refuse("layer " + std::to_string(i) + " has a state out of range");
    layers_[i].kept = s;
    layers_[i].state_offset = static_cast<size_t>(slots_.bytes);
    slots_.bytes += s.floats() * static_cast<int64_t>(sizeof(float));
  }
  if (slots && !slots_.bytes) refuse("slots, but no layer keeps a state");
}
const KvLayer& KvCache::layer(int i) const { return layers_.at(static_cast<size_t>(i)); }
KvType kv_type_named(std::string_view name) {
  if (name == "f16") return KvType::F16;
  if (name == "f32") return KvType::F32;
  if (name == "q8") return KvType::Q8;
  refuse("no type " + std::string(name) + "; there are f16, f32 and q8");
}
uint8_t* KvCache::pages(int i) const {
  const Place& l = layers_[static_cast<size_t>(i)];
  return (l.windowed ? window_blocks_ : blocks_).memory->data + l.offset;
}

float* KvCache::state(int i, int64_t slot) const {
  return reinterpret_cast<float*>(slots_.at(slot) + layers_[static_cast<size_t>(i)].state_offset);
}

void KvCache::Region::reserve() {
  const __int128 total = static_cast<__int128>(bytes) * count;
  if (total > (static_cast<__int128>(1) << 46)) throw Error(ErrorKind::Capacity, "a KV cache of more than 64 TB cannot be reserved");
  memory = Memory::anonymous(static_cast<size_t>(std::max<__int128>(total, 1)));   // where all layers have windows, blocks hold nothing
}
void KvCache::Region::check(int64_t piece, const char* what) const {
  if (piece < 0 || piece >= count) refuse("no " + std::string(what) + " " + std::to_string(piece) + "; there are " + std::to_string(count));
}
void KvCache::Region::copy(const std::vector<std::pair<int64_t, int64_t>>& from_to, const char* what) const {
  for (const auto& [from, to] : from_to) {
    check(from, what);
    check(to, what);
  }
  for (const auto& [from, to] : from_to) std::memmove(at(to), at(from), static_cast<size_t>(bytes));   // from may be to
}
void KvCache::copy(const std::vector<std::pair<int64_t, int64_t>>& blocks, const std::vector<std::pair<int64_t, int64_t>>& window_blocks) {
  blocks_.copy(blocks, "block");
  window_blocks_.copy(window_blocks, "window block");
}
void KvCache::read_block(int64_t block, int64_t window_block, uint8_t* out) const {
  blocks_.check(block, "block");
  std::memcpy(out, blocks_.at(block), static_cast<size_t>(blocks_.bytes));
  if (!window_blocks_.count) return;
  window_blocks_.check(window_block, "window block");
  std::memcpy(out + blocks_.bytes, window_blocks_.at(window_block), static_cast<size_t>(window_blocks_.bytes));
}
void KvCache::write_block(int64_t block, int64_t window_block, const uint8_t* in, size_t bytes) {
  blocks_.check(block, "block");
  if (window_blocks_.count) window_blocks_.check(window_block, "window block");
  if (bytes != static_cast<size_t>(blocks_.bytes + window_blocks_.bytes))
    refuse("a block has " + std::to_string(blocks_.bytes + window_blocks_.bytes) + " bytes, got " + std::to_string(bytes));
  std::memcpy(blocks_.at(block), in, static_cast<size_t>(blocks_.bytes));
  if (window_blocks_.count) std::memcpy(window_blocks_.at(window_block), in + blocks_.bytes, static_cast<size_t>(window_blocks_.bytes));
}
void KvCache::read_state(int64_t slot, uint8_t* out) const {
  slots_.check(slot, "slot");
  std::memcpy(out, slots_.at(slot), static_cast<size_t>(slots_.bytes));
}
void KvCache::write_state(int64_t slot, const uint8_t* in, size_t bytes) {
  slots_.check(slot, "slot");
  if (bytes != static_cast<size_t>(slots_.bytes)) refuse("a slot has " + std::to_string(slots_.bytes) + " bytes, got " + std::to_string(bytes));
  std::memcpy(slots_.at(slot), in, bytes);
}

}  // namespace fh
