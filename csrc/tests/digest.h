// Seeded inputs and digests of results, for the ops (digest.cc) and for whole steps
// (digest_steps.cc).
#pragma once

#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <algorithm>
#include <vector>

#include "op_table.h"

namespace ossia {

using Bytes = std::vector<uint8_t>;
using Floats = std::vector<float>;
using Ints = std::vector<int32_t>;

inline uint64_t g_seed = 1;

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

inline std::vector<uint16_t> ToBf16(const Floats& x) {
  std::vector<uint16_t> out(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    uint32_t bits;
    memcpy(&bits, &x[i], 4);
    out[i] = static_cast<uint16_t>(bits >> 16);
  }
  return out;
}

constexpr int kSizes[] = {1, 2, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 96, 127, 129, 192, 300};

void Steps(const OpTable& ops, int threads);
void Sampling(const OpTable& ops);

}  // namespace ossia
