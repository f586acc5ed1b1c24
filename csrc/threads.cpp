// The worker pool: n threads that run one job together. Knows no work of its own.
//
// A step of a small model waits a few hundred times for microseconds' work, so waiting spins. On a machine whose
// cores are shared, a thread that spins keeps the late one from running: after kSpin turns it yields, and between
// jobs it sleeps after kIdleSpin, so an idle pool costs nothing.
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "freehold.h"

namespace fh {
namespace {

constexpr int kSpin = 1000;          // turns of about 20-40 ns with a pause: 30 us, longer than most quiet waits
constexpr int kIdleSpin = 20000;     // about half a millisecond between steps: sampling and Python fit in it
constexpr int kMaxThreads = 512;

inline void pause_cpu() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  std::this_thread::yield();
#endif
}

}  // namespace

struct Threads::Impl {
  int n;
  pid_t owner = getpid();
  std::vector<std::thread> workers;
  const std::function<void(int)>* job = nullptr;
  alignas(64) std::atomic<uint32_t> generation{0};   // counts jobs; workers wait for it to move
  alignas(64) std::atomic<int> arrived{0};           // threads that ended the job
  alignas(64) std::atomic<uint32_t> phase{0};        // counts jobs all have ended
  std::atomic<bool> stop{false};
  std::mutex mutex;
  std::condition_variable wake;
  int sleepers = 0;                                  // under mutex
  std::mutex one_job;                                // callers queue: a pool runs one job at a time

  void wait_job(uint32_t seen) {
    for (int i = 0; i < kIdleSpin; ++i) {
      if (generation.load(std::memory_order_acquire) != seen) return;
      pause_cpu();
    }
    std::unique_lock lock(mutex);
    ++sleepers;
    wake.wait(lock, [&] { return generation.load(std::memory_order_acquire) != seen; });
    --sleepers;
  }
  void work(int thread) {
    uint32_t seen = 0;
    for (;;) {
      wait_job(seen);
      seen = generation.load(std::memory_order_acquire);
      if (stop.load(std::memory_order_relaxed)) return;
      (*job)(thread);
      meet();
    }
  }
  void release() {
    {
      std::lock_guard lock(mutex);
      generation.fetch_add(1, std::memory_order_release);
      if (!sleepers) return;
    }
    wake.notify_all();
  }
  void meet() {
    const uint32_t mine = phase.load(std::memory_order_relaxed);
    if (arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == n) {
      arrived.store(0, std::memory_order_relaxed);
      phase.store(mine + 1, std::memory_order_release);
      return;
    }
    for (int i = 0; phase.load(std::memory_order_acquire) == mine; ++i) relax(i);
  }
};

Threads::Threads(int n) : impl_(std::make_unique<Impl>()) {
  if (n < 1 || n > kMaxThreads)
    throw Error(ErrorKind::Usage, "threads must be 1 to " + std::to_string(kMaxThreads) + ", got " + std::to_string(n));
  impl_->n = n;
  for (int t = 1; t < n; ++t) impl_->workers.emplace_back([this, t] { impl_->work(t); });
}

Threads::~Threads() {
  if (impl_->owner != getpid()) {       // a forked child has no workers to join; what they were is left alone
    (void)impl_.release();
    return;
  }
  impl_->stop.store(true);
  impl_->release();
  for (std::thread& t : impl_->workers) t.join();
}

int Threads::size() const { return impl_->n; }

void Threads::run(const std::function<void(int)>& job) {
  std::lock_guard lock(impl_->one_job);
  impl_->job = &job;
  impl_->release();
  job(0);
  impl_->meet();
}

void Threads::relax(int turn) {
  if (turn < kSpin) pause_cpu();
  else std::this_thread::yield();
}

}  // namespace fh
