// ossia_digest INSTRUCTION_SET [SEED [THREADS]]: runs every op, and whole steps, on inputs made
// from the seed and prints "name digest" lines.
//
// All instruction sets must print the same, also those of another processor under an emulator:
// inputs are made with exact arithmetic only, without the C library's functions, which differ
// between machines. Lines that end in "= name" must show that line's digest. Every array is
// allocated to the byte, so that the address sanitizer sees what is read or written beside it.

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <string>
#include <vector>

#include "common/context.h"
#include "op_table.h"
#include "sample.h"

namespace ossia {
namespace {

using Bytes = std::vector<uint8_t>;
using Floats = std::vector<float>;
using Ints = std::vector<int32_t>;

uint64_t g_seed = 1;

// SplitMix64, from a seed of its own for every op.
class Random {
 public:
  explicit Random(const char* what) : state_(g_seed) {
    for (; *what != 0; ++what) state_ = state_ * 31 + static_cast<uint8_t>(*what);
  }
  uint64_t Bits() {
    uint64_t z = state_ += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }
  int Below(int n) { return static_cast<int>(Bits() % static_cast<uint64_t>(n)); }
  // In (-1, 1), a multiple of 2^-23.
  float Uniform() { return static_cast<float>(Below(1 << 24) - (1 << 23)) * 0x1p-23f; }
  Floats Values(size_t n, float scale = 1) {
    Floats x(n);
    for (float& v : x) v = Uniform() * scale;
    return x;
  }
  // Magnitudes that differ from block to block; some blocks are zero.
  Floats Activations(int n) {
    Floats x = Values(n);
    for (int b = 0; b < n; b += kBlock) {
      const int power = Below(25) - 12;
      const float scale = Below(9) == 0 ? 0 : power < 0 ? 1.0f / (1 << -power) : 1 << power;
      for (int i = b; i < std::min(n, b + kBlock); ++i) x[i] *= scale;
    }
    return x;
  }

 private:
  uint64_t state_;
};

// FNV-1a. Every NaN counts as the same: which one comes out differs between processors.
class Digest {
 public:
  void Add(const void* p, size_t n) {
    const uint8_t* bytes = static_cast<const uint8_t*>(p);
    for (size_t i = 0; i < n; ++i) hash_ = (hash_ ^ bytes[i]) * 0x100000001B3u;
  }
  void Add(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if (x != x) bits = 0x7FC00000;
    Add(&bits, 4);
  }
  void Add(const Floats& x) {
    for (const float v : x) Add(v);
  }
  void Print(const char* name, const char* equal = nullptr) const {
    printf("%s %016llx%s%s\n", name, static_cast<unsigned long long>(hash_),
           equal != nullptr ? " = " : "", equal != nullptr ? equal : "");
  }

 private:
  uint64_t hash_ = 0xCBF29CE484222325u;
};

std::vector<uint16_t> ToBf16(const Floats& x) {
  std::vector<uint16_t> out(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    uint32_t bits;
    memcpy(&bits, &x[i], 4);
    out[i] = static_cast<uint16_t>(bits >> 16);
  }
  return out;
}

constexpr int kSizes[] = {1, 2, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 96, 127, 129, 192, 300};

// -- Rows ------------------------------------------------------------------------------------

// One digest over all sizes of fn(n, random) -> results.
template <typename Fn>
void OverSizes(const char* name, Fn&& fn) {
  Random random(name);
  Digest digest;
  for (const int n : kSizes) digest.Add(fn(n, random));
  digest.Print(name);
}

void RowOps(const OpTable& ops) {
  OverSizes("rms_norm", [&](int n, Random& random) {
    const Floats x = random.Activations(n), w = random.Values(n);
    Floats out(n);
    ops.rms_norm(x.data(), w.data(), n, 1e-5f, out.data());
    return out;
  });
  OverSizes("add", [&](int n, Random& random) {
    const Floats a = random.Activations(n), b = random.Activations(n);
    Floats out(n);
    ops.add(a.data(), b.data(), n, out.data());
    ops.add_scaled(b.data(), random.Uniform(), n, out.data());
    return out;
  });
  OverSizes("swiglu", [&](int n, Random& random) {
    const Floats h = random.Values(2 * n, 12), bias = random.Values(2 * n);
    Floats out(n);
    ops.swiglu(h.data(), bias.data(), n, 7.0f, 1.702f, out.data());
    return out;
  });
  OverSizes("bf16_to_f32", [&](int n, Random& random) {
    const std::vector<uint16_t> x = ToBf16(random.Activations(n));
    Floats out(n);
    ops.bf16_to_f32(x.data(), n, out.data());
    return out;
  });
  OverSizes("softmax", [&](int n, Random& random) {
    Floats x = random.Values(n, 100);
    ops.softmax(x.data(), n);
    return x;
  });
  OverSizes("rotate", [&](int n, Random& random) {
    const int half = (n + 15) / 16 * 16;
    const Floats cos = random.Values(half), sin = random.Values(half);
    Floats x = random.Activations(2 * half);
    ops.rotate(x.data(), cos.data(), sin.data(), half);
    return x;
  });
  OverSizes("read_bytes", [&](int n, Random& random) {
    Bytes bytes(3 * n);
    for (uint8_t& b : bytes) b = static_cast<uint8_t>(random.Bits());
    return Floats{static_cast<float>(ops.read_bytes(bytes.data(), bytes.size()) % 65536)};
  });
  Digest peak;
  peak.Add(static_cast<float>(ops.dot_peak(120)));
  peak.Print("dot_peak");
}

void NotFinite(const OpTable& ops) {
  Random random("not_finite");
  Digest digest;
  for (const float bad : {__builtin_nanf(""), __builtin_inff(), -__builtin_inff(), 0x1p100f}) {
    const int n = 77;
    Floats x = random.Activations(n), out(n);
    x[random.Below(n)] = bad;
    const Floats w = random.Values(n);
    ops.rms_norm(x.data(), w.data(), n, 1e-5f, out.data());
    digest.Add(out);
    Floats h = random.Values(2 * n, 12);
    h[random.Below(2 * n)] = bad;
    ops.swiglu(h.data(), h.data(), n, 7.0f, 1.702f, out.data());
    digest.Add(out);
    out = x;
    ops.softmax(out.data(), n);
    digest.Add(out);
  }
  digest.Print("not_finite");
}

// -- Products --------------------------------------------------------------------------------

struct ScratchMemory {
  ScratchMemory() {
    scratch.bytes = static_cast<uint8_t*>(aligned_alloc(64, kScratchBytes));
    memset(scratch.counts, 0, sizeof(scratch.counts));
  }
  ~ScratchMemory() { free(scratch.bytes); }
  Scratch scratch;
};

// Results [tokens][rows] by tasks, as step.cc cuts them.
Floats Multiply(const OpTable& ops, const Matrix& weight, const std::vector<const void*>& tokens,
                bool exact, int mxfp4_row_tokens) {
  ScratchMemory memory;
  const int count = static_cast<int>(tokens.size());
  Floats out(static_cast<size_t>(count) * weight.rows);
  for (int row = 0; row < weight.rows; row += kTaskRows) {
    for (int first = 0; first < count; first += kTaskTokens) {
      MatmulArgs args{};
      args.weight = weight;
      args.row_begin = row;
      args.row_end = std::min(row + kTaskRows, weight.rows);
      args.num_tokens = std::min(kTaskTokens, count - first);
      args.tokens = tokens.data() + first;
      args.exact = exact;
      args.out = out.data() + static_cast<size_t>(first) * weight.rows + row;
      args.ld = weight.rows;
      args.tuning = Options{}.tuning;
      args.tuning.mxfp4_row_tokens = mxfp4_row_tokens;
      args.scratch = &memory.scratch;
      ops.matmul(args);
    }
  }
  return out;
}

struct Tokens {
  std::vector<Floats> plain;
  std::vector<Bytes> quantised;
  std::vector<const void*> of(bool quantise) const {
    std::vector<const void*> rows;
    for (size_t t = 0; t < plain.size(); ++t) {
      rows.push_back(quantise ? static_cast<const void*>(quantised[t].data()) : plain[t].data());
    }
    return rows;
  }
};

// `in_blocks`: quantised block by block, as an expert's activations are; the same bytes.
Tokens MakeTokens(const OpTable& ops, Random& random, int count, int cols, bool in_blocks) {
  Tokens tokens;
  for (int t = 0; t < count; ++t) {
    tokens.plain.push_back(random.Activations(cols));
    tokens.quantised.emplace_back(QuantLayout(cols).bytes());
    const float* x = tokens.plain.back().data();
    uint8_t* to = tokens.quantised.back().data();
    if (!in_blocks) {
      ops.quantise(x, cols, to);
      continue;
    }
    ops.begin_row(cols, to);
    for (int b = 0; b < NumBlocks(cols); ++b) {
      ops.quantise_block(x + kBlock * b, std::min(kBlock, cols - kBlock * b), cols, b, to);
    }
  }
  return tokens;
}

constexpr int kRows[] = {1, 2, 3, 4, 5, 15, 16, 17, 33, 64, 70};
constexpr int kTokens[] = {1, 2, 3, 5, 7, 12, 20, kTaskTokens + 3};

// MXFP4 on one of its paths; all see the same numbers.
void Mxfp4Products(const OpTable& ops, const char* name, const char* equal, bool exact,
                   int row_tokens) {
  Random random("mxfp4");
  Digest digest;
  int i = 0;
  for (const int groups : {1, 2, 3, 4, 5, 6, 7, 8, 9, 13}) {
    const int rows = kRows[i % std::size(kRows)], count = kTokens[i % std::size(kTokens)];
    ++i;
    // Behind one byte, as the tensors of a file may lie anywhere.
    Bytes data(1 + rows * groups * 16), scales(1 + rows * groups);
    for (uint8_t& b : data) b = static_cast<uint8_t>(random.Bits());
    for (uint8_t& s : scales) s = static_cast<uint8_t>(96 + random.Below(64));
    scales[1] = 0;
    const Tokens tokens = MakeTokens(ops, random, count, groups * kBlock, row_tokens == 0);
    const Matrix m{Format::kMxfp4, rows, groups * kBlock, data.data() + 1, scales.data() + 1};
    digest.Add(Multiply(ops, m, tokens.of(!exact), exact, row_tokens));
  }
  digest.Print(name, equal);
}

// A dense matrix as int8 panels, or as it is; from float32 or bfloat16.
void DenseProducts(const OpTable& ops, const char* name, bool f32, bool packed, int most_tokens) {
  Random random(name);
  Digest digest;
  int i = 0;
  for (const int cols : kSizes) {
    const int rows = kRows[i % std::size(kRows)];
    const int count = std::min(most_tokens, kTokens[i % std::size(kTokens)]);
    ++i;
    Floats values;
    for (int r = 0; r < rows; ++r) {
      const Floats row = random.Activations(cols);
      values.insert(values.end(), row.begin(), row.end());
    }
    values.shrink_to_fit();
    const std::vector<uint16_t> halves = ToBf16(values);
    const void* data = f32 ? static_cast<const void*>(values.data()) : halves.data();
    Bytes panels(packed ? CeilDiv(rows, kPanelRows) * PanelBytes(cols) : 0);
    Matrix m{f32 ? Format::kF32 : Format::kBf16, rows, cols, static_cast<const uint8_t*>(data),
             nullptr};
    if (packed) {
      for (int r = 0; r < rows; r += kPanelRows) {
        ops.pack_panel(m.data + static_cast<int64_t>(r) * cols * (f32 ? 4 : 2), f32, cols,
                       std::min(kPanelRows, rows - r), cols,
                       panels.data() + r / kPanelRows * PanelBytes(cols));
      }
      m = {Format::kQ8, rows, cols, panels.data(), nullptr};
    }
    const Tokens tokens = MakeTokens(ops, random, count, cols, i % 2 == 0);
    digest.Add(Multiply(ops, m, tokens.of(packed), !packed, 0));
  }
  digest.Print(name);
}

void Products(const OpTable& ops) {
  Mxfp4Products(ops, "mxfp4_rows", nullptr, false, 1 << 20);
  Mxfp4Products(ops, "mxfp4_panels", "mxfp4_rows", false, 0);
  Mxfp4Products(ops, "mxfp4_exact", nullptr, true, 1 << 20);
  DenseProducts(ops, "q8_vector", false, true, 1);
  DenseProducts(ops, "q8_tile", true, true, 1 << 20);
  DenseProducts(ops, "bf16_exact", false, false, 1 << 20);
  DenseProducts(ops, "f32_exact", true, false, 1 << 20);
}

// -- Attention -------------------------------------------------------------------------------

// One sequence's keys and values, its blocks in descending order; what was never stored is NaN.
struct Cache {
  static constexpr int kKvHeads = 2;
  int d;
  bool f32;
  Bytes bytes;
  Ints table;

  Cache(const OpTable& ops, Random& random, int first_visible, int length, int head_dim, bool wide)
      : d(head_dim), f32(wide) {
    const int blocks = CeilDiv(length, kKeyTile), first_block = first_visible / kKeyTile;
    bytes.assign(blocks * block_bytes(), 0xFF);
    for (int i = 0; i < blocks; ++i) table.push_back(blocks - 1 - i);
    for (int p = first_block * kKeyTile; p < length; ++p) {
      for (int g = 0; g < kKvHeads; ++g) {
        const Floats k = random.Values(d, 2), v = random.Values(d);
        uint8_t* head = bytes.data() + table[p / kKeyTile] * block_bytes() + g * head_bytes();
        ops.store_key(k.data(), d, f32, p % kKeyTile, head);
        ops.store_value(v.data(), d, f32, p % kKeyTile, head);
      }
    }
    for (int i = 0; i < first_block; ++i) table[i] = -1;  // freed: the window has passed them
  }
  int64_t head_bytes() const { return int64_t{2} * kKeyTile * d * (f32 ? 4 : 2); }
  int64_t block_bytes() const { return kKvHeads * head_bytes(); }
};

struct AttentionCase {
  int num_tokens, first_position, window, group, d;
  bool f32;
};

// Results of both kv heads, [kv head][token][group * d]; in splits, merged, or whole.
Floats Attend(const OpTable& ops, Random& random, const AttentionCase& c, bool in_splits) {
  const int visible = c.window == 0 ? 0 : std::max(0, c.first_position - c.window + 1);
  const int length = c.first_position + c.num_tokens, width = c.group * c.d;
  const Cache cache(ops, random, visible, length, c.d, c.f32);
  const Floats q = random.Values(Cache::kKvHeads * c.num_tokens * width, 3);
  const Floats sinks = random.Values(c.group, 2);
  Floats out(q.size());
  ScratchMemory memory;
  for (int g = 0; g < Cache::kKvHeads; ++g) {
    AttentionArgs args{};
    args.q = q.data() + g * width;
    args.q_stride = args.out_stride = Cache::kKvHeads * width;
    args.num_tokens = c.num_tokens;
    args.first_position = c.first_position;
    args.window = c.window;
    args.group = c.group;
    args.d = c.d;
    args.scale = 0.125f;
    args.sinks = sinks.data();
    args.block_table = cache.table.data();
    args.cache = cache.bytes.data();
    args.block_bytes = cache.block_bytes();
    args.head_offset = g * cache.head_bytes();
    args.f32_cache = c.f32;
    args.out = out.data() + g * width;
    args.split = -1;
    args.scratch = &memory.scratch;
    if (!in_splits) {
      ops.attention(args);
      continue;
    }
    const int splits = CeilDiv(length, kSplitKeys);
    const size_t part = static_cast<size_t>(c.group) * (2 + c.d);
    Floats partials(splits * part);
    for (int s = 0; s < splits; ++s) {
      args.split = s;
      args.partial = partials.data() + s * part;
      ops.attention(args);
    }
    ops.attention_merge(partials.data(), splits, c.group, c.d, sinks.data(), args.out);
  }
  return out;
}

void AttentionOps(const OpTable& ops) {
  constexpr int kGroups[] = {1, 2, 3, 8, 9, 17, 64}, kWindows[] = {0, 0, 1, 2, 31, 33, 64, 128};
  constexpr int kPositions[] = {0, 1, 5, 30, 31, 32, 33, 63, 64, 100, 170};
  Random random("attention");
  Digest digest;
  for (int i = 0; i < 70; ++i) {
    AttentionCase c;
    c.group = kGroups[i % std::size(kGroups)];
    c.window = kWindows[random.Below(std::size(kWindows))];
    c.first_position = kPositions[random.Below(std::size(kPositions))];
    c.num_tokens = 1 + random.Below(kAttentionTileRows / c.group);
    c.d = i % 9 == 0 ? 256 : 32 * (1 + i % 3);
    c.f32 = i % 2 == 0;
    digest.Add(Attend(ops, random, c, false));
  }
  digest.Print("attention");
  for (const char* name : {"attention_whole", "attention_splits"}) {
    const bool splits = name[10] == 's';
    Random same("long");
    Digest lengths;
    for (const int position : {5, kSplitKeys - 1, kSplitKeys, 2 * kSplitKeys + 70}) {
      lengths.Add(Attend(ops, same, {1, position, 0, 3, 32, position % 2 == 0}, splits));
    }
    lengths.Print(name, splits ? "attention_whole" : nullptr);
  }
}

// -- Whole steps -----------------------------------------------------------------------------

// A layer with all that is needed around it; widths are no multiples of 64.
struct Model {
  static constexpr int kHidden = 96, kHeads = 6, kKvHeads = 2, kD = 32, kExperts = 5, kInner = 160;
  static constexpr int kVocab = 83, kLength = 75, kBlocks = 3;
  std::vector<Floats> floats;
  std::vector<std::vector<uint16_t>> halves;
  std::vector<Bytes> bytes;
  EmbeddingWeights embedding;
  AttentionWeights attention;
  MoeWeights moe;
  HeadWeights head;
  Floats cos, sin;

  const float* Vector(Random& random, int n) {
    floats.push_back(random.Values(n));
    return floats.back().data();
  }
  const uint8_t* Halves(Random& random, int n, float scale) {
    halves.push_back(ToBf16(random.Values(n, scale)));
    return reinterpret_cast<const uint8_t*>(halves.back().data());
  }
  Matrix Dense(Context* context, Random& random, int rows, int cols) {
    const uint8_t* data = Halves(random, rows * cols, 0.25f);
    if (context->options().exact) return {Format::kBf16, rows, cols, data, nullptr};
    bytes.emplace_back(CeilDiv(rows, kPanelRows) * PanelBytes(cols));
    context->PackMatrix(data, false, cols, rows, cols, bytes.back().data());
    return {Format::kQ8, rows, cols, bytes.back().data(), nullptr};
  }
  MatrixStack Experts(Random& random, int rows, int cols) {
    const int64_t blocks = int64_t{rows} * cols / kBlock;
    Bytes data(kExperts * blocks * 16), scales(kExperts * blocks);
    for (uint8_t& b : data) b = static_cast<uint8_t>(random.Bits());
    for (uint8_t& s : scales) s = static_cast<uint8_t>(121 + random.Below(3));
    bytes.push_back(data);
    bytes.push_back(scales);
    const uint8_t* at = (bytes.end() - 2)->data();
    return {{Format::kMxfp4, rows, cols, at, bytes.back().data()}, blocks * 16, blocks};
  }

  explicit Model(Context* context) {
    Random random("model");
    const int q = kHeads * kD, kv = kKvHeads * kD;
    embedding = {Halves(random, kVocab * kHidden, 1), false, kVocab, kHidden};
    attention.hidden = kHidden;
    attention.heads = kHeads;
    attention.kv_heads = kKvHeads;
    attention.d = kD;
    attention.eps = 1e-5f;
    attention.norm = Vector(random, kHidden);
    attention.q = Dense(context, random, q, kHidden);
    attention.k = Dense(context, random, kv, kHidden);
    attention.v = Dense(context, random, kv, kHidden);
    attention.o = Dense(context, random, kHidden, q);
    attention.q_bias = Vector(random, q);
    attention.k_bias = Vector(random, kv);
    attention.v_bias = Vector(random, kv);
    attention.o_bias = Vector(random, kHidden);
    attention.sinks = Vector(random, kHeads);
    moe.hidden = kHidden;
    moe.experts = kExperts;
    moe.experts_per_token = 2;
    moe.intermediate = kInner;
    moe.eps = 1e-5f;
    moe.limit = 7;
    moe.alpha = 1.702f;
    moe.norm = Vector(random, kHidden);
    moe.router = {Format::kBf16, kExperts, kHidden, Halves(random, kExperts * kHidden, 0.25f),
                  nullptr};
    moe.router_bias = Vector(random, kExperts);
    moe.gate_up = Experts(random, 2 * kInner, kHidden);
    moe.down = Experts(random, kHidden, kInner);
    moe.gate_up_bias = Vector(random, kExperts * 2 * kInner);
    moe.down_bias = Vector(random, kExperts * kHidden);
    moe.checked.assign(kExperts, 0);
    head = {kHidden, 1e-5f, Vector(random, kHidden), Dense(context, random, kVocab, kHidden)};
    cos = random.Values(kLength * kD / 2);
    sin = random.Values(kLength * kD / 2);
  }
};

// Logits of one sequence, `chunk` tokens at a time through a cache, or whole without one (0).
Floats RunSteps(Context* context, const Model& model, int chunk, int window) {
  Random random("tokens");
  Ints ids(Model::kLength), positions(Model::kLength), rows(Model::kLength);
  for (int t = 0; t < Model::kLength; ++t) {
    ids[t] = random.Below(Model::kVocab);
    positions[t] = rows[t] = t;
  }
  CacheLayer layer{nullptr, Model::kKvHeads, Model::kD, context->options().exact};
  Bytes memory(layer.block_bytes() * Model::kBlocks, 0xFF);
  layer.data = memory.data();
  const Ints table = {2, 0, 1};
  Floats logits;
  for (int first = 0; first < Model::kLength; first += chunk != 0 ? chunk : Model::kLength) {
    const int count = chunk != 0 ? std::min(chunk, Model::kLength - first) : Model::kLength;
    const Ints cu_seqlens = {0, count};
    Ints slots;
    for (int t = first; t < first + count; ++t) {
      slots.push_back(table[t / kKeyTile] * kKeyTile + t % kKeyTile);
    }
    const TokenIndex index{positions.data() + first,
                           cu_seqlens.data(),
                           1,
                           chunk != 0 ? slots.data() : nullptr,
                           table.data(),
                           Model::kBlocks};
    const CacheLayer* cache = chunk != 0 ? &layer : nullptr;
    ValuePtr x = context->Embed(ids.data() + first, count, &model.embedding);
    const ValuePtr qkv =
        context->AttnIn(x, &model.attention, model.cos.data(), model.sin.data(), index, cache);
    x = context->AttnOut(x, context->Attention(qkv, &model.attention, window, index, cache),
                         &model.attention);
    const ValuePtr out =
        context->Logits(context->Moe(x, &model.moe), &model.head, rows.data(), count);
    const std::string error = context->Run(context->TakeRecorded());
    if (!error.empty()) puts(error.c_str());
    logits.insert(logits.end(), out->row(0), out->row(0) + out->rows * out->cols);
  }
  return logits;
}

void Steps(const OpTable& ops, int threads) {
  for (const bool exact : {false, true}) {
    Options options;
    options.exact = exact;
    Context context(&ops, threads, options);
    const Model model(&context);
    const std::string first = exact ? "step_exact" : "step_int8";
    for (const int chunk : {0, Model::kLength, 31, 1}) {
      Digest digest;
      for (const int window : {0, 40}) digest.Add(RunSteps(&context, model, chunk, window));
      const std::string name = first + (chunk != 0 ? "_by_" + std::to_string(chunk) : "");
      digest.Print(name.c_str(), chunk != 0 ? first.c_str() : nullptr);
    }
  }
}

// -- Sampling --------------------------------------------------------------------------------

const SampleOps* FindSample(const char* name) {
#if defined(__x86_64__)
  if (strcmp(name, "avx2") == 0) return Avx2Sample();
  if (strcmp(name, "avx512") == 0) return Avx512Sample();
#endif
  return ScalarSample();
}

void Sampling(const SampleOps& ops) {
  Random random("sample");
  Digest digest;
  for (int i = 0; i < 400; ++i) {
    const int vocab = i % 7 == 0 ? 3000 : kSizes[i % std::size(kSizes)];
    Floats logits = random.Values(vocab, i % 3 == 0 ? 0.5f : 8);
    if (i % 50 == 49) logits[random.Below(vocab)] = i % 100 == 99 ? __builtin_nanf("") : 1e30f;
    const Ints prompt = {random.Below(vocab), random.Below(vocab)}, output = {random.Below(vocab)};
    const double bias = random.Uniform() * 4;
    std::vector<uint32_t> mask(CeilDiv(vocab, 32));
    for (uint32_t& word : mask) word = static_cast<uint32_t>(random.Bits() | random.Bits());
    void* workspace = aligned_alloc(64, (ops.workspace_bytes(vocab) + 63) / 64 * 64);
    int32_t id;
    double logprob;
    Ints top_ids(std::min(5, vocab), -7);
    std::vector<double> top_values(top_ids.size());
    SampleArgs args{};
    args.logits = logits.data();
    args.vocab = vocab;
    args.temperature = i % 5 == 0 ? 0.0 : 0.25 * (1 + random.Below(8));
    args.top_k = i % 2 == 0 ? 0 : 1 + random.Below(40);
    args.top_p = i % 4 < 2 ? 1.0 : 0.5 + 0.0625 * random.Below(8);
    args.min_p = i % 8 < 6 ? 0.0 : 0.0625;
    args.seed = random.Bits();
    args.position = random.Bits();
    args.repetition_penalty = i % 3 == 0 ? 1.25 : 1.0;
    args.presence_penalty = i % 3 == 1 ? 0.5 : 0.0;
    args.frequency_penalty = i % 3 == 1 ? 0.25 : 0.0;
    args.prompt_ids = prompt.data();
    args.num_prompt_ids = static_cast<int64_t>(prompt.size());
    args.output_ids = output.data();
    args.num_output_ids = static_cast<int64_t>(output.size());
    args.bias_ids = output.data();
    args.bias_values = &bias;
    args.num_biases = i % 6 == 0 ? 1 : 0;
    args.mask = i % 4 == 3 ? mask.data() : nullptr;
    args.top_logprobs = i % 3 == 2 ? -1 : 5;
    args.workspace = workspace;
    args.id = &id;
    args.logprob = &logprob;
    args.top_ids = top_ids.data();
    args.top_logprob_values = top_values.data();
    ops.sample_row(args);
    free(workspace);
    digest.Add(&id, 4);
    if (logprob != logprob) logprob = 1;  // none
    digest.Add(&logprob, 8);
    if (id >= 0 && args.top_logprobs >= 0) {
      digest.Add(top_ids.data(), 4 * top_ids.size());
      digest.Add(top_values.data(), 8 * top_values.size());
    }
  }
  digest.Print("sample");
}

}  // namespace
}  // namespace ossia

int main(int argc, char** argv) {
  const char* name = argc > 1 ? argv[1] : "auto";
  const ossia::OpTable* ops = ossia::FindOps(name);
  if (ops == nullptr) {
    fprintf(stderr, "this processor has no %s\n", name);
    return 2;
  }
  if (argc > 2) ossia::g_seed = strtoull(argv[2], nullptr, 10);
  const int threads = argc > 3 ? atoi(argv[3]) : 1;
  ossia::RowOps(*ops);
  ossia::NotFinite(*ops);
  ossia::Products(*ops);
  ossia::AttentionOps(*ops);
  ossia::Steps(*ops, threads);
  ossia::Sampling(*ossia::FindSample(ops->name));
  return 0;
}
