// The vector type of the AVX2 target: 16 lanes in two registers of 8, 64 bytes in two of 32.
//
// Needs AVX2, FMA and F16C's generation of processors. Results equal those of the other targets bit
// for bit. Signed Q8 weights: maddubs saturates on biased ones, but not on |w| and sign(a, w) when
// both lie in [-127, 127]: 2 * 127 * 127 < 2^15.
#pragma once

#include <immintrin.h>
#include <stdint.h>

#define OSSIA_TARGET avx2
#define OSSIA_INLINE inline __attribute__((always_inline))

namespace ossia::avx2 {

constexpr int kQ8Bias = 0;
constexpr int kTileTokens =
    3;  // 3 * 2 sums, 3 * 2 chains, 2 weights, 2 temporaries of 16 registers
constexpr int kTilePanels = 1;
constexpr int kRowTokens = 4;
constexpr int kAttentionRows = 2;
constexpr int kExactRows = 2;
constexpr int kExactTokens = 2;

struct F32x16 {
  __m256 a, b;
};
struct I32x16 {
  __m256i a, b;
};
struct U8x64 {
  __m256i a, b;
};
struct F64x8 {
  __m256d a, b;
};

// -- float32 ---------------------------------------------------------------------------------

OSSIA_INLINE F32x16 ZeroF32() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
OSSIA_INLINE F32x16 Set(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
OSSIA_INLINE F32x16 Load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
OSSIA_INLINE void Store(F32x16 x, float* p) {
  _mm256_storeu_ps(p, x.a);
  _mm256_storeu_ps(p + 8, x.b);
}
OSSIA_INLINE F32x16 LoadN(const float* p, int n) {
  alignas(32) float t[16] = {};
  __builtin_memcpy(t, p, 4 * n);
  return Load(t);
}
OSSIA_INLINE void StoreN(F32x16 x, float* p, int n) {
  alignas(32) float t[16];
  Store(x, t);
  __builtin_memcpy(p, t, 4 * n);
}
OSSIA_INLINE __m256 WidenBf16(__m128i x) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16));
}
OSSIA_INLINE F32x16 LoadBf16(const uint16_t* p) {
  return {WidenBf16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
          WidenBf16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
}
OSSIA_INLINE F32x16 LoadBf16N(const uint16_t* p, int n) {
  alignas(32) uint16_t t[16] = {};
  __builtin_memcpy(t, p, 2 * n);
  return LoadBf16(t);
}
OSSIA_INLINE void LoadBf16Pairs(const uint16_t* p, F32x16* even, F32x16* odd) {
  const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  const __m256i y = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 16));
  const __m256i upper = _mm256_set1_epi32(static_cast<int>(0xFFFF0000));
  *even = {_mm256_castsi256_ps(_mm256_slli_epi32(x, 16)),
           _mm256_castsi256_ps(_mm256_slli_epi32(y, 16))};
  *odd = {_mm256_castsi256_ps(_mm256_and_si256(x, upper)),
          _mm256_castsi256_ps(_mm256_and_si256(y, upper))};
}
// a and b hold 16 consecutive numbers: those of even or of odd index, in order.
OSSIA_INLINE __m256 Evens(__m256 a, __m256 b) {
  const __m256 x = _mm256_shuffle_ps(a, b, 0x88);
  return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(x), 0xD8));
}
OSSIA_INLINE __m256 Odds(__m256 a, __m256 b) {
  const __m256 x = _mm256_shuffle_ps(a, b, 0xDD);
  return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(x), 0xD8));
}
OSSIA_INLINE void LoadPairs(const float* p, F32x16* even, F32x16* odd) {
  const F32x16 x = Load(p), y = Load(p + 16);
  *even = {Evens(x.a, x.b), Evens(y.a, y.b)};
  *odd = {Odds(x.a, x.b), Odds(y.a, y.b)};
}
OSSIA_INLINE __m256i RoundBf16(__m256 a) {
  const __m256i x = _mm256_castps_si256(a);
  const __m256i lsb = _mm256_and_si256(_mm256_srli_epi32(x, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(x, _mm256_add_epi32(lsb, _mm256_set1_epi32(0x7FFF)));
  const __m256i kept = _mm256_or_si256(x, _mm256_set1_epi32(0x400000));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
  return _mm256_srli_epi32(_mm256_blendv_epi8(rounded, kept, nan), 16);
}
OSSIA_INLINE void StoreBf16(F32x16 x, uint16_t* p) {
  const __m256i packed = _mm256_packus_epi32(RoundBf16(x.a), RoundBf16(x.b));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(packed, 0xD8));
}
OSSIA_INLINE F32x16 Add(F32x16 x, F32x16 y) {
  return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)};
}
OSSIA_INLINE F32x16 Sub(F32x16 x, F32x16 y) {
  return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)};
}
OSSIA_INLINE F32x16 Mul(F32x16 x, F32x16 y) {
  return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)};
}
OSSIA_INLINE F32x16 Div(F32x16 x, F32x16 y) {
  return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)};
}
OSSIA_INLINE F32x16 Fma(F32x16 x, F32x16 y, F32x16 z) {
  return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
OSSIA_INLINE F32x16 Fnma(F32x16 x, F32x16 y, F32x16 z) {
  return {_mm256_fnmadd_ps(x.a, y.a, z.a), _mm256_fnmadd_ps(x.b, y.b, z.b)};
}
OSSIA_INLINE F32x16 Max(F32x16 x, F32x16 y) {
  return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)};
}
OSSIA_INLINE F32x16 Min(F32x16 x, F32x16 y) {
  return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)};
}
OSSIA_INLINE F32x16 IfLess(F32x16 x, F32x16 y, F32x16 value, F32x16 other) {
  return {_mm256_blendv_ps(other.a, value.a, _mm256_cmp_ps(x.a, y.a, _CMP_LT_OQ)),
          _mm256_blendv_ps(other.b, value.b, _mm256_cmp_ps(x.b, y.b, _CMP_LT_OQ))};
}
OSSIA_INLINE float SumLanes(F32x16 v) {
  const __m256 x = _mm256_add_ps(v.a, v.b);
  const __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  const __m128 z = _mm_add_ps(y, _mm_movehl_ps(y, y));
  return _mm_cvtss_f32(_mm_add_ss(z, _mm_movehdup_ps(z)));
}
OSSIA_INLINE float MaxLanes(F32x16 v) {
  const __m256 x = _mm256_max_ps(v.a, v.b);
  const __m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  const __m128 z = _mm_max_ps(y, _mm_movehl_ps(y, y));
  return _mm_cvtss_f32(_mm_max_ss(z, _mm_movehdup_ps(z)));
}
// MaxLanes of eight vectors at once.
OSSIA_INLINE void MaxLanes8(const F32x16 x[8], float* out) {
  for (int i = 0; i < 8; ++i) out[i] = MaxLanes(x[i]);
}
OSSIA_INLINE void StoreChainSums(F32x16 v, float* p) {
  const __m128 x = _mm_add_ps(_mm256_castps256_ps128(v.a), _mm256_extractf128_ps(v.a, 1));
  const __m128 y = _mm_add_ps(_mm256_castps256_ps128(v.b), _mm256_extractf128_ps(v.b, 1));
  _mm_storeu_ps(p, _mm_add_ps(x, y));
}

// -- int32 and bytes -------------------------------------------------------------------------

OSSIA_INLINE I32x16 SetI32(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
OSSIA_INLINE I32x16 LoadI32(const int32_t* p) {
  return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 8))};
}
OSSIA_INLINE void StoreI32(I32x16 x, int32_t* p) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x.a);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 8), x.b);
}
OSSIA_INLINE I32x16 AddI32(I32x16 x, I32x16 y) {
  return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)};
}
OSSIA_INLINE I32x16 MaxI32(I32x16 x, I32x16 y) {
  return {_mm256_max_epi32(x.a, y.a), _mm256_max_epi32(x.b, y.b)};
}
OSSIA_INLINE I32x16 MinI32(I32x16 x, I32x16 y) {
  return {_mm256_min_epi32(x.a, y.a), _mm256_min_epi32(x.b, y.b)};
}
OSSIA_INLINE F32x16 ToF32(I32x16 x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
OSSIA_INLINE I32x16 RoundToI32(F32x16 x) {
  return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)};
}
OSSIA_INLINE I32x16 AbsBits(F32x16 x) {
  const __m256i mask = _mm256_set1_epi32(0x7FFFFFFF);
  return {_mm256_and_si256(_mm256_castps_si256(x.a), mask),
          _mm256_and_si256(_mm256_castps_si256(x.b), mask)};
}
OSSIA_INLINE int32_t MaxLanesI32(I32x16 v) {
  const __m256i x = _mm256_max_epi32(v.a, v.b);
  __m128i y = _mm_max_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
  y = _mm_max_epi32(y, _mm_shuffle_epi32(y, 0x4E));
  return _mm_cvtsi128_si32(_mm_max_epi32(y, _mm_shuffle_epi32(y, 0xB1)));
}
OSSIA_INLINE int32_t SumLanesI32(I32x16 v) {
  const __m256i x = _mm256_add_epi32(v.a, v.b);
  __m128i y = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
  y = _mm_add_epi32(y, _mm_shuffle_epi32(y, 0x4E));
  return _mm_cvtsi128_si32(_mm_add_epi32(y, _mm_shuffle_epi32(y, 0xB1)));
}
OSSIA_INLINE __m256 PowerOfTwo8(__m256i n) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
}
OSSIA_INLINE F32x16 PowerOfTwo(I32x16 n) { return {PowerOfTwo8(n.a), PowerOfTwo8(n.b)}; }
// x * 2^n where both are normal numbers; a NaN stays if n is INT32_MIN, which RoundToI32 made of
// it.
OSSIA_INLINE __m256 AddExponent8(__m256 x, __m256i n) {
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x), _mm256_slli_epi32(n, 23)));
}
OSSIA_INLINE F32x16 AddExponent(F32x16 x, I32x16 n) {
  return {AddExponent8(x.a, n.a), AddExponent8(x.b, n.b)};
}
OSSIA_INLINE void StoreI8(I32x16 x, int8_t* p) {
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(x.a, x.b), 0xD8);
  _mm_storeu_si128(
      reinterpret_cast<__m128i*>(p),
      _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}
OSSIA_INLINE U8x64 LoadBytes(const void* p) {
  const __m256i* q = static_cast<const __m256i*>(p);
  return {_mm256_loadu_si256(q), _mm256_loadu_si256(q + 1)};
}
OSSIA_INLINE U8x64 LoadBytesN(const void* p, int n) {
  alignas(32) uint8_t t[64] = {};
  __builtin_memcpy(t, p, n);
  return LoadBytes(t);
}
OSSIA_INLINE U8x64 BroadcastI32(const void* p) {
  int32_t x;
  __builtin_memcpy(&x, p, 4);
  return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)};
}
OSSIA_INLINE __m256i DotQ8Half(__m256i sum, __m256i w, __m256i a) {
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(a, w));
  return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
OSSIA_INLINE I32x16 DotQ8(I32x16 sum, U8x64 weights, U8x64 activations) {
  return {DotQ8Half(sum.a, weights.a, activations.a), DotQ8Half(sum.b, weights.b, activations.b)};
}

// -- MXFP4 -----------------------------------------------------------------------------------

OSSIA_INLINE __m256i Fp4Table(int bias) {
  const __m128i doubled = _mm_setr_epi8(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12);
  return _mm256_broadcastsi128_si256(_mm_add_epi8(doubled, _mm_set1_epi8(static_cast<char>(bias))));
}
OSSIA_INLINE void DecodeFp4(U8x64 bytes, U8x64* low, U8x64* high) {
  const __m256i table = Fp4Table(12), mask = _mm256_set1_epi8(15);
  low->a = _mm256_shuffle_epi8(table, _mm256_and_si256(bytes.a, mask));
  low->b = _mm256_shuffle_epi8(table, _mm256_and_si256(bytes.b, mask));
  high->a = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(bytes.a, 4), mask));
  high->b = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(bytes.b, 4), mask));
}
OSSIA_INLINE __m256 Fp4Values(__m128i nibbles) {  // one in each of the lower eight bytes
  const __m256i doubled = _mm256_cvtepi8_epi32(_mm_shuffle_epi8(
      _mm_setr_epi8(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12), nibbles));
  const __m256 value = _mm256_mul_ps(_mm256_cvtepi32_ps(doubled), _mm256_set1_ps(.5f));
  // Nibble 8 is minus zero.
  const __m256i sign = _mm256_and_si256(_mm256_slli_epi32(_mm256_cvtepu8_epi32(nibbles), 28),
                                        _mm256_set1_epi32(static_cast<int>(0x80000000)));
  return _mm256_or_ps(value, _mm256_castsi256_ps(sign));
}
OSSIA_INLINE void DecodeFp4F32(const uint8_t* p, F32x16* even, F32x16* odd) {
  const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  const __m128i mask = _mm_set1_epi8(15);
  const __m128i low = _mm_and_si128(x, mask), high = _mm_and_si128(_mm_srli_epi16(x, 4), mask);
  *even = {Fp4Values(low), Fp4Values(_mm_srli_si128(low, 8))};
  *odd = {Fp4Values(high), Fp4Values(_mm_srli_si128(high, 8))};
}
// Biased FP4 is at most 24: two pairs of 2 * 24 * 127 fit 16 bits.
OSSIA_INLINE __m256i DotFp4Half(__m256i sum, __m256i low, __m256i high, __m256i even, __m256i odd) {
  const __m256i pairs =
      _mm256_add_epi16(_mm256_maddubs_epi16(low, even), _mm256_maddubs_epi16(high, odd));
  return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
OSSIA_INLINE I32x16 DotFp4(I32x16 sum, U8x64 low, U8x64 high, U8x64 even, U8x64 odd) {
  return {DotFp4Half(sum.a, low.a, high.a, even.a, odd.a),
          DotFp4Half(sum.b, low.b, high.b, even.b, odd.b)};
}
OSSIA_INLINE __m256i SumQuads8(__m256i r0, __m256i r1, __m256i r2, __m256i r3) {
  return _mm256_hadd_epi32(_mm256_hadd_epi32(r0, r1), _mm256_hadd_epi32(r2, r3));
}
OSSIA_INLINE I32x16 SumQuads(I32x16 r0, I32x16 r1, I32x16 r2, I32x16 r3) {
  return {SumQuads8(r0.a, r1.a, r2.a, r3.a), SumQuads8(r0.b, r1.b, r2.b, r3.b)};
}
OSSIA_INLINE __m256i Mxfp4Scales8(__m128i bytes) {
  const __m256i bits = _mm256_slli_epi32(_mm256_cvtepu8_epi32(bytes), 23);
  return _mm256_sub_epi32(bits, _mm256_set1_epi32(127 << 23));
}
OSSIA_INLINE __m256 AddToExponent8(__m256 scale, __m256i shifted) {
  const __m256i sum = _mm256_add_epi32(_mm256_castps_si256(scale), shifted);
  return _mm256_castsi256_ps(_mm256_max_epi32(sum, _mm256_set1_epi32(0x00800000)));
}
OSSIA_INLINE F32x16 AddToExponent(F32x16 scale, I32x16 shifted) {
  return {AddToExponent8(scale.a, shifted.a), AddToExponent8(scale.b, shifted.b)};
}
OSSIA_INLINE I32x16 BitsOfF32(F32x16 x) {
  return {_mm256_castps_si256(x.a), _mm256_castps_si256(x.b)};
}
OSSIA_INLINE I32x16 Mxfp4Scales(const uint8_t* s0, const uint8_t* s1, const uint8_t* s2,
                                const uint8_t* s3) {
  int32_t x[4];
  __builtin_memcpy(&x[0], s0, 4);
  __builtin_memcpy(&x[1], s1, 4);
  __builtin_memcpy(&x[2], s2, 4);
  __builtin_memcpy(&x[3], s3, 4);
  const __m128i blocks =
      _mm_shuffle_epi8(_mm_setr_epi32(x[0], x[1], x[2], x[3]),
                       _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  return {Mxfp4Scales8(blocks), Mxfp4Scales8(_mm_srli_si128(blocks, 8))};
}
OSSIA_INLINE void StoreDwords(__m128i x, uint8_t* p) {  // 64 bytes apart
  const int32_t d[4] = {_mm_cvtsi128_si32(x), _mm_extract_epi32(x, 1), _mm_extract_epi32(x, 2),
                        _mm_extract_epi32(x, 3)};
  for (int j = 0; j < 4; ++j) __builtin_memcpy(p + 64 * j, &d[j], 4);
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
  const __m128i table = _mm256_castsi256_si128(Fp4Table(kQ8Bias)), mask = _mm_set1_epi8(15);
  for (int r = 0; r < 16; ++r) {
    for (int b = 0; b < num_blocks; ++b) {
      const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(row[r] + 16 * b));
      StoreDwords(_mm_shuffle_epi8(table, _mm_and_si128(x, mask)), block[b] + 4 * r);
      StoreDwords(_mm_shuffle_epi8(table, _mm_and_si128(_mm_srli_epi16(x, 4), mask)),
                  block[b] + 256 + 4 * r);
    }
  }
}

// -- float64 ---------------------------------------------------------------------------------

OSSIA_INLINE F64x8 SetF64(double x) { return {_mm256_set1_pd(x), _mm256_set1_pd(x)}; }
OSSIA_INLINE F64x8 LoadF64(const double* p) { return {_mm256_loadu_pd(p), _mm256_loadu_pd(p + 4)}; }
OSSIA_INLINE F64x8 WidenF32(const float* p) {
  return {_mm256_cvtps_pd(_mm_loadu_ps(p)), _mm256_cvtps_pd(_mm_loadu_ps(p + 4))};
}
OSSIA_INLINE void StoreF64(F64x8 x, double* p) {
  _mm256_storeu_pd(p, x.a);
  _mm256_storeu_pd(p + 4, x.b);
}
OSSIA_INLINE F64x8 AddF64(F64x8 x, F64x8 y) {
  return {_mm256_add_pd(x.a, y.a), _mm256_add_pd(x.b, y.b)};
}
OSSIA_INLINE F64x8 SubF64(F64x8 x, F64x8 y) {
  return {_mm256_sub_pd(x.a, y.a), _mm256_sub_pd(x.b, y.b)};
}
OSSIA_INLINE F64x8 MulF64(F64x8 x, F64x8 y) {
  return {_mm256_mul_pd(x.a, y.a), _mm256_mul_pd(x.b, y.b)};
}
OSSIA_INLINE F64x8 DivF64(F64x8 x, F64x8 y) {
  return {_mm256_div_pd(x.a, y.a), _mm256_div_pd(x.b, y.b)};
}
OSSIA_INLINE F64x8 MaxF64(F64x8 x, F64x8 y) {
  return {_mm256_max_pd(x.a, y.a), _mm256_max_pd(x.b, y.b)};
}
OSSIA_INLINE F64x8 MinF64(F64x8 x, F64x8 y) {
  return {_mm256_min_pd(x.a, y.a), _mm256_min_pd(x.b, y.b)};
}
OSSIA_INLINE F64x8 IfLessF64(F64x8 x, F64x8 y, F64x8 value, F64x8 other) {
  return {_mm256_blendv_pd(other.a, value.a, _mm256_cmp_pd(x.a, y.a, _CMP_LT_OQ)),
          _mm256_blendv_pd(other.b, value.b, _mm256_cmp_pd(x.b, y.b, _CMP_LT_OQ))};
}
OSSIA_INLINE F64x8 KeepBitsF64(F64x8 x, uint32_t bits, F64x8 other) {
  const __m256i all = _mm256_set1_epi64x(bits);
  const __m256i low = _mm256_setr_epi64x(1, 2, 4, 8), high = _mm256_setr_epi64x(16, 32, 64, 128);
  const __m256i keep_a = _mm256_cmpeq_epi64(_mm256_and_si256(all, low), low);
  const __m256i keep_b = _mm256_cmpeq_epi64(_mm256_and_si256(all, high), high);
  return {_mm256_blendv_pd(other.a, x.a, _mm256_castsi256_pd(keep_a)),
          _mm256_blendv_pd(other.b, x.b, _mm256_castsi256_pd(keep_b))};
}
OSSIA_INLINE __m256d AddExponent4(__m256d x, __m256d n) {
  const __m256i exponent = _mm256_slli_epi64(_mm256_castpd_si256(n), 52);
  return _mm256_castsi256_pd(_mm256_add_epi64(_mm256_castpd_si256(x), exponent));
}
OSSIA_INLINE F64x8 AddExponentF64(F64x8 x, F64x8 n) {
  return {AddExponent4(x.a, n.a), AddExponent4(x.b, n.b)};
}
OSSIA_INLINE double SumLanesF64(F64x8 v) {
  const __m256d x = _mm256_add_pd(v.a, v.b);
  const __m128d y = _mm_add_pd(_mm256_castpd256_pd128(x), _mm256_extractf128_pd(x, 1));
  return _mm_cvtsd_f64(_mm_add_sd(y, _mm_unpackhi_pd(y, y)));
}
OSSIA_INLINE double MaxLanesF64(F64x8 v) {
  const __m256d x = _mm256_max_pd(v.a, v.b);
  const __m128d y = _mm_max_pd(_mm256_castpd256_pd128(x), _mm256_extractf128_pd(x, 1));
  return _mm_cvtsd_f64(_mm_max_sd(y, _mm_unpackhi_pd(y, y)));
}

}  // namespace ossia::avx2
