// Standard normals from Philox words, sixteen counters at a time, in double: r = sqrt(-2 log((x + 1) / 2^32)), then
// r cos(2 pi y / 2^32) and r sin(2 pi y / 2^32). Series instead of libm's functions vectorise and give the same bits on
// every machine; their errors are below 1e-13, so that the one rounding to float decides.
// Included by code that is compiled for several instruction sets, hence static.
#pragma once

#include "lanes.h"
#include "philox.h"

namespace fdpo {

static_assert(kLanes == kWidth);
typedef int64_t I64 __attribute__((vector_size(128)));
using Normals = float[4][kLanes];  // [element of its group of four][counter]

// Horner's rule; the highest coefficient first.
template <class... Rest>
static inline F64 polynomial(F64 x, F64 sum, double next, Rest... rest) {
  sum = sum * x + next;
  if constexpr (sizeof...(rest) > 0) return polynomial(x, sum, rest...);
  else return sum;
}

// A word as a double: AVX2 converts only signed ones.
static inline F64 as_double(const Lanes& words) {
  return __builtin_convertvector((I32)(load<U32>(words) ^ 0x80000000u), F64) + 0x1p31;
}

// log of (x + 1) / 2^32 by its exponent and 2 artanh of what remains, |s| <= 0.172
static inline F64 log_uniform(const Lanes& x) {
  const F64 u = (as_double(x) + 1.0) * 0x1p-32;
  I64 exponent = ((I64)u >> 52) - 1023;
  I64 mantissa = ((I64)u & 0x000FFFFFFFFFFFFF) | 0x3FF0000000000000;
  const I64 high = ((F64)mantissa > 1.4142135623730951);  // -1 or 0
  exponent -= high;
  mantissa += high & -0x0010000000000000;  // halves it
  const F64 m = (F64)mantissa, s = (m - 1.0) / (m + 1.0), z = s * s;
  const F64 series =
      polynomial(z, F64{} + 1.0 / 17, 1.0 / 15, 1.0 / 13, 1.0 / 11, 1.0 / 9, 1.0 / 7, 1.0 / 5, 1.0 / 3, 1.0);
  return __builtin_convertvector(exponent, F64) * 0.6931471805599453 + 2.0 * s * series;
}

static inline void box_muller_from(const Lanes& x, const Lanes& y, float* cosine_out, float* sine_out) {
  const F64 squared = -2.0 * log_uniform(x);
  F64 radius;
  for (int i = 0; i < kLanes; ++i) radius[i] = __builtin_sqrt(squared[i]);
  // y is an angle in units of 2^-32 turns: the nearest quarter turn and a remainder within an eighth
  const U32 words = load<U32>(y), quarter = (words + 0x20000000u) >> 30;
  const F64 angle = __builtin_convertvector((I32)(words - (quarter << 30)), F64) * (2 * 3.141592653589793 * 0x1p-32);
  const F64 z = angle * angle;
  const F64 sine = angle * polynomial(z, F64{} + 1.0 / 6227020800, -1.0 / 39916800, 1.0 / 362880, -1.0 / 5040,
                                      1.0 / 120, -1.0 / 6, 1.0);
  const F64 cosine = polynomial(z, F64{} - 1.0 / 87178291200, 1.0 / 479001600, -1.0 / 3628800, 1.0 / 40320, -1.0 / 720,
                                1.0 / 24, -0.5, 1.0);
  const I64 turned = __builtin_convertvector((I32)quarter, I64);
  const F64 c = (turned & 1) != 0 ? sine : cosine, s = (turned & 1) != 0 ? cosine : sine;
  const F64 c_out = radius * (((turned + 1) & 2) != 0 ? -c : c), s_out = radius * ((turned & 2) != 0 ? -s : s);
  store(cosine_out, __builtin_convertvector(c_out, F32));
  store(sine_out, __builtin_convertvector(s_out, F32));
}

// The normals of the counters block, block + 1, ...; four to each. The layout is that of fdpo_fast/noise.py.
static inline void box_muller(uint64_t seed, uint64_t pair_id, uint32_t visit, uint32_t block, Normals& out) {
  constexpr uint32_t kNoiseStream = 0;
  Lanes words[4];
  for (int i = 0; i < kLanes; ++i) {
    words[0][i] = block + uint32_t(i);
    words[1][i] = visit;
    words[2][i] = uint32_t(pair_id);
    words[3][i] = uint32_t(pair_id >> 32) << 8 | kNoiseStream;
  }
  philox(words, uint32_t(seed), uint32_t(seed >> 32));
  box_muller_from(words[0], words[1], out[0], out[1]);
  box_muller_from(words[2], words[3], out[2], out[3]);
}

}  // namespace fdpo
