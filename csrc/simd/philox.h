// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), a register of counters at
// once.
#pragma once

#include <cstdint>

#include "simd/convert.h"

namespace fdpo::FDPO_ISA {

// The lower halves' product; what the upper halves hold does not matter.
inline U64 multiply_halves(U64 a, uint32_t b) {
#if defined(__AVX512F__)
  return (U64)_mm512_mul_epu32((__m512i)a, _mm512_set1_epi64(b));
#elif defined(__AVX2__)
  return (U64)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x(b));
#elif defined(__SSE2__)
  return (U64)_mm_mul_epu32((__m128i)a, _mm_set1_epi64x(b));
#else
  return (a & 0xFFFFFFFF) * b;
#endif
}

// Words in the lower halves, of `count` registers of counters; the upper halves are left with anything.
template <int count>
inline void philox(U64 (&c)[count][4], uint32_t k0, uint32_t k1) {
  for (int round = 0; round < 10; ++round) {
    for (auto& w : c) {
      const U64 p0 = multiply_halves(w[0], 0xD2511F53u), p1 = multiply_halves(w[2], 0xCD9E8D57u);
      w[0] = (p1 >> 32) ^ w[1] ^ uint64_t { k0 };
      w[1] = p1;
      w[2] = (p0 >> 32) ^ w[3] ^ uint64_t { k1 };
      w[3] = p0;
    }
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
}

constexpr int kLanes = 16;
using Lanes = uint32_t[kLanes];

inline void philox(Lanes c[4], uint32_t k0, uint32_t k1) {
  for (int i = 0; i < kLanes; i += kDoubles) {
    U64 words[1][4];
    for (int j = 0; j < 4; ++j) words[0][j] = to_long(load<HalfU32>(c[j] + i));
    philox(words, k0, k1);
    for (int j = 0; j < 4; ++j) store(c[j] + i, lower(words[0][j]));
  }
}

}  // namespace fdpo::FDPO_ISA
