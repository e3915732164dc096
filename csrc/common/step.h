// What the recorded ops do when they run: phases of small tasks on all threads. The same for every
// target; arithmetic is the op table's.
#pragma once

#include <memory>
#include <vector>

#include "common/context.h"

namespace ossia {

struct Context::ThreadState {
  ThreadState();
  ~ThreadState();
  ThreadState(const ThreadState&) = delete;
  Scratch scratch;
  float* tile;  // [kTaskTokens][kMaxTileRows] results of a matmul task
};

class Step {
 public:
  explicit Step(Context* context) : c_(*context), ops_(*context->ops_) {}

  void Embed(const int32_t* ids, const EmbeddingWeights* w, Value* out);
  void AttnIn(const Value& x, const AttentionWeights& w, const float* cos, const float* sin,
              const TokenIndex& index, const CacheLayer* cache, Value* out);
  void Attention(const Value& qkv, const AttentionWeights& w, int window, const TokenIndex& index,
                 const CacheLayer* cache, Value* out);
  void AttnOut(const Value& x, const Value& attended, const AttentionWeights& w, Value* out);
  void Moe(const Value& x, const MoeWeights& w, Value* out);
  void Logits(const Value& x, const HeadWeights& w, const int32_t* rows, Value* out);

 private:
  // Rows of activations as a product wants them: as they are, quantised, or both.
  struct Rows {
    std::vector<const void*> plain, quantised;
    std::shared_ptr<Buffer> plain_buffer, quantised_buffer;
    const void* const* of(bool quantise) const {
      return quantise ? quantised.data() : plain.data();
    }
  };

  bool Quantises(const Matrix& m) const {
    return !c_.options_.exact && (m.format == Format::kMxfp4 || m.format == Format::kQ8);
  }
  std::shared_ptr<Buffer> Take(size_t bytes) {
    return std::make_shared<Buffer>(c_.buffers_, bytes);
  }
  Rows Normed(const Value& x, const int32_t* picked, int64_t count, const float* norm, float eps,
              bool quantise);
  Rows Quantised(const Value& x, bool quantise);
  void Product(const Matrix& m, int row_begin, int row_end, const Rows& rows, int first_token,
               int num_tokens, float* out, int64_t ld, int thread);
  struct Documents {
    CacheLayer cache;
    std::vector<int32_t> tables;
    int table_width;
    std::shared_ptr<Buffer> memory;
  };
  Documents StoreDocuments(const Value& qkv, const AttentionWeights& w, const TokenIndex& index);
  void AttendSplits(const AttentionWeights& w, const AttentionArgs& base, const Value& q,
                    const TokenIndex& index, const CacheLayer& cache, Value* out);
  // One phase of the active experts [begin, end): fn(expert, rows [row, end), slots [first, +
  // count)).
  struct Routing;
  void ChooseExperts(float* logits, const MoeWeights& w, int* chosen, float* share);
  void Route(const Rows& normed, const MoeWeights& w, int64_t count, Routing* routing);
  void RunExperts(const Rows& normed, const Routing& routing, const MoeWeights& w, float* results);
  void CheckScales(const MoeWeights& w, const std::vector<int>& experts);
  template <typename Fn>
  void ForExperts(const Routing& routing, int begin, int end, int num_rows, Fn&& fn);

  Context& c_;
  const OpTable& ops_;
};

}  // namespace ossia
