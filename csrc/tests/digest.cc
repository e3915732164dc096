// ossia_digest INSTRUCTION_SET [SEED [THREADS]]: runs every op, and whole steps, on inputs made
// from the seed and prints "name digest" lines.
//
// All instruction sets must print the same, also those of another processor under an emulator:
// inputs are made with exact arithmetic only, without the C library's functions, which differ
// between machines. Lines that end in "= name" must show that line's digest. Every array is
// allocated to the byte, so that the address sanitizer sees what is read or written beside it.

#include "tests/digest.h"

#include <stdlib.h>

#include <algorithm>
#include <iterator>
#include <vector>

#include "common/context.h"

namespace ossia {
namespace {

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
  ossia::Sampling(*ops);
  return 0;
}
