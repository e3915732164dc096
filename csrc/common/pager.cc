#include "common/pager.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

namespace ossia {
namespace {

// Linux cuts a longer request to the read-ahead window of the device without a word: 128 KiB by
// default, often some MiB; what is cut is then read by faults, one after the other. Within 128 KiB
// no window cuts anything; at 1 MiB the disk gets fewer, larger requests where the window allows
// them.
constexpr int64_t kReadBytes = 1 << 20;
// Experts taken at once while a prompt is read: enough to keep the disk and all threads at work.
constexpr int kMostGroup = 16;
// This share of the budget (1 / 16) is room for what is read while the helper makes room.
constexpr int64_t kReserve = 16;

// Pages touched by the range (outwards), or lying wholly within it (inwards).
int Advise(const uint8_t* p, int64_t bytes, int advice, bool outwards) {
  static const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  uintptr_t begin = reinterpret_cast<uintptr_t>(p), end = begin + bytes;
  begin = (outwards ? begin : begin + page - 1) / page * page;
  end = (outwards ? end + page - 1 : end) / page * page;
  return end > begin ? madvise(reinterpret_cast<void*>(begin), end - begin, advice) : 0;
}

#ifdef MADV_PAGEOUT
// Whether the page in the middle of a range is in memory.
bool IsResident(const uint8_t* p, int64_t bytes) {
  const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t middle = (reinterpret_cast<uintptr_t>(p) + bytes / 2) / page * page;
  unsigned char there = 0;
  return bytes > 0 && mincore(reinterpret_cast<void*>(middle), page, &there) == 0 && (there & 1);
}
#endif

}  // namespace

bool PopulatePages(const uint8_t* p, int64_t bytes) {
#ifdef __linux__
  constexpr int kPopulateRead = 22;  // MADV_POPULATE_READ, since Linux 5.14
  return Advise(p, bytes, kPopulateRead, true) == 0;
#else
  static_cast<void>(p);
  static_cast<void>(bytes);
  return false;
#endif
}

ExpertPager::ExpertPager(int64_t budget_bytes)
    : budget_(budget_bytes), owner_(getpid()), helper_([this] { Help(); }) {}

ExpertPager::~ExpertPager() {
  if (getpid() != owner_) {
    helper_.detach();
    return;
  }
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  helper_.join();
}

ExpertPager::Expert ExpertPager::Find(const MoeWeights& w, int expert) {
  Expert found{};
  int i = 0;
  for (const MatrixStack* stack : {&w.gate_up, &w.down}) {
    const Matrix m = stack->at(expert);
    found.ranges[i++] = {m.data, stack->data_stride};
    found.ranges[i++] = {m.scales, m.scales != nullptr ? stack->scales_stride : 0};
  }
  for (const Range& range : found.ranges) found.bytes += range.bytes;
  return found;
}

int ExpertPager::GroupSize(const MoeWeights& w) const {
  const int64_t fit = budget_ / 2 / std::max<int64_t>(Find(w, 0).bytes, 1);
  return static_cast<int>(std::clamp<int64_t>(fit, 1, kMostGroup));
}

void ExpertPager::Read(const std::vector<Expert>& experts) {
  for (const Expert& expert : experts) {
    for (const Range& range : expert.ranges) {
      for (int64_t at = 0; at < range.bytes; at += kReadBytes) {
        Advise(range.begin + at, std::min(kReadBytes, range.bytes - at), MADV_WILLNEED, true);
      }
    }
  }
}

void ExpertPager::LetGo(const std::vector<Expert>& experts) {
#ifdef MADV_PAGEOUT
  // Clean pages of a file are dropped from memory, not written anywhere. Not MADV_DONTNEED: it
  // would empty weights that no file backs.
  for (const Expert& expert : experts) {
    for (const Range& range : expert.ranges) {
      Advise(range.begin, range.bytes, MADV_PAGEOUT, false);
      // Files that are somebody else's, or mapped by others too, are not paged out: at least these
      // pages are the first to go.
      if (IsResident(range.begin, range.bytes)) Advise(range.begin, range.bytes, MADV_COLD, false);
    }
  }
#else
  static_cast<void>(experts);
#endif
}

std::vector<ExpertPager::Expert> ExpertPager::TakeLeastRecent(int64_t down_to_bytes, int kept) {
  std::vector<Expert> taken;
  while (resident_ > down_to_bytes && static_cast<int>(order_.size()) > kept) {
    taken.push_back(order_.back());
    hot_.erase(order_.back().ranges[0].begin);
    resident_ -= order_.back().bytes;
    order_.pop_back();
  }
  return taken;
}

void ExpertPager::Need(const MoeWeights& w, const int* experts, int count) {
  Wait();
  Work work;
  for (int i = 0; i < count; ++i) {
    const Expert expert = Find(w, experts[i]);
    const auto found = hot_.find(expert.ranges[0].begin);
    if (found != hot_.end()) {
      order_.splice(order_.begin(), order_, found->second);
      ++hits_;
      continue;
    }
    ++misses_;
    bytes_read_ += expert.bytes;
    resident_ += expert.bytes;
    order_.push_front(expert);
    hot_[expert.ranges[0].begin] = order_.begin();
    work.read.push_back(expert);
  }
  const int kept = count + std::exchange(count_before_, count);
  LetGo(TakeLeastRecent(budget_, kept));
  work.let_go = TakeLeastRecent(budget_ - budget_ / kReserve, kept);
  if (std::exchange(layer_before_, &w) != &w) {
    Read(work.read);
    work.read.clear();
  }
  Start(std::move(work));
}

void ExpertPager::Start(Work work) {
  if (work.read.empty() && work.let_go.empty()) return;
  if (getpid() != owner_) {
    Read(work.read);
    LetGo(work.let_go);
    return;
  }
  {
    const std::lock_guard lock(mutex_);
    work_ = std::move(work);
    busy_ = true;
  }
  changed_.notify_all();
}

void ExpertPager::Wait() {
  if (getpid() != owner_) return;
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return !busy_; });
}

void ExpertPager::Help() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return busy_ || stop_; });
    if (!busy_) return;
    const Work work = std::exchange(work_, {});
    lock.unlock();
    Read(work.read);
    LetGo(work.let_go);
    lock.lock();
    busy_ = false;
    changed_.notify_all();
  }
}

}  // namespace ossia
