// Our own threads: small tasks handed out from per-thread ranges, the rest stolen, parked when
// idle.
//
// A thread starts with its own share, so that it walks memory in order; who is done takes from the
// end of another's share, so that a core lost to another process stalls nothing. No libgomp: a
// second one would fight with torch's.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <type_traits>
#include <vector>

namespace ossia {

class ThreadPool {
 public:
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;

  int size() const { return num_threads_; }

  // fn(task, thread) for every task in [0, n), in any order, on all threads; returns when all are
  // done. One caller at a time. fn must not throw.
  template <typename F>
  void ParallelFor(int n, F&& fn) {
    using Fn = std::remove_reference_t<F>;
    Run(
        n, [](void* f, int task, int thread) { (*static_cast<Fn*>(f))(task, thread); },
        const_cast<void*>(static_cast<const void*>(&fn)));
  }

 private:
  using Call = void (*)(void*, int task, int thread);
  struct alignas(64) Range {
    std::atomic<uint64_t> bounds;  // next << 32 | end
  };

  void Run(int n, Call call, void* context);
  void Work(int thread);
  void Loop(int thread);
  static bool Take(Range* range, bool own, int* task);

  const int num_threads_;
  const pid_t owner_;  // a forked child has none of the threads
  std::unique_ptr<Range[]> ranges_;
  Call call_ = nullptr;
  void* context_ = nullptr;
  alignas(64) std::atomic<uint32_t> epoch_{0};
  alignas(64) std::atomic<int> busy_{0};
  alignas(64) std::atomic<int> parked_{0};
  std::atomic<bool> stop_{false};
  std::vector<std::thread> threads_;
};

}  // namespace ossia
