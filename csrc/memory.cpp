// Memory for panels and caches, files mapped read-only, and the checksum of their bytes. Knows bytes; knows no format.
//
// A page of a mapping whose file was cut short meanwhile, or whose disk fails, raises SIGBUS where it is touched: in a
// kernel, in NumPy, anywhere, and by default the process dies without a word. The handler here puts zeros in the place of
// what is lost and lets the thread go on; is_lost() says so afterwards, and the caller throws away what was computed.
// It allocates nothing and takes no lock: it walks a table of fixed size. A fault elsewhere goes to the handler before it.
#include "freehold.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <mutex>

namespace fh {
namespace {

// A process maps a file a shard, and short ones while it reads them: hundreds at the most. 4096 are 96 KB.
constexpr int kSlots = 4096;
constexpr uintptr_t kFree = 0, kTaken = 1;      // of `begin`; no mapping lies at either
struct Slot {
  std::atomic<uintptr_t> begin{kFree}, end{0};
  std::atomic<bool> lost{false};
};
static_assert(std::atomic<uintptr_t>::is_always_lock_free && std::atomic<bool>::is_always_lock_free);
Slot slots[kSlots];

Slot* slot_of(uintptr_t at) {
  for (Slot& s : slots) {
    const uintptr_t begin = s.begin.load(std::memory_order_acquire);
    if (begin > kTaken && at >= begin && at < s.end.load(std::memory_order_relaxed)) return &s;
  }
  return nullptr;
}

uintptr_t page_bytes() {
  static const auto bytes = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  return bytes;
}

struct sigaction earlier;      // the handler installed before ours
std::atomic<bool> passed{false};      // whether they have been called

void on_bus_error(int number, siginfo_t* info, void*) {
  const int kept = errno;
  const auto at = reinterpret_cast<uintptr_t>(info->si_addr);
  if (Slot* slot = info->si_code > 0 ? slot_of(at) : nullptr) {      // 0 and less: sent by a program, no fault
    const uintptr_t page = at & ~(page_bytes() - 1);
    slot->lost.store(true, std::memory_order_release);
    const void* zeros = mmap(reinterpret_cast<void*>(page), slot->end.load(std::memory_order_relaxed) - page, PROT_READ,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    if (zeros != MAP_FAILED) {
      errno = kept;
      return;
    }
  }
  // The instruction runs again and faults into theirs; if that handler calls ours, the system's is next.
  struct sigaction plain {};
  plain.sa_handler = SIG_DFL;
  sigaction(number, passed.exchange(true) ? &plain : &earlier, nullptr);
  if (info->si_code <= 0) raise(number);      // blocked until we return
  errno = kept;
}

// Takes the signal over, again if someone took it from us since: faulthandler.enable() may come after the first file.
void take_over() {
  static std::mutex lock;
  const std::lock_guard<std::mutex> held(lock);
  page_bytes();      // in the handler it is only read
  struct sigaction now;
  if (sigaction(SIGBUS, nullptr, &now)) return;
  if ((now.sa_flags & SA_SIGINFO) && now.sa_sigaction == on_bus_error) return;
  struct sigaction ours {};
  ours.sa_sigaction = on_bus_error;
  ours.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigemptyset(&ours.sa_mask);
  if (sigaction(SIGBUS, &ours, &now) == 0) earlier = now;
}

class Mapped final : public Memory {
 public:
  Mapped(int fd, size_t n, bool huge) {
    const size_t whole = (n + page_bytes() - 1) / page_bytes() * page_bytes();
    take_over();
    slot_ = take_slot();
    void* p = mmap(nullptr, whole, PROT_READ, MAP_SHARED, fd, 0);
    if (p == MAP_FAILED) {
      const int why = errno;
      slot_->begin.store(kFree, std::memory_order_release);
      throw Error(ErrorKind::Capacity, "the system refused to map " + std::to_string(n) + " bytes: " + strerror(why));
    }
    data = static_cast<uint8_t*>(p);
    bytes = n;
    mapped_ = whole;
    slot_->lost.store(false, std::memory_order_relaxed);
    slot_->end.store(reinterpret_cast<uintptr_t>(p) + whole, std::memory_order_relaxed);
    slot_->begin.store(reinterpret_cast<uintptr_t>(p), std::memory_order_release);
#ifdef MADV_HUGEPAGE
    if (huge) madvise(p, whole, MADV_HUGEPAGE);
#else
    (void)huge;
#endif
  }
  ~Mapped() override {
    slot_->begin.store(kFree, std::memory_order_release);
    munmap(data, mapped_);
  }

 private:
  static Slot* take_slot() {
    for (Slot& s : slots) {
      uintptr_t expected = kFree;
      if (s.begin.compare_exchange_strong(expected, kTaken)) return &s;
    }
    throw Error(ErrorKind::Capacity, "more than " + std::to_string(kSlots) + " model files are open\nclose some of them");
  }
  Slot* slot_;
  size_t mapped_;
};

// XXH64 (xxhash.com, doc/xxhash_spec.md): four lanes of multiply, rotate and multiply take eight cycles for 32 bytes, near
// what memory gives one core. Each step is a bijection of lane and word, so no change of one word goes unseen.
constexpr uint64_t kP1 = 0x9E3779B185EBCA87u, kP2 = 0xC2B2AE3D27D4EB4Fu, kP3 = 0x165667B19E3779F9u,
                   kP4 = 0x85EBCA77C2B2AE63u, kP5 = 0x27D4EB2F165667C5u;
uint64_t turned(uint64_t x, int by) { return x << by | x >> (64 - by); }
uint64_t round64(uint64_t lane, uint64_t word) { return turned(lane + word * kP2, 31) * kP1; }
template <class T> T load(const uint8_t* p) { T x; memcpy(&x, p, sizeof(T)); return x; }      // little-endian, as packs are

class Anonymous final : public Memory {
 public:
  explicit Anonymous(size_t n) {
    // Whole 2 MB pages: a walk of 26 GB/s through 4 KB pages misses the TLB six million times a second.
    constexpr size_t kHuge = size_t{2} << 20;
    mapped_ = (std::max<size_t>(n, 1) + kHuge - 1) / kHuge * kHuge + (n >= kHuge ? kHuge : 0);
    void* p = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) throw Error(ErrorKind::Capacity, "the system refused " + std::to_string(n) + " bytes of memory");
    base_ = static_cast<uint8_t*>(p);
    data = base_;
    if (n >= kHuge) {
      data = base_ + (kHuge - reinterpret_cast<uintptr_t>(base_) % kHuge) % kHuge;
#ifdef MADV_HUGEPAGE
      madvise(data, (n + kHuge - 1) / kHuge * kHuge, MADV_HUGEPAGE);
#endif
    }
    bytes = n;
  }
  ~Anonymous() override { munmap(base_, mapped_); }
 private:
  uint8_t* base_;
  size_t mapped_;
};

}  // namespace

std::shared_ptr<Memory> Memory::anonymous(size_t n) { return std::make_shared<Anonymous>(n); }

std::shared_ptr<Memory> map_file(int fd, bool huge) {
  struct stat info;
  if (fstat(fd, &info)) throw Error(ErrorKind::BadModelFile, std::string("the file has no size: ") + strerror(errno));
  if (!S_ISREG(info.st_mode) || info.st_size < 1) throw Error(ErrorKind::BadModelFile, "only a regular file that is not empty is mapped");
  return std::make_shared<Mapped>(fd, static_cast<size_t>(info.st_size), huge);
}

bool is_lost(const void* p) {
  const Slot* slot = slot_of(reinterpret_cast<uintptr_t>(p));
  return slot && slot->lost.load(std::memory_order_acquire);
}

uint64_t checksum(const uint8_t* p, size_t n) {
  const uint8_t* const end = p + n;
  uint64_t h = kP5;
  if (n >= 32) {
    uint64_t a = kP1 + kP2, b = kP2, c = 0, d = 0 - kP1;
    for (; end - p >= 32; p += 32) {
      a = round64(a, load<uint64_t>(p));
      b = round64(b, load<uint64_t>(p + 8));
      c = round64(c, load<uint64_t>(p + 16));
      d = round64(d, load<uint64_t>(p + 24));
    }
    h = turned(a, 1) + turned(b, 7) + turned(c, 12) + turned(d, 18);
    for (const uint64_t lane : {a, b, c, d}) h = (h ^ round64(0, lane)) * kP1 + kP4;
  }
  h += n;
  for (; end - p >= 8; p += 8) h = turned(h ^ round64(0, load<uint64_t>(p)), 27) * kP1 + kP4;
  if (end - p >= 4) {
    h = turned(h ^ load<uint32_t>(p) * kP1, 23) * kP2 + kP3;
    p += 4;
  }
  for (; p < end; ++p) h = turned(h ^ *p * kP5, 11) * kP1;
  h = (h ^ h >> 33) * kP2;
  h = (h ^ h >> 29) * kP3;
  return h ^ h >> 32;
}

void announce(const Memory& memory, const uint8_t* p, size_t n) {
  if (!memory.paged) return;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(p) & ~(page_bytes() - 1);
  madvise(reinterpret_cast<void*>(begin), reinterpret_cast<uintptr_t>(p) + n - begin, MADV_WILLNEED);   // a hint: nothing depends on it
}

}  // namespace fh
