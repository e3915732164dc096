// Python's view of the native kernels: `ossia.kernels._native`.
//
// Checks dtype, shape and contiguity of what it is given and raises ValueError("[op] expected …,
// got …"); below this file nothing throws. Arrays are borrowed: native.py keeps them alive until
// the step has run.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>
#include <sys/mman.h>

#include <chrono>
#include <optional>
#include <string>

#include "common/context.h"
#include "common/pager.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace ossia {

void RegisterSample(nb::module_& m);

namespace {

template <typename T, int N>
using In = nb::ndarray<const T, nb::ndim<N>, nb::c_contig, nb::device::cpu>;

std::string ShapeText(const size_t* shape, size_t n) {
  std::string text = "[";
  for (size_t i = 0; i < n; ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

template <typename Array>
void ExpectShape(const char* op, const char* what, const Array& array,
                 std::initializer_list<int64_t> shape) {
  bool equal = array.ndim() == shape.size();
  size_t i = 0;
  for (const int64_t n : shape) equal = equal && static_cast<int64_t>(array.shape(i++)) == n;
  if (equal) return;
  std::vector<size_t> wanted(shape.begin(), shape.end()), got;
  for (size_t j = 0; j < array.ndim(); ++j) got.push_back(array.shape(j));
  const std::string text = std::string("[") + op + "] expected " + what + " of shape " +
                           ShapeText(wanted.data(), wanted.size()) + ", got " +
                           ShapeText(got.data(), got.size());
  throw nb::value_error(text.c_str());
}

[[noreturn]] void Refuse(const std::string& text) { throw nb::value_error(text.c_str()); }

// Memory of our own, zero until written: pages are not there before they are touched.
class Memory {
 public:
  Memory(size_t bytes, bool huge_pages) : bytes_(bytes + (2u << 20)) {
    void* p = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) throw std::bad_alloc();
    base_ = static_cast<uint8_t*>(p);
    const uintptr_t aligned =
        (reinterpret_cast<uintptr_t>(p) + (2u << 20) - 1) & ~((uintptr_t{2} << 20) - 1);
    p_ = reinterpret_cast<uint8_t*>(aligned);
#ifdef MADV_HUGEPAGE
    if (huge_pages) madvise(p_, bytes, MADV_HUGEPAGE);
#endif
  }
  ~Memory() { munmap(base_, bytes_); }
  Memory(const Memory&) = delete;
  uint8_t* data() const { return p_; }

 private:
  size_t bytes_;
  uint8_t *base_, *p_;
};

// Packed matrices lie side by side in large pieces of huge pages: one that starts or ends within a
// huge page would have its ends on small ones, which are read a third slower. Called with the GIL.
std::shared_ptr<Memory> TakePacked(int64_t bytes, uint8_t** p) {
  constexpr int64_t kPiece = int64_t{64} << 20;
  static std::weak_ptr<Memory> last;
  static int64_t used = 0, size = 0;
  std::shared_ptr<Memory> memory = last.lock();
  if (memory == nullptr || used + bytes > size) {
    size = std::max(kPiece, bytes);
    used = 0;
    memory = std::make_shared<Memory>(size, true);
    last = memory;
  }
  *p = memory->data() + used;
  used += (bytes + 63) / 64 * 64;
  return memory;
}

// A stack of matrices (one, for a dense tensor); owns only what was packed.
struct PyMatrix {
  MatrixStack stack;
  int count;
  std::shared_ptr<Memory> packed;
};

// Panels of a task's rows must fit a thread's scratch memory.
void ExpectColumns(int64_t cols) {
  if (cols <= 1 << 15) return;
  Refuse("[prepare] expected at most 32768 columns, got " + std::to_string(cols));
}

PyMatrix Mxfp4Of(In<uint8_t, 4> blocks, In<uint8_t, 3> scales) {
  const int64_t e = blocks.shape(0), rows = blocks.shape(1), groups = blocks.shape(2);
  ExpectShape("mxfp4", "blocks", blocks, {e, rows, groups, 16});
  ExpectShape("mxfp4", "scales", scales, {e, rows, groups});
  ExpectColumns(groups * kBlock);
  PyMatrix m;
  m.stack.first = {Format::kMxfp4, static_cast<int>(rows), static_cast<int>(groups * kBlock),
                   blocks.data(), scales.data()};
  m.stack.data_stride = rows * groups * 16;
  m.stack.scales_stride = rows * groups;
  m.count = static_cast<int>(e);
  return m;
}

// [rows, cols] or [count, rows, cols] of float32, or of bfloat16 as uint16, used in place.
template <typename T>
PyMatrix PlainOf(In<T, 3> values) {
  PyMatrix m;
  m.stack.first = {sizeof(T) == 4 ? Format::kF32 : Format::kBf16, static_cast<int>(values.shape(1)),
                   static_cast<int>(values.shape(2)),
                   reinterpret_cast<const uint8_t*>(values.data()), nullptr};
  m.stack.data_stride = static_cast<int64_t>(values.shape(1) * values.shape(2) * sizeof(T));
  m.count = static_cast<int>(values.shape(0));
  return m;
}

// Room for a stack of Q8 matrices, to be filled by pack_rows.
PyMatrix Q8Room(int count, int rows, int cols) {
  ExpectColumns(cols);
  PyMatrix m;
  const int64_t bytes = CeilDiv(rows, kPanelRows) * PanelBytes(cols);
  uint8_t* data;
  m.packed = TakePacked(bytes * count, &data);
  m.stack.first = {Format::kQ8, rows, cols, data, nullptr};
  m.stack.data_stride = bytes;
  m.count = count;
  return m;
}

template <typename T>
void PackRows(Context& context, PyMatrix& into, int index, int first_row, In<T, 2> rows) {
  const Matrix m = into.stack.at(index);
  if (into.packed == nullptr || first_row % kPanelRows != 0 ||
      first_row + static_cast<int>(rows.shape(0)) > m.rows ||
      static_cast<int>(rows.shape(1)) != m.cols) {
    Refuse("[pack_rows] expected rows that lie in a Q8 matrix from a multiple of 16 on");
  }
  // Packed memory is ours to write; at() gives it as what the products only read.
  uint8_t* to = const_cast<uint8_t*>(m.data) + first_row / kPanelRows * PanelBytes(m.cols);
  const nb::gil_scoped_release release;
  context.PackMatrix(rows.data(), sizeof(T) == 4, rows.shape(1), static_cast<int>(rows.shape(0)),
                     m.cols, to);
}

void ExpectMatrix(const char* op, const char* what, const PyMatrix& m, int count, int rows,
                  int cols) {
  if (m.count == count && m.stack.first.rows == rows && m.stack.first.cols == cols) return;
  Refuse(std::string("[") + op + "] expected " + what + " as " + std::to_string(count) + " x [" +
         std::to_string(rows) + ", " + std::to_string(cols) + "], got " + std::to_string(m.count) +
         " x [" + std::to_string(m.stack.first.rows) + ", " + std::to_string(m.stack.first.cols) +
         "]");
}

AttentionWeights AttentionOf(int heads, int kv_heads, int d, float eps, In<float, 1> norm,
                             const PyMatrix& q, const PyMatrix& k, const PyMatrix& v,
                             const PyMatrix& o, In<float, 1> q_bias, In<float, 1> k_bias,
                             In<float, 1> v_bias, In<float, 1> o_bias, In<float, 1> sinks) {
  const int hidden = static_cast<int>(norm.shape(0));
  if (d < 32 || d % 32 != 0 || d > 256 || kv_heads < 1 || heads % kv_heads != 0 || heads < 1 ||
      heads / kv_heads > kAttentionTileRows) {
    Refuse(
        "[attention] expected heads of 32, 64, ... 256 numbers, at most 64 of them per kv head, "
        "got " +
        std::to_string(heads) + " heads of " + std::to_string(d) + " over " +
        std::to_string(kv_heads) + "; use other kernels for this model");
  }
  ExpectMatrix("attention", "q", q, 1, heads * d, hidden);
  ExpectMatrix("attention", "k", k, 1, kv_heads * d, hidden);
  ExpectMatrix("attention", "v", v, 1, kv_heads * d, hidden);
  ExpectMatrix("attention", "o", o, 1, hidden, heads * d);
  ExpectShape("attention", "q_bias", q_bias, {heads * d});
  ExpectShape("attention", "k_bias", k_bias, {kv_heads * d});
  ExpectShape("attention", "v_bias", v_bias, {kv_heads * d});
  ExpectShape("attention", "o_bias", o_bias, {hidden});
  ExpectShape("attention", "sinks", sinks, {heads});
  return {hidden,        heads,         kv_heads,      d,
          eps,           norm.data(),   q.stack.first, k.stack.first,
          v.stack.first, o.stack.first, q_bias.data(), k_bias.data(),
          v_bias.data(), o_bias.data(), sinks.data()};
}

MoeWeights MoeOf(int experts_per_token, float eps, float limit, float alpha, In<float, 1> norm,
                 const PyMatrix& router, In<float, 1> router_bias, const PyMatrix& gate_up,
                 const PyMatrix& down, In<float, 2> gate_up_bias, In<float, 2> down_bias) {
  const int hidden = static_cast<int>(norm.shape(0)), experts = router.stack.first.rows;
  const int intermediate = down.stack.first.cols;
  ExpectMatrix("moe", "router", router, 1, experts, hidden);
  ExpectMatrix("moe", "gate_up", gate_up, experts, 2 * intermediate, hidden);
  ExpectMatrix("moe", "down", down, experts, hidden, intermediate);
  ExpectShape("moe", "router_bias", router_bias, {experts});
  ExpectShape("moe", "gate_up_bias", gate_up_bias, {experts, 2 * intermediate});
  ExpectShape("moe", "down_bias", down_bias, {experts, hidden});
  if (experts_per_token > experts) Refuse("[moe] expected no more experts per token than experts");
  return {hidden,
          experts,
          experts_per_token,
          intermediate,
          eps,
          limit,
          alpha,
          norm.data(),
          router.stack.first,
          router_bias.data(),
          gate_up.stack,
          down.stack,
          gate_up_bias.data(),
          down_bias.data(),
          std::vector<uint8_t>(experts)};
}

struct PyCache {
  std::vector<std::shared_ptr<Memory>> memory;
  std::vector<CacheLayer> layers;
  std::vector<int> blocks;
};

PyCache CacheOf(const std::vector<int>& blocks_per_layer, int kv_heads, int d, bool f32) {
  PyCache cache;
  for (const int blocks : blocks_per_layer) {
    CacheLayer layer{nullptr, kv_heads, d, f32};
    cache.memory.push_back(std::make_shared<Memory>(layer.block_bytes() * blocks, false));
    layer.data = cache.memory.back()->data();
    cache.layers.push_back(layer);
    cache.blocks.push_back(blocks);
  }
  return cache;
}

// The index arrays of a step for one cache group, checked once for all layers.
struct PyIndex {
  TokenIndex index;
  int64_t num_tokens;
  int32_t largest_block;
};

PyIndex IndexOf(In<int32_t, 1> positions, std::optional<In<int32_t, 1>> cu_seqlens,
                std::optional<In<int32_t, 1>> slots, std::optional<In<int32_t, 2>> block_tables) {
  const int64_t tokens = positions.shape(0);
  // Without cu_seqlens it says where tokens go, not what they see.
  const int sequences = cu_seqlens ? static_cast<int>(cu_seqlens->shape(0)) - 1 : 0;
  const int32_t* cu = cu_seqlens ? cu_seqlens->data() : nullptr;
  for (int64_t t = 0; t < tokens; ++t) {
    if (positions.data()[t] < 0) Refuse("[attn_in] expected positions from 0 on");
  }
  if (cu == nullptr) {
  } else if (sequences < 0 || cu[0] != 0 || cu[sequences] != tokens) {
    Refuse("[attention] expected cu_seqlens from 0 to " + std::to_string(tokens));
  }
  for (int s = 0; s < sequences; ++s) {
    if (cu[s] > cu[s + 1]) Refuse("[attention] expected ascending cu_seqlens");
    for (int t = cu[s]; t < cu[s + 1]; ++t) {
      const int32_t wanted = positions.data()[cu[s]] + (t - cu[s]);
      if (positions.data()[t] != wanted || wanted < 0 || (!slots && positions.data()[cu[s]] != 0)) {
        Refuse(
            "[attention] expected consecutive positions in each sequence, from 0 without a cache");
      }
    }
  }
  PyIndex out{{positions.data(), cu, sequences, nullptr, nullptr, 0}, tokens, -1};
  if (!slots) return out;
  ExpectShape("attn_in", "slot_mapping", *slots, {tokens});
  out.index.slots = slots->data();
  for (int64_t t = 0; t < tokens; ++t) {
    if (slots->data()[t] < 0)
      Refuse("[attn_in] expected a slot for every token, got a negative one");
    out.largest_block = std::max(out.largest_block, slots->data()[t] / kKeyTile);
  }
  if (cu == nullptr) return out;
  if (!block_tables) Refuse("[attention] expected block tables beside the slots");
  ExpectShape("attention", "block_tables", *block_tables,
              {sequences, static_cast<int64_t>(block_tables->shape(1))});
  out.index.block_tables = block_tables->data();
  out.index.table_width = static_cast<int>(block_tables->shape(1));
  for (size_t i = 0; i < block_tables->size(); ++i) {
    out.largest_block = std::max(out.largest_block, block_tables->data()[i]);
  }
  return out;
}

const CacheLayer* LayerOf(const PyCache* cache, int layer, const PyIndex& index,
                          const AttentionWeights& w) {
  if (cache == nullptr) return nullptr;
  if (layer < 0 || layer >= static_cast<int>(cache->layers.size())) {
    Refuse("[attn_in] expected a layer of the cache, 0 to " +
           std::to_string(cache->layers.size() - 1) + ", got " + std::to_string(layer));
  }
  if (cache->layers[layer].kv_heads != w.kv_heads || cache->layers[layer].d != w.d) {
    Refuse("[attn_in] expected a cache of " + std::to_string(w.kv_heads) + " kv heads of " +
           std::to_string(w.d) + ", got " + std::to_string(cache->layers[layer].kv_heads) + " of " +
           std::to_string(cache->layers[layer].d));
  }
  if (index.index.slots == nullptr)
    Refuse("[attn_in] expected slots and block tables with a cache");
  if (index.largest_block >= cache->blocks[layer]) {
    Refuse("[attn_in] expected blocks below " + std::to_string(cache->blocks[layer]) + ", got " +
           std::to_string(index.largest_block));
  }
  return &cache->layers[layer];
}

// Every block that attention will read must be there.
void ExpectVisibleBlocks(const PyIndex& index, int window) {
  const TokenIndex& i = index.index;
  for (int s = 0; s < i.num_sequences; ++s) {
    if (i.cu_seqlens[s] == i.cu_seqlens[s + 1]) continue;
    const int first = i.positions[i.cu_seqlens[s]], last = i.positions[i.cu_seqlens[s + 1] - 1];
    const int from = window == 0 || first < window ? 0 : (first - window + 1) / kKeyTile;
    if (last / kKeyTile >= i.table_width)
      Refuse("[attention] expected block tables up to the last position");
    for (int b = from; b <= last / kKeyTile; ++b) {
      if (i.block_tables[int64_t{s} * i.table_width + b] < 0) {
        Refuse("[attention] expected every visible block, but one was freed");
      }
    }
  }
}

void ExpectValue(const char* op, const Context& context, const ValuePtr& x, int64_t cols) {
  if (x->context != &context) {
    Refuse(std::string("[") + op + "] expected a value of these kernels, got one of others");
  }
  if (x->cols == cols) return;
  Refuse(std::string("[") + op + "] expected " + std::to_string(cols) + " columns, got " +
         std::to_string(x->cols));
}

void RunAll(Context& context) {
  Context::Recorded ops = context.TakeRecorded();
  std::string error;
  {
    const nb::gil_scoped_release release;
    error = context.Run(std::move(ops));
  }
  if (!error.empty()) Refuse(error);
}

nb::ndarray<nb::numpy, float> ToNumpy(Context& context, const ValuePtr& value) {
  ExpectValue("to_host", context, value, value->cols);
  RunAll(context);
  auto* owner = new std::shared_ptr<Buffer>(value->buffer);
  nb::capsule capsule(owner,
                      [](void* p) noexcept { delete static_cast<std::shared_ptr<Buffer>*>(p); });
  return nb::ndarray<nb::numpy, float>(
      value->row(0), {static_cast<size_t>(value->rows), static_cast<size_t>(value->cols)}, capsule);
}

double Seconds(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void RegisterWeights(nb::module_& m) {
  nb::class_<PyMatrix>(m, "Matrix")
      .def_static("mxfp4", &Mxfp4Of, "blocks"_a.noconvert(), "scales"_a.noconvert())
      .def_static("bf16", &PlainOf<uint16_t>, "values"_a.noconvert())
      .def_static("f32", &PlainOf<float>, "values"_a.noconvert())
      .def_static("q8", &Q8Room, "count"_a, "rows"_a, "cols"_a)
      .def_prop_ro("packed_bytes", [](const PyMatrix& matrix) {
        return matrix.packed ? matrix.stack.data_stride * matrix.count : 0;
      });
  nb::class_<AttentionWeights>(m, "AttentionWeights")
      .def_static("of", &AttentionOf, nb::kw_only(), "heads"_a, "kv_heads"_a, "d"_a, "eps"_a,
                  "norm"_a.noconvert(), "q"_a, "k"_a, "v"_a, "o"_a, "q_bias"_a.noconvert(),
                  "k_bias"_a.noconvert(), "v_bias"_a.noconvert(), "o_bias"_a.noconvert(),
                  "sinks"_a.noconvert());
  nb::class_<MoeWeights>(m, "MoeWeights")
      .def_static("of", &MoeOf, nb::kw_only(), "experts_per_token"_a, "eps"_a, "limit"_a, "alpha"_a,
                  "norm"_a.noconvert(), "router"_a, "router_bias"_a.noconvert(), "gate_up"_a,
                  "down"_a, "gate_up_bias"_a.noconvert(), "down_bias"_a.noconvert());
  nb::class_<HeadWeights>(m, "HeadWeights")
      .def_static(
          "of",
          [](float eps, In<float, 1> norm, const PyMatrix& head) {
            const int hidden = static_cast<int>(norm.shape(0));
            ExpectMatrix("logits", "head", head, 1, head.stack.first.rows, hidden);
            return HeadWeights{hidden, eps, norm.data(), head.stack.first};
          },
          nb::kw_only(), "eps"_a, "norm"_a.noconvert(), "head"_a);
  nb::class_<EmbeddingWeights>(m, "EmbeddingWeights").def_static("of", [](const PyMatrix& table) {
    return EmbeddingWeights{table.stack.first.data, table.stack.first.format == Format::kF32,
                            table.stack.first.rows, table.stack.first.cols};
  });
  nb::class_<PyCache>(m, "Cache")
      .def(nb::new_(&CacheOf), "blocks_per_layer"_a, "kv_heads"_a, "head_dim"_a, "f32"_a);
  nb::class_<PyIndex>(m, "TokenIndex")
      .def(nb::new_(&IndexOf), "positions"_a.noconvert(), "cu_seqlens"_a.noconvert().none(),
           "slots"_a.noconvert().none(), "block_tables"_a.noconvert().none());
}

void RegisterContext(nb::module_& m) {
  nb::class_<Value>(m, "Value").def_prop_ro("shape", [](const Value& value) {
    return nb::make_tuple(value.rows, value.cols);
  });
  nb::class_<Context>(m, "Context")
      .def(
          "__init__",
          [](Context* self, const std::string& instruction_set, int num_threads, bool exact) {
            const OpTable* ops = FindOps(instruction_set.c_str());
            if (ops == nullptr) {
              Refuse("[native] expected an instruction set of this processor, got " +
                     instruction_set);
            }
            if (num_threads < 1) Refuse("[native] expected at least one thread");
            Options options;
            options.exact = exact;
            new (self) Context(ops, num_threads, options);
          },
          "instruction_set"_a, "num_threads"_a, "exact"_a)
      .def_prop_ro("instruction_set", [](Context& c) { return c.ops()->name; })
      .def_prop_ro("num_threads", [](Context& c) { return c.pool().size(); })
      .def(
          "tune",
          [](Context& c, std::optional<int> mxfp4_row_tokens, std::optional<int> rows_prefetch,
             std::optional<int> panel_prefetch) {
            if (mxfp4_row_tokens) c.options().tuning.mxfp4_row_tokens = *mxfp4_row_tokens;
            if (rows_prefetch) c.options().tuning.rows_prefetch = *rows_prefetch;
            if (panel_prefetch) c.options().tuning.panel_prefetch = *panel_prefetch;
          },
          nb::kw_only(), "mxfp4_row_tokens"_a = nb::none(), "rows_prefetch"_a = nb::none(),
          "panel_prefetch"_a = nb::none())
      .def("pack_rows", &PackRows<uint16_t>, "into"_a, "index"_a, "first_row"_a,
           "rows"_a.noconvert())
      .def("pack_rows", &PackRows<float>, "into"_a, "index"_a, "first_row"_a, "rows"_a.noconvert())
      .def(
          "embed",
          [](Context& c, In<int32_t, 1> ids, const EmbeddingWeights& w) {
            for (size_t t = 0; t < ids.shape(0); ++t) {
              if (ids.data()[t] >= 0 && ids.data()[t] < w.rows) continue;
              Refuse("[embed] expected token ids from 0 to " + std::to_string(w.rows - 1) +
                     ", got " + std::to_string(ids.data()[t]));
            }
            return c.Embed(ids.data(), static_cast<int64_t>(ids.shape(0)), &w);
          },
          "ids"_a.noconvert(), "weights"_a)
      .def(
          "attn_in",
          [](Context& c, ValuePtr x, const AttentionWeights& w, In<float, 2> cos, In<float, 2> sin,
             const PyIndex& index, const PyCache* cache, int layer) {
            ExpectValue("attn_in", c, x, w.hidden);
            if (x->rows != index.num_tokens) Refuse("[attn_in] expected a position for every row");
            ExpectShape("attn_in", "cos", cos, {static_cast<int64_t>(cos.shape(0)), w.d / 2});
            ExpectShape("attn_in", "sin", sin, {static_cast<int64_t>(cos.shape(0)), w.d / 2});
            for (int64_t t = 0; t < index.num_tokens; ++t) {
              if (index.index.positions[t] >= static_cast<int64_t>(cos.shape(0))) {
                Refuse("[attn_in] expected positions within the table of angles");
              }
            }
            return c.AttnIn(x, &w, cos.data(), sin.data(), index.index,
                            LayerOf(cache, layer, index, w));
          },
          "x"_a, "weights"_a, "cos"_a.noconvert(), "sin"_a.noconvert(), "index"_a, "cache"_a.none(),
          "layer"_a)
      .def(
          "attention",
          [](Context& c, ValuePtr qkv, const AttentionWeights& w, int window, const PyIndex& index,
             const PyCache* cache, int layer) {
            const CacheLayer* at = LayerOf(cache, layer, index, w);
            ExpectValue("attention", c, qkv,
                        (w.heads + (at == nullptr ? 2 * w.kv_heads : 0)) * w.d);
            if (qkv->rows != index.num_tokens)
              Refuse("[attention] expected a position for every row");
            if (at != nullptr) ExpectVisibleBlocks(index, window);
            return c.Attention(qkv, &w, window, index.index, at);
          },
          "qkv"_a, "weights"_a, "window"_a, "index"_a, "cache"_a.none(), "layer"_a)
      .def(
          "attn_out",
          [](Context& c, ValuePtr x, ValuePtr attended, const AttentionWeights& w) {
            ExpectValue("attn_out", c, x, w.hidden);
            ExpectValue("attn_out", c, attended, int64_t{w.heads} * w.d);
            if (x->rows != attended->rows) Refuse("[attn_out] expected as many rows of both");
            return c.AttnOut(x, attended, &w);
          },
          "x"_a, "attended"_a, "weights"_a)
      .def(
          "moe",
          [](Context& c, ValuePtr x, const MoeWeights& w) {
            ExpectValue("moe", c, x, w.hidden);
            return c.Moe(x, &w);
          },
          "x"_a, "weights"_a)
      .def(
          "logits",
          [](Context& c, ValuePtr x, const HeadWeights& w, In<int32_t, 1> rows) {
            ExpectValue("logits", c, x, w.hidden);
            for (size_t i = 0; i < rows.shape(0); ++i) {
              if (rows.data()[i] < 0 || rows.data()[i] >= x->rows) {
                Refuse("[logits] expected rows from 0 to " + std::to_string(x->rows - 1) +
                       ", got " + std::to_string(rows.data()[i]));
              }
            }
            return c.Logits(x, &w, rows.data(), static_cast<int64_t>(rows.shape(0)));
          },
          "x"_a, "weights"_a, "rows"_a.noconvert())
      .def("run", &RunAll)
      .def("to_numpy", &ToNumpy, "value"_a)
      .def("counts",
           [](Context& c) {
             static const char* const kNames[kNumPaths] = {
                 "mxfp4_rows", "mxfp4_panels", "q8_vector",       "q8_tile",         "mxfp4_exact",
                 "bf16_exact", "f32_exact",    "attention_whole", "attention_split", "experts"};
             nb::dict counts;
             const std::vector<uint64_t> values = c.Counts();
             for (int i = 0; i < kNumPaths; ++i) counts[kNames[i]] = values[i];
             return counts;
           })
      // Map an array's pages on all threads; false where the system cannot.
      .def(
          "populate",
          [](Context& c, In<uint8_t, 1> bytes) {
            const nb::gil_scoped_release release;
            return c.Populate(bytes.data(), static_cast<int64_t>(bytes.shape(0)));
          },
          "bytes"_a.noconvert())
      .def("set_pager", &Context::SetPager, "budget_bytes"_a)
      .def("pager_counts",
           [](Context& c) {
             nb::dict counts;
             if (c.pager() == nullptr) return counts;
             counts["hits"] = c.pager()->hits();
             counts["misses"] = c.pager()->misses();
             counts["bytes_read"] = c.pager()->bytes_read();
             return counts;
           })
      // Seconds to read an array once with all threads and no arithmetic.
      .def(
          "read_seconds",
          [](Context& c, In<uint8_t, 1> bytes) {
            const nb::gil_scoped_release release;
            const auto start = std::chrono::steady_clock::now();
            const volatile uint64_t sum = c.ReadBytes(bytes.data(), bytes.shape(0));
            static_cast<void>(sum);
            return Seconds(start);
          },
          "bytes"_a.noconvert())
      // (multiply-adds, seconds) of int8 dot products on all threads with operands in registers.
      .def(
          "dot_peak",
          [](Context& c, uint64_t instructions) {
            uint64_t done;
            double seconds;
            {
              const nb::gil_scoped_release release;
              const auto start = std::chrono::steady_clock::now();
              done = c.DotPeak(instructions);
              seconds = Seconds(start);
            }
            return nb::make_tuple(done, seconds);
          },
          "instructions"_a);
}

}  // namespace
}  // namespace ossia

NB_MODULE(_native, m) {
  nb::set_leak_warnings(false);  // handles may outlive the interpreter's teardown order
  m.attr("KEY_TILE") = ossia::kKeyTile;
  m.def("instruction_sets", [] {
    std::vector<std::string> names;
    for (const char* name : {"scalar", "avx2", "avx512"}) {
      if (ossia::FindOps(name) != nullptr) names.push_back(name);
    }
    return names;
  });
  ossia::RegisterWeights(m);
  ossia::RegisterContext(m);
  ossia::RegisterSample(m);
}
