// Ops on single rows: norm, quantisation, packing, rotation, activation, storing of keys and
// values. Included once per target, after its simd header. Contracts: op_table.h.

#include <string.h>

#include "op_table.h"

namespace ossia::OSSIA_TARGET {

OSSIA_INLINE F32x16 ExpTaylor(F32x16 r) {
  F32x16 p = Set(1.0f / 5040);
  p = Fma(p, r, Set(1.0f / 720));
  p = Fma(p, r, Set(1.0f / 120));
  p = Fma(p, r, Set(1.0f / 24));
  p = Fma(p, r, Set(1.0f / 6));
  p = Fma(p, r, Set(0.5f));
  p = Fma(p, r, Set(1.0f));
  return Fma(p, r, Set(1.0f));
}

// e^x within 2 ulp: 2^n * p(r) with r = x - n ln 2, p a Taylor polynomial of degree 7. Exactly 1 at
// 0; 0 below -87.33, where float32 would become denormal; infinite above 88.37.
OSSIA_INLINE F32x16 Exp(F32x16 x) {
  const F32x16 lowest = Set(-87.33f);
  const F32x16 clamped = Max(lowest, Min(Set(89.0f), x));  // NaN stays: it is the second operand
  const I32x16 n = RoundToI32(Mul(clamped, Set(1.44269504f)));
  const F32x16 f = ToF32(n);
  const F32x16 r = Fnma(f, Set(-2.12194440e-4f), Fnma(f, Set(0.693359375f), clamped));
  const F32x16 y = Mul(ExpTaylor(r), PowerOfTwo(MinI32(n, SetI32(128))));
  return IfLess(x, lowest, ZeroF32(), y);
}

// The same bits for x <= 0 and for NaN, with less to do: 2^n only adds to the exponent, because no
// result that is not 0 lies below the smallest normal number.
OSSIA_INLINE F32x16 ExpOfNegative(F32x16 x) {
  const F32x16 lowest = Set(-87.33f);
  const F32x16 clamped = Max(lowest, x);  // NaN stays: it is the second operand
  const I32x16 n = RoundToI32(Mul(clamped, Set(1.44269504f)));
  const F32x16 f = ToF32(n);
  const F32x16 r = Fnma(f, Set(-2.12194440e-4f), Fnma(f, Set(0.693359375f), clamped));
  return IfLess(x, lowest, ZeroF32(), AddExponent(ExpTaylor(r), n));
}

inline float Sqrt(float x) { return __builtin_sqrtf(x); }

inline void RmsNorm(const float* x, const float* w, int n, float eps, float* out) {
  F32x16 sums = ZeroF32();
  for (int i = 0; i < n; i += 16) {
    const F32x16 a = i + 16 <= n ? Load(x + i) : LoadN(x + i, n - i);
    sums = Fma(a, a, sums);
  }
  const F32x16 root = Set(Sqrt(SumLanes(sums) / static_cast<float>(n) + eps));
  for (int i = 0; i + 16 <= n; i += 16) Store(Mul(Div(Load(x + i), root), Load(w + i)), out + i);
  if (const int i = n / 16 * 16; i < n) {
    StoreN(Mul(Div(LoadN(x + i, n - i), root), LoadN(w + i, n - i)), out + i, n - i);
  }
}

// One block at p, of which 32 values can be read.
OSSIA_INLINE void QuantiseFullBlock(const float* p, const QuantLayout& layout, int block,
                                    uint8_t* out) {
  F32x16 even, odd;
  LoadPairs(p, &even, &odd);
  // As integers the bits of magnitudes have their order, with NaN above infinity.
  const int32_t bits = MaxLanesI32(MaxI32(AbsBits(even), AbsBits(odd)));
  float largest;
  memcpy(&largest, &bits, 4);
  const bool usable = largest >= kSmallestActivation && largest <= kLargestActivation;
  I32x16 e = SetI32(0), o = e;
  float scale = 1;
  if (usable) {
    const F32x16 inverse = Set(127.0f / largest);
    e = RoundToI32(Mul(even, inverse));
    o = RoundToI32(Mul(odd, inverse));
    scale = largest / 127.0f;
  } else if (!(largest < kSmallestActivation)) {
    const uint32_t nan = 0x7FC00000;  // blocks of a row may be written by several threads
    __atomic_store_n(reinterpret_cast<uint32_t*>(out + layout.poison()), nan, __ATOMIC_RELAXED);
  }
  const int64_t group = block / 4, in_group = block % 4;
  int8_t* values = reinterpret_cast<int8_t*>(out + layout.values() + 128 * group + 16 * in_group);
  StoreI8(e, values);
  StoreI8(o, values + 64);
  const int32_t sum = SumLanesI32(AddI32(e, o));
  const float scales[4] = {scale, scale, scale, scale};
  memcpy(out + layout.scales() + 64 * group + 16 * in_group, scales, 16);
  const int32_t minus12[4] = {-12 * sum, 0, 0, 0};
  memcpy(out + layout.minus12() + 64 * group + 16 * in_group, minus12, 16);
  const int32_t bias = -kQ8Bias * sum;
  memcpy(out + layout.bias() + 4 * block, &bias, 4);
}

inline void QuantiseBlock(const float* x, int n, int cols, int block, uint8_t* out) {
  const QuantLayout layout(cols);
  if (n == kBlock) {
    QuantiseFullBlock(x, layout, block, out);
    return;
  }
  float padded[kBlock] = {};
  if (n > 0) memcpy(padded, x, sizeof(float) * n);
  QuantiseFullBlock(padded, layout, block, out);
}

inline void BeginRow(int cols, uint8_t* out) {
  const QuantLayout layout(cols);
  memset(out + layout.poison(), 0, 4);
  for (int b = NumBlocks(cols); b < 4 * layout.groups; ++b) QuantiseBlock(nullptr, 0, cols, b, out);
}

inline void Quantise(const float* x, int cols, uint8_t* out) {
  BeginRow(cols, out);
  const QuantLayout layout(cols);
  const int full = cols / kBlock;
  for (int b = 0; b < full; ++b) QuantiseFullBlock(x + kBlock * b, layout, b, out);
  if (cols % kBlock != 0) QuantiseBlock(x + kBlock * full, cols % kBlock, cols, full, out);
}

inline void PackPanel(const void* rows, bool f32, int64_t row_stride, int num_rows, int cols,
                      uint8_t* panel) {
  const int num_blocks = NumBlocks(cols);
  const int64_t item = f32 ? 4 : 2;
  for (int b = 0; b < num_blocks; ++b) {
    const int position = PanelPosition(num_blocks, b);
    uint8_t* weights = panel + PanelWeights(position);
    uint8_t* scales = panel + PanelScales(position);
    const int width = cols - kBlock * b < kBlock ? cols - kBlock * b : kBlock;
    float quantised_scale[16];
    int8_t bytes[16][32];
    for (int r = 0; r < 16; ++r) {
      F32x16 even = ZeroF32(), odd = ZeroF32();
      if (r < num_rows) {
        const uint8_t* p = static_cast<const uint8_t*>(rows) + (r * row_stride + kBlock * b) * item;
        alignas(64) uint8_t padded[4 * kBlock] = {};
        if (width < kBlock) {
          memcpy(padded, p, item * width);
          p = padded;
        }
        if (f32) {
          LoadPairs(reinterpret_cast<const float*>(p), &even, &odd);
        } else {
          LoadBf16Pairs(reinterpret_cast<const uint16_t*>(p), &even, &odd);
        }
      }
      const int32_t bits = MaxLanesI32(MaxI32(AbsBits(even), AbsBits(odd)));
      float scale;
      memcpy(&scale, &bits, 4);
      scale /= 127.0f;
      uint32_t rounded;
      memcpy(&rounded, &scale, 4);
      if (scale == scale) rounded += 0x7FFF + ((rounded >> 16) & 1);
      rounded &= 0xFFFF0000;
      memcpy(&quantised_scale[r], &rounded, 4);
      const float inverse = quantised_scale[r] > 1e-35f ? 1.0f / quantised_scale[r] : 0.0f;
      const I32x16 low = SetI32(-127), high = SetI32(127);
      StoreI8(MinI32(high, MaxI32(low, RoundToI32(Mul(even, Set(inverse))))), bytes[r]);
      StoreI8(MinI32(high, MaxI32(low, RoundToI32(Mul(odd, Set(inverse))))), bytes[r] + 16);
    }
    for (int j = 0; j < 8; ++j) {
      for (int r = 0; r < 16; ++r) {
        uint32_t four;
        memcpy(&four, bytes[r] + 4 * j, 4);
        if constexpr (kQ8Bias == 128) four ^= 0x80808080u;
        memcpy(weights + 64 * j + 4 * r, &four, 4);
      }
    }
    for (int r = 0; r < 16; ++r) {
      memcpy(scales + 2 * r, reinterpret_cast<const uint8_t*>(&quantised_scale[r]) + 2, 2);
    }
  }
}

inline void Rotate(float* x, const float* cos, const float* sin, int half) {
  for (int i = 0; i < half; i += 16) {
    const F32x16 c = Load(cos + i), s = Load(sin + i);
    const F32x16 a = Load(x + i), b = Load(x + half + i);
    Store(Fnma(b, s, Mul(a, c)), x + i);
    Store(Fma(a, s, Mul(b, c)), x + half + i);
  }
}

inline void AddRows(const float* a, const float* b, int n, float* out) {
  int i = 0;
  for (; i + 16 <= n; i += 16) Store(Add(Load(a + i), Load(b + i)), out + i);
  if (i < n) StoreN(Add(LoadN(a + i, n - i), LoadN(b + i, n - i)), out + i, n - i);
}

inline void AddScaled(const float* a, float scale, int n, float* out) {
  const F32x16 s = Set(scale);
  int i = 0;
  for (; i + 16 <= n; i += 16) Store(Fma(Load(a + i), s, Load(out + i)), out + i);
  if (i < n) StoreN(Fma(LoadN(a + i, n - i), s, LoadN(out + i, n - i)), out + i, n - i);
}

OSSIA_INLINE F32x16 Swiglu16(F32x16 gate, F32x16 up, F32x16 limit, F32x16 alpha) {
  const F32x16 minus_limit = Sub(ZeroF32(), limit);
  gate = Min(limit, gate);  // NaN stays: it is the second operand
  up = Max(minus_limit, Min(limit, up));
  const F32x16 e = Exp(Sub(ZeroF32(), Mul(alpha, gate)));
  return Mul(Div(gate, Add(Set(1.0f), e)), Add(up, Set(1.0f)));
}

inline void Swiglu(const float* h, const float* bias, int n, float limit, float alpha, float* out) {
  for (int i = 0; i < n; i += 16) {
    const int m = n - i < 16 ? n - i : 16;
    F32x16 gate, up, gate_bias, up_bias;
    if (m == 16) {
      LoadPairs(h + 2 * i, &gate, &up);
      LoadPairs(bias + 2 * i, &gate_bias, &up_bias);
    } else {
      float padded[2][32] = {};
      memcpy(padded[0], h + 2 * i, 8 * m);
      memcpy(padded[1], bias + 2 * i, 8 * m);
      LoadPairs(padded[0], &gate, &up);
      LoadPairs(padded[1], &gate_bias, &up_bias);
    }
    const F32x16 y = Swiglu16(Add(gate, gate_bias), Add(up, up_bias), Set(limit), Set(alpha));
    StoreN(y, out + i, m);
  }
}

inline void Bf16ToF32(const uint16_t* x, int n, float* out) {
  int i = 0;
  for (; i + 16 <= n; i += 16) Store(LoadBf16(x + i), out + i);
  if (i < n) StoreN(LoadBf16N(x + i, n - i), out + i, n - i);
}

// Where number i of 32 lies in a block in bfloat16: the first 16 and the last in turns.
inline int InHalves(int i) { return i < 16 ? 2 * i : 2 * (i - 16) + 1; }

inline void StoreKey(const float* k, int d, bool f32, int slot, uint8_t* head) {
  if (f32) {
    float* keys = reinterpret_cast<float*>(head);
    for (int i = 0; i < d; ++i) keys[i * kKeyTile + slot] = k[i];
    return;
  }
  uint16_t* keys = reinterpret_cast<uint16_t*>(head) + InHalves(slot);
  for (int i = 0; i < d; i += 16) {
    uint16_t rounded[16];
    StoreBf16(Load(k + i), rounded);
    for (int j = 0; j < 16; ++j) keys[(i + j) * kKeyTile] = rounded[j];
  }
}

inline void StoreValue(const float* v, int d, bool f32, int slot, uint8_t* head) {
  const int64_t at = static_cast<int64_t>(kKeyTile + slot) * d;
  if (f32) {
    memcpy(reinterpret_cast<float*>(head) + at, v, sizeof(float) * d);
    return;
  }
  uint16_t* values = reinterpret_cast<uint16_t*>(head) + at;
  for (int i = 0; i < d; i += 32) {
    uint16_t rounded[32];
    StoreBf16(Load(v + i), rounded);
    StoreBf16(Load(v + i + 16), rounded + 16);
    for (int j = 0; j < 32; ++j) values[i + InHalves(j)] = rounded[j];
  }
}

inline void Softmax(float* x, int n) {
  float largest = x[0];
  for (int i = 1; i < n; ++i) largest = x[i] > largest ? x[i] : largest;
  F32x16 sums = ZeroF32();
  for (int i = 0; i < n; i += 16) {
    const int m = n - i < 16 ? n - i : 16;
    float padded[16];
    for (int j = 0; j < 16; ++j) padded[j] = -__builtin_inff();
    memcpy(padded, x + i, sizeof(float) * m);
    const F32x16 e = Exp(Sub(Load(padded), Set(largest)));
    sums = Add(sums, e);
    StoreN(e, x + i, m);
  }
  const float total = SumLanes(sums);
  for (int i = 0; i < n; ++i) x[i] /= total;
}

inline uint64_t ReadBytes(const uint8_t* p, size_t n) {
  I32x16 a = SetI32(0), b = a, c = a, d = a;
  size_t i = 0;
  for (; i + 256 <= n; i += 256) {
    // 2 KB ahead was the fastest of all distances up to 28 KB: the probe must not be slower than it
    // can.
    for (int line = 0; line < 256; line += 64) __builtin_prefetch(p + i + 2048 + line, 0, 2);
    a = MaxI32(a, LoadI32(reinterpret_cast<const int32_t*>(p + i)));
    b = MaxI32(b, LoadI32(reinterpret_cast<const int32_t*>(p + i + 64)));
    c = MaxI32(c, LoadI32(reinterpret_cast<const int32_t*>(p + i + 128)));
    d = MaxI32(d, LoadI32(reinterpret_cast<const int32_t*>(p + i + 192)));
  }
  uint64_t rest = 0;
  for (; i < n; ++i) rest += p[i];
  return rest + static_cast<uint32_t>(MaxLanesI32(MaxI32(MaxI32(a, b), MaxI32(c, d))));
}

inline uint64_t DotPeak(uint64_t n) {
  constexpr int kChains = 12;
  uint8_t bytes[64];
  for (int i = 0; i < 64; ++i) bytes[i] = static_cast<uint8_t>(i + (n & 1));
  const U8x64 w = LoadBytes(bytes), a = LoadBytes(bytes);
  I32x16 sums[kChains];
  for (int i = 0; i < kChains; ++i) sums[i] = SetI32(i);
  const uint64_t rounds = n / kChains;
  for (uint64_t k = 0; k < rounds; ++k) {
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) sums[i] = DotQ8(sums[i], w, a);
  }
  I32x16 all = sums[0];
  for (int i = 1; i < kChains; ++i) all = AddI32(all, sums[i]);
  // The low bit depends on the sums, so that they cannot be optimised away.
  return rounds * kChains * 64 + (SumLanesI32(all) == 0x12345678 ? 1 : 0);
}

}  // namespace ossia::OSSIA_TARGET
