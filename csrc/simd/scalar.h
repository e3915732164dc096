// The vector type of the scalar target: plain C++ over arrays of 16 lanes, for any processor.
//
// The specification of the other targets: what each function here gives, theirs give bit for bit.
// Compiled without contraction, so that a * b + c is rounded once only where it says Fma.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#define OSSIA_TARGET scalar
#define OSSIA_INLINE inline __attribute__((always_inline))

namespace ossia::scalar {

constexpr int kQ8Bias = 0;
constexpr int kTileTokens = 2;
constexpr int kTilePanels = 1;
constexpr int kRowTokens = 2;
constexpr int kAttentionRows = 2;
constexpr int kExactRows = 2;
constexpr int kExactTokens = 1;

struct F32x16 {
  float v[16];
};
struct I32x16 {
  int32_t v[16];
};
struct U8x64 {
  uint8_t v[64];
};
struct F64x8 {
  double v[8];
};

#define OSSIA_LANES for (int i = 0; i < 16; ++i)

OSSIA_INLINE float FloatOfBits(uint32_t bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}
OSSIA_INLINE uint32_t BitsOf(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return bits;
}

// -- float32 ---------------------------------------------------------------------------------

OSSIA_INLINE F32x16 ZeroF32() { return F32x16{}; }
OSSIA_INLINE F32x16 Set(float x) {
  F32x16 a;
  OSSIA_LANES a.v[i] = x;
  return a;
}
OSSIA_INLINE F32x16 Load(const float* p) {
  F32x16 a;
  memcpy(a.v, p, 64);
  return a;
}
OSSIA_INLINE void Store(F32x16 a, float* p) { memcpy(p, a.v, 64); }
OSSIA_INLINE F32x16 LoadN(const float* p, int n) {
  F32x16 a{};
  memcpy(a.v, p, 4 * n);
  return a;
}
OSSIA_INLINE void StoreN(F32x16 a, float* p, int n) { memcpy(p, a.v, 4 * n); }
OSSIA_INLINE F32x16 LoadBf16N(const uint16_t* p, int n) {
  F32x16 a{};
  for (int i = 0; i < n; ++i) {
    uint16_t x;
    memcpy(&x, p + i, 2);
    a.v[i] = FloatOfBits(static_cast<uint32_t>(x) << 16);
  }
  return a;
}
OSSIA_INLINE F32x16 LoadBf16(const uint16_t* p) { return LoadBf16N(p, 16); }
OSSIA_INLINE void LoadPairs(const float* p, F32x16* even, F32x16* odd) {
  OSSIA_LANES {
    even->v[i] = p[2 * i];
    odd->v[i] = p[2 * i + 1];
  }
}
OSSIA_INLINE void LoadBf16Pairs(const uint16_t* p, F32x16* even, F32x16* odd) {
  const F32x16 a = LoadBf16(p), b = LoadBf16(p + 16);
  for (int i = 0; i < 8; ++i) {
    even->v[i] = a.v[2 * i];
    odd->v[i] = a.v[2 * i + 1];
    even->v[i + 8] = b.v[2 * i];
    odd->v[i + 8] = b.v[2 * i + 1];
  }
}
OSSIA_INLINE void StoreBf16(F32x16 a, uint16_t* p) {
  OSSIA_LANES {
    uint32_t bits = BitsOf(a.v[i]);
    if (a.v[i] != a.v[i]) {
      bits |= 0x400000;
    } else {
      bits += 0x7FFF + ((bits >> 16) & 1);
    }
    p[i] = static_cast<uint16_t>(bits >> 16);
  }
}
OSSIA_INLINE F32x16 Add(F32x16 a, F32x16 b) {
  OSSIA_LANES a.v[i] += b.v[i];
  return a;
}
OSSIA_INLINE F32x16 Sub(F32x16 a, F32x16 b) {
  OSSIA_LANES a.v[i] -= b.v[i];
  return a;
}
OSSIA_INLINE F32x16 Mul(F32x16 a, F32x16 b) {
  OSSIA_LANES a.v[i] *= b.v[i];
  return a;
}
OSSIA_INLINE F32x16 Div(F32x16 a, F32x16 b) {
  OSSIA_LANES a.v[i] /= b.v[i];
  return a;
}
OSSIA_INLINE F32x16 Fma(F32x16 a, F32x16 b, F32x16 c) {
  OSSIA_LANES a.v[i] = fmaf(a.v[i], b.v[i], c.v[i]);
  return a;
}
OSSIA_INLINE F32x16 Fnma(F32x16 a, F32x16 b, F32x16 c) {
  OSSIA_LANES a.v[i] = fmaf(-a.v[i], b.v[i], c.v[i]);
  return a;
}
OSSIA_INLINE float MaxOf(float a, float b) { return a > b ? a : b; }
OSSIA_INLINE float MinOf(float a, float b) { return a < b ? a : b; }
OSSIA_INLINE F32x16 Max(F32x16 a, F32x16 b) {
  OSSIA_LANES a.v[i] = MaxOf(a.v[i], b.v[i]);
  return a;
}
OSSIA_INLINE F32x16 Min(F32x16 a, F32x16 b) {
  OSSIA_LANES a.v[i] = MinOf(a.v[i], b.v[i]);
  return a;
}
OSSIA_INLINE F32x16 IfLess(F32x16 a, F32x16 b, F32x16 value, F32x16 other) {
  OSSIA_LANES a.v[i] = a.v[i] < b.v[i] ? value.v[i] : other.v[i];
  return a;
}
OSSIA_INLINE float SumLanes(F32x16 a) {
  for (int half = 8; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) a.v[i] += a.v[i + half];
  }
  return a.v[0];
}
OSSIA_INLINE float MaxLanes(F32x16 a) {
  for (int half = 8; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) a.v[i] = MaxOf(a.v[i], a.v[i + half]);
  }
  return a.v[0];
}
// MaxLanes of eight vectors at once.
OSSIA_INLINE void MaxLanes8(const F32x16 x[8], float* out) {
  for (int i = 0; i < 8; ++i) out[i] = MaxLanes(x[i]);
}
OSSIA_INLINE void StoreChainSums(F32x16 a, float* p) {
  for (int r = 0; r < 4; ++r) p[r] = (a.v[r] + a.v[4 + r]) + (a.v[8 + r] + a.v[12 + r]);
}

// -- int32 and bytes -------------------------------------------------------------------------

OSSIA_INLINE I32x16 SetI32(int32_t x) {
  I32x16 a;
  OSSIA_LANES a.v[i] = x;
  return a;
}
OSSIA_INLINE I32x16 LoadI32(const int32_t* p) {
  I32x16 a;
  memcpy(a.v, p, 64);
  return a;
}
OSSIA_INLINE void StoreI32(I32x16 a, int32_t* p) { memcpy(p, a.v, 64); }
OSSIA_INLINE I32x16 AddI32(I32x16 a, I32x16 b) {
  OSSIA_LANES a.v[i] += b.v[i];
  return a;
}
OSSIA_INLINE I32x16 MaxI32(I32x16 a, I32x16 b) {
  OSSIA_LANES a.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i];
  return a;
}
OSSIA_INLINE I32x16 MinI32(I32x16 a, I32x16 b) {
  OSSIA_LANES a.v[i] = a.v[i] < b.v[i] ? a.v[i] : b.v[i];
  return a;
}
OSSIA_INLINE F32x16 ToF32(I32x16 a) {
  F32x16 b;
  OSSIA_LANES b.v[i] = static_cast<float>(a.v[i]);
  return b;
}
OSSIA_INLINE I32x16 RoundToI32(F32x16 a) {
  I32x16 b;
  OSSIA_LANES {
    const bool fits = a.v[i] > -2147483904.f && a.v[i] < 2147483648.f;
    b.v[i] = fits ? static_cast<int32_t>(rintf(a.v[i])) : INT32_MIN;
  }
  return b;
}
OSSIA_INLINE I32x16 AbsBits(F32x16 a) {
  I32x16 b;
  OSSIA_LANES b.v[i] = static_cast<int32_t>(BitsOf(a.v[i]) & 0x7FFFFFFF);
  return b;
}
OSSIA_INLINE int32_t MaxLanesI32(I32x16 a) {
  for (int i = 1; i < 16; ++i) a.v[0] = a.v[0] > a.v[i] ? a.v[0] : a.v[i];
  return a.v[0];
}
OSSIA_INLINE int32_t SumLanesI32(I32x16 a) {
  for (int i = 1; i < 16; ++i) a.v[0] += a.v[i];
  return a.v[0];
}
OSSIA_INLINE F32x16 PowerOfTwo(I32x16 n) {
  F32x16 b;
  OSSIA_LANES b.v[i] = FloatOfBits((static_cast<uint32_t>(n.v[i]) + 127u) << 23);
  return b;
}
// x * 2^n where both are normal numbers; a NaN stays if n is INT32_MIN, which RoundToI32 made of
// it.
OSSIA_INLINE F32x16 AddExponent(F32x16 x, I32x16 n) {
  OSSIA_LANES x.v[i] = FloatOfBits(BitsOf(x.v[i]) + (static_cast<uint32_t>(n.v[i]) << 23));
  return x;
}
OSSIA_INLINE void StoreI8(I32x16 a, int8_t* p) { OSSIA_LANES p[i] = static_cast<int8_t>(a.v[i]); }
OSSIA_INLINE U8x64 LoadBytes(const void* p) {
  U8x64 a;
  memcpy(a.v, p, 64);
  return a;
}
OSSIA_INLINE U8x64 LoadBytesN(const void* p, int n) {
  U8x64 a{};
  memcpy(a.v, p, n);
  return a;
}
OSSIA_INLINE U8x64 BroadcastI32(const void* p) {
  U8x64 a;
  OSSIA_LANES memcpy(a.v + 4 * i, p, 4);
  return a;
}
OSSIA_INLINE I32x16 DotQ8(I32x16 sum, U8x64 weights, U8x64 activations) {
  for (int i = 0; i < 64; ++i) {
    sum.v[i / 4] += static_cast<int8_t>(weights.v[i]) * static_cast<int8_t>(activations.v[i]);
  }
  return sum;
}

// -- MXFP4 -----------------------------------------------------------------------------------

constexpr int8_t kFp4Doubled[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

OSSIA_INLINE void DecodeFp4(U8x64 bytes, U8x64* low, U8x64* high) {
  for (int i = 0; i < 64; ++i) {
    low->v[i] = static_cast<uint8_t>(kFp4Doubled[bytes.v[i] & 15] + 12);
    high->v[i] = static_cast<uint8_t>(kFp4Doubled[bytes.v[i] >> 4] + 12);
  }
}
OSSIA_INLINE void DecodeFp4F32(const uint8_t* p, F32x16* even, F32x16* odd) {
  constexpr float values[16] = {0, .5f, 1, 1.5f, 2, 3, 4, 6, -0.f, -.5f, -1, -1.5f, -2, -3, -4, -6};
  OSSIA_LANES {
    even->v[i] = values[p[i] & 15];
    odd->v[i] = values[p[i] >> 4];
  }
}
OSSIA_INLINE I32x16 DotFp4(I32x16 sum, U8x64 low, U8x64 high, U8x64 even, U8x64 odd) {
  for (int i = 0; i < 64; ++i) {
    sum.v[i / 4] += low.v[i] * static_cast<int8_t>(even.v[i]);
    sum.v[i / 4] += high.v[i] * static_cast<int8_t>(odd.v[i]);
  }
  return sum;
}
OSSIA_INLINE I32x16 SumQuads(I32x16 r0, I32x16 r1, I32x16 r2, I32x16 r3) {
  I32x16 out;
  const I32x16* const rows[4] = {&r0, &r1, &r2, &r3};
  for (int b = 0; b < 4; ++b) {
    for (int r = 0; r < 4; ++r) {
      const int32_t* q = rows[r]->v + 4 * b;
      out.v[4 * b + r] = q[0] + q[1] + q[2] + q[3];
    }
  }
  return out;
}
OSSIA_INLINE I32x16 BitsOfF32(F32x16 a) {
  I32x16 out;
  memcpy(out.v, a.v, 64);
  return out;
}
OSSIA_INLINE F32x16 AddToExponent(F32x16 scale, I32x16 shifted) {
  OSSIA_LANES {
    const int32_t sum =
        static_cast<int32_t>(BitsOf(scale.v[i]) + static_cast<uint32_t>(shifted.v[i]));
    scale.v[i] = FloatOfBits(sum > 0x00800000 ? static_cast<uint32_t>(sum) : 0x00800000u);
  }
  return scale;
}
OSSIA_INLINE I32x16 Mxfp4Scales(const uint8_t* s0, const uint8_t* s1, const uint8_t* s2,
                                const uint8_t* s3) {
  I32x16 out;
  const uint8_t* const rows[4] = {s0, s1, s2, s3};
  for (int b = 0; b < 4; ++b) {
    for (int r = 0; r < 4; ++r) {
      out.v[4 * b + r] = (rows[r][b] - 127) * (1 << 23);
    }
  }
  return out;
}
// The scale bytes of up to four blocks of 16 rows into as many rows of 16 numbers (byte - 127)
// << 7.
OSSIA_INLINE void Mxfp4PanelScales(const uint8_t* const row[16], int num_blocks,
                                   uint8_t* const scale[4]) {
  for (int r = 0; r < 16; ++r) {
    for (int b = 0; b < num_blocks; ++b) {
      const uint16_t bits = static_cast<uint16_t>((row[r][b] - 127) * 128);
      __builtin_memcpy(scale[b] + 2 * r, &bits, 2);
    }
  }
}

OSSIA_INLINE void DecodeFp4Panel(const uint8_t* const row[16], int num_blocks,
                                 uint8_t* const block[4]) {
  for (int r = 0; r < 16; ++r) {
    for (int b = 0; b < num_blocks; ++b) {
      for (int i = 0; i < 16; ++i) {
        const uint8_t byte = row[r][16 * b + i];
        uint8_t* const to = block[b] + 64 * (i / 4) + 4 * r + i % 4;
        to[0] = static_cast<uint8_t>(kFp4Doubled[byte & 15] + kQ8Bias);
        to[256] = static_cast<uint8_t>(kFp4Doubled[byte >> 4] + kQ8Bias);
      }
    }
  }
}

#undef OSSIA_LANES

// -- float64 ---------------------------------------------------------------------------------

#define OSSIA_LANES for (int i = 0; i < 8; ++i)

OSSIA_INLINE F64x8 SetF64(double x) {
  F64x8 a;
  OSSIA_LANES a.v[i] = x;
  return a;
}
OSSIA_INLINE F64x8 LoadF64(const double* p) {
  F64x8 a;
  memcpy(a.v, p, 64);
  return a;
}
OSSIA_INLINE F64x8 WidenF32(const float* p) {
  F64x8 a;
  OSSIA_LANES a.v[i] = static_cast<double>(p[i]);
  return a;
}
OSSIA_INLINE void StoreF64(F64x8 a, double* p) { memcpy(p, a.v, 64); }
OSSIA_INLINE F64x8 AddF64(F64x8 a, F64x8 b) {
  OSSIA_LANES a.v[i] += b.v[i];
  return a;
}
OSSIA_INLINE F64x8 SubF64(F64x8 a, F64x8 b) {
  OSSIA_LANES a.v[i] -= b.v[i];
  return a;
}
OSSIA_INLINE F64x8 MulF64(F64x8 a, F64x8 b) {
  OSSIA_LANES a.v[i] *= b.v[i];
  return a;
}
OSSIA_INLINE F64x8 DivF64(F64x8 a, F64x8 b) {
  OSSIA_LANES a.v[i] /= b.v[i];
  return a;
}
OSSIA_INLINE F64x8 MaxF64(F64x8 a, F64x8 b) {
  OSSIA_LANES a.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i];
  return a;
}
OSSIA_INLINE F64x8 MinF64(F64x8 a, F64x8 b) {
  OSSIA_LANES a.v[i] = a.v[i] < b.v[i] ? a.v[i] : b.v[i];
  return a;
}
OSSIA_INLINE F64x8 IfLessF64(F64x8 a, F64x8 b, F64x8 value, F64x8 other) {
  OSSIA_LANES a.v[i] = a.v[i] < b.v[i] ? value.v[i] : other.v[i];
  return a;
}
OSSIA_INLINE F64x8 KeepBitsF64(F64x8 a, uint32_t bits, F64x8 other) {
  uint64_t x[8], y[8];
  memcpy(x, a.v, 64);
  memcpy(y, other.v, 64);
  OSSIA_LANES {  // a branch would be mispredicted at every other bit of a random mask
    const uint64_t keep = -static_cast<uint64_t>(bits >> i & 1);
    x[i] = (x[i] & keep) | (y[i] & ~keep);
  }
  memcpy(a.v, x, 64);
  return a;
}
OSSIA_INLINE F64x8 AddExponentF64(F64x8 a, F64x8 n) {
  uint64_t x[8], y[8];
  memcpy(x, a.v, 64);
  memcpy(y, n.v, 64);
  OSSIA_LANES x[i] += y[i] << 52;
  memcpy(a.v, x, 64);
  return a;
}
OSSIA_INLINE double SumLanesF64(F64x8 a) {
  for (int half = 4; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) a.v[i] += a.v[i + half];
  }
  return a.v[0];
}
OSSIA_INLINE double MaxLanesF64(F64x8 a) {
  for (int half = 4; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) a.v[i] = a.v[i] > a.v[i + half] ? a.v[i] : a.v[i + half];
  }
  return a.v[0];
}

#undef OSSIA_LANES

}  // namespace ossia::scalar
