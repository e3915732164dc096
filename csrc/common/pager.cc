#include "common/pager.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>

namespace ossia {
namespace {

int64_t ExpertBytes(const MoeWeights& w) {
  return w.gate_up.data_stride + w.gate_up.scales_stride + w.down.data_stride + w.down.scales_stride;
}

// fn(first byte, bytes) for each tensor's slice of an expert.
template <typename Fn>
void ForRanges(const MoeWeights& w, int expert, Fn&& fn) {
  for (const MatrixStack* stack : {&w.gate_up, &w.down}) {
    fn(stack->first.data + expert * stack->data_stride, stack->data_stride);
    if (stack->first.scales != nullptr) {
      fn(stack->first.scales + expert * stack->scales_stride, stack->scales_stride);
    }
  }
}

// Pages touched by the range (outwards), or lying wholly within it (inwards).
void Advise(const uint8_t* p, int64_t bytes, int advice, bool outwards) {
  const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  uintptr_t begin = reinterpret_cast<uintptr_t>(p), end = begin + bytes;
  begin = (outwards ? begin : begin + page - 1) / page * page;
  end = (outwards ? end + page - 1 : end) / page * page;
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, advice);
}

}  // namespace

bool PopulatePages(const uint8_t* p, int64_t bytes) {
#ifdef __linux__
  constexpr int kPopulateRead = 22;  // MADV_POPULATE_READ, since Linux 5.14
  const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t begin = reinterpret_cast<uintptr_t>(p) / page * page;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(p) + bytes + page - 1) / page * page;
  return madvise(reinterpret_cast<void*>(begin), end - begin, kPopulateRead) == 0;
#else
  static_cast<void>(p);
  static_cast<void>(bytes);
  return false;
#endif
}

int ExpertPager::GroupSize(const MoeWeights& w) const {
  return static_cast<int>(std::max<int64_t>(1, budget_ / 2 / std::max<int64_t>(ExpertBytes(w), 1)));
}

void ExpertPager::LetGo(const Key& key) {
  ForRanges(*key.first, key.second, [](const uint8_t* p, int64_t bytes) {
#ifdef MADV_PAGEOUT
    // Clean pages of a file are dropped from memory, not written anywhere.
    Advise(p, bytes, MADV_PAGEOUT, false);
#endif
    Advise(p, bytes, MADV_DONTNEED, false);
  });
  resident_ -= ExpertBytes(*key.first);
}

void ExpertPager::Need(const MoeWeights& w, const int* experts, int count) {
  const int64_t size = ExpertBytes(w);
  std::vector<int> missing;
  for (int i = 0; i < count; ++i) {
    const Key key{&w, experts[i]};
    const auto found = hot_.find(key);
    if (found != hot_.end()) {
      order_.splice(order_.begin(), order_, found->second);
      ++hits_;
    } else {
      missing.push_back(experts[i]);
      ++misses_;
    }
  }
  for (const int expert : missing) {
    order_.push_front({&w, expert});
    hot_[order_.front()] = order_.begin();
    resident_ += size;
    bytes_read_ += size;
  }
  while (resident_ > budget_ && static_cast<int>(order_.size()) > count) {
    const Key last = order_.back();
    order_.pop_back();
    hot_.erase(last);
    LetGo(last);
  }
  for (const int expert : missing) {
    ForRanges(w, expert, [](const uint8_t* p, int64_t bytes) { Advise(p, bytes, MADV_WILLNEED, true); });
  }
}

}  // namespace ossia
