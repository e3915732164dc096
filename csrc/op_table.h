// The native contract on one page: the data that ops work on, and one function per op and target.
//
// Every target (scalar, AVX2, AVX-512) fills an OpTable; all give the same bits. What an op must
// compute, and in which order, stands here; docs/kernels.md explains why. Sizes are in elements
// unless they say bytes. Pointers need no alignment.
//
// Numerics. A quantised product is an exact int32 sum over each block of 32 columns; block b adds
// fma(float(sum_b), weight_scale * activation_scale, chain[b mod 4]); the result is
// (c0 + c1) + (c2 + c3). An MXFP4 scale only adds to the exponent of the activation's; what would
// fall below the smallest normal number becomes that. Nibbles are doubled to be integers, the
// result halved. An exact product has 16 partial sums, one per lane, and SumLanes' tree. Nothing
// depends on how many tokens, rows or threads work at once.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace ossia {

constexpr int kBlock = 32;   // columns that share a scale
constexpr int kGroup = 128;  // columns of the four blocks that one 64-byte vector of nibbles holds
constexpr int kPanelRows = 16;    // rows of a Q8 panel
constexpr int kKeyTile = 32;      // keys of an attention tile, aligned to absolute position
constexpr int kSplitKeys = 2048;  // keys of an attention split, likewise
constexpr int kPanelPairBytes = 2 * kPanelRows * (kBlock + 2);

inline int CeilDiv(int a, int b) { return (a + b - 1) / b; }

enum class Format : int32_t {
  kMxfp4 = 0,  // as published: data [rows, cols / 32, 16], scales [rows, cols / 32]
  kQ8 = 1,     // panels of 16 rows, see PanelBytes
  kBf16 = 2,   // data [rows, cols]
  kF32 = 3,
};

struct Matrix {
  Format format;
  int32_t rows, cols;
  const uint8_t* data;
  const uint8_t* scales;  // kMxfp4 only
};

// A Q8 panel holds 16 rows, its blocks in the order of their chains: 0, 4, 8, ..., 1, 5, 9, ..., so
// that a product reads it from front to back with one chain at a time in registers. Two blocks in
// this order make a pair: 2 * 512 weights, then 2 * 16 scales in bfloat16. The weights of a block
// are 8 vectors [16 rows][4 columns]; vectors 0 to 3 hold the 16 columns of even index in order, 4
// to 7 those of odd index, as MXFP4 keeps them in low and high nibbles. Columns and rows that are
// not there are 0.
inline int NumBlocks(int cols) { return CeilDiv(cols, kBlock); }
// Where block b lies in the panel's order.
inline int PanelPosition(int num_blocks, int b) {
  const int chain = b % 4, longer = num_blocks % 4;  // the first chains have one block more
  return num_blocks / 4 * chain + (chain < longer ? chain : longer) + b / 4;
}
inline int64_t PanelWeights(int position) {
  return static_cast<int64_t>(position / 2) * kPanelPairBytes + 512 * (position % 2);
}
inline int64_t PanelScales(int position) {
  return static_cast<int64_t>(position / 2) * kPanelPairBytes + 1024 + 32 * (position % 2);
}
inline int64_t PanelBytes(int cols) {
  return static_cast<int64_t>(CeilDiv(NumBlocks(cols), 2)) * kPanelPairBytes;
}

// A quantised row of activations: int8 with one float scale per block of 32 columns, padded with
// zeros to whole groups. Byte offsets of its parts, each per group of four blocks but the last:
struct QuantLayout {
  int64_t groups;
  explicit QuantLayout(int cols) : groups(CeilDiv(cols, kGroup)) {}
  int64_t values() const { return 0; }              // 64 of even index (16 per block), 64 of odd
  int64_t scales() const { return 128 * groups; }   // float [block][4 times the same]
  int64_t minus12() const { return 192 * groups; }  // int32 [block][-12 * sum of values, 0, 0, 0]
  int64_t bias() const { return 256 * groups; }     // int32 [block] -kQ8Bias * sum of values
  // float, added to every product: 0, or NaN if a value was NaN or larger than kLargestActivation.
  int64_t poison() const { return 272 * groups; }
  int64_t bytes() const { return (272 * groups + 4 + 63) / 64 * 64; }
};

// Beyond these the exponents of scales could overflow; no model that works comes near them.
constexpr float kLargestActivation = 0x1p60f;
constexpr float kSmallestActivation = 0x1p-60f;  // a block of smaller ones counts as zeros
constexpr int kLargestScaleByte = 190;           // of MXFP4: 2^63

// Which path a task took, counted by every thread.
enum Path {
  kMxfp4Rows,
  kMxfp4Panels,
  kQ8Vector,
  kQ8Tile,
  kMxfp4Exact,
  kBf16Exact,
  kF32Exact,
  kAttentionWhole,
  kAttentionSplit,
  kExperts,  // not a path: experts that some token of a step was routed to
  kNumPaths
};

// What a thread owns while it runs tasks.
struct Scratch {
  uint8_t* bytes;  // kScratchBytes, 64-byte aligned
  uint64_t counts[kNumPaths];
};

struct Tuning {
  // MXFP4: up to this many tokens rows are used in place, beyond it they are decoded into panels.
  int mxfp4_row_tokens;
  // How many bytes ahead memory is announced: of rows beyond the next four, and of a panel's
  // blocks. More than a page ahead the hardware's own prefetchers no longer help.
  int rows_prefetch, panel_prefetch;
};

// out[t * ld + r] = product of row row_begin + r and token t, for rows [row_begin, row_end).
// row_begin is a multiple of kPanelRows. tokens: quantised rows for kMxfp4 and kQ8 (unless exact),
// else float rows of `cols` elements.
struct MatmulArgs {
  Matrix weight;
  int row_begin, row_end;
  int num_tokens;
  const void* const* tokens;
  bool exact;
  float* out;
  int64_t ld;
  Tuning tuning;
  Scratch* scratch;
};

// One matmul task: 64 rows make a block of 32 activations of an expert, and their panels (196 KB at
// 2,880 columns) stay in a second-level cache of 1 MB beside the rows of 128 tokens (610 KB).
constexpr int kTaskRows = 64;
constexpr int kTaskTokens = 128;

struct AttentionArgs {
  const float* q;  // [num_tokens, group, d] of this kv head, token stride q_stride, rotated
  int64_t q_stride;
  int num_tokens;  // consecutive positions from first_position
  int first_position;
  int window;          // 0: all keys
  int group;           // query heads of this kv head; num_tokens * group <= kAttentionTileRows
  int d;               // multiple of 32
  float scale;         // 1 / sqrt(d)
  const float* sinks;  // [group]
  const int32_t* block_table;  // block of positions [32 i, 32 i + 32)
  // This layer: [block][kv head][K [d][32] | V [32][d]]; in bfloat16 number i and number i + 16 of
  // each 32 lie side by side.
  const uint8_t* cache;
  int64_t block_bytes, head_offset;
  bool f32_cache;  // else bfloat16
  float* out;      // [num_tokens, group * d], token stride out_stride
  int64_t out_stride;
  // Long contexts: only this split (keys [split * kSplitKeys, ...)), into partial [row][2 + d] as
  // (largest score, sum, values); -1: all splits, merged into out.
  int split;
  float* partial;
  Scratch* scratch;
};

constexpr int kAttentionTileRows = 64;

struct OpTable {
  const char* name;
  int q8_bias;

  // out = x / sqrt(mean(x^2) + eps) * w: 16 partial sums of squares (fma), SumLanes.
  void (*rms_norm)(const float* x, const float* w, int n, float eps, float* out);
  // One row of `cols` activations, laid out as QuantLayout. scale = largest magnitude / 127, values
  // rounded to nearest even of x * (127 / largest); the scale of a block of zeros is 1.
  void (*quantise)(const float* x, int cols, uint8_t* out);
  // The same in pieces: first no poison and zeros in the blocks behind the last, then block by
  // block (32 values or fewer, the rest 0), by any threads.
  void (*begin_row)(int cols, uint8_t* out);
  void (*quantise_block)(const float* x, int n, int cols, int block, uint8_t* out);
  // 16 rows (fewer at the end) of bfloat16 or float32 into a Q8 panel. Symmetric, [-127, 127]; the
  // scale is rounded to bfloat16 first and the weights quantised against the rounded one.
  void (*pack_panel)(const void* rows, bool f32, int64_t row_stride, int num_rows, int cols,
                     uint8_t* panel);
  void (*matmul)(const MatmulArgs&);
  // Half-split rotation of one head in place: (a, b) -> (a c - b s, b c + a s).
  void (*rotate)(float* x, const float* cos, const float* sin, int half);
  // out[i] = a[i] + b[i]; out[i] += scale * a[i] (fma).
  void (*add)(const float* a, const float* b, int n, float* out);
  void (*add_scaled)(const float* a, float scale, int n, float* out);
  // h: n gates and n ups interleaved, with their bias; out[i] = gate * sigmoid(alpha gate) * (up +
  // 1) after clamping gate from above and up on both sides.
  void (*swiglu)(const float* h, const float* bias, int n, float limit, float alpha, float* out);
  void (*bf16_to_f32)(const uint16_t* x, int n, float* out);
  // x = exp(x - largest) / sum.
  void (*softmax)(float* x, int n);
  // One token's key or value (d numbers) of one kv head into a slot of its block.
  void (*store_key)(const float* k, int d, bool f32, int slot, uint8_t* head);
  void (*store_value)(const float* v, int d, bool f32, int slot, uint8_t* head);
  // softmax(q k / sqrt(d), with the sink first) v. Scores: fma chain over d ascending. Per tile of
  // 32 keys: the new maximum, exp, 16 sums of weights by fma with the old state's decay, values by
  // fma over keys ascending. A split starts empty, the splits are merged into the sink's state in
  // order.
  void (*attention)(const AttentionArgs&);
  // Merge the partials of splits [first, last) of `rows` rows, [split][row][2 + d], sink first.
  void (*attention_merge)(const float* partials, int num_splits, int rows, int d,
                          const float* sinks, float* out);
  // Reads n bytes with no arithmetic beyond what keeps the loads; for bandwidth probes.
  uint64_t (*read_bytes)(const uint8_t* p, size_t n);
  // Runs n vector dot-product instructions (64 multiply-adds each here) that depend on nothing but
  // registers; for the arithmetic peak. Returns multiply-adds done.
  uint64_t (*dot_peak)(uint64_t n);
};

constexpr size_t kScratchBytes = 4u << 20;

const OpTable* ScalarOps();
const OpTable* Avx2Ops();  // nullptr where the build or the processor lacks it
const OpTable* Avx512Ops();

// The best table that this processor runs, or the one called `name`; nullptr if it is not there.
const OpTable* FindOps(const char* name);

}  // namespace ossia
