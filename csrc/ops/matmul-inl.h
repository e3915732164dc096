// Products of weights and activations: MXFP4 in place row by row, Q8 panels, and the exact
// products. Included once per target, after its simd header. Contract and numerics: op_table.h.
//
// Three ways through a quantised product, equal bit for bit:
//   rows    MXFP4 as published, four rows and four blocks at a time; every token uses the decoded
//           nibbles. Few tokens: bound by memory.
//   vector  one token against a Q8 panel, read once from front to back.
//   tile    kTileTokens tokens against kTilePanels panels, one chain after the other so that sums
//           and chains stay in registers. Many tokens: bound by arithmetic. MXFP4 is decoded into
//           panels first; its power-of-two scales are exact in bfloat16.

#include <string.h>

#include "op_table.h"

namespace ossia::OSSIA_TARGET {

OSSIA_INLINE float LoadFloat(const uint8_t* p) {
  float x;
  memcpy(&x, p, 4);
  return x;
}
OSSIA_INLINE int32_t LoadInt(const uint8_t* p) {
  int32_t x;
  memcpy(&x, p, 4);
  return x;
}

// -- MXFP4 rows ------------------------------------------------------------------------------

struct RowQuad {
  const uint8_t* blocks[4];
  const uint8_t* scales[4];
};

// Four rows against N tokens, into out[n * ld + 0..3].
template <int N>
inline void Mxfp4Quad(const RowQuad& rows, int num_blocks, const QuantLayout& layout,
                      const uint8_t* const* tokens, int prefetch_bytes, float* out, int64_t ld) {
  const uint8_t* next = rows.blocks[0] + 64 * num_blocks;
  F32x16 chains[N];
  for (int n = 0; n < N; ++n) chains[n] = ZeroF32();
  const auto accumulate = [&](const U8x64 bytes[4], I32x16 scale,
                              int64_t g) __attribute__((always_inline)) {
    U8x64 low[4], high[4];
    for (int r = 0; r < 4; ++r) DecodeFp4(bytes[r], &low[r], &high[r]);
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
      const uint8_t* a = tokens[n];
      const U8x64 even = LoadBytes(a + 128 * g), odd = LoadBytes(a + 128 * g + 64);
      const I32x16 start = LoadI32(reinterpret_cast<const int32_t*>(a + layout.minus12() + 64 * g));
      I32x16 sums[4];
      for (int r = 0; r < 4; ++r) sums[r] = DotFp4(start, low[r], high[r], even, odd);
      const F32x16 token_scale = Load(reinterpret_cast<const float*>(a + layout.scales() + 64 * g));
      chains[n] = Fma(ToF32(SumQuads(sums[0], sums[1], sums[2], sums[3])),
                      AddToExponent(token_scale, scale), chains[n]);
    }
  };
  const int full = num_blocks / 4, rest = num_blocks % 4;
  for (int g = 0; g < full; ++g) {
    U8x64 bytes[4];
    // The scales of four times four rows further on: 360 bytes of a quad, a stream of its own.
    __builtin_prefetch(rows.scales[0] + 16 * num_blocks + 16 * g, 0, 3);
    for (int r = 0; r < 4; ++r) {
      bytes[r] = LoadBytes(rows.blocks[r] + 64 * g);
      // Four rows are read side by side, which no prefetcher of the hardware follows. So the next
      // four are fetched in the order of memory meanwhile, and the lines behind those announced.
      __builtin_prefetch(next + 256 * g + 64 * r, 0, 3);
      __builtin_prefetch(next + prefetch_bytes + 256 * g + 64 * r, 0, 2);
    }
    accumulate(bytes,
               Mxfp4Scales(rows.scales[0] + 4 * g, rows.scales[1] + 4 * g, rows.scales[2] + 4 * g,
                           rows.scales[3] + 4 * g),
               g);
  }
  if (rest != 0) {
    U8x64 bytes[4];
    uint8_t scales[4][4] = {};
    for (int r = 0; r < 4; ++r) {
      bytes[r] = LoadBytesN(rows.blocks[r] + 64 * full, 16 * rest);
      memcpy(scales[r], rows.scales[r] + 4 * full, rest);
    }
    accumulate(bytes, Mxfp4Scales(scales[0], scales[1], scales[2], scales[3]), full);
  }
  for (int n = 0; n < N; ++n) {
    float sums[4];
    StoreChainSums(chains[n], sums);
    const float poison = LoadFloat(tokens[n] + layout.poison());
    for (int r = 0; r < 4; ++r) out[n * ld + r] = 0.5f * sums[r] + poison;  // nibbles were doubled
  }
}

template <int N>
inline void Mxfp4RowsOf(const MatmulArgs& args, const uint8_t* const* tokens, float* out) {
  const Matrix& w = args.weight;
  const int num_blocks = w.cols / kBlock;
  const QuantLayout layout(w.cols);
  for (int row = args.row_begin; row < args.row_end; row += 4) {
    RowQuad rows;
    for (int r = 0; r < 4; ++r) {
      const int64_t at = row + r < args.row_end ? row + r : args.row_end - 1;
      rows.blocks[r] = w.data + at * num_blocks * 16;
      rows.scales[r] = w.scales + at * num_blocks;
    }
    float* to = out + (row - args.row_begin);
    if (row + 4 <= args.row_end) {
      Mxfp4Quad<N>(rows, num_blocks, layout, tokens, args.tuning.rows_prefetch, to, args.ld);
    } else {
      float quad[4 * N];
      Mxfp4Quad<N>(rows, num_blocks, layout, tokens, args.tuning.rows_prefetch, quad, 4);
      for (int n = 0; n < N; ++n) {
        memcpy(to + n * args.ld, quad + 4 * n, sizeof(float) * (args.row_end - row));
      }
    }
  }
}

template <int N>
inline void Mxfp4RowsDispatch(const MatmulArgs& args, int count, const uint8_t* const* tokens,
                              float* out) {
  if constexpr (N > 0) {
    if (count == N) {
      Mxfp4RowsOf<N>(args, tokens, out);
    } else {
      Mxfp4RowsDispatch<N - 1>(args, count, tokens, out);
    }
  }
}

// -- Q8 panels -------------------------------------------------------------------------------

// One token against one panel, into 16 results.
inline F32x16 Q8Vector(const uint8_t* panel, int num_blocks, const QuantLayout& layout,
                       const uint8_t* a, int prefetch_bytes) {
  F32x16 chains[4];
  int position = 0;
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    chains[c] = ZeroF32();
    for (int64_t b = c; b < num_blocks; b += 4, ++position) {
      const uint8_t* weights = panel + PanelWeights(position);
#pragma GCC unroll 8
      for (int line = 0; line < 512; line += 64) {
        __builtin_prefetch(weights + prefetch_bytes + line, 0, 2);
      }
      const uint8_t* values = a + layout.values() + 128 * (b / 4) + 16 * c;
      I32x16 sum = SetI32(LoadInt(a + layout.bias() + 4 * b));
#pragma GCC unroll 8
      for (int j = 0; j < 8; ++j) {
        sum = DotQ8(sum, LoadBytes(weights + 64 * j),
                    BroadcastI32(values + 64 * (j / 4) + 4 * (j % 4)));
      }
      const F32x16 scale =
          Mul(LoadBf16(reinterpret_cast<const uint16_t*>(panel + PanelScales(position))),
              Set(LoadFloat(a + layout.scales() + 16 * b)));
      chains[c] = Fma(ToF32(sum), scale, chains[c]);
    }
  }
  const F32x16 sum = Add(Add(chains[0], chains[1]), Add(chains[2], chains[3]));
  return Add(sum, Set(LoadFloat(a + layout.poison())));
}

// Lines to fetch while a tile works: `lines` with each block, from `at` up to `end`.
struct Ahead {
  const uint8_t *at, *end;
  int lines;
};

// NT tokens against NP panels. kFp4: the panels are decoded MXFP4, whose scales are what to add to
// an exponent (upper half of the bits), and whose nibbles were doubled.
template <bool kFp4, int NT, int NP>
inline void Q8Tile(const uint8_t* const* panels, int num_blocks, const QuantLayout& layout,
                   const uint8_t* const* tokens, Ahead* ahead, F32x16 (*out)[NP]) {
  F32x16 first[NT][NP], second[NT][NP];
  int position = 0;
  for (int c = 0; c < 4; ++c) {
    F32x16 chain[NT][NP];
#pragma GCC unroll 16
    for (int t = 0; t < NT; ++t) {
#pragma GCC unroll 4
      for (int p = 0; p < NP; ++p) chain[t][p] = ZeroF32();
    }
    for (int64_t b = c; b < num_blocks; b += 4, ++position) {
      const int64_t at = PanelWeights(position), scale_at = PanelScales(position);
      const int64_t values = layout.values() + 128 * (b / 4) + 16 * c;
      I32x16 sums[NT][NP];
#pragma GCC unroll 16
      for (int t = 0; t < NT; ++t) {
        const I32x16 bias = SetI32(LoadInt(tokens[t] + layout.bias() + 4 * b));
#pragma GCC unroll 4
        for (int p = 0; p < NP; ++p) sums[t][p] = bias;
      }
#pragma GCC unroll 8
      for (int j = 0; j < 8; ++j) {
        U8x64 w[NP];
#pragma GCC unroll 4
        for (int p = 0; p < NP; ++p) w[p] = LoadBytes(panels[p] + at + 64 * j);
#pragma GCC unroll 16
        for (int t = 0; t < NT; ++t) {
          const U8x64 a = BroadcastI32(tokens[t] + values + 64 * (j / 4) + 4 * (j % 4));
#pragma GCC unroll 4
          for (int p = 0; p < NP; ++p) sums[t][p] = DotQ8(sums[t][p], w[p], a);
        }
      }
      for (int line = 0; line < ahead->lines && ahead->at < ahead->end; ++line) {
        __builtin_prefetch(ahead->at, 0, 2);
        ahead->at += 64;
      }
#pragma GCC unroll 4
      for (int p = 0; p < NP; ++p) {
        const F32x16 scale = LoadBf16(reinterpret_cast<const uint16_t*>(panels[p] + scale_at));
#pragma GCC unroll 16
        for (int t = 0; t < NT; ++t) {
          const F32x16 token_scale = Set(LoadFloat(tokens[t] + layout.scales() + 16 * b));
          const F32x16 s =
              kFp4 ? AddToExponent(token_scale, BitsOfF32(scale)) : Mul(scale, token_scale);
          chain[t][p] = Fma(ToF32(sums[t][p]), s, chain[t][p]);
        }
      }
    }
    for (int t = 0; t < NT; ++t) {
      for (int p = 0; p < NP; ++p) {
        if (c == 0) first[t][p] = chain[t][p];
        if (c == 1) first[t][p] = Add(first[t][p], chain[t][p]);
        if (c == 2) second[t][p] = chain[t][p];
        if (c == 3) {
          const F32x16 sum = Add(first[t][p], Add(second[t][p], chain[t][p]));
          out[t][p] =
              Add(kFp4 ? Mul(Set(0.5f), sum) : sum, Set(LoadFloat(tokens[t] + layout.poison())));
        }
      }
    }
  }
}

// num_tokens <= NT against panels that lie `stride` bytes apart; rows of the result from out on.
template <bool kFp4, int NT, int NP>
inline void Q8TileOf(const uint8_t* panel, int64_t stride, int num_rows, int cols, int num_tokens,
                     const uint8_t* const* tokens, Ahead* ahead, float* out, int64_t ld) {
  if constexpr (NT > 1) {
    if (num_tokens < NT) {
      Q8TileOf<kFp4, NT - 1, NP>(panel, stride, num_rows, cols, num_tokens, tokens, ahead, out, ld);
      return;
    }
  }
  const uint8_t* panels[NP];
  for (int p = 0; p < NP; ++p) panels[p] = panel + p * stride;
  F32x16 tile[NT][NP];
  Q8Tile<kFp4, NT, NP>(panels, NumBlocks(cols), QuantLayout(cols), tokens, ahead, tile);
  for (int t = 0; t < NT; ++t) {
    for (int p = 0; p < NP; ++p) {
      const int left = num_rows - kPanelRows * p;
      float* to = out + t * ld + kPanelRows * p;
      if (left >= kPanelRows) {
        Store(tile[t][p], to);
      } else {
        StoreN(tile[t][p], to, left);
      }
    }
  }
}

// All tokens against the panels of num_rows rows. Meanwhile the bytes from `behind` on are fetched,
// spread evenly over the work: a burst would hold up its loads.
template <bool kFp4>
inline void Q8Panels(const uint8_t* panel, int num_rows, int cols, const uint8_t* behind,
                     int64_t behind_bytes, int num_tokens, const uint8_t* const* tokens, float* out,
                     int64_t ld) {
  const int64_t stride = PanelBytes(cols);
  constexpr int kRows = kTilePanels * kPanelRows;
  const int64_t blocks =
      int64_t{CeilDiv(num_tokens, kTileTokens)} * CeilDiv(num_rows, kRows) * NumBlocks(cols);
  const int lines = static_cast<int>((behind_bytes / 64 + blocks) / (blocks > 0 ? blocks : 1));
  Ahead ahead{behind, behind + behind_bytes, lines};
  for (int row = 0; row < num_rows; row += kRows, panel += kTilePanels * stride) {
    const int left = num_rows - row;
    for (int t = 0; t < num_tokens; t += kTileTokens) {
      const int count = num_tokens - t < kTileTokens ? num_tokens - t : kTileTokens;
      float* to = out + t * ld + row;
      if (left > (kTilePanels - 1) * kPanelRows) {
        Q8TileOf<kFp4, kTileTokens, kTilePanels>(panel, stride, left, cols, count, tokens + t,
                                                 &ahead, to, ld);
      } else {
        Q8TileOf<kFp4, kTileTokens, 1>(panel, stride, left, cols, count, tokens + t, &ahead, to,
                                       ld);
      }
    }
  }
}

// Rows of MXFP4 into panels at `to`. Rows behind the last repeat it; their results are not stored.
inline void DecodePanels(const Matrix& w, int row_begin, int row_end, uint8_t* to) {
  const int num_blocks = w.cols / kBlock;
  const int64_t stride = PanelBytes(w.cols);
  for (int row = row_begin; row < row_end; row += kPanelRows, to += stride) {
    const uint8_t* blocks[16];
    const uint8_t* scales[16];
    for (int r = 0; r < 16; ++r) {
      const int64_t at = row + r < row_end ? row + r : row_end - 1;
      blocks[r] = w.data + at * num_blocks * 16;
      scales[r] = w.scales + at * num_blocks;
    }
    for (int b = 0; b < num_blocks; b += 4) {
      const int count = num_blocks - b < 4 ? num_blocks - b : 4;
      uint8_t *into[4], *scale[4];
      for (int i = 0; i < count; ++i) {
        const int position = PanelPosition(num_blocks, b + i);
        into[i] = to + PanelWeights(position);
        scale[i] = to + PanelScales(position);
      }
      const uint8_t* rows[16];
      for (int r = 0; r < 16; ++r) rows[r] = scales[r] + b;
      Mxfp4PanelScales(rows, count, scale);
      for (int r = 0; r < 16; ++r) rows[r] = blocks[r] + 16 * b;
      DecodeFp4Panel(rows, count, into);
    }
  }
}

// -- Exact products --------------------------------------------------------------------------

// A block of 32 columns of one row as the two vectors that are multiplied with the activations'
// even and odd columns (MXFP4) or first and second half (others).
OSSIA_INLINE void LoadExact(const Matrix& w, int64_t row, int col, int width, F32x16* x,
                            F32x16* y) {
  if (w.format == Format::kMxfp4) {
    const int64_t block = row * (w.cols / kBlock) + col / kBlock;
    DecodeFp4F32(w.data + 16 * block, x, y);
    const uint32_t byte = w.scales[block];
    const uint32_t bits = byte == 0 ? 0x00400000 : byte << 23;  // 255 was refused
    float scale;
    memcpy(&scale, &bits, 4);
    *x = Mul(*x, Set(scale));
    *y = Mul(*y, Set(scale));
    return;
  }
  const int second = width > 16 ? width - 16 : 0, first = width - second;
  if (w.format == Format::kBf16) {
    const uint16_t* p = reinterpret_cast<const uint16_t*>(w.data) + row * w.cols + col;
    *x = LoadBf16N(p, first);
    *y = second > 0 ? LoadBf16N(p + 16, second) : ZeroF32();
  } else {
    const float* p = reinterpret_cast<const float*>(w.data) + row * w.cols + col;
    *x = LoadN(p, first);
    *y = second > 0 ? LoadN(p + 16, second) : ZeroF32();
  }
}

OSSIA_INLINE void LoadExactToken(const Matrix& w, const float* p, int width, F32x16* x, F32x16* y) {
  if (w.format == Format::kMxfp4) {
    LoadPairs(p, x, y);
    return;
  }
  const int second = width > 16 ? width - 16 : 0;
  *x = LoadN(p, width - second);
  *y = second > 0 ? LoadN(p + 16, second) : ZeroF32();
}

template <int NR, int NT>
inline void ExactTile(const Matrix& w, int row, const float* const* tokens, float* out,
                      int64_t ld) {
  F32x16 sums[NR][NT];
  for (int r = 0; r < NR; ++r) {
    for (int t = 0; t < NT; ++t) sums[r][t] = ZeroF32();
  }
  for (int col = 0; col < w.cols; col += kBlock) {
    const int width = w.cols - col < kBlock ? w.cols - col : kBlock;
    F32x16 ax[NT], ay[NT];
    for (int t = 0; t < NT; ++t) LoadExactToken(w, tokens[t] + col, width, &ax[t], &ay[t]);
    for (int r = 0; r < NR; ++r) {
      F32x16 x, y;
      LoadExact(w, row + r, col, width, &x, &y);
      for (int t = 0; t < NT; ++t) sums[r][t] = Fma(y, ay[t], Fma(x, ax[t], sums[r][t]));
    }
  }
  for (int r = 0; r < NR; ++r) {
    for (int t = 0; t < NT; ++t) out[t * ld + r] = SumLanes(sums[r][t]);
  }
}

// As many groups of NR rows as there are from `row` on; returns the row behind them.
template <int NR>
inline int ExactRows(const MatmulArgs& args, int row) {
  const float* const* tokens = reinterpret_cast<const float* const*>(args.tokens);
  for (; row + NR <= args.row_end; row += NR) {
    float* out = args.out + (row - args.row_begin);
    int t = 0;
    for (; t + kExactTokens <= args.num_tokens; t += kExactTokens) {
      ExactTile<NR, kExactTokens>(args.weight, row, tokens + t, out + t * args.ld, args.ld);
    }
    for (; t < args.num_tokens; ++t) {
      ExactTile<NR, 1>(args.weight, row, tokens + t, out + t * args.ld, args.ld);
    }
  }
  return row;
}

inline void MatmulExact(const MatmulArgs& args) {
  ExactRows<1>(args, ExactRows<kExactRows>(args, args.row_begin));
}

// -- The op ----------------------------------------------------------------------------------

inline void Matmul(const MatmulArgs& args) {
  const Matrix& w = args.weight;
  if (args.exact || w.format == Format::kBf16 || w.format == Format::kF32) {
    args.scratch->counts[w.format == Format::kMxfp4  ? kMxfp4Exact
                         : w.format == Format::kBf16 ? kBf16Exact
                                                     : kF32Exact]++;
    MatmulExact(args);
    return;
  }
  const uint8_t* const* tokens = reinterpret_cast<const uint8_t* const*>(args.tokens);
  const int num_rows = args.row_end - args.row_begin;
  if (w.format == Format::kMxfp4) {
    if (args.num_tokens <= args.tuning.mxfp4_row_tokens) {
      args.scratch->counts[kMxfp4Rows]++;
      for (int t = 0; t < args.num_tokens; t += kRowTokens) {
        const int count = args.num_tokens - t < kRowTokens ? args.num_tokens - t : kRowTokens;
        Mxfp4RowsDispatch<kRowTokens>(args, count, tokens + t, args.out + t * args.ld);
      }
      return;
    }
    args.scratch->counts[kMxfp4Panels]++;
    DecodePanels(w, args.row_begin, args.row_end, args.scratch->bytes);
    // What a thread does next are mostly the rows behind these.
    const int64_t row_bytes = w.cols / 2;
    Q8Panels<true>(args.scratch->bytes, num_rows, w.cols, w.data + args.row_end * row_bytes,
                   num_rows * row_bytes, args.num_tokens, tokens, args.out, args.ld);
    return;
  }
  const uint8_t* panel = w.data + args.row_begin / kPanelRows * PanelBytes(w.cols);
  if (args.num_tokens == 1) {
    args.scratch->counts[kQ8Vector]++;
    const QuantLayout layout(w.cols);
    for (int row = 0; row < num_rows; row += kPanelRows, panel += PanelBytes(w.cols)) {
      const F32x16 y =
          Q8Vector(panel, NumBlocks(w.cols), layout, tokens[0], args.tuning.panel_prefetch);
      if (num_rows - row >= kPanelRows) {
        Store(y, args.out + row);
      } else {
        StoreN(y, args.out + row, num_rows - row);
      }
    }
    return;
  }
  args.scratch->counts[kQ8Tile]++;
  const int64_t bytes = CeilDiv(num_rows, kPanelRows) * PanelBytes(w.cols);
  Q8Panels<false>(panel, num_rows, w.cols, panel + bytes, bytes, args.num_tokens, tokens, args.out,
                  args.ld);
}

}  // namespace ossia::OSSIA_TARGET
