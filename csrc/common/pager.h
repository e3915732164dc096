// Experts of a model larger than memory: asked for as soon as they are routed, let go when the hot
// set is full, the least recently used first.
//
// The kernel would evict pages by itself, but only under pressure and page by page, and would throw
// out the dense weights and caches of everybody too. Nothing here can change what memory holds:
// weights that no file backs, or whose memory is somebody else's by now, only lose speed.
#pragma once

#include <sys/types.h>

#include <condition_variable>
#include <cstdint>
#include <list>
#include <mutex>
#include <thread>
#include <unordered_map>
#include <vector>

#include "common/context.h"

namespace ossia {

class ExpertPager {
 public:
  explicit ExpertPager(int64_t budget_bytes);
  ~ExpertPager();

  // Starts reading those of a layer that are not in the hot set, and makes room for them. Experts
  // of this call and of the one before are not let go. The first group of a layer is asked for when
  // this returns: a fault that came earlier would read around itself. Later ones are asked for
  // meanwhile.
  void Need(const MoeWeights& w, const int* experts, int count);
  // How many experts of this layer to take at once: the next as many are read ahead.
  int GroupSize(const MoeWeights& w) const;

  int64_t hits() const { return hits_; }
  int64_t misses() const { return misses_; }
  int64_t bytes_read() const { return bytes_read_; }

 private:
  struct Range {
    const uint8_t* begin;
    int64_t bytes;
  };
  struct Expert {
    Range ranges[4];  // data and scales of both matrices; by value, for weights may die before this
    int64_t bytes;
  };
  struct Work {
    std::vector<Expert> read, let_go;
  };
  static Expert Find(const MoeWeights& w, int expert);
  static void Read(const std::vector<Expert>& experts);
  static void LetGo(const std::vector<Expert>& experts);
  std::vector<Expert> TakeLeastRecent(int64_t down_to_bytes, int kept);
  // Hands work to the helper thread, which is idle; Wait: until it is again.
  void Start(Work work);
  void Wait();
  void Help();

  const int64_t budget_;
  const pid_t owner_;  // a forked child has no helper
  int64_t resident_ = 0, hits_ = 0, misses_ = 0, bytes_read_ = 0;
  int count_before_ = 0;
  const MoeWeights* layer_before_ = nullptr;
  std::list<Expert> order_;  // the most recently used first
  std::unordered_map<const uint8_t*, std::list<Expert>::iterator> hot_;  // by first byte

  std::mutex mutex_;
  std::condition_variable changed_;
  Work work_;
  bool busy_ = false, stop_ = false;
  std::thread helper_;
};

// Maps pages that are there, or read now, so that later accesses do not fault. False: not
// supported.
bool PopulatePages(const uint8_t* p, int64_t bytes);

}  // namespace ossia
