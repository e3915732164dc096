// Whole steps of a small model through a Context, and sampling: the rest of ossia_digest.

#include <stdlib.h>

#include <iterator>
#include <string>
#include <vector>

#include "common/context.h"
#include "sample.h"
#include "tests/digest.h"

namespace ossia {
namespace {

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

}  // namespace

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

namespace {

const SampleOps* FindSample(const char* name) {
#if defined(__x86_64__)
  if (strcmp(name, "avx2") == 0) return Avx2Sample();
  if (strcmp(name, "avx512") == 0) return Avx512Sample();
#endif
  return ScalarSample();
}

}  // namespace

void Sampling(const OpTable& table) {
  const SampleOps& ops = *FindSample(table.name);
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

}  // namespace ossia
