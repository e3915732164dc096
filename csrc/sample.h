// The native contract of `sample`: one row of logits to its next token, one function per target.
//
// What is computed, and in which order, is `SamplingBatch` of interface.py; its plain form is
// sampling.py. All targets give the same bits. Rows are independent of each other.
//
// Numerics. Logits are widened to float64 and weights are exp((logit - largest) / temperature) in
// float64 with a relative error below 2^-52; below e^-708 they are 0. They are summed in blocks of
// 64 tokens (8 lanes of 8, SumLanesF64), the blocks in the order of ids. Relative to the total, a
// border between two of 201,088 tokens lies within 3.6e-13 of its exact place, that of the plain
// form, which adds token by token, within 2.3e-11. Draws of the two differ only if the uniform lies
// between their borders, or the share p that close to the weight at which top-p stops: one draw in
// 10^9 for normal logits of deviation 0.01 to 3, 5 in 10^8 for deviation 8. Log-probabilities are
// float64, within 1e-12.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace ossia {

struct SampleArgs {
  const float* logits;  // [vocab], needs no alignment
  int vocab;            // at least 1
  double temperature;   // finite; 0: the largest, of equals the lowest id
  int top_k;            // 0: off
  double top_p, min_p;
  uint64_t seed, position;
  double repetition_penalty, presence_penalty, frequency_penalty;
  const int32_t* prompt_ids;  // all ids lie in [0, vocab)
  int64_t num_prompt_ids;
  const int32_t* output_ids;
  int64_t num_output_ids;
  const int32_t* bias_ids;
  const double* bias_values;
  int64_t num_biases;
  const uint32_t* mask;  // [ceil(vocab / 32)] or nullptr
  int top_logprobs;      // -1: not even the token's own

  void* workspace;  // workspace_bytes(vocab), aligned to 64; its contents do not matter

  int32_t* id;       // -1 where a logit is NaN or nothing is allowed
  double* logprob;   // NaN where none is asked for or there is no token
  int32_t* top_ids;  // min(top_logprobs, vocab), written only where there is a token
  double* top_logprob_values;
};

struct SampleOps {
  const char* name;
  size_t (*workspace_bytes)(int vocab);
  void (*sample_row)(const SampleArgs&);
};

const SampleOps* ScalarSample();
const SampleOps* Avx2Sample();  // where the build has it
const SampleOps* Avx512Sample();

}  // namespace ossia
