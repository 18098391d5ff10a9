// Conversions between lanes of different widths, each one instruction: GCC lowers __builtin_convertvector of a 512-bit
// register by quarters and puts them together again, a quarter of a bfloat16 loss's time.
#pragma once

#include "simd/lanes.h"

namespace fdpo::FDPO_ISA {

inline U32 widen(U16 h) {
#if defined(__AVX512F__)
  return (U32)_mm512_cvtepu16_epi32((__m256i)h);
#elif defined(__AVX2__)
  return (U32)_mm256_cvtepu16_epi32((__m128i)h);
#else
  return __builtin_convertvector(h, U32);
#endif
}

// Words below 2^16.
inline U16 narrow(U32 u) {
#if defined(__AVX512F__)
  return (U16)_mm512_cvtepi32_epi16((__m512i)u);
#elif defined(__AVX2__)
  return (U16)_mm256_castsi256_si128(_mm256_permute4x64_epi64(_mm256_packus_epi32((__m256i)u, (__m256i)u), 0b1000));
#else
  return __builtin_convertvector(u, U16);
#endif
}

inline F64 to_double(HalfF32 f) {
#if defined(__AVX512F__)
  return (F64)_mm512_cvtps_pd((__m256)f);
#elif defined(__AVX2__)
  return (F64)_mm256_cvtps_pd((__m128)f);
#else
  return __builtin_convertvector(f, F64);
#endif
}

inline F64 to_double(HalfI32 i) {
#if defined(__AVX512F__)
  return (F64)_mm512_cvtepi32_pd((__m256i)i);
#elif defined(__AVX2__)
  return (F64)_mm256_cvtepi32_pd((__m128i)i);
#else
  return __builtin_convertvector(i, F64);
#endif
}

inline HalfF32 to_float(F64 d) {
#if defined(__AVX512F__)
  return (HalfF32)_mm512_cvtpd_ps((__m512d)d);
#elif defined(__AVX2__)
  return (HalfF32)_mm256_cvtpd_ps((__m256d)d);
#else
  return __builtin_convertvector(d, HalfF32);
#endif
}

inline I64 to_long(HalfI32 i) {
#if defined(__AVX512F__)
  return (I64)_mm512_cvtepi32_epi64((__m256i)i);
#elif defined(__AVX2__)
  return (I64)_mm256_cvtepi32_epi64((__m128i)i);
#else
  return __builtin_convertvector(i, I64);
#endif
}

inline U64 to_long(HalfU32 u) {
#if defined(__AVX512F__)
  return (U64)_mm512_cvtepu32_epi64((__m256i)u);
#elif defined(__AVX2__)
  return (U64)_mm256_cvtepu32_epi64((__m128i)u);
#else
  return __builtin_convertvector(u, U64);
#endif
}

inline HalfU32 lower(U64 u) {
#if defined(__AVX512F__)
  return (HalfU32)_mm512_cvtepi64_epi32((__m512i)u);
#else
  return __builtin_convertvector(u, HalfU32);
#endif
}

// The first and the second half of a register.
inline HalfF32 half(F32 f, int which) {
#if defined(__AVX512F__)
  return (HalfF32)(which ? _mm512_extractf32x8_ps((__m512)f, 1) : _mm512_castps512_ps256((__m512)f));
#else
  HalfF32 halves[2];
  std::memcpy(halves, &f, sizeof f);
  return halves[which];
#endif
}

// Sums over sixteen lanes, in double.
struct Totals {
  F64 part[kWidth / kDoubles]{};

  // Adds lanes [kFloats * k, kFloats * (k + 1)).
  void add(int k, F32 f) {
    part[2 * k] += to_double(half(f, 0));
    part[2 * k + 1] += to_double(half(f, 1));
  }

  double sum() const {
    double sum = 0;
    for (int i = 0; i < kWidth; ++i) sum += part[i / kDoubles][i % kDoubles];
    return sum;
  }
};

}  // namespace fdpo::FDPO_ISA
