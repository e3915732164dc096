// Attention of one kv head: tiles of 32 keys with online softmax, straight from the paged cache.
// Included once per target, after elementwise-inl.h. Contract: op_table.h.
//
// Keys of a block lie transposed, [d][32], so that scores of 32 keys are two vectors and a chain of
// fma over d, without a horizontal sum. In bfloat16 each 32 numbers are the first 16 and the last
// in turns: one vector becomes two of float32 by a shift and a mask. A tile that a query does not
// see leaves its state unchanged bit for bit, so queries may share a tile whatever each of them
// sees.

#include <string.h>

#include "op_table.h"

namespace ossia::OSSIA_TARGET {

// Below every score, yet finite: exp(hidden - kNoScore) is 0 and exp(kNoScore - kNoScore) is 1.
constexpr float kNoScore = -1e30f;
constexpr float kHidden = -__builtin_inff();

// 32 numbers of a block, the first 16 and the last.
OSSIA_INLINE void LoadHalves(const float* p, F32x16* first, F32x16* last) {
  *first = Load(p);
  *last = Load(p + 16);
}
OSSIA_INLINE void LoadHalves(const uint16_t* p, F32x16* first, F32x16* last) {
  LoadBf16Pairs(p, first, last);
}

// What to fetch while a loop over a tile computes: a line of the same part of the next tile with
// each round. There are as many rounds as lines in bfloat16; of float32 it is every other line.
struct NextTile {
  const uint8_t* at;
  int step;  // 0: nothing new
};
OSSIA_INLINE void Fetch(const NextTile& next, int round) {
  __builtin_prefetch(next.at + static_cast<int64_t>(next.step) * round, 0, 2);
}

template <int R, typename T>
inline void ScoreRows(const float* q, const T* keys, int d, NextTile next, float* scores) {
  F32x16 sums[R][2];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) sums[r][0] = sums[r][1] = ZeroF32();
  for (int i = 0; i < d; ++i) {
    F32x16 k0, k1;
    LoadHalves(keys + kKeyTile * i, &k0, &k1);
    Fetch(next, i);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const F32x16 x = Set(q[r * d + i]);
      sums[r][0] = Fma(x, k0, sums[r][0]);
      sums[r][1] = Fma(x, k1, sums[r][1]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    Store(sums[r][0], scores + kKeyTile * r);
    Store(sums[r][1], scores + kKeyTile * r + 16);
  }
}

template <int R, typename T>
inline void ValueRows(const float* weights, const float* decay, const T* values, int num_keys,
                      int d, NextTile next, float* acc) {
  for (int i = 0; i < d; i += 32) {
    F32x16 sums[R][2];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      sums[r][0] = Load(acc + r * d + i);
      sums[r][1] = Load(acc + r * d + i + 16);
      if (decay == nullptr) continue;
      sums[r][0] = Mul(sums[r][0], Set(decay[r]));
      sums[r][1] = Mul(sums[r][1], Set(decay[r]));
    }
    for (int k = 0; k < num_keys; ++k) {
      F32x16 v0, v1;
      LoadHalves(values + k * d + i, &v0, &v1);
      Fetch(next, i + k);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const F32x16 x = Set(weights[kKeyTile * r + k]);
        sums[r][0] = Fma(x, v0, sums[r][0]);
        sums[r][1] = Fma(x, v1, sums[r][1]);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      Store(sums[r][0], acc + r * d + i);
      Store(sums[r][1], acc + r * d + i + 16);
    }
  }
}

template <int R, typename T>
inline void ScoreRowsOf(int rows, const float* q, const T* keys, int d, NextTile next,
                        float* scores) {
  if constexpr (R > 1) {
    if (rows < R) {
      ScoreRowsOf<R - 1>(rows, q, keys, d, next, scores);
      return;
    }
  }
  ScoreRows<R>(q, keys, d, next, scores);
}

template <int R, typename T>
inline void ValueRowsOf(int rows, const float* weights, const float* decay, const T* values,
                        int num_keys, int d, NextTile next, float* acc) {
  if constexpr (R > 1) {
    if (rows < R) {
      ValueRowsOf<R - 1>(rows, weights, decay, values, num_keys, d, next, acc);
      return;
    }
  }
  ValueRows<R>(weights, decay, values, num_keys, d, next, acc);
}

// Of all rows of a tile: largest score so far, sums of weights by lane, weighted values.
struct SoftmaxState {
  float largest[kAttentionTileRows];
  float* sums;    // [row][16]
  float* values;  // [row][d]
};

inline void Reset(SoftmaxState* state, int rows, int d) {
  for (int r = 0; r < kAttentionTileRows; ++r) state->largest[r] = kNoScore;
  memset(state->sums, 0, sizeof(float) * 16 * rows);
  memset(state->values, 0, sizeof(float) * rows * d);
}

// Scores to weights relative to the new maximum; `decay` is what the old state counts for now.
// False if all of it is 1, as it mostly is.
inline bool Weigh(SoftmaxState* state, int rows, float* scores, float* decay) {
  alignas(64) float largest[kAttentionTileRows];
  for (int r = 0; r < rows; r += 8) {
    F32x16 both[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {  // rows behind the last are scratch of the tile
      const float* s = scores + kKeyTile * (r + i);
      both[i] = Max(Load(s), Load(s + 16));
    }
    MaxLanes8(both, largest + r);
  }
  for (int r = 0; r < rows; r += 16) {
    const F32x16 before = Load(state->largest + r);
    const F32x16 now = Max(Load(largest + r), before);  // a NaN score leaves the maximum as it was
    Store(now, largest + r);
    Store(ExpOfNegative(Sub(before, now)), decay + r);
  }
  // Not by looking at `decay`: whoever foresees this branch need not wait for the exponentials.
  const bool moved = memcmp(largest, state->largest, sizeof(float) * rows) != 0;
  for (int r = 0; r < rows; ++r) {
    float* s = scores + kKeyTile * r;
    const F32x16 shift = Set(largest[r]);
    const F32x16 w0 = ExpOfNegative(Sub(Load(s), shift));
    const F32x16 w1 = ExpOfNegative(Sub(Load(s + 16), shift));
    Store(w0, s);
    Store(w1, s + 16);
    float* sums = state->sums + 16 * r;
    Store(Fma(Load(sums), Set(decay[r]), Add(w0, w1)), sums);
    state->largest[r] = largest[r];
  }
  return moved;
}

template <typename T>
inline void ScoreTile(const float* q, const T* keys, int rows, int d, NextTile next,
                      float* scores) {
  for (int r = 0; r < rows; r += kAttentionRows) {
    const int count = rows - r < kAttentionRows ? rows - r : kAttentionRows;
    ScoreRowsOf<kAttentionRows>(count, q + r * d, keys, d, next, scores + kKeyTile * r);
    next.step = 0;
  }
}

// Scores of keys that a row does not see become minus infinity.
inline void HideKeys(const AttentionArgs& args, int first_key, float* scores) {
  const int last_position = args.first_position + args.num_tokens - 1;
  const bool some_hidden = first_key + kKeyTile - 1 > args.first_position ||
                           (args.window != 0 && first_key <= last_position - args.window);
  if (!some_hidden) return;
  for (int t = 0; t < args.num_tokens; ++t) {
    const int position = args.first_position + t;
    for (int k = 0; k < kKeyTile; ++k) {
      const int key = first_key + k;
      if (key <= position && (args.window == 0 || key > position - args.window)) continue;
      for (int h = 0; h < args.group; ++h) {
        scores[kKeyTile * (t * args.group + h) + k] = kHidden;
      }
    }
  }
}

template <typename T>
inline void AddValues(const float* weights, const float* decay, const T* values, int rows,
                      int num_keys, int d, NextTile next, SoftmaxState* state) {
  for (int r = 0; r < rows; r += kAttentionRows) {
    const int count = rows - r < kAttentionRows ? rows - r : kAttentionRows;
    ValueRowsOf<kAttentionRows>(count, weights + kKeyTile * r,
                                decay == nullptr ? nullptr : decay + r, values, num_keys, d, next,
                                state->values + r * d);
    next.step = 0;
  }
}

// Add a split's state of one row to what stands in (largest, sum, values).
inline void MergeRow(float part_largest, float part_sum, const float* part_values, int d,
                     float* largest, float* sum, float* values) {
  const float both = part_largest > *largest ? part_largest : *largest;
  float exponents[16] = {*largest - both, part_largest - both};
  Store(Exp(Load(exponents)), exponents);
  const float kept = *sum * exponents[0], added = part_sum * exponents[1];
  *sum = kept + added;
  *largest = both;
  const F32x16 a = Set(exponents[0]), b = Set(exponents[1]);
  for (int i = 0; i < d; i += 16) {
    Store(Fma(Load(values + i), a, Mul(Load(part_values + i), b)), values + i);
  }
}

inline void StoreAttended(const float* values, float sum, int d, float* out) {
  const F32x16 total = Set(sum);
  for (int i = 0; i < d; i += 16) Store(Div(Load(values + i), total), out + i);
}

// What a call works with: scaled queries, the scores of two tiles, widened keys or values of one,
// and two states: that of the split in progress and what the splits before it came to, the sink
// first.
struct AttentionWork {
  int rows;
  float *q, *scores[2], *wide;
  SoftmaxState state;
  float running_largest[kAttentionTileRows], running_sum[kAttentionTileRows];
  float* running_values;
};

inline void BeginAttention(const AttentionArgs& args, AttentionWork* work) {
  const int d = args.d, rows = args.num_tokens * args.group;
  float* memory = reinterpret_cast<float*>(args.scratch->bytes);
  const auto take = [&](int64_t n) {
    float* p = memory;
    memory += (n + 15) / 16 * 16;
    return p;
  };
  work->rows = rows;
  work->q = take(rows * d);
  for (float*& scores : work->scores) scores = take(kAttentionTileRows * kKeyTile);
  work->wide = take(kKeyTile * d);
  work->state.sums = take(16 * rows);
  work->state.values = take(rows * d);
  work->running_values = take(rows * d);
  const F32x16 scale = Set(args.scale);
  for (int t = 0; t < args.num_tokens; ++t) {
    for (int i = 0; i < args.group * d; i += 16) {
      Store(Mul(Load(args.q + t * args.q_stride + i), scale), work->q + t * args.group * d + i);
    }
    for (int h = 0; h < args.group; ++h) {
      work->running_largest[t * args.group + h] = args.sinks[h];
      work->running_sum[t * args.group + h] = 1;
    }
  }
  memset(work->running_values, 0, sizeof(float) * rows * d);
  Reset(&work->state, rows, d);
}

// The keys (or values) of one block of the cache as what ScoreTile (or AddValues) takes: many rows
// use float32 that is widened once.
template <typename Use>
inline void WithNumbers(const AttentionArgs& args, const uint8_t* block, AttentionWork* work,
                        Use&& use) {
  const uint16_t* narrow = reinterpret_cast<const uint16_t*>(block);
  if (args.f32_cache) {
    use(reinterpret_cast<const float*>(block));
  } else if (work->rows <= kAttentionRows) {
    use(narrow);
  } else {
    for (int i = 0; i < kKeyTile * args.d; i += 32) {
      F32x16 first, last;
      LoadHalves(narrow + i, &first, &last);
      Store(first, work->wide + i);
      Store(last, work->wide + i + 16);
    }
    use(static_cast<const float*>(work->wide));
  }
}

inline void EndSplit(const AttentionArgs& args, AttentionWork* work) {
  const int d = args.d;
  for (int r = 0; r < work->rows; ++r) {
    MergeRow(work->state.largest[r], SumLanes(Load(work->state.sums + 16 * r)),
             work->state.values + r * d, d, &work->running_largest[r], &work->running_sum[r],
             work->running_values + r * d);
  }
  Reset(&work->state, work->rows, d);
}

inline void StoreSplit(const AttentionArgs& args, const AttentionWork& work) {
  const int d = args.d;
  for (int r = 0; r < work.rows; ++r) {
    float* partial = args.partial + r * (2 + d);
    partial[0] = work.state.largest[r];
    partial[1] = SumLanes(Load(work.state.sums + 16 * r));
    memcpy(partial + 2, work.state.values + r * d, sizeof(float) * d);
  }
}

inline void Attention(const AttentionArgs& args) {
  args.scratch->counts[args.split < 0 ? kAttentionWhole : kAttentionSplit]++;
  AttentionWork work;
  BeginAttention(args, &work);
  const int first = args.first_position, last = first + args.num_tokens - 1;
  const int first_visible = args.window == 0 || first < args.window ? 0 : first - args.window + 1;
  const int very_last = last / kKeyTile;
  int tile = first_visible / kKeyTile, last_tile = very_last;
  constexpr int kSplitTiles = kSplitKeys / kKeyTile;
  if (args.split >= 0) {
    if (tile < args.split * kSplitTiles) tile = args.split * kSplitTiles;
    if (last_tile >= (args.split + 1) * kSplitTiles) last_tile = (args.split + 1) * kSplitTiles - 1;
  }
  const int line = args.f32_cache ? 128 : 64;
  const int64_t part_bytes = int64_t{line} * args.d;  // the keys of a block, or its values
  const auto head_of = [&](int i) {
    return args.cache + args.block_table[i] * args.block_bytes + args.head_offset;
  };
  // Behind the last tile of a split comes the next split, which is mostly what a thread does next.
  const auto after = [&](int i) {
    return NextTile{head_of(i < very_last ? i + 1 : i), i < very_last ? line : 0};
  };
  const auto score = [&](int i) {
    WithNumbers(args, head_of(i), &work, [&](auto keys) {
      ScoreTile(work.q, keys, work.rows, args.d, after(i), work.scores[i % 2]);
    });
  };
  // Scores are one tile ahead of the values, so that the maximum and the exponentials of one tile,
  // which wait for each other, have the products of the next to hide behind.
  score(tile);
  for (; tile <= last_tile; ++tile) {
    if (tile < last_tile) score(tile + 1);
    float* scores = work.scores[tile % 2];
    HideKeys(args, tile * kKeyTile, scores);
    alignas(64) float decay[kAttentionTileRows];
    const bool moved = Weigh(&work.state, work.rows, scores, decay);
    const int left = last - tile * kKeyTile + 1, num_keys = left < kKeyTile ? left : kKeyTile;
    NextTile next = after(tile);
    next.at += part_bytes;
    WithNumbers(args, head_of(tile) + part_bytes, &work, [&](auto values) {
      AddValues(scores, moved ? decay : nullptr, values, work.rows, num_keys, args.d, next,
                &work.state);
    });
    const bool split_ends = tile == last_tile || (tile + 1) % kSplitTiles == 0;
    if (split_ends && args.split < 0) EndSplit(args, &work);
  }
  if (args.split >= 0) {
    StoreSplit(args, work);
    return;
  }
  for (int t = 0; t < args.num_tokens; ++t) {
    for (int h = 0; h < args.group; ++h) {
      const int r = t * args.group + h;
      StoreAttended(work.running_values + r * args.d, work.running_sum[r], args.d,
                    args.out + t * args.out_stride + h * args.d);
    }
  }
}

inline void AttentionMerge(const float* partials, int num_splits, int rows, int d,
                           const float* sinks, float* out) {
  constexpr int kMaxWidth = 512;
  float values[kMaxWidth];
  for (int r = 0; r < rows; ++r) {
    float largest = sinks[r], sum = 1;
    memset(values, 0, sizeof(float) * d);
    for (int s = 0; s < num_splits; ++s) {
      const float* part = partials + (static_cast<int64_t>(s) * rows + r) * (2 + d);
      MergeRow(part[0], part[1], part + 2, d, &largest, &sum, values);
    }
    StoreAttended(values, sum, d, out + r * d);
  }
}

}  // namespace ossia::OSSIA_TARGET
