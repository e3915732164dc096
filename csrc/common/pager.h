// Experts of a model larger than memory: asked for as soon as they are routed, let go when the hot set
// is full, the least recently used first.
//
// The kernel would evict pages by itself, but only under pressure and page by page, and would throw out
// the dense weights and caches of everybody too. A whole expert that is let go costs one call.
#pragma once

#include <cstdint>
#include <list>
#include <map>
#include <utility>
#include <vector>

#include "common/context.h"

namespace ossia {

class ExpertPager {
 public:
  explicit ExpertPager(int64_t budget_bytes) : budget_(budget_bytes) {}

  // Starts reading those of a layer that are not in the hot set, and makes room for them. Experts
  // named here are not let go before the next call.
  void Need(const MoeWeights& w, const int* experts, int count);
  // How many experts of this layer fit at once, beside as many that are read ahead.
  int GroupSize(const MoeWeights& w) const;

  int64_t hits() const { return hits_; }
  int64_t misses() const { return misses_; }
  int64_t bytes_read() const { return bytes_read_; }

 private:
  using Key = std::pair<const MoeWeights*, int>;
  void LetGo(const Key& key);

  const int64_t budget_;
  int64_t resident_ = 0, hits_ = 0, misses_ = 0, bytes_read_ = 0;
  std::list<Key> order_;  // the most recently used first
  std::map<Key, std::list<Key>::iterator> hot_;
};

// Maps pages that are there, or read now, so that later accesses do not fault. False: not supported.
bool PopulatePages(const uint8_t* p, int64_t bytes);

}  // namespace ossia
