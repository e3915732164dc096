#include "common/context.h"

#include <stdlib.h>

#include <algorithm>

#include "common/pager.h"
#include "common/step.h"

namespace ossia {

BufferPool::~BufferPool() { Trim(0); }

uint8_t* BufferPool::Take(size_t bytes, size_t* capacity) {
  const std::lock_guard lock(mutex_);
  size_t best = idle_.size();
  for (size_t i = 0; i < idle_.size(); ++i) {
    // Not one of many times the size: it will be wanted for what it was made for.
    if (idle_[i].capacity < bytes || idle_[i].capacity > 4 * bytes + 65536) continue;
    if (best == idle_.size() || idle_[i].capacity < idle_[best].capacity) best = i;
  }
  if (best < idle_.size()) {
    const Block block = idle_[best];
    idle_[best] = idle_.back();
    idle_.pop_back();
    *capacity = block.capacity;
    return block.p;
  }
  *capacity = (bytes + 4095) / 4096 * 4096 + 4096;
  return static_cast<uint8_t*>(aligned_alloc(4096, *capacity));
}

void BufferPool::Give(uint8_t* p, size_t capacity) {
  const std::lock_guard lock(mutex_);
  idle_.push_back({p, capacity});
}

void BufferPool::Trim(size_t keep_bytes) {
  const std::lock_guard lock(mutex_);
  size_t total = 0;
  for (const Block& block : idle_) total += block.capacity;
  while (total > keep_bytes && !idle_.empty()) {
    total -= idle_.back().capacity;
    free(idle_.back().p);
    idle_.pop_back();
  }
}

Context::Context(const OpTable* ops, int num_threads, Options options)
    : ops_(ops), options_(options), pool_(num_threads), buffers_(std::make_shared<BufferPool>()) {
  for (int t = 0; t < num_threads; ++t) threads_.push_back(std::make_unique<ThreadState>());
}

Context::~Context() = default;

ValuePtr Context::Record(int64_t rows, int64_t cols, std::function<void(Value*)> op) {
  auto value = std::make_shared<Value>(Value{this, rows, cols, nullptr});
  recorded_.push_back([this, value, op = std::move(op)] {
    value->buffer = std::make_shared<Buffer>(
        buffers_,
        sizeof(float) * static_cast<size_t>(std::max<int64_t>(value->rows * value->cols, 1)));
    op(value.get());
  });
  return value;
}

std::string Context::Run(Recorded ops) {
  const std::lock_guard lock(running_);
  error_.clear();
  for (std::function<void()>& op : ops) {
    op();
    op = nullptr;  // what only this op needed gives its memory back
  }
  constexpr size_t kKeep = 256u << 20;
  buffers_->Trim(kKeep);
  return error_;
}

ValuePtr Context::Embed(const int32_t* ids, int64_t count, const EmbeddingWeights* w) {
  return Record(count, w->hidden, [=, this](Value* out) { Step(this).Embed(ids, w, out); });
}

ValuePtr Context::AttnIn(ValuePtr x, const AttentionWeights* w, const float* cos, const float* sin,
                         TokenIndex index, const CacheLayer* cache) {
  const int heads = cache != nullptr ? w->heads : w->heads + 2 * w->kv_heads;
  return Record(x->rows, int64_t{heads} * w->d,
                [=, this](Value* out) { Step(this).AttnIn(*x, *w, cos, sin, index, cache, out); });
}

ValuePtr Context::Attention(ValuePtr qkv, const AttentionWeights* w, int window, TokenIndex index,
                            const CacheLayer* cache) {
  return Record(qkv->rows, int64_t{w->heads} * w->d, [=, this](Value* out) {
    Step(this).Attention(*qkv, *w, window, index, cache, out);
  });
}

ValuePtr Context::AttnOut(ValuePtr x, ValuePtr attended, const AttentionWeights* w) {
  return Record(x->rows, x->cols,
                [=, this](Value* out) { Step(this).AttnOut(*x, *attended, *w, out); });
}

ValuePtr Context::Moe(ValuePtr x, const MoeWeights* w) {
  return Record(x->rows, x->cols, [=, this](Value* out) { Step(this).Moe(*x, *w, out); });
}

ValuePtr Context::Logits(ValuePtr x, const HeadWeights* w, const int32_t* rows, int64_t count) {
  return Record(count, w->head.rows,
                [=, this](Value* out) { Step(this).Logits(*x, *w, rows, out); });
}

void Context::PackMatrix(const void* rows, bool f32, int64_t row_stride, int num_rows, int cols,
                         uint8_t* panels) {
  const std::lock_guard lock(running_);
  const int64_t bytes = PanelBytes(cols), item = f32 ? 4 : 2;
  pool_.ParallelFor(CeilDiv(num_rows, kPanelRows), [&](int panel, int) {
    const int row = panel * kPanelRows;
    ops_->pack_panel(static_cast<const uint8_t*>(rows) + row * row_stride * item, f32, row_stride,
                     std::min(kPanelRows, num_rows - row), cols, panels + panel * bytes);
  });
}

std::vector<uint64_t> Context::Counts() const {
  std::vector<uint64_t> counts(kNumPaths);
  for (const auto& thread : threads_) {
    for (int i = 0; i < kNumPaths; ++i) counts[i] += thread->scratch.counts[i];
  }
  return counts;
}

uint64_t Context::ReadBytes(const uint8_t* p, size_t n) {
  const std::lock_guard lock(running_);
  constexpr size_t kChunk = 1u << 20;
  std::atomic<uint64_t> sum{0};
  pool_.ParallelFor(static_cast<int>((n + kChunk - 1) / kChunk), [&](int chunk, int) {
    const size_t at = chunk * kChunk;
    sum += ops_->read_bytes(p + at, std::min(kChunk, n - at));
  });
  return sum;
}

bool Context::Populate(const uint8_t* p, int64_t bytes) {
  constexpr int64_t kChunk = 8 << 20;
  const std::lock_guard lock(running_);
  std::atomic<bool> done{true};
  pool_.ParallelFor(static_cast<int>((bytes + kChunk - 1) / kChunk), [&](int chunk, int) {
    const int64_t at = chunk * kChunk;
    if (!PopulatePages(p + at, std::min(kChunk, bytes - at))) done = false;
  });
  return done;
}

void Context::SetPager(int64_t budget_bytes) {
  const std::lock_guard lock(running_);
  pager_ = std::make_unique<ExpertPager>(budget_bytes);
}

uint64_t Context::DotPeak(uint64_t n) {
  const std::lock_guard lock(running_);
  std::atomic<uint64_t> sum{0};
  pool_.ParallelFor(pool_.size(), [&](int, int) { sum += ops_->dot_peak(n); });
  return sum;
}

}  // namespace ossia
