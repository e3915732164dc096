#include "common/step.h"

#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <cmath>

#include "common/pager.h"

namespace ossia {
namespace {

constexpr int kMaxTileRows = 256;  // a task has kTaskRows rows, or one head

// Tokens of one matmul task, so that no task of many is followed by one of few.
int PartSize(int num_tokens) {
  const int parts = std::max(1, CeilDiv(num_tokens, kTaskTokens));
  return std::max(1, CeilDiv(CeilDiv(num_tokens, parts), 4) * 4);
}

}  // namespace

Context::ThreadState::ThreadState() {
  scratch.bytes = static_cast<uint8_t*>(aligned_alloc(64, kScratchBytes));
  memset(scratch.counts, 0, sizeof(scratch.counts));
  tile = static_cast<float*>(aligned_alloc(64, sizeof(float) * kTaskTokens * kMaxTileRows));
}

Context::ThreadState::~ThreadState() {
  free(scratch.bytes);
  free(tile);
}

// -- Rows ------------------------------------------------------------------------------------

Step::Rows Step::Normed(const Value& x, const int32_t* picked, int64_t count, const float* norm,
                        float eps, bool quantise) {
  const int cols = static_cast<int>(x.cols);
  const int64_t quantised_bytes = QuantLayout(cols).bytes();
  Rows rows;
  rows.plain_buffer = Take(sizeof(float) * (count * cols + 1));
  rows.plain.resize(count);
  if (quantise) {
    rows.quantised_buffer = Take(quantised_bytes * count + 1);
    rows.quantised.resize(count);
  }
  c_.pool_.ParallelFor(static_cast<int>(count), [&](int t, int) {
    float* to = reinterpret_cast<float*>(rows.plain_buffer->data()) + int64_t{t} * cols;
    ops_.rms_norm(x.row(picked != nullptr ? picked[t] : t), norm, cols, eps, to);
    rows.plain[t] = to;
    if (quantise) {
      uint8_t* bytes = rows.quantised_buffer->data() + quantised_bytes * t;
      ops_.quantise(to, cols, bytes);
      rows.quantised[t] = bytes;
    }
  });
  return rows;
}

Step::Rows Step::Quantised(const Value& x, bool quantise) {
  const int cols = static_cast<int>(x.cols);
  const int64_t bytes = QuantLayout(cols).bytes();
  Rows rows;
  if (!quantise) {
    rows.plain.resize(x.rows);
    for (int64_t t = 0; t < x.rows; ++t) rows.plain[t] = x.row(t);
    return rows;
  }
  rows.quantised_buffer = Take(bytes * x.rows + 1);
  rows.quantised.resize(x.rows);
  c_.pool_.ParallelFor(static_cast<int>(x.rows), [&](int t, int) {
    uint8_t* to = rows.quantised_buffer->data() + bytes * t;
    ops_.quantise(x.row(t), cols, to);
    rows.quantised[t] = to;
  });
  return rows;
}

void Step::Product(const Matrix& m, int row_begin, int row_end, const Rows& rows, int first_token,
                   int num_tokens, float* out, int64_t ld, int thread) {
  ops_.matmul(MatmulArgs{.weight = m,
                         .row_begin = row_begin,
                         .row_end = row_end,
                         .num_tokens = num_tokens,
                         .tokens = rows.of(Quantises(m)) + first_token,
                         .exact = c_.options_.exact,
                         .out = out,
                         .ld = ld,
                         .tuning = c_.options_.tuning,
                         .scratch = &c_.threads_[thread]->scratch});
}

// -- Embedding and head ----------------------------------------------------------------------

void Step::Embed(const int32_t* ids, const EmbeddingWeights* w, Value* out) {
  c_.pool_.ParallelFor(CeilDiv(static_cast<int>(out->rows), 16), [&](int task, int) {
    for (int64_t t = task * 16; t < std::min<int64_t>(task * 16 + 16, out->rows); ++t) {
      const int64_t at = int64_t{ids[t]} * w->hidden;
      if (w->f32) {
        memcpy(out->row(t), static_cast<const float*>(w->table) + at, sizeof(float) * w->hidden);
      } else {
        ops_.bf16_to_f32(static_cast<const uint16_t*>(w->table) + at, w->hidden, out->row(t));
      }
    }
  });
}

void Step::Logits(const Value& x, const HeadWeights& w, const int32_t* picked, Value* out) {
  const Rows rows = Normed(x, picked, out->rows, w.norm, w.eps, Quantises(w.head));
  const int num_tokens = static_cast<int>(out->rows);
  const int chunks = CeilDiv(w.head.rows, kTaskRows);
  const int size = PartSize(num_tokens), parts = CeilDiv(num_tokens, size);
  c_.pool_.ParallelFor(chunks * parts, [&](int task, int thread) {
    const int row = task / parts * kTaskRows, first = task % parts * size;
    Product(w.head, row, std::min(row + kTaskRows, w.head.rows), rows, first,
            std::min(size, num_tokens - first), out->row(first) + row, out->cols, thread);
  });
}

// -- Attention -------------------------------------------------------------------------------

void Step::AttnIn(const Value& x, const AttentionWeights& w, const float* cos, const float* sin,
                  const TokenIndex& index, const CacheLayer* cache, Value* out) {
  const bool quantise = Quantises(w.q) || Quantises(w.k) || Quantises(w.v);
  const Rows rows = Normed(x, nullptr, x.rows, w.norm, w.eps, quantise);
  const int d = w.d, half = d / 2, num_tokens = static_cast<int>(x.rows);
  const int size = PartSize(num_tokens), parts = CeilDiv(num_tokens, size);
  c_.pool_.ParallelFor((w.heads + 2 * w.kv_heads) * parts, [&](int task, int thread) {
    const int head = task / parts, first = task % parts * size;
    const int count = std::min(size, num_tokens - first);
    const bool is_q = head < w.heads, is_k = !is_q && head < w.heads + w.kv_heads;
    const int own = is_q ? head : is_k ? head - w.heads : head - w.heads - w.kv_heads;
    const Matrix& m = is_q ? w.q : is_k ? w.k : w.v;
    const float* bias = (is_q ? w.q_bias : is_k ? w.k_bias : w.v_bias) + own * d;
    float* tile = c_.threads_[thread]->tile;
    Product(m, own * d, (own + 1) * d, rows, first, count, tile, d, thread);
    for (int t = 0; t < count; ++t) {
      float* y = tile + t * d;
      ops_.add(y, bias, d, y);
      const int token = first + t;
      if (is_q || is_k) {
        const int64_t angle = int64_t{index.positions[token]} * half;
        ops_.rotate(y, cos + angle, sin + angle, half);
      }
      if (is_q || cache == nullptr) {
        memcpy(out->row(token) + head * d, y, sizeof(float) * d);
        continue;
      }
      const int slot = index.slots[token];
      uint8_t* to =
          cache->data + slot / kKeyTile * cache->block_bytes() + own * cache->head_bytes();
      if (is_k) {
        ops_.store_key(y, d, cache->f32, slot % kKeyTile, to);
      } else {
        ops_.store_value(y, d, cache->f32, slot % kKeyTile, to);
      }
    }
  });
}

namespace {

struct AttentionTask {
  int sequence, kv_head, first_token, num_tokens, split;
};

// One token per sequence, whose keys one thread would walk alone for long.
bool WantsSplits(const TokenIndex& index, int window, size_t num_tasks, int num_threads) {
  if (window != 0 || static_cast<int>(num_tasks) >= 4 * num_threads) return false;
  int longest = 0;
  for (int s = 0; s < index.num_sequences; ++s) {
    if (index.cu_seqlens[s + 1] - index.cu_seqlens[s] != 1) return false;
    longest = std::max(longest, index.positions[index.cu_seqlens[s]] + 1);
  }
  return longest > kSplitKeys;
}

}  // namespace

// Whole documents side by side, through a cache made for this op alone.
Step::Documents Step::StoreDocuments(const Value& qkv, const AttentionWeights& w,
                                     const TokenIndex& index) {
  Documents made{{nullptr, w.kv_heads, w.d, c_.options_.exact}, {}, 0, nullptr};
  int blocks = 0;
  for (int s = 0; s < index.num_sequences; ++s) {
    const int length = CeilDiv(index.cu_seqlens[s + 1] - index.cu_seqlens[s], kKeyTile);
    made.table_width = std::max(made.table_width, length);
    blocks += length;
  }
  made.memory = Take(made.cache.block_bytes() * blocks + 1);
  made.cache.data = made.memory->data();
  memset(made.cache.data, 0, made.cache.block_bytes() * blocks);
  made.tables.resize(int64_t{index.num_sequences} * made.table_width + 1);
  for (int s = 0, block = 0; s < index.num_sequences; ++s) {
    const int begin = index.cu_seqlens[s], length = index.cu_seqlens[s + 1] - begin;
    for (int i = 0; i < CeilDiv(length, kKeyTile); ++i) {
      made.tables[s * made.table_width + i] = block + i;
    }
    for (int t = 0; t < length; ++t) {
      uint8_t* at = made.cache.data + (block + t / kKeyTile) * made.cache.block_bytes();
      for (int g = 0; g < w.kv_heads; ++g, at += made.cache.head_bytes()) {
        const float* k = qkv.row(begin + t) + (w.heads + g) * w.d;
        ops_.store_key(k, w.d, made.cache.f32, t % kKeyTile, at);
        ops_.store_value(k + w.kv_heads * w.d, w.d, made.cache.f32, t % kKeyTile, at);
      }
    }
    block += CeilDiv(length, kKeyTile);
  }
  return made;
}

void Step::Attention(const Value& qkv, const AttentionWeights& w, int window,
                     const TokenIndex& index, const CacheLayer* cache, Value* out) {
  Documents made;
  TokenIndex paged = index;
  if (cache == nullptr) {
    made = StoreDocuments(qkv, w, index);
    cache = &made.cache;
    paged.block_tables = made.tables.data();
    paged.table_width = made.table_width;
  }
  const int group = w.heads / w.kv_heads;
  const int tile_tokens = std::max(1, kAttentionTileRows / group);
  std::vector<AttentionTask> tasks;
  for (int s = 0; s < index.num_sequences; ++s) {
    for (int t = paged.cu_seqlens[s]; t < paged.cu_seqlens[s + 1]; t += tile_tokens) {
      const int count = std::min(tile_tokens, paged.cu_seqlens[s + 1] - t);
      for (int g = 0; g < w.kv_heads; ++g) tasks.push_back({s, g, t, count, -1});
    }
  }
  AttentionArgs base{};
  base.q_stride = qkv.cols;
  base.window = window;
  base.group = group;
  base.d = w.d;
  base.scale = 1.0f / std::sqrt(static_cast<float>(w.d));
  base.cache = cache->data;
  base.block_bytes = cache->block_bytes();
  base.f32_cache = cache->f32;
  base.out_stride = out->cols;
  base.split = -1;
  if (WantsSplits(paged, window, tasks.size(), c_.pool_.size())) {
    AttendSplits(w, base, qkv, paged, *cache, out);
    return;
  }
  c_.pool_.ParallelFor(static_cast<int>(tasks.size()), [&](int i, int thread) {
    const AttentionTask& task = tasks[i];
    AttentionArgs args = base;
    args.q = qkv.row(task.first_token) + task.kv_head * group * w.d;
    args.num_tokens = task.num_tokens;
    args.first_position = paged.positions[task.first_token];
    args.sinks = w.sinks + task.kv_head * group;
    args.block_table = paged.block_tables + int64_t{task.sequence} * paged.table_width;
    args.head_offset = task.kv_head * cache->head_bytes();
    args.out = out->row(task.first_token) + task.kv_head * group * w.d;
    args.scratch = &c_.threads_[thread]->scratch;
    ops_.attention(args);
  });
}

// One token per sequence, few of them, long contexts: the splits of a sequence side by side.
void Step::AttendSplits(const AttentionWeights& w, const AttentionArgs& base, const Value& q,
                        const TokenIndex& index, const CacheLayer& cache, Value* out) {
  const int group = base.group, d = w.d;
  std::vector<AttentionTask> tasks;
  std::vector<int64_t> first_partial;
  int64_t partials = 0;
  for (int s = 0; s < index.num_sequences; ++s) {
    const int splits = CeilDiv(index.positions[s] + 1, kSplitKeys);
    for (int g = 0; g < w.kv_heads; ++g) {
      first_partial.push_back(partials);
      for (int i = 0; i < splits; ++i) tasks.push_back({s, g, s, 1, i});
      partials += splits;
    }
  }
  const int64_t partial_size = int64_t{group} * (2 + d);
  const std::shared_ptr<Buffer> memory = Take(sizeof(float) * partial_size * partials);
  float* partial = reinterpret_cast<float*>(memory->data());
  c_.pool_.ParallelFor(static_cast<int>(tasks.size()), [&](int i, int thread) {
    const AttentionTask& task = tasks[i];
    AttentionArgs args = base;
    args.q = q.row(task.sequence) + task.kv_head * group * d;
    args.num_tokens = 1;
    args.first_position = index.positions[task.sequence];
    args.sinks = w.sinks + task.kv_head * group;
    args.block_table = index.block_tables + int64_t{task.sequence} * index.table_width;
    args.head_offset = task.kv_head * cache.head_bytes();
    args.split = task.split;
    args.partial = partial + i * partial_size;  // tasks are in the order of their partials
    args.scratch = &c_.threads_[thread]->scratch;
    ops_.attention(args);
  });
  for (int s = 0; s < index.num_sequences; ++s) {
    for (int g = 0; g < w.kv_heads; ++g) {
      ops_.attention_merge(partial + first_partial[s * w.kv_heads + g] * partial_size,
                           CeilDiv(index.positions[s] + 1, kSplitKeys), group, d,
                           w.sinks + g * group, out->row(s) + g * group * d);
    }
  }
}

void Step::AttnOut(const Value& x, const Value& attended, const AttentionWeights& w, Value* out) {
  const Rows rows = Quantised(attended, Quantises(w.o));
  const int num_tokens = static_cast<int>(x.rows), chunks = CeilDiv(w.o.rows, kTaskRows);
  const int size = PartSize(num_tokens), parts = CeilDiv(num_tokens, size);
  c_.pool_.ParallelFor(chunks * parts, [&](int task, int thread) {
    const int row = task / parts * kTaskRows, end = std::min(row + kTaskRows, w.o.rows);
    const int first = task % parts * size, count = std::min(size, num_tokens - first);
    float* tile = c_.threads_[thread]->tile;
    Product(w.o, row, end, rows, first, count, tile, kTaskRows, thread);
    for (int t = 0; t < count; ++t) {
      float* y = tile + t * kTaskRows;
      ops_.add(y, w.o_bias + row, end - row, y);
      ops_.add(x.row(first + t) + row, y, end - row, out->row(first + t) + row);
    }
  });
}

// -- Experts ---------------------------------------------------------------------------------

// Slot token * k + i holds the i-th expert of a token, i in the order of the router's logits.
struct Step::Routing {
  int k;
  std::vector<int> expert;   // [slots]
  std::vector<float> share;  // [slots]
  std::vector<int> active;   // experts with tokens, ascending
  std::vector<int> begin;    // [active + 1] into `slots`
  std::vector<int> slots;    // grouped by expert, ascending within each
};

void Step::ChooseExperts(float* logits, const MoeWeights& w, int* chosen, float* share) {
  for (int e = 0; e < w.experts; ++e) logits[e] += w.router_bias[e];
  for (int i = 0; i < w.experts_per_token; ++i) {
    // The largest not yet taken; the lowest index among equals. NaN is never larger: then the
    // lowest free index is taken, and the share is NaN all the same.
    int best = -1;
    for (int e = 0; e < w.experts; ++e) {
      if (std::find(chosen, chosen + i, e) != chosen + i) continue;
      if (best < 0 || logits[e] > logits[best]) best = e;
    }
    chosen[i] = best;
    share[i] = logits[best];
  }
  ops_.softmax(share, w.experts_per_token);
}

void Step::Route(const Rows& normed, const MoeWeights& w, int64_t count, Routing* routing) {
  const int k = w.experts_per_token, num_tokens = static_cast<int>(count);
  const std::shared_ptr<Buffer> memory = Take(sizeof(float) * (count * w.experts + 1));
  float* logits = reinterpret_cast<float*>(memory->data());
  // 16 rows a task: with 64, one thread would read the whole router of a small model alone.
  const int chunks = CeilDiv(w.experts, kPanelRows), size = std::min(32, PartSize(num_tokens));
  const int parts = CeilDiv(num_tokens, size);
  c_.pool_.ParallelFor(chunks * parts, [&](int task, int thread) {
    const int row = task / parts * kPanelRows, first = task % parts * size;
    Product(w.router, row, std::min(row + kPanelRows, w.experts), normed, first,
            std::min(size, num_tokens - first), logits + int64_t{first} * w.experts + row,
            w.experts, thread);
  });
  routing->k = k;
  routing->expert.resize(count * k);
  routing->share.resize(count * k);
  c_.pool_.ParallelFor(CeilDiv(num_tokens, 16), [&](int task, int) {
    for (int64_t t = task * 16; t < std::min(task * 16 + 16, num_tokens); ++t) {
      ChooseExperts(logits + t * w.experts, w, routing->expert.data() + t * k,
                    routing->share.data() + t * k);
    }
  });
  std::vector<int> sizes(w.experts + 1);
  for (const int e : routing->expert) ++sizes[e + 1];
  for (int e = 0; e < w.experts; ++e) {
    if (sizes[e + 1] > 0) routing->active.push_back(e);
    sizes[e + 1] += sizes[e];
  }
  for (const int e : routing->active) routing->begin.push_back(sizes[e]);
  routing->begin.push_back(sizes[w.experts]);
  routing->slots.resize(count * k);
  for (int slot = 0; slot < static_cast<int>(count * k); ++slot) {
    routing->slots[sizes[routing->expert[slot]]++] = slot;
  }
}

void Step::CheckScales(const MoeWeights& w, const std::vector<int>& experts) {
  std::vector<int> unchecked;
  for (const int e : experts) {
    if (!w.checked[e]) unchecked.push_back(e);
  }
  if (unchecked.empty()) return;
  std::atomic<int> bad{-1};
  c_.pool_.ParallelFor(static_cast<int>(unchecked.size()), [&](int i, int) {
    for (const MatrixStack* stack : {&w.gate_up, &w.down}) {
      const Matrix m = stack->at(unchecked[i]);
      if (m.format != Format::kMxfp4) continue;
      uint8_t largest = 0;
      for (int64_t j = 0; j < stack->scales_stride; ++j) largest = std::max(largest, m.scales[j]);
      if (largest > kLargestScaleByte) bad = unchecked[i];
    }
    w.checked[unchecked[i]] = 1;
  });
  if (bad < 0) return;
  w.checked[bad] = 0;
  c_.error_ = "[moe] expected MXFP4 scale bytes up to " + std::to_string(kLargestScaleByte) +
              ", but expert " + std::to_string(bad) +
              " of a layer holds larger ones: its weights " +
              "are damaged; fetch the checkpoint again";
}

template <typename Fn>
void Step::ForExperts(const Routing& routing, int begin, int end, int num_rows, Fn&& fn) {
  const int chunks = CeilDiv(num_rows, kTaskRows);
  std::vector<int> first_task(1);
  for (int i = begin; i < end; ++i) {
    const int tokens = routing.begin[i + 1] - routing.begin[i];
    first_task.push_back(first_task.back() + chunks * CeilDiv(tokens, PartSize(tokens)));
  }
  c_.pool_.ParallelFor(first_task.back(), [&](int task, int thread) {
    const int nth = static_cast<int>(std::upper_bound(first_task.begin(), first_task.end(), task) -
                                     first_task.begin() - 1);
    const int i = begin + nth;
    const int tokens = routing.begin[i + 1] - routing.begin[i], size = PartSize(tokens);
    const int parts = CeilDiv(tokens, size);
    const int local = task - first_task[nth];
    const int row = local / parts * kTaskRows;
    const int first = routing.begin[i] + local % parts * size;
    fn(routing.active[i], row, std::min(row + kTaskRows, num_rows), first,
       std::min(size, routing.begin[i + 1] - first), thread);
  });
}

// Every expert's output for each of its slots, with its bias, into results [slot][hidden].
void Step::RunExperts(const Rows& normed, const Routing& routing, const MoeWeights& w,
                      float* results) {
  const bool quantise_in = Quantises(w.gate_up.first), quantise_mid = Quantises(w.down.first);
  const int num_slots = static_cast<int>(routing.slots.size());
  // Rows of the slots in the order of `slots`, so that an expert's lie together.
  Rows in, mid;
  for (const int slot : routing.slots) {
    (quantise_in ? in.quantised : in.plain).push_back(normed.of(quantise_in)[slot / routing.k]);
  }
  const QuantLayout layout(w.intermediate);
  const int64_t mid_bytes = quantise_mid ? layout.bytes() : int64_t{4} * w.intermediate;
  const std::shared_ptr<Buffer> mid_buffer = Take(mid_bytes * num_slots + 1);
  for (int i = 0; i < num_slots; ++i) {
    uint8_t* row = mid_buffer->data() + mid_bytes * i;
    (quantise_mid ? mid.quantised : mid.plain).push_back(row);
    if (quantise_mid) ops_.begin_row(w.intermediate, row);
  }
  const auto gate_up = [&](int expert, int row, int end, int first, int count, int thread) {
    float* tile = c_.threads_[thread]->tile;
    Product(w.gate_up.at(expert), row, end, in, first, count, tile, kTaskRows, thread);
    const float* bias = w.gate_up_bias + int64_t{expert} * 2 * w.intermediate + row;
    const int n = (end - row) / 2;
    for (int t = 0; t < count; ++t) {
      float activated[kTaskRows / 2];
      ops_.swiglu(tile + t * kTaskRows, bias, n, w.limit, w.alpha, activated);
      uint8_t* to = mid_buffer->data() + mid_bytes * (first + t);
      if (quantise_mid) {
        ops_.quantise_block(activated, n, w.intermediate, row / kTaskRows, to);
      } else {
        memcpy(reinterpret_cast<float*>(to) + row / 2, activated, sizeof(float) * n);
      }
    }
  };
  const auto project_down = [&](int expert, int row, int end, int first, int count, int thread) {
    float* tile = c_.threads_[thread]->tile;
    Product(w.down.at(expert), row, end, mid, first, count, tile, kTaskRows, thread);
    const float* bias = w.down_bias + int64_t{expert} * w.hidden + row;
    for (int t = 0; t < count; ++t) {
      ops_.add(tile + t * kTaskRows, bias, end - row,
               results + int64_t{routing.slots[first + t]} * w.hidden + row);
    }
  };
  // All experts at once, or, where they are paged, as many as fit while the next are read.
  const int num_active = static_cast<int>(routing.active.size());
  const int group = c_.pager_ != nullptr ? c_.pager_->GroupSize(w) : num_active;
  const auto need = [&](int begin) {
    if (c_.pager_ == nullptr || begin >= num_active) return;
    c_.pager_->Need(w, routing.active.data() + begin, std::min(group, num_active - begin));
  };
  need(0);
  for (int begin = 0; begin < num_active; begin += group) {
    const int end = std::min(begin + group, num_active);
    need(end);
    CheckScales(w, {routing.active.begin() + begin, routing.active.begin() + end});
    ForExperts(routing, begin, end, 2 * w.intermediate, gate_up);
    ForExperts(routing, begin, end, w.hidden, project_down);
  }
}

void Step::Moe(const Value& x, const MoeWeights& w, Value* out) {
  const Rows normed = Normed(x, nullptr, x.rows, w.norm, w.eps, Quantises(w.gate_up.first));
  Routing routing;
  Route(normed, w, x.rows, &routing);

  c_.threads_[0]->scratch.counts[kExperts] += routing.active.size();
  const std::shared_ptr<Buffer> memory = Take(sizeof(float) * (routing.slots.size() * x.cols + 1));
  float* results = reinterpret_cast<float*>(memory->data());  // by slot
  RunExperts(normed, routing, w, results);
  c_.pool_.ParallelFor(static_cast<int>(x.rows), [&](int t, int) {
    memcpy(out->row(t), x.row(t), sizeof(float) * x.cols);
    for (int i = 0; i < routing.k; ++i) {
      const int64_t slot = int64_t{t} * routing.k + i;
      ops_.add_scaled(results + slot * x.cols, routing.share[slot], w.hidden, out->row(t));
    }
  });
}

}  // namespace ossia
