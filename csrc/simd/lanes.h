// Vectors of one register, in GCC's vector extensions. Sums run over sixteen lanes whatever the register's width, so
// that every instruction set gives the same bits.
// Compiled for several instruction sets, each in its own namespace.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#ifndef FDPO_ISA
#error "FDPO_ISA names the instruction set, and so the namespace that keeps its code from the others"
#endif

namespace fdpo::FDPO_ISA {

#if defined(__AVX512F__)
constexpr int kRegister = 64;
#elif defined(__AVX2__)
constexpr int kRegister = 32;
#else
constexpr int kRegister = 16;
#endif

constexpr int kWidth = 16;              // lanes
constexpr int kFloats = kRegister / 4;  // of them in a register
constexpr int kDoubles = kRegister / 8;

typedef float F32 __attribute__((vector_size(kRegister)));
typedef uint32_t U32 __attribute__((vector_size(kRegister)));
typedef int32_t I32 __attribute__((vector_size(kRegister)));
typedef uint8_t U8 __attribute__((vector_size(kRegister)));
typedef int8_t I8 __attribute__((vector_size(kRegister)));
typedef uint16_t U16 __attribute__((vector_size(kRegister / 2)));
typedef double F64 __attribute__((vector_size(kRegister)));
typedef int64_t I64 __attribute__((vector_size(kRegister)));
typedef uint64_t U64 __attribute__((vector_size(kRegister)));
// as many as there are doubles in a register
typedef float HalfF32 __attribute__((vector_size(kRegister / 2)));
typedef uint32_t HalfU32 __attribute__((vector_size(kRegister / 2)));
typedef int32_t HalfI32 __attribute__((vector_size(kRegister / 2)));

template <class Vector, class Element>
inline Vector load(const Element* from) {
  Vector v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

template <class Vector, class Element>
inline void store(Element* to, Vector v) {
  std::memcpy(to, &v, sizeof v);
}

// Past the cache, to an address that is a multiple of kRegister; `streamed` comes behind the last one.
inline void stream(float* to, F32 v) {
#if defined(__AVX512F__)
  _mm512_stream_ps(to, (__m512)v);
#elif defined(__AVX2__)
  _mm256_stream_ps(to, (__m256)v);
#elif defined(__SSE2__)
  _mm_stream_ps(to, (__m128)v);
#else
  store(to, v);
#endif
}

inline void streamed() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

// The larger and the smaller; the second if one of them is not a number.
inline F32 larger(F32 a, F32 b) {
#if defined(__AVX512F__)
  return (F32)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (F32)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return a > b ? a : b;
#endif
}

inline F32 smaller(F32 a, F32 b) {
#if defined(__AVX512F__)
  return (F32)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (F32)_mm256_min_ps((__m256)a, (__m256)b);
#else
  return a < b ? a : b;
#endif
}

// a * b + c, rounded once; without an instruction for it a call of the C library's, which gives the same bits.
inline F32 multiply_add(F32 a, F32 b, F32 c) {
#if defined(__AVX512F__)
  return (F32)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (F32)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  F32 out;
  for (int i = 0; i < kFloats; ++i) out[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return out;
#endif
}

inline F32 square_root(F32 x) {
  F32 root;
  for (int i = 0; i < kFloats; ++i) root[i] = __builtin_sqrtf(x[i]);
  return root;
}

// Of the lanes, none of which is negative.
inline float highest(F32 lanes) {
  alignas(kRegister) float left[kFloats];
  store(left, lanes);
  for (int width = kFloats / 2; width; width /= 2)
    for (int i = 0; i < width; ++i) left[i] = left[i] > left[i + width] ? left[i] : left[i + width];
  return left[0];
}

// Eight floats to look up by the lowest three bits of an index.
#if defined(__AVX2__)
using Table = F32;
inline Table table(const float (&values)[8]) {
  const __m256 eight = _mm256_loadu_ps(values);
#if defined(__AVX512F__)
  return (F32)_mm512_broadcast_f32x8(eight);
#else
  return (F32)eight;
#endif
}
inline F32 look_up(Table t, U32 index) {
#if defined(__AVX512F__)
  return (F32)_mm512_permutexvar_ps((__m512i)index, (__m512)t);
#else
  return (F32)_mm256_permutevar8x32_ps((__m256)t, (__m256i)index);
#endif
}
#else
struct Table {
  float values[8];
};
inline Table table(const float (&values)[8]) {
  Table t;
  for (int i = 0; i < 8; ++i) t.values[i] = values[i];
  return t;
}
inline F32 look_up(const Table& t, U32 index) {
  F32 out;
  for (int i = 0; i < kFloats; ++i) out[i] = t.values[index[i] & 7];
  return out;
}
#endif

// a0, b0, a2, b2, ... and a1, b1, a3, b3, ...
inline U64 interleave_low(U64 a, U64 b) {
#if defined(__AVX512F__)
  return (U64)_mm512_unpacklo_epi64((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return (U64)_mm256_unpacklo_epi64((__m256i)a, (__m256i)b);
#else
  return U64{a[0], b[0]};
#endif
}

inline U64 interleave_high(U64 a, U64 b) {
#if defined(__AVX512F__)
  return (U64)_mm512_unpackhi_epi64((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return (U64)_mm256_unpackhi_epi64((__m256i)a, (__m256i)b);
#else
  return U64{a[1], b[1]};
#endif
}

inline I32 load_bytes(const uint8_t* from) {
#if defined(__AVX512F__)
  return (I32)_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#elif defined(__AVX2__)
  return (I32)_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
#else
  I32 out;
  for (int i = 0; i < kFloats; ++i) out[i] = from[i];
  return out;
#endif
}

inline I32 load_bytes(const int8_t* from) {
#if defined(__AVX512F__)
  return (I32)_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#elif defined(__AVX2__)
  return (I32)_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
#else
  I32 out;
  for (int i = 0; i < kFloats; ++i) out[i] = from[i];
  return out;
#endif
}

// The second bytes of words, from below.
inline void store_second_bytes(int8_t* to, U32 v) {
#if defined(__AVX512F__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(_mm512_srli_epi32((__m512i)v, 8)));
#elif defined(__AVX2__)
  const __m256i order = _mm256_setr_epi8(1, 5, 9, 13, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,  //
                                         1, 5, 9, 13, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
  const __m256i picked = _mm256_shuffle_epi8((__m256i)v, order);
  const __m128i both = _mm_unpacklo_epi32(_mm256_castsi256_si128(picked), _mm256_extracti128_si256(picked, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(to), both);
#else
  for (int i = 0; i < kFloats; ++i) to[i] = int8_t(v[i] >> 8);
#endif
}

// Four registers of words as bytes, brought into [0, 255], and those whose top bits are the words'.
inline U8 pack(const I32 (&v)[4]) {
#if defined(__AVX512F__)
  const __m512i packed = _mm512_packus_epi16(_mm512_packs_epi32((__m512i)v[0], (__m512i)v[1]),
                                             _mm512_packs_epi32((__m512i)v[2], (__m512i)v[3]));
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return (U8)_mm512_permutexvar_epi32(order, packed);
#elif defined(__AVX2__)
  const __m256i packed = _mm256_packus_epi16(_mm256_packs_epi32((__m256i)v[0], (__m256i)v[1]),
                                             _mm256_packs_epi32((__m256i)v[2], (__m256i)v[3]));
  return (U8)_mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
#else
  U8 out;
  for (int i = 0; i < kRegister; ++i) {
    const int32_t word = v[i / kFloats][i % kFloats];
    out[i] = uint8_t(word < 0 ? 0 : word > 255 ? 255 : word);
  }
  return out;
#endif
}

inline I8 pack_signs(const I32 (&v)[4]) {
#if defined(__AVX512F__)
  const __m512i packed = _mm512_packs_epi16(_mm512_packs_epi32((__m512i)v[0], (__m512i)v[1]),
                                            _mm512_packs_epi32((__m512i)v[2], (__m512i)v[3]));
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return (I8)_mm512_permutexvar_epi32(order, packed);
#elif defined(__AVX2__)
  const __m256i packed = _mm256_packs_epi16(_mm256_packs_epi32((__m256i)v[0], (__m256i)v[1]),
                                            _mm256_packs_epi32((__m256i)v[2], (__m256i)v[3]));
  return (I8)_mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
#else
  I8 out;
  for (int i = 0; i < kRegister; ++i) out[i] = v[i / kFloats][i % kFloats] < 0 ? -1 : 0;
  return out;
#endif
}

// The upper half of the product of the words' lower halves.
inline U32 multiply_high(U32 a, uint16_t b) {
#if defined(__AVX512F__)
  return (U32)_mm512_mulhi_epu16((__m512i)a, _mm512_set1_epi32(b));
#elif defined(__AVX2__)
  return (U32)_mm256_mulhi_epu16((__m256i)a, _mm256_set1_epi32(b));
#else
  return a * uint32_t{b} >> 16;
#endif
}

// i + 1 where a >= b.
inline U32 add_where_not_less(U32 i, F32 a, F32 b) {
#if defined(__AVX512F__)
  return (U32)_mm512_mask_add_epi32((__m512i)i, _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GE_OQ), (__m512i)i,
                                    _mm512_set1_epi32(1));
#else
  return i - (U32)(a >= b);
#endif
}

// As assembly: GCC takes a function of nothing but __builtin_prefetch for one without effects, and drops it.
inline void prefetch(const char* from, int64_t bytes) {
  for (int64_t at = 0; at < bytes; at += 64) {
#if defined(__SSE2__)
    asm volatile("prefetcht0 %0" ::"m"(from[at]));
#else
    __builtin_prefetch(from + at);
#endif
  }
}

}  // namespace fdpo::FDPO_ISA
