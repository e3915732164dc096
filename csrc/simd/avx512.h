// The vector type of the AVX-512 target: 16 float or int32 lanes in one register, 64 bytes.
//
// Needs F, BW, VL, DQ, VNNI and VBMI. Every target offers these same functions with the same
// results bit for bit; ops are written once over them.
#pragma once

#include <immintrin.h>
#include <stdint.h>

#define OSSIA_TARGET avx512
#define OSSIA_INLINE inline __attribute__((always_inline))

namespace ossia::avx512 {

// Q8 weights are stored with this added, so that they are the unsigned operand of vpdpbusd.
constexpr int kQ8Bias = 128;
// The register tile of the Q8 product: tokens x panels of 16 rows. 4 * 2 int32 sums, as many float
// chains, weights, activation and scales leave a few registers free; with 6 * 2 the compiler
// spills, and a store costs as much as a dot product.
constexpr int kTileTokens = 4;
constexpr int kTilePanels = 2;
// Tokens for which one decoded MXFP4 tile is used in the row-wise product: one float chain each.
constexpr int kRowTokens = 8;
// Rows of the attention tile: 8 rows * 2 vectors of sums.
constexpr int kAttentionRows = 8;
// Tile of the exact product: rows x tokens.
constexpr int kExactRows = 4;
constexpr int kExactTokens = 4;

struct F32x16 {
  __m512 v;
};
struct I32x16 {
  __m512i v;
};
struct U8x64 {
  __m512i v;
};
struct F64x8 {
  __m512d v;
};

OSSIA_INLINE __mmask16 FirstLanes(int n) { return static_cast<__mmask16>((1u << n) - 1); }

// -- float32 ---------------------------------------------------------------------------------

OSSIA_INLINE F32x16 ZeroF32() { return {_mm512_setzero_ps()}; }
OSSIA_INLINE F32x16 Set(float x) { return {_mm512_set1_ps(x)}; }
OSSIA_INLINE F32x16 Load(const float* p) { return {_mm512_loadu_ps(p)}; }
OSSIA_INLINE void Store(F32x16 a, float* p) { _mm512_storeu_ps(p, a.v); }
// The first n lanes (0 <= n <= 16), the others 0; nothing behind them is read or written.
OSSIA_INLINE F32x16 LoadN(const float* p, int n) {
  return {_mm512_maskz_loadu_ps(FirstLanes(n), p)};
}
OSSIA_INLINE void StoreN(F32x16 a, float* p, int n) {
  _mm512_mask_storeu_ps(p, FirstLanes(n), a.v);
}
OSSIA_INLINE F32x16 LoadBf16(const uint16_t* p) {
  const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16))};
}
OSSIA_INLINE F32x16 LoadBf16N(const uint16_t* p, int n) {
  const __m256i x = _mm256_maskz_loadu_epi16(FirstLanes(n), p);
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16))};
}
// 32 numbers, those of even and of odd index apart.
OSSIA_INLINE void LoadBf16Pairs(const uint16_t* p, F32x16* even, F32x16* odd) {
  const __m512i x = _mm512_loadu_si512(p);
  even->v = _mm512_castsi512_ps(_mm512_slli_epi32(x, 16));
  odd->v = _mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32(0xFFFF0000)));
}
OSSIA_INLINE void LoadPairs(const float* p, F32x16* even, F32x16* odd) {
  const __m512 a = _mm512_loadu_ps(p), b = _mm512_loadu_ps(p + 16);
  const __m512i evens =
      _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  even->v = _mm512_permutex2var_ps(a, evens, b);
  odd->v = _mm512_permutex2var_ps(a, _mm512_add_epi32(evens, _mm512_set1_epi32(1)), b);
}
// Rounded to nearest even; NaN stays NaN.
OSSIA_INLINE void StoreBf16(F32x16 a, uint16_t* p) {
  const __m512i x = _mm512_castps_si512(a.v);
  const __m512i lsb = _mm512_and_si512(_mm512_srli_epi32(x, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(x, _mm512_add_epi32(lsb, _mm512_set1_epi32(0x7FFF)));
  const __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
  const __m512i kept = _mm512_or_si512(x, _mm512_set1_epi32(0x400000));
  const __m512i y = _mm512_mask_mov_epi32(rounded, nan, kept);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtepi32_epi16(_mm512_srli_epi32(y, 16)));
}
OSSIA_INLINE F32x16 Add(F32x16 a, F32x16 b) { return {_mm512_add_ps(a.v, b.v)}; }
OSSIA_INLINE F32x16 Sub(F32x16 a, F32x16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
OSSIA_INLINE F32x16 Mul(F32x16 a, F32x16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
OSSIA_INLINE F32x16 Div(F32x16 a, F32x16 b) { return {_mm512_div_ps(a.v, b.v)}; }
// a * b + c and c - a * b, rounded once.
OSSIA_INLINE F32x16 Fma(F32x16 a, F32x16 b, F32x16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
OSSIA_INLINE F32x16 Fnma(F32x16 a, F32x16 b, F32x16 c) { return {_mm512_fnmadd_ps(a.v, b.v, c.v)}; }
// Of an unordered pair the second operand.
OSSIA_INLINE F32x16 Max(F32x16 a, F32x16 b) { return {_mm512_max_ps(a.v, b.v)}; }
OSSIA_INLINE F32x16 Min(F32x16 a, F32x16 b) { return {_mm512_min_ps(a.v, b.v)}; }
// value where a < b, else other.
OSSIA_INLINE F32x16 IfLess(F32x16 a, F32x16 b, F32x16 value, F32x16 other) {
  return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ), other.v, value.v)};
}
// Lane i + lane i + 8, then + 4, + 2, + 1.
OSSIA_INLINE float SumLanes(F32x16 a) {
  const __m256 x = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  const __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  const __m128 z = _mm_add_ps(y, _mm_movehl_ps(y, y));
  return _mm_cvtss_f32(_mm_add_ss(z, _mm_movehdup_ps(z)));
}
// In the same order as SumLanes, with Max.
OSSIA_INLINE float MaxLanes(F32x16 a) {
  const __m256 x = _mm256_max_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  const __m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  const __m128 z = _mm_max_ps(y, _mm_movehl_ps(y, y));
  return _mm_cvtss_f32(_mm_max_ss(z, _mm_movehdup_ps(z)));
}
// MaxLanes of eight vectors at once.
OSSIA_INLINE void MaxLanes8(const F32x16 x[8], float* out) {
  __m512 a[4], b[2];
  for (int i = 0; i < 4; ++i) {  // 256-bit halves: row 2i in the lower, row 2i + 1 in the upper
    a[i] = _mm512_max_ps(_mm512_shuffle_f32x4(x[2 * i].v, x[2 * i + 1].v, 0x44),
                         _mm512_shuffle_f32x4(x[2 * i].v, x[2 * i + 1].v, 0xEE));
  }
  for (int i = 0; i < 2; ++i) {  // 128-bit quarters: rows 4i to 4i + 3
    b[i] = _mm512_max_ps(_mm512_shuffle_f32x4(a[2 * i], a[2 * i + 1], 0x88),
                         _mm512_shuffle_f32x4(a[2 * i], a[2 * i + 1], 0xDD));
  }
  const __m512 c = _mm512_max_ps(_mm512_unpacklo_ps(b[0], b[1]), _mm512_unpackhi_ps(b[0], b[1]));
  const __m512 d = _mm512_max_ps(c, _mm512_permute_ps(c, 0x4E));
  // Each quarter holds rows r and r + 4 in its first two lanes.
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 0, 0, 0, 0, 0, 0, 0, 0);
  _mm256_storeu_ps(out, _mm512_castps512_ps256(_mm512_permutexvar_ps(order, d)));
}
// Lanes are [chain 0..3][row 0..3]: (c0 + c1) + (c2 + c3) of each row into p[0..3].
OSSIA_INLINE void StoreChainSums(F32x16 a, float* p) {
  const __m128 c0 = _mm512_castps512_ps128(a.v), c1 = _mm512_extractf32x4_ps(a.v, 1);
  const __m128 c2 = _mm512_extractf32x4_ps(a.v, 2), c3 = _mm512_extractf32x4_ps(a.v, 3);
  _mm_storeu_ps(p, _mm_add_ps(_mm_add_ps(c0, c1), _mm_add_ps(c2, c3)));
}

// -- int32 and bytes -------------------------------------------------------------------------

OSSIA_INLINE I32x16 SetI32(int32_t x) { return {_mm512_set1_epi32(x)}; }
OSSIA_INLINE I32x16 LoadI32(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
OSSIA_INLINE void StoreI32(I32x16 a, int32_t* p) { _mm512_storeu_si512(p, a.v); }
OSSIA_INLINE I32x16 AddI32(I32x16 a, I32x16 b) { return {_mm512_add_epi32(a.v, b.v)}; }
OSSIA_INLINE I32x16 MaxI32(I32x16 a, I32x16 b) { return {_mm512_max_epi32(a.v, b.v)}; }
OSSIA_INLINE I32x16 MinI32(I32x16 a, I32x16 b) { return {_mm512_min_epi32(a.v, b.v)}; }
OSSIA_INLINE F32x16 ToF32(I32x16 a) { return {_mm512_cvtepi32_ps(a.v)}; }
// To the nearest integer, ties to even; INT32_MIN outside the range and for NaN.
OSSIA_INLINE I32x16 RoundToI32(F32x16 a) { return {_mm512_cvtps_epi32(a.v)}; }
OSSIA_INLINE I32x16 AbsBits(F32x16 a) {
  return {_mm512_and_si512(_mm512_castps_si512(a.v), _mm512_set1_epi32(0x7FFFFFFF))};
}
OSSIA_INLINE int32_t MaxLanesI32(I32x16 a) { return _mm512_reduce_max_epi32(a.v); }
OSSIA_INLINE int32_t SumLanesI32(I32x16 a) { return _mm512_reduce_add_epi32(a.v); }
// 2^n for -126 <= n <= 127; infinity for n = 128.
OSSIA_INLINE F32x16 PowerOfTwo(I32x16 n) {
  return {
      _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(n.v, _mm512_set1_epi32(127)), 23))};
}
// x * 2^n where both are normal numbers; a NaN stays if n is INT32_MIN, which RoundToI32 made of
// it.
OSSIA_INLINE F32x16 AddExponent(F32x16 x, I32x16 n) {
  return {
      _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(x.v), _mm512_slli_epi32(n.v, 23)))};
}
// Lanes that fit a signed byte, into 16 bytes.
OSSIA_INLINE void StoreI8(I32x16 a, int8_t* p) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(a.v));
}
OSSIA_INLINE U8x64 LoadBytes(const void* p) { return {_mm512_loadu_si512(p)}; }
OSSIA_INLINE U8x64 LoadBytesN(const void* p, int n) {  // 0 <= n < 64
  return {_mm512_maskz_loadu_epi8((1ull << n) - 1, p)};
}
OSSIA_INLINE U8x64 BroadcastI32(const void* p) {
  int32_t x;
  __builtin_memcpy(&x, p, 4);
  return {_mm512_set1_epi32(x)};
}
// sum[lane] += the dot product of 4 biased weights and 4 signed activations, exactly.
OSSIA_INLINE I32x16 DotQ8(I32x16 sum, U8x64 weights, U8x64 activations) {
  return {_mm512_dpbusd_epi32(sum.v, weights.v, activations.v)};
}

// -- MXFP4 -----------------------------------------------------------------------------------

// Twice the value of the low and the high nibble of each byte, plus 12: 0 to 24. vpermb takes the
// lowest six bits of an index; a table of four copies makes it blind to the two that are not ours.
OSSIA_INLINE __m512i Fp4Table(int bias) {
  const __m128i doubled = _mm_setr_epi8(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12);
  return _mm512_broadcast_i32x4(_mm_add_epi8(doubled, _mm_set1_epi8(static_cast<char>(bias))));
}
OSSIA_INLINE void DecodeFp4(U8x64 bytes, U8x64* low, U8x64* high) {
  const __m512i table = Fp4Table(12);
  low->v = _mm512_permutexvar_epi8(bytes.v, table);
  high->v = _mm512_permutexvar_epi8(_mm512_srli_epi16(bytes.v, 4), table);
}
// 16 bytes: the 16 values of even and the 16 of odd index, undoubled.
OSSIA_INLINE void DecodeFp4F32(const uint8_t* p, F32x16* even, F32x16* odd) {
  const __m512 table =
      _mm512_setr_ps(0, .5f, 1, 1.5f, 2, 3, 4, 6, -0.f, -.5f, -1, -1.5f, -2, -3, -4, -6);
  const __m512i x = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  even->v = _mm512_permutexvar_ps(x, table);  // reads four bits of each lane
  odd->v = _mm512_permutexvar_ps(_mm512_srli_epi32(x, 4), table);
}
// sum + the dot products of both halves.
OSSIA_INLINE I32x16 DotFp4(I32x16 sum, U8x64 low, U8x64 high, U8x64 even, U8x64 odd) {
  return {_mm512_dpbusd_epi32(_mm512_dpbusd_epi32(sum.v, low.v, even.v), high.v, odd.v)};
}
// Four rows of [block 0..3][4 partial sums] to [block][row].
OSSIA_INLINE I32x16 SumQuads(I32x16 r0, I32x16 r1, I32x16 r2, I32x16 r3) {
  const __m512i a =
      _mm512_add_epi32(_mm512_unpacklo_epi32(r0.v, r1.v), _mm512_unpackhi_epi32(r0.v, r1.v));
  const __m512i b =
      _mm512_add_epi32(_mm512_unpacklo_epi32(r2.v, r3.v), _mm512_unpackhi_epi32(r2.v, r3.v));
  return {_mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b))};
}
// Four scale bytes of each of four rows as what they add to a float's bits, [block][row].
OSSIA_INLINE I32x16 Mxfp4Scales(const uint8_t* s0, const uint8_t* s1, const uint8_t* s2,
                                const uint8_t* s3) {
  int32_t x[4];
  __builtin_memcpy(&x[0], s0, 4);
  __builtin_memcpy(&x[1], s1, 4);
  __builtin_memcpy(&x[2], s2, 4);
  __builtin_memcpy(&x[3], s3, 4);
  const __m128i rows = _mm_setr_epi32(x[0], x[1], x[2], x[3]);
  const __m128i blocks =
      _mm_shuffle_epi8(rows, _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  const __m512i bits = _mm512_slli_epi32(_mm512_cvtepu8_epi32(blocks), 23);
  return {_mm512_sub_epi32(bits, _mm512_set1_epi32(127 << 23))};
}
// scale * 2^n for a positive scale and n << 23; at least the smallest normal number. Integer
// additions, because products and dot products share their ports.
OSSIA_INLINE F32x16 AddToExponent(F32x16 scale, I32x16 shifted) {
  const __m512i sum = _mm512_add_epi32(_mm512_castps_si512(scale.v), shifted.v);
  return {_mm512_castsi512_ps(_mm512_max_epi32(sum, _mm512_set1_epi32(0x00800000)))};
}
OSSIA_INLINE I32x16 BitsOfF32(F32x16 a) { return {_mm512_castps_si512(a.v)}; }

OSSIA_INLINE void Transpose16x16(__m512i x[16]) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    x[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    x[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    x[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    x[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {  // x[4r + i] holds column i of each 128-bit lane, rows 4r..4r+3
    t[i] = _mm512_shuffle_i32x4(x[i], x[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(x[i], x[i + 4], 0xDD);
    t[i + 8] = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0xDD);
  }
  for (int i = 0; i < 4; ++i) {
    x[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    x[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xDD);
    x[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
    x[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xDD);
  }
}
// Up to four blocks of 16 rows of nibbles into the weights of as many blocks of a Q8 panel, whose
// addresses are `block[i]`: doubled values plus kQ8Bias.
OSSIA_INLINE void DecodeFp4Panel(const uint8_t* const row[16], int num_blocks,
                                 uint8_t* const block[4]) {
  __m512i x[16];
  const __mmask64 mask = num_blocks == 4 ? ~0ull : (1ull << (16 * num_blocks)) - 1;
  for (int r = 0; r < 16; ++r) x[r] = _mm512_maskz_loadu_epi8(mask, row[r]);
  Transpose16x16(x);
  const __m512i table = Fp4Table(kQ8Bias);
  for (int b = 0; b < num_blocks; ++b) {
    for (int j = 0; j < 4; ++j) {
      const __m512i bytes = x[4 * b + j];
      _mm512_storeu_si512(block[b] + 64 * j, _mm512_permutexvar_epi8(bytes, table));
      _mm512_storeu_si512(block[b] + 256 + 64 * j,
                          _mm512_permutexvar_epi8(_mm512_srli_epi16(bytes, 4), table));
    }
  }
}

// -- float64 ---------------------------------------------------------------------------------

OSSIA_INLINE F64x8 SetF64(double x) { return {_mm512_set1_pd(x)}; }
OSSIA_INLINE F64x8 LoadF64(const double* p) { return {_mm512_loadu_pd(p)}; }
OSSIA_INLINE F64x8 WidenF32(const float* p) { return {_mm512_cvtps_pd(_mm256_loadu_ps(p))}; }
OSSIA_INLINE void StoreF64(F64x8 a, double* p) { _mm512_storeu_pd(p, a.v); }
OSSIA_INLINE F64x8 AddF64(F64x8 a, F64x8 b) { return {_mm512_add_pd(a.v, b.v)}; }
OSSIA_INLINE F64x8 SubF64(F64x8 a, F64x8 b) { return {_mm512_sub_pd(a.v, b.v)}; }
OSSIA_INLINE F64x8 MulF64(F64x8 a, F64x8 b) { return {_mm512_mul_pd(a.v, b.v)}; }
OSSIA_INLINE F64x8 DivF64(F64x8 a, F64x8 b) { return {_mm512_div_pd(a.v, b.v)}; }
// Of an unordered pair, and of equals, the second operand.
OSSIA_INLINE F64x8 MaxF64(F64x8 a, F64x8 b) { return {_mm512_max_pd(a.v, b.v)}; }
OSSIA_INLINE F64x8 MinF64(F64x8 a, F64x8 b) { return {_mm512_min_pd(a.v, b.v)}; }
// value where a < b, else other.
OSSIA_INLINE F64x8 IfLessF64(F64x8 a, F64x8 b, F64x8 value, F64x8 other) {
  return {_mm512_mask_blend_pd(_mm512_cmp_pd_mask(a.v, b.v, _CMP_LT_OQ), other.v, value.v)};
}
// Lane i of a where bit i of the lowest eight is 1, else other.
OSSIA_INLINE F64x8 KeepBitsF64(F64x8 a, uint32_t bits, F64x8 other) {
  return {_mm512_mask_blend_pd(static_cast<__mmask8>(bits), other.v, a.v)};
}
// The bits of a plus those of n shifted up by 52: a * 2^n where n is 1.5 * 2^52 plus a whole
// number.
OSSIA_INLINE F64x8 AddExponentF64(F64x8 a, F64x8 n) {
  const __m512i exponent = _mm512_slli_epi64(_mm512_castpd_si512(n.v), 52);
  return {_mm512_castsi512_pd(_mm512_add_epi64(_mm512_castpd_si512(a.v), exponent))};
}
// Lane i + lane i + 4, then + 2, + 1.
OSSIA_INLINE double SumLanesF64(F64x8 a) {
  const __m256d x = _mm256_add_pd(_mm512_castpd512_pd256(a.v), _mm512_extractf64x4_pd(a.v, 1));
  const __m128d y = _mm_add_pd(_mm256_castpd256_pd128(x), _mm256_extractf128_pd(x, 1));
  return _mm_cvtsd_f64(_mm_add_sd(y, _mm_unpackhi_pd(y, y)));
}
// In the same order, with MaxF64.
OSSIA_INLINE double MaxLanesF64(F64x8 a) {
  const __m256d x = _mm256_max_pd(_mm512_castpd512_pd256(a.v), _mm512_extractf64x4_pd(a.v, 1));
  const __m128d y = _mm_max_pd(_mm256_castpd256_pd128(x), _mm256_extractf128_pd(x, 1));
  return _mm_cvtsd_f64(_mm_max_sd(y, _mm_unpackhi_pd(y, y)));
}

// The scale bytes of up to four blocks of 16 rows into as many rows of 16 numbers (byte - 127)
// << 7.
OSSIA_INLINE void Mxfp4PanelScales(const uint8_t* const row[16], int num_blocks,
                                   uint8_t* const scale[4]) {
  int32_t x[16] = {};
  if (num_blocks == 4) {
    for (int r = 0; r < 16; ++r) __builtin_memcpy(&x[r], row[r], 4);
  } else {
    for (int r = 0; r < 16; ++r) __builtin_memcpy(&x[r], row[r], num_blocks);
  }
  const __m512i bytes = _mm512_setr_epi32(x[0], x[1], x[2], x[3], x[4], x[5], x[6], x[7], x[8],
                                          x[9], x[10], x[11], x[12], x[13], x[14], x[15]);
  for (int b = 0; b < num_blocks; ++b) {
    const __m512i byte = _mm512_and_si512(_mm512_srl_epi32(bytes, _mm_cvtsi32_si128(8 * b)),
                                          _mm512_set1_epi32(0xFF));
    const __m512i bits = _mm512_sub_epi32(_mm512_slli_epi32(byte, 7), _mm512_set1_epi32(127 << 7));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(scale[b]), _mm512_cvtepi32_epi16(bits));
  }
}

}  // namespace ossia::avx512
