// Floats to and from 16 bits.
#pragma once

#include "simd/convert.h"

namespace fdpo::FDPO_ISA {

inline F32 from_bfloat16(U16 h) { return (F32)(widen(h) << 16); }

inline U16 to_bfloat16(F32 f) {
  const U32 u = (U32)f;
  const U32 nearest_even = (u + 0x7FFF + ((u >> 16) & 1)) >> 16;
  return narrow(f != f ? U32{} + 0x7FC0 : nearest_even);
}

// To one of the two neighbours, with the probability of being nearer; `random` are 16 bits each.
inline U16 to_bfloat16(F32 f, U32 random) {
  const U32 u = (U32)f;
  return narrow((u + ((u & 0x7F800000) == 0x7F800000 ? U32{} : random)) >> 16);  // infinity stays
}

inline F32 from_float16(U16 h) {
  const U32 u = widen(h), bits = (u & 0x7FFF) << 13;
  const U32 finite = (U32)((F32)bits * 0x1p112f);  // moves the exponent's bias; exact for denormals too
  const U32 magnitude = (u & 0x7C00) == 0x7C00 ? bits | 0x7F800000 : finite;
  return (F32)(magnitude | (u & 0x8000) << 16);
}

inline U16 to_float16(F32 f) {
  const U32 u = (U32)f, magnitude = u & 0x7FFFFFFF;
  const U32 normal = (magnitude - (112u << 23) + 0xFFF + ((magnitude >> 13) & 1)) >> 13;
  const U32 half_ulp = U32{} + (126u << 23);  // adding 0.5 leaves the denormal's bits, rounded, in the low mantissa
  const U32 denormal = (U32)((F32)magnitude + (F32)half_ulp) - half_ulp;
  U32 h = magnitude < (113u << 23) ? denormal : normal;
  h = magnitude >= (143u << 23) ? (magnitude > 0x7F800000 ? U32{} + 0x7E00 : U32{} + 0x7C00) : h;
  return narrow(h | ((u >> 16) & 0x8000));
}

// As for bfloat16.
inline U16 to_float16(F32 f, U32 random) {
  const U32 u = (U32)f, magnitude = u & 0x7FFFFFFF;
  const U32 normal = (magnitude - (112u << 23) + (random >> 3)) >> 13;
  const U32 fixed = (U32) __builtin_convertvector((F32)magnitude * 0x1p40f, I32);  // of 2^-24, the denormals' step
  const U32 h = magnitude < (113u << 23) ? (fixed + random) >> 16 : normal;
  return narrow(magnitude >= (143u << 23) ? widen(to_float16(f)) : h | ((u >> 16) & 0x8000));
}

// 24 bits: bfloat16 with a signed byte below it, see fdpo_fast/optim/low_byte.py. Where the two make no number, the
// bfloat16 is meant alone.
inline F32 from_24_bits(U16 h, I32 low) {
  const U32 alone = widen(h) << 16;
  const F32 both = (F32)(alone + ((U32)low << 8));
  return both == both ? both : (F32)alone;
}

// The upper 24 bits of the words are those of a float rounded by `random`, 8 bits each: infinity has no carry to take.
inline U32 to_24_bits(F32 f, U32 random) { return f == f ? (U32)f + random : U32{} + 0x7FC00000; }

inline U32 to_24_bits(F32 f) { return to_24_bits(f, 0x7F + (((U32)f >> 8) & 1)); }

// The bfloat16 nearest to the upper 24 bits of a word.
inline U16 bfloat16_of_24(U32 word) { return narrow((word + 0x8000) >> 16); }

// Floats, and bfloat16 that need no copy on the way.
struct Floats {
  const float* data;
  F32 at(int64_t i) const { return load<F32>(data + i); }
};
struct Halves {
  const uint16_t* data;
  F32 at(int64_t i) const { return from_bfloat16(load<U16>(data + i)); }
};

struct HalvesAndBytes {
  const uint16_t* data;
  const int8_t* low;
  F32 at(int64_t i) const { return from_24_bits(load<U16>(data + i), load_bytes(low + i)); }
};

inline void widen_all(const float* from, float* to, int64_t count) { std::memcpy(to, from, count * sizeof(float)); }

template <F32 (*widen)(U16)>
inline void widen_all(const uint16_t* from, float* to, int64_t count) {
  int64_t at = 0;
  for (; at + kFloats <= count; at += kFloats) store(to + at, widen(load<U16>(from + at)));
  uint16_t rest[kFloats] = {};
  std::memcpy(rest, from + at, (count - at) * sizeof *rest);
  const F32 last = widen(load<U16>(rest));
  std::memcpy(to + at, &last, (count - at) * sizeof(float));
}

template <U16 (*narrow)(F32)>
inline void narrow_all(const float* from, uint16_t* to, int64_t count) {
  int64_t at = 0;
  for (; at + kFloats <= count; at += kFloats) store(to + at, narrow(load<F32>(from + at)));
  float rest[kFloats] = {};
  std::memcpy(rest, from + at, (count - at) * sizeof *rest);
  const U16 last = narrow(load<F32>(rest));
  std::memcpy(to + at, &last, (count - at) * sizeof(uint16_t));
}

}  // namespace fdpo::FDPO_ISA
