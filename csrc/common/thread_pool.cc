#include "common/thread_pool.h"

#include <unistd.h>

namespace ossia {
namespace {

// About 40 microseconds on the machines seen: longer than any pause between two ops of a step,
// short enough that an idle engine burns nothing.
constexpr int kSpins = 2000;

inline void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

ThreadPool::ThreadPool(int num_threads)
    : num_threads_(num_threads), owner_(getpid()), ranges_(new Range[num_threads]) {
  for (int t = 1; t < num_threads; ++t) threads_.emplace_back([this, t] { Loop(t); });
}

ThreadPool::~ThreadPool() {
  if (getpid() != owner_) {
    // The threads do not exist here, and a handle of one that does not cannot be destroyed.
    static_cast<void>(new std::vector<std::thread>(std::move(threads_)));
    return;
  }
  stop_ = true;
  epoch_.fetch_add(1);
  epoch_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

bool ThreadPool::Take(Range* range, bool own, int* task) {
  uint64_t bounds = range->bounds.load(std::memory_order_relaxed);
  for (;;) {
    const uint32_t next = static_cast<uint32_t>(bounds >> 32), end = static_cast<uint32_t>(bounds);
    if (next >= end) return false;
    const uint64_t left = own ? static_cast<uint64_t>(next + 1) << 32 | end
                              : static_cast<uint64_t>(next) << 32 | (end - 1);
    if (range->bounds.compare_exchange_weak(bounds, left, std::memory_order_relaxed)) {
      *task = static_cast<int>(own ? next : end - 1);
      return true;
    }
  }
}

void ThreadPool::Work(int thread) {
  int task;
  while (Take(&ranges_[thread], true, &task)) call_(context_, task, thread);
  for (int i = 1; i < num_threads_; ++i) {
    Range* other = &ranges_[(thread + i) % num_threads_];
    while (Take(other, false, &task)) call_(context_, task, thread);
  }
}

void ThreadPool::Run(int n, Call call, void* context) {
  if (n <= 1 || num_threads_ == 1 || getpid() != owner_) {
    for (int task = 0; task < n; ++task) call(context, task, 0);
    return;
  }
  for (int t = 0; t < num_threads_; ++t) {
    const uint64_t begin = static_cast<uint64_t>(n) * t / num_threads_;
    const uint64_t end = static_cast<uint64_t>(n) * (t + 1) / num_threads_;
    ranges_[t].bounds.store(begin << 32 | end, std::memory_order_relaxed);
  }
  call_ = call;
  context_ = context;
  busy_.store(num_threads_ - 1, std::memory_order_relaxed);
  epoch_.fetch_add(1);  // sequentially consistent with `parked_`: a sleeper is seen or sees this
  if (parked_.load() > 0) epoch_.notify_all();
  Work(0);
  for (int spins = 0; busy_.load(std::memory_order_acquire) != 0;) {
    if (++spins < kSpins) {
      Pause();
    } else {
      std::this_thread::yield();  // a worker's core was taken away
    }
  }
}

void ThreadPool::Loop(int thread) {
  uint32_t seen = 0;
  for (;;) {
    for (int spins = 0; epoch_.load(std::memory_order_acquire) == seen && spins < kSpins; ++spins) {
      Pause();
    }
    if (epoch_.load(std::memory_order_acquire) == seen) {
      parked_.fetch_add(1);
      epoch_.wait(seen);
      parked_.fetch_sub(1);
    }
    const uint32_t now = epoch_.load(std::memory_order_acquire);
    if (now == seen) continue;
    seen = now;
    if (stop_) return;
    Work(thread);
    busy_.fetch_sub(1, std::memory_order_release);
  }
}

}  // namespace ossia
