// Records ops into a plan and lays it out: which buffers share memory, and where rows without a requested output stop.
// Knows what ops read, write and keep; runs nothing (step.cpp does).
#include "plan.h"

#include <algorithm>

#include "narrow.h"
#include "step.h"

namespace fh {

Plan::Plan(std::shared_ptr<Threads> threads, std::shared_ptr<KvCache> cache, int64_t max_rows, bool rounds) : rounds(rounds) {
  if (max_rows < 1 || max_rows > 1 << 20) refuse("max_rows must be 1 to 1048576, got " + std::to_string(max_rows));
  trace_.threads = std::move(threads);
  trace_.cache = std::move(cache);
  trace_.max_rows = max_rows;
  if (rounds && trace_.cache) refuse("a plan with a cache does not round");
}
Plan::~Plan() { trace_.threads->settle(); }

int Plan::buffer(int64_t width) {
  trace_.width.push_back(width);
  return static_cast<int>(trace_.width.size()) - 1;
}
int64_t Plan::width_of(int buffer) const {
  if (buffer < 0 || static_cast<size_t>(buffer) >= trace_.width.size()) refuse("no buffer " + std::to_string(buffer));
  return trace_.width[static_cast<size_t>(buffer)];
}
void Plan::want_width(int buffer, int64_t width, const char* what) const {
  if (width_of(buffer) != width) refuse(std::string(what) + " is " + std::to_string(width) + " wide, its buffer " + std::to_string(width_of(buffer)));
}
const KvLayer& Plan::want_layer(int layer) const {
  if (!trace_.cache || layer < 0 || layer >= trace_.cache->layers()) refuse("no layer " + std::to_string(layer) + " in the cache");
  if (!trace_.cache->layer(layer).kv_heads) refuse("layer " + std::to_string(layer) + " keeps no keys and values");
  return trace_.cache->layer(layer);
}
const StateLayer& Plan::want_state(int layer, int64_t conv, int64_t state) const {
  if (!trace_.cache || layer < 0 || layer >= trace_.cache->layers()) refuse("no layer " + std::to_string(layer) + " in the cache");
  const StateLayer& kept = trace_.cache->state_layer(layer);
  const auto differs = [](int64_t want, int64_t have) { return want >= 0 && want != have; };
  if (differs(conv, kept.conv) || differs(state, kept.state))
    refuse("layer " + std::to_string(layer) + " keeps " + std::to_string(kept.conv) + " inputs and a state of " + std::to_string(kept.state) + " in the cache; the op keeps " +
           (conv < 0 ? std::string("any") : std::to_string(conv)) + " and " + (state < 0 ? std::string("any") : std::to_string(state)));
  return kept;
}

// A buffer lives from its first op to its last. One that outlives a section lives through all of its sections: a section may be
// cut by rows, and its ops then run again for later rows, which lie elsewhere in rooms of other widths.
std::vector<std::pair<size_t, size_t>> Plan::lives() const {
  const auto& ops = trace_.ops;
  std::vector<std::pair<size_t, size_t>> out(trace_.width.size(), {ops.size(), 0});
  std::vector<int64_t> section(ops.size());
  for (int64_t s = 0; s < sections(); ++s)
    for (auto [i, end] = trace_.ops_of(s); i < end; ++i) section[i] = s;
  for (size_t i = 0; i < ops.size(); ++i)
    for (const auto* used : {&ops[i]->reads, &ops[i]->writes})
      for (int b : *used) {
        auto& [first, last] = out[static_cast<size_t>(b)];
        first = std::min(first, i);
        last = i;
      }
  for (auto& [first, last] : out) {
    if (first > last || section[first] == section[last]) continue;
    first = trace_.ops_of(section[first]).first;
    last = trace_.ops_of(section[last]).second - 1;
  }
  return out;
}

// Dead buffers lend their memory to later ones of no greater width.
void Plan::assign_rooms() {
  const auto& [ops, width] = std::tie(trace_.ops, trace_.width);
  const auto life = lives();
  std::vector<int64_t> room_width;
  std::vector<bool> busy;
  std::vector<int>& room = trace_.room;
  room.assign(width.size(), -1);
  for (size_t i = 0; i < ops.size(); ++i) {
    for (size_t b = 0; b < width.size(); ++b) {
      if (life[b].first != i) continue;
      int& at = room[b];
      const int64_t want = width[b];
      for (size_t s = 0; s < busy.size(); ++s)
        if (!busy[s] && room_width[s] >= want && (at < 0 || room_width[s] < room_width[static_cast<size_t>(at)])) at = static_cast<int>(s);
      if (at < 0) {
        at = static_cast<int>(busy.size());
        busy.push_back(false);
        room_width.push_back(want);
      }
      busy[static_cast<size_t>(at)] = true;
    }
    for (size_t b = 0; b < width.size(); ++b)
      if (room[b] >= 0 && life[b].second == i) busy[static_cast<size_t>(room[b])] = false;
  }
  for (int64_t w : room_width) trace_.rooms.push_back(Memory::anonymous(sizeof(float) * static_cast<size_t>(w * trace_.max_rows)));
}

// After the last op that writes what outlives the step, if there is one: an encoder's rows all see each other to the end.
void Plan::insert_narrow() {
  auto& ops = trace_.ops;
  const auto keeps = std::find_if(ops.rbegin(), ops.rend(), [](const auto& op) { return op->persists; });
  if (keeps == ops.rend()) return;
  const auto at = keeps.base();
  const auto uses = [](auto begin, auto end, int buffer) {
    return std::any_of(begin, end, [&](const auto& op) { return std::ranges::count(op->reads, buffer) || std::ranges::count(op->writes, buffer); });
  };
  auto op = std::make_unique<Narrow>();
  for (int b = 0; b < static_cast<int>(trace_.width.size()); ++b)
    if (uses(ops.begin(), at, b) && uses(at, ops.end(), b)) op->kept.push_back({b, width_of(b)});
  trace_.narrow = static_cast<size_t>(at - ops.begin());
  ops.insert(at, std::move(op));
}

void Plan::section() {
  if (trace_.cache) refuse("a plan with a cache has no sections");
  if (runner_ || ends_.width) refuse("no section may follow logits() or hidden()");
  trace_.sections.push_back(trace_.ops.size());
}

void Plan::finish() {
  if (!ends_.width) refuse("finish() before logits() or hidden()");
  if (runner_) return;
  insert_narrow();
  assign_rooms();
  const uint8_t* next = nullptr;
  for (auto op = trace_.ops.rbegin(); op != trace_.ops.rend(); ++op) {
    (*op)->allocate(trace_.max_rows, threads());
    (*op)->following = next;
    if ((*op)->weights()) next = (*op)->weights();
  }
  runner_ = std::make_unique<StepRunner>(trace_);
}

}  // namespace fh
