// Standard normals from Philox words, sixteen counters at a time, in double: r = sqrt(-2 log((x + 1) / 2^32)), then
// r cos(2 pi y / 2^32) and r sin(2 pi y / 2^32). Series instead of libm's functions vectorise and give the same bits on
// every machine; their errors are below 1e-13, so that the one rounding to float decides.
#pragma once

#include "constants.h"
#include "simd/convert.h"
#include "simd/philox.h"

namespace fdpo::FDPO_ISA {

// Horner's rule; the highest coefficient first.
template <class... Rest>
inline F64 polynomial(F64 x, F64 sum, double next, Rest... rest) {
  sum = sum * x + next;
  if constexpr (sizeof...(rest) > 0) return polynomial(x, sum, rest...);
  else return sum;
}

// log of (x + 1) / 2^32 by its exponent and 2 artanh of what remains, |s| <= 0.172
inline F64 log_uniform(HalfU32 x) {
  // AVX2 converts only signed words
  const F64 u = (to_double((HalfI32)(x ^ 0x80000000u)) + (0x1p31 + 1)) * 0x1p-32;
  I64 mantissa = ((I64)u & 0x000FFFFFFFFFFFFF) | 0x3FF0000000000000;
  const I64 high = (F64)mantissa > 1.4142135623730951;  // -1 or 0
  const I64 exponent = ((I64)u >> 52) - 1023 - high;    // the shift is of positive numbers
  mantissa += high & -0x0010000000000000;               // halves it
  // an integer below 2^51 as a double: AVX2 has no conversion
  const F64 power = (F64)(exponent + 0x4338000000000000) - 0x1.8p52;
  const F64 m = (F64)mantissa, s = (m - 1.0) / (m + 1.0), z = s * s;
  const F64 series =
      polynomial(z, F64{} + 1.0 / 17, 1.0 / 15, 1.0 / 13, 1.0 / 11, 1.0 / 9, 1.0 / 7, 1.0 / 5, 1.0 / 3, 1.0);
  return power * 0.6931471805599453 + 2.0 * s * series;
}

inline F64 square_root(F64 x) {
  F64 root;
  for (int i = 0; i < kDoubles; ++i) root[i] = __builtin_sqrt(x[i]);
  return root;
}

inline void box_muller_from(HalfU32 x, HalfU32 y, float* cosine_out, float* sine_out) {
  const F64 radius = square_root(-2.0 * log_uniform(x));
  // y is an angle in units of 2^-32 turns: the nearest quarter turn and a remainder within an eighth
  const HalfU32 quarter = (y + 0x20000000u) >> 30;
  const F64 angle = to_double((HalfI32)(y - (quarter << 30))) * (2 * 3.141592653589793 * 0x1p-32);
  const F64 z = angle * angle;
  const F64 sine = angle * polynomial(z, F64{} + 1.0 / 6227020800, -1.0 / 39916800, 1.0 / 362880, -1.0 / 5040,
                                      1.0 / 120, -1.0 / 6, 1.0);
  const F64 cosine = polynomial(z, F64{} - 1.0 / 87178291200, 1.0 / 479001600, -1.0 / 3628800, 1.0 / 40320, -1.0 / 720,
                                1.0 / 24, -0.5, 1.0);
  const I64 turned = to_long((HalfI32)quarter);
  const I64 odd = (turned & 1) != 0;
  const F64 c = odd ? sine : cosine, s = odd ? cosine : sine;
  // the sign bits: negative in quarters 1 and 2, and 2 and 3
  const F64 c_out = radius * (F64)((I64)c ^ ((turned + 1) & 2) << 62),
            s_out = radius * (F64)((I64)s ^ (turned & 2) << 62);
  store(cosine_out, to_float(c_out));
  store(sine_out, to_float(s_out));
}

// The normals of the counters block, block + 1, ...; four to each. The layout is that of fdpo_fast/noise.py.
inline void box_muller(uint64_t seed, uint64_t pair_id, uint32_t visit, uint32_t block, float* out) {
  Lanes words[4];
  for (int i = 0; i < kLanes; ++i) {
    words[0][i] = block + uint32_t(i);
    words[1][i] = visit;
    words[2][i] = uint32_t(pair_id);
    words[3][i] = uint32_t(pair_id >> 32) << 8 | uint32_t(Stream::noise);
  }
  philox(words, uint32_t(seed), uint32_t(seed >> 32));
  float normals[4][kLanes];
  for (int half = 0; half < 4; half += 2)
    for (int i = 0; i < kLanes; i += kDoubles)
      box_muller_from(load<HalfU32>(words[half] + i), load<HalfU32>(words[half + 1] + i), normals[half] + i,
                      normals[half + 1] + i);
  for (int i = 0; i < kLanes; ++i)
    for (int j = 0; j < 4; ++j) out[4 * i + j] = normals[j][i];
}

}  // namespace fdpo::FDPO_ISA
