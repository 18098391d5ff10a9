// Vectors of one register, in GCC's vector extensions. Sums run over sixteen lanes whatever the register's width, so
// that every instruction set gives the same bits.
// Included by code that is compiled for several instruction sets, hence static.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace fdpo {

#if defined(__AVX512F__)
constexpr int kRegister = 64;
#elif defined(__AVX2__)
constexpr int kRegister = 32;
#else
constexpr int kRegister = 16;
#endif

constexpr int kWidth = 16;                  // lanes
constexpr int kFloats = kRegister / 4;      // of them in a register
constexpr int kDoubles = kRegister / 8;

typedef float F32 __attribute__((vector_size(kRegister)));
typedef uint32_t U32 __attribute__((vector_size(kRegister)));
typedef uint16_t U16 __attribute__((vector_size(kRegister / 2)));
typedef double F64 __attribute__((vector_size(kRegister)));
typedef int64_t I64 __attribute__((vector_size(kRegister)));
// as many as there are doubles in a register
typedef float HalfF32 __attribute__((vector_size(kRegister / 2)));
typedef uint32_t HalfU32 __attribute__((vector_size(kRegister / 2)));
typedef int32_t HalfI32 __attribute__((vector_size(kRegister / 2)));

template <class Vector, class Element>
static inline Vector load(const Element* from) {
  Vector v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

template <class Vector, class Element>
static inline void store(Element* to, Vector v) {
  std::memcpy(to, &v, sizeof v);
}

// Past the cache, to an address that is a multiple of kRegister; `streamed` comes behind the last one.
static inline void stream(float* to, F32 v) {
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

static inline void streamed() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

static inline U32 widen(U16 h) { return __builtin_convertvector(h, U32); }
static inline U16 narrow(U32 u) { return __builtin_convertvector(u, U16); }

// Sums over sixteen lanes, in double.
struct Totals {
  F64 part[kWidth / kDoubles]{};

  // Adds lanes [kFloats * k, kFloats * (k + 1)).
  void add(int k, F32 f) {
    HalfF32 half[2];
    std::memcpy(half, &f, sizeof f);
    part[2 * k] += __builtin_convertvector(half[0], F64);
    part[2 * k + 1] += __builtin_convertvector(half[1], F64);
  }

  double sum() const {
    double sum = 0;
    for (int i = 0; i < kWidth; ++i) sum += part[i / kDoubles][i % kDoubles];
    return sum;
  }
};

static inline F32 from_bfloat16(U16 h) { return (F32)(widen(h) << 16); }

static inline U16 to_bfloat16(F32 f) {
  const U32 u = (U32)f;
  const U32 nearest_even = (u + 0x7FFF + ((u >> 16) & 1)) >> 16;
  return narrow((u & 0x7FFFFFFF) > 0x7F800000 ? U32{} + 0x7FC0 : nearest_even);
}

static inline F32 from_float16(U16 h) {
  const U32 u = widen(h), bits = (u & 0x7FFF) << 13;
  const U32 finite = (U32)((F32)bits * 0x1p112f);  // moves the exponent's bias; exact for denormals too
  const U32 magnitude = (u & 0x7C00) == 0x7C00 ? bits | 0x7F800000 : finite;
  return (F32)(magnitude | (u & 0x8000) << 16);
}

static inline U16 to_float16(F32 f) {
  const U32 u = (U32)f, magnitude = u & 0x7FFFFFFF;
  const U32 normal = (magnitude - (112u << 23) + 0xFFF + ((magnitude >> 13) & 1)) >> 13;
  const U32 half_ulp = U32{} + (126u << 23);  // adding 0.5 leaves the denormal's bits, rounded, in the low mantissa
  const U32 denormal = (U32)((F32)magnitude + (F32)half_ulp) - half_ulp;
  U32 h = magnitude < (113u << 23) ? denormal : normal;
  h = magnitude >= (143u << 23) ? (magnitude > 0x7F800000 ? U32{} + 0x7E00 : U32{} + 0x7C00) : h;
  return narrow(h | ((u >> 16) & 0x8000));
}

}  // namespace fdpo
