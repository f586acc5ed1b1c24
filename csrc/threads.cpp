// The worker pool: n threads that are offered one job at a time. Knows no work of its own.
//
// A step of a small model waits a few hundred times for microseconds' work, so waiting spins first. On a machine whose
// cores are shared, spinning on or yielding does not let a delayed thread run. So a waiting thread sleeps, and the thread
// that finishes the work wakes it: the system then schedules it before a process that has used its share.
//
// Which thread may touch a job. A worker enters in three moves: it counts itself inside the job's seat, checks that the
// published job number is still that job's, and only then reads the job. The caller publishes 0 when its own part is over
// (all work is done then) and, before it fills a seat again, waits for that seat's count to be 0. All four accesses are
// sequentially consistent, so either the worker's count came before the caller's look, which then waits, or the 0
// came before the worker's look, which then leaves without having read anything.
#include <unistd.h>
#ifdef __APPLE__
#include <pthread/qos.h>
#endif

#include <algorithm>
#include <atomic>
#include <mutex>
#include <thread>

#include "freehold.h"

namespace fh {
namespace {

constexpr int kSpin = 1000;          // turns of about 20-50 ns with a pause: 30 us, longer than most quiet waits
constexpr int kIdleSpin = 20000;     // about half a millisecond between steps: sampling and Python fit in it
constexpr int kMaxThreads = 512;

inline void pause_cpu() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("isb");             // some tens of cycles; "yield" is none where a core runs one thread
#else
  std::this_thread::yield();
#endif
}

// macOS pins no thread and has no affinity; what a thread says of its work decides between fast and slow cores.
void prefer_fast_cores() {
#ifdef __APPLE__
  pthread_set_qos_class_self_np(QOS_CLASS_USER_INITIATED, 0);
#endif
}

}  // namespace

struct Threads::Impl {
  struct alignas(64) Seat {
    std::function<void(int)> job;
    std::atomic<int> inside{0};        // workers that may be reading the job or running it
  };
  struct alignas(64) Call { std::atomic<uint32_t> number{0}; };
  int n;
  pid_t owner = getpid();
  std::vector<std::thread> workers;
  std::unique_ptr<Call[]> calls;       // by thread: the newest job it was called to
  Seat seats[kSeats];
  alignas(64) std::atomic<uint32_t> published{0};   // number of the job that may be entered; 0: none
  std::atomic<bool> stop{false};
  std::mutex one_job;                  // callers queue: a pool runs one job at a time
  uint32_t number = 0;                 // of the newest job; under one_job

  Seat& seat(uint32_t job) { return seats[job % kSeats]; }
  uint32_t wait_call(int thread, uint32_t seen) const {
    const std::atomic<uint32_t>& call = calls[static_cast<size_t>(thread)].number;
    for (int i = 0; i < kIdleSpin; ++i) {
      if (const uint32_t now = call.load(std::memory_order_acquire); now != seen) return now;
      pause_cpu();
    }
    call.wait(seen, std::memory_order_acquire);
    return call.load(std::memory_order_acquire);
  }
  void work(int thread) {
    prefer_fast_cores();
    for (uint32_t seen = 0;;) {
      seen = wait_call(thread, seen);
      if (stop.load(std::memory_order_relaxed)) return;
      Seat& s = seat(seen);
      s.inside.fetch_add(1);
      if (published.load() == seen) s.job(thread);
      s.inside.fetch_sub(1);
    }
  }
  // Sequentially consistent: notify_one() looks whether a thread sleeps, and a weaker store could still be on its way then.
  // A worker that fell asleep in that moment would miss the call; the last call, to stop, would be waited for for ever.
  void call(int thread, uint32_t job) {
    calls[static_cast<size_t>(thread)].number.store(job);
    calls[static_cast<size_t>(thread)].number.notify_one();
  }
  static void leave(const Seat& s) {
    for (int i = 0; s.inside.load(); ++i)
      if (i < kSpin) pause_cpu();
      else std::this_thread::yield();
  }
};

Threads::Threads(int n) : impl_(std::make_unique<Impl>()) {
  if (n < 1 || n > kMaxThreads)
    throw Error(ErrorKind::Usage, "threads must be 1 to " + std::to_string(kMaxThreads) + ", got " + std::to_string(n));
  impl_->n = n;
  impl_->calls = std::make_unique<Impl::Call[]>(static_cast<size_t>(n));
  for (int t = 1; t < n; ++t) impl_->workers.emplace_back([impl = impl_.get(), t] { impl->work(t); });
}

Threads::~Threads() {
  if (impl_->owner != getpid()) {       // a forked child has no workers to join; what they were is left alone
    (void)impl_.release();
    return;
  }
  impl_->stop.store(true);
  for (int t = 1; t < impl_->n; ++t) impl_->call(t, impl_->number + 1);
  for (std::thread& t : impl_->workers) t.join();
}

int Threads::size() const { return impl_->n; }

Threads::Turn::Turn(Threads& threads) : pool_(threads), lock_(threads.impl_->one_job) {
  Impl& p = *pool_.impl_;
  if (++p.number == 0) p.number = 1;    // 0 means no job
  number_ = p.number;
  Impl::leave(p.seat(number_));
}

int Threads::Turn::seat() const { return static_cast<int>(number_ % kSeats); }

void Threads::Turn::run(std::function<void(int)> job, int active) {
  Impl& p = *pool_.impl_;
  struct Close { Impl& p; ~Close() { p.published.store(0); } } close{p};
  p.seat(number_).job = std::move(job);
  p.published.store(number_);
  for (int t = 1; t < std::min(active, p.n); ++t) p.call(t, number_);
  p.seat(number_).job(0);
}

void Threads::run(const std::function<void(int)>& job) {
  Turn turn(*this);
  turn.run(job, impl_->n);
  Impl::leave(impl_->seats[turn.seat()]);
}

void Threads::settle() {
  if (impl_->owner != getpid()) return;     // a forked child has its one thread only
  std::lock_guard lock(impl_->one_job);
  for (const Impl::Seat& s : impl_->seats) Impl::leave(s);
}

void Threads::await(const std::atomic<uint32_t>& done, int64_t n) {
  for (int i = 0; i < kSpin; ++i) {
    if (done.load(std::memory_order_acquire) >= n) return;
    pause_cpu();
  }
  for (uint32_t now; (now = done.load(std::memory_order_acquire)) < n;) done.wait(now, std::memory_order_acquire);
}

void Threads::finish(std::atomic<uint32_t>& done, int64_t more, int64_t n) {
  if (done.fetch_add(static_cast<uint32_t>(more), std::memory_order_acq_rel) + more >= n) done.notify_all();
}

}  // namespace fh
