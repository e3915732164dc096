// A native kernel set at work: threads, memory, and the step being recorded.
//
// Ops are recorded when they are called and run together by Run, which the binding calls without
// the GIL. An intermediate value gets its memory when its op runs and gives it back when the last
// op or handle that knows it is gone, so that a step needs the memory of a layer, not of a model.
// Weights, caches and index arrays are borrowed: whoever calls keeps them alive until Run has
// returned.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "common/thread_pool.h"
#include "op_table.h"

namespace ossia {

// Memory that is used again; freed with the pool, or when much of it lies idle.
class BufferPool {
 public:
  ~BufferPool();
  uint8_t* Take(size_t bytes, size_t* capacity);
  void Give(uint8_t* p, size_t capacity);
  void Trim(size_t keep_bytes);

 private:
  struct Block {
    uint8_t* p;
    size_t capacity;
  };
  std::mutex mutex_;  // handles may die in another thread while a step runs
  std::vector<Block> idle_;
};

class Buffer {
 public:
  Buffer(std::shared_ptr<BufferPool> pool, size_t bytes)
      : pool_(std::move(pool)), p_(pool_->Take(bytes, &capacity_)) {}
  ~Buffer() { pool_->Give(p_, capacity_); }
  Buffer(const Buffer&) = delete;
  uint8_t* data() const { return p_; }

 private:
  std::shared_ptr<BufferPool> pool_;
  size_t capacity_ = 0;
  uint8_t* p_;
};

class Context;

// float32 [rows, cols]; `buffer` is there once its op has run.
struct Value {
  const Context* context;
  int64_t rows, cols;
  std::shared_ptr<Buffer> buffer;
  float* row(int64_t i) const { return reinterpret_cast<float*>(buffer->data()) + i * cols; }
};
using ValuePtr = std::shared_ptr<Value>;

// A stack of equal matrices, one per expert.
struct MatrixStack {
  Matrix first;
  int64_t data_stride = 0, scales_stride = 0;  // bytes from one expert to the next
  Matrix at(int expert) const {
    Matrix m = first;
    m.data += expert * data_stride;
    if (m.scales != nullptr) m.scales += expert * scales_stride;
    return m;
  }
};

struct AttentionWeights {
  int hidden, heads, kv_heads, d;
  float eps;
  const float* norm;
  Matrix q, k, v, o;
  const float *q_bias, *k_bias, *v_bias, *o_bias, *sinks;
};

struct MoeWeights {
  int hidden, experts, experts_per_token, intermediate;
  float eps, limit, alpha;
  const float* norm;
  Matrix router;
  const float* router_bias;
  MatrixStack gate_up, down;
  const float *gate_up_bias, *down_bias;  // [experts, 2 I], [experts, hidden]
  // Experts whose scales were found good; looked at when they are first used, not at load.
  mutable std::vector<uint8_t> checked;
};

struct HeadWeights {
  int hidden;
  float eps;
  const float* norm;
  Matrix head;
};

struct EmbeddingWeights {
  const void* table;
  bool f32;
  int rows, hidden;
};

// One layer's keys and values; blocks of kKeyTile tokens.
struct CacheLayer {
  uint8_t* data;
  int kv_heads, d;
  bool f32;
  int64_t head_bytes() const { return int64_t{2} * kKeyTile * d * (f32 ? 4 : 2); }
  int64_t block_bytes() const { return head_bytes() * kv_heads; }
};

struct TokenIndex {
  const int32_t* positions;   // [T]
  const int32_t* cu_seqlens;  // [S + 1]
  int num_sequences;
  const int32_t* slots;         // [T]; nullptr without a cache
  const int32_t* block_tables;  // [S, table_width]
  int table_width;
};

struct Options {
  bool exact = false;
  Tuning tuning{.mxfp4_row_tokens = 8, .rows_prefetch = 13312, .panel_prefetch = 3072};
};

class ExpertPager;

class Context {
 public:
  Context(const OpTable* ops, int num_threads, Options options);
  ~Context();

  const OpTable* ops() const { return ops_; }
  ThreadPool& pool() { return pool_; }
  Options& options() { return options_; }

  ValuePtr Embed(const int32_t* ids, int64_t count, const EmbeddingWeights* w);
  // q [T, H d], and without a cache k and v behind it: [T, (H + 2 K) d].
  ValuePtr AttnIn(ValuePtr x, const AttentionWeights* w, const float* cos, const float* sin,
                  TokenIndex index, const CacheLayer* cache);
  ValuePtr Attention(ValuePtr qkv, const AttentionWeights* w, int window, TokenIndex index,
                     const CacheLayer* cache);
  ValuePtr AttnOut(ValuePtr x, ValuePtr attended, const AttentionWeights* w);
  ValuePtr Moe(ValuePtr x, const MoeWeights* w);
  ValuePtr Logits(ValuePtr x, const HeadWeights* w, const int32_t* rows, int64_t count);

  // Takes what was recorded; Run carries it out. Apart because only the second runs without the
  // GIL.
  using Recorded = std::vector<std::function<void()>>;
  Recorded TakeRecorded() { return std::exchange(recorded_, {}); }
  // Waits for a run in another thread, also when there is nothing to run. The result is empty, or
  // what was wrong with the weights that the ops met.
  std::string Run(Recorded ops);

  void PackMatrix(const void* rows, bool f32, int64_t row_stride, int num_rows, int cols,
                  uint8_t* panels);
  // Sums over all threads of the paths taken so far.
  std::vector<uint64_t> Counts() const;
  uint64_t ReadBytes(const uint8_t* p, size_t n);
  uint64_t DotPeak(uint64_t n);
  // Maps the pages of an array on all threads; false where the system cannot.
  bool Populate(const uint8_t* p, int64_t bytes);
  // From now on experts are paged: at most this much of them stays in memory.
  void SetPager(int64_t budget_bytes);
  const ExpertPager* pager() const { return pager_.get(); }

 private:
  friend class Step;
  struct ThreadState;

  ValuePtr Record(int64_t rows, int64_t cols, std::function<void(Value*)> op);

  const OpTable* const ops_;
  Options options_;
  ThreadPool pool_;
  std::shared_ptr<BufferPool> buffers_;
  std::vector<std::unique_ptr<ThreadState>> threads_;
  Recorded recorded_;
  std::mutex running_;
  std::unique_ptr<ExpertPager> pager_;
  std::string error_;
};

}  // namespace ossia
