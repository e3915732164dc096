// Python's view of `sample`, as a function of `ossia.kernels._native`; native_sampling.py packs a
// SamplingBatch into these arrays. The only checks between Python and sample.h: here a wrong array
// raises ValueError("[sample] expected …, got …"), below it nothing throws.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "op_table.h"
#include "sample.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace ossia {

void RegisterSample(nb::module_& m);

namespace {

using Array = nb::ndarray<nb::ro, nb::device::cpu>;

constexpr int64_t kMostTokens = 1 << 30;

[[noreturn]] void Refuse(const std::string& expected, const std::string& got) {
  throw nb::value_error(("[sample] expected " + expected + ", got " + got).c_str());
}

template <typename T>
constexpr const char* kTypeName = nullptr;
template <>
constexpr const char* kTypeName<float> = "float32";
template <>
constexpr const char* kTypeName<double> = "float64";
template <>
constexpr const char* kTypeName<int32_t> = "int32";
template <>
constexpr const char* kTypeName<uint32_t> = "uint32";
template <>
constexpr const char* kTypeName<int64_t> = "int64";
template <>
constexpr const char* kTypeName<uint64_t> = "uint64";

std::string TypeText(nb::dlpack::dtype type) {
  using Code = nb::dlpack::dtype_code;
  const Code code = static_cast<Code>(type.code);
  const std::string bits = std::to_string(static_cast<int>(type.bits));
  if (code == Code::Float) return "float" + bits;
  if (code == Code::Int) return "int" + bits;
  if (code == Code::UInt) return "uint" + bits;
  return "another type of " + bits + " bits";
}

std::string ShapeText(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

// The elements of an array of this type and shape (-1: any length), row after row.
template <typename T>
const T* Checked(const Array& array, const char* what, const std::vector<int64_t>& shape) {
  if (array.dtype() != nb::dtype<T>()) {
    Refuse(std::string(what) + " of " + kTypeName<T>, TypeText(array.dtype()));
  }
  std::vector<int64_t> actual;
  for (size_t i = 0; i < array.ndim(); ++i) actual.push_back(static_cast<int64_t>(array.shape(i)));
  bool fits = actual.size() == shape.size();
  for (size_t i = 0; fits && i < shape.size(); ++i) fits = shape[i] == -1 || shape[i] == actual[i];
  if (!fits) Refuse(std::string(what) + " of shape " + ShapeText(shape), ShapeText(actual));
  int64_t stride = 1;
  for (size_t i = array.ndim(); i-- > 0; stride *= actual[i]) {
    if (actual[i] > 1 && array.stride(i) != stride) {
      Refuse(std::string(what) + " without gaps between its rows", "a strided view");
    }
  }
  return static_cast<const T*>(array.data());
}

Array Named(const nb::kwargs& arrays, const std::string& name) {
  Array array;
  if (!arrays.contains(name.c_str()) || !nb::try_cast(arrays[name.c_str()], array)) {
    Refuse("an array " + name, arrays.contains(name.c_str()) ? "something else" : "none");
  }
  return array;
}

template <typename T>
const T* Column(const nb::kwargs& arrays, const char* name, int64_t count) {
  return Checked<T>(Named(arrays, name), name, {count});
}

// Token ids of all rows, one row after the other, and where each row's begin.
struct Ids {
  const int32_t* ids;
  const int64_t* offsets;

  Ids(const nb::kwargs& arrays, const std::string& name, int64_t rows, int64_t vocab) {
    const Array array = Named(arrays, name + "_ids");
    ids = Checked<int32_t>(array, (name + "_ids").c_str(), {-1});
    offsets = Column<int64_t>(arrays, (name + "_offsets").c_str(), rows + 1);
    const int64_t count = static_cast<int64_t>(array.shape(0));
    bool ascending = offsets[0] == 0 && offsets[rows] == count;
    for (int64_t row = 0; row < rows; ++row) {
      ascending = ascending && offsets[row] <= offsets[row + 1];
    }
    if (!ascending) {
      Refuse(name + "_offsets that ascend from 0 to " + std::to_string(count), "others");
    }
    for (int64_t i = 0; i < count; ++i) {
      if (ids[i] < 0 || ids[i] >= vocab) {
        Refuse(name + "_ids from 0 to " + std::to_string(vocab - 1), std::to_string(ids[i]));
      }
    }
  }
  const int32_t* at(int64_t row) const { return ids + offsets[row]; }
  int64_t count(int64_t row) const { return offsets[row + 1] - offsets[row]; }
};

// The arrays of a batch, checked. Borrowed: the caller's keyword arguments keep them alive.
struct Batch {
  static constexpr size_t kArrays = 18;

  int64_t vocab, words;
  const double *temperature, *top_p, *min_p;
  const double *repetition_penalty, *presence_penalty, *frequency_penalty;
  const int64_t *top_k, *top_logprobs;
  const uint64_t *seed, *position;
  Ids prompt, output, bias;
  const double* bias_values;
  const uint32_t* masks = nullptr;

  Batch(const nb::kwargs& arrays, int64_t rows, int64_t vocab)
      : vocab(vocab),
        words((vocab + 31) / 32),
        temperature(Column<double>(arrays, "temperature", rows)),
        top_p(Column<double>(arrays, "top_p", rows)),
        min_p(Column<double>(arrays, "min_p", rows)),
        repetition_penalty(Column<double>(arrays, "repetition_penalty", rows)),
        presence_penalty(Column<double>(arrays, "presence_penalty", rows)),
        frequency_penalty(Column<double>(arrays, "frequency_penalty", rows)),
        top_k(Column<int64_t>(arrays, "top_k", rows)),
        top_logprobs(Column<int64_t>(arrays, "top_logprobs", rows)),
        seed(Column<uint64_t>(arrays, "seed", rows)),
        position(Column<uint64_t>(arrays, "position", rows)),
        prompt(arrays, "prompt", rows, vocab),
        output(arrays, "output", rows, vocab),
        bias(arrays, "bias", rows, vocab),
        bias_values(Column<double>(arrays, "bias_values", bias.offsets[rows])) {
    if (arrays.contains("masks") && !arrays["masks"].is_none()) {
      masks = Checked<uint32_t>(Named(arrays, "masks"), "masks", {rows, words});
    }
    if (arrays.size() != kArrays) {
      Refuse(std::to_string(kArrays) + " arrays (masks may be None)",
             std::to_string(arrays.size()));
    }
    for (int64_t row = 0; row < rows; ++row) {
      if (temperature[row] >= 0 && std::isfinite(temperature[row])) continue;
      Refuse("a finite temperature of at least 0", std::to_string(temperature[row]));
    }
  }

  int64_t NumAlternatives(int64_t row) const {
    return std::clamp<int64_t>(top_logprobs[row], 0, vocab);
  }

  SampleArgs Row(int64_t row) const {
    SampleArgs a = {};
    a.vocab = static_cast<int>(vocab);
    a.temperature = temperature[row];
    a.top_k = static_cast<int>(std::clamp<int64_t>(top_k[row], 0, vocab));
    a.top_p = top_p[row];
    a.min_p = min_p[row];
    a.seed = seed[row];
    a.position = position[row];
    a.repetition_penalty = repetition_penalty[row];
    a.presence_penalty = presence_penalty[row];
    a.frequency_penalty = frequency_penalty[row];
    a.prompt_ids = prompt.at(row);
    a.num_prompt_ids = prompt.count(row);
    a.output_ids = output.at(row);
    a.num_output_ids = output.count(row);
    a.bias_ids = bias.at(row);
    a.bias_values = bias_values + bias.offsets[row];
    a.num_biases = bias.count(row);
    a.mask = masks == nullptr ? nullptr : masks + row * words;
    a.top_logprobs = static_cast<int>(std::clamp<int64_t>(top_logprobs[row], -1, vocab));
    return a;
  }
};

const SampleOps* FindSample(const std::string& name) {
  const OpTable* ops = FindOps(name.c_str());
  if (ops == nullptr) Refuse("an instruction set of this processor", "'" + name + "'");
#if defined(__x86_64__)
  if (std::strcmp(ops->name, "avx512") == 0) return Avx512Sample();
  if (std::strcmp(ops->name, "avx2") == 0) return Avx2Sample();
#endif
  return ScalarSample();
}

// Kept from call to call, because fresh pages would cost as much as the sampling.
void* Workspace(size_t bytes) {
  constexpr size_t kAlign = 64;
  thread_local std::unique_ptr<uint8_t[]> memory;
  thread_local size_t size = 0;
  if (size < bytes + kAlign) {
    memory.reset();
    size = 0;
    memory.reset(new uint8_t[bytes + kAlign]);
    size = bytes + kAlign;
  }
  const uintptr_t start = reinterpret_cast<uintptr_t>(memory.get());
  return reinterpret_cast<void*>((start + kAlign - 1) / kAlign * kAlign);
}

template <typename T>
nb::ndarray<nb::numpy, T, nb::ndim<1>> ToNumpy(std::vector<T>&& values) {
  auto* kept = new std::vector<T>(std::move(values));
  nb::capsule owner(kept, [](void* p) noexcept { delete static_cast<std::vector<T>*>(p); });
  return nb::ndarray<nb::numpy, T, nb::ndim<1>>(kept->data(), {kept->size()}, owner);
}

nb::tuple Sample(const std::string& instruction_set, const Array& logits,
                 const nb::kwargs& arrays) {
  const SampleOps* ops = FindSample(instruction_set);
  const float* logits_SV = Checked<float>(logits, "logits", {-1, -1});
  const int64_t rows = static_cast<int64_t>(logits.shape(0));
  const int64_t vocab = static_cast<int64_t>(logits.shape(1));
  if (vocab < 1 || vocab > kMostTokens) {
    Refuse("logits of 1 to " + std::to_string(kMostTokens) + " tokens", ShapeText({rows, vocab}));
  }
  const Batch batch(arrays, rows, vocab);
  std::vector<int64_t> first = {0};  // of each row's alternatives
  for (int64_t row = 0; row < rows; ++row) {
    first.push_back(first.back() + batch.NumAlternatives(row));
  }
  std::vector<int32_t> ids(static_cast<size_t>(rows));
  std::vector<double> logprobs(static_cast<size_t>(rows));
  std::vector<int32_t> top_ids(static_cast<size_t>(first.back()), -1);
  std::vector<double> top_values(static_cast<size_t>(first.back()), NAN);
  {
    const nb::gil_scoped_release release;
    void* workspace = Workspace(ops->workspace_bytes(static_cast<int>(vocab)));
    for (int64_t row = 0; row < rows; ++row) {
      SampleArgs a = batch.Row(row);
      a.logits = logits_SV + row * vocab;
      a.workspace = workspace;
      a.id = ids.data() + row;
      a.logprob = logprobs.data() + row;
      a.top_ids = top_ids.data() + first[row];
      a.top_logprob_values = top_values.data() + first[row];
      ops->sample_row(a);
    }
  }
  return nb::make_tuple(ToNumpy(std::move(ids)), ToNumpy(std::move(logprobs)),
                        ToNumpy(std::move(top_ids)), ToNumpy(std::move(top_values)));
}

}  // namespace

void RegisterSample(nb::module_& m) {
  m.def("sample", &Sample, "instruction_set"_a, "logits"_a, "arrays"_a,
        "The next token of each row of float32 logits [S, V]: its id (-1: none), its "
        "log-probability (NaN: none), and the ids and log-probabilities of min(top_logprobs, V) "
        "alternatives of each row, one row after the other. The batch comes as keyword arguments: "
        "arrays of S rows named as in SamplingBatch (float64; top_k and top_logprobs int64, seed "
        "and position uint64), prompt, output and bias each as _ids (int32) and _offsets (int64, "
        "S + 1), bias_values (float64), masks (uint32 or None).");
}

}  // namespace ossia
