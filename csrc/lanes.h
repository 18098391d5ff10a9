// Sixteen elements at a time, in GCC's vector extensions: one register on AVX-512, two on AVX2, four on SSE2 or NEON.
// Included by code that is compiled for several instruction sets, hence static.
#pragma once

#include <cstdint>
#include <cstring>

namespace fdpo {

typedef float F32 __attribute__((vector_size(64)));
typedef uint32_t U32 __attribute__((vector_size(64)));
typedef int32_t I32 __attribute__((vector_size(64)));
typedef uint16_t U16 __attribute__((vector_size(32)));
typedef double F64 __attribute__((vector_size(128)));

constexpr int64_t kWidth = 16;

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

static inline U32 widen(U16 h) { return __builtin_convertvector(h, U32); }
static inline U16 narrow(U32 u) { return __builtin_convertvector(u, U16); }
static inline F64 widen(F32 f) { return __builtin_convertvector(f, F64); }

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
