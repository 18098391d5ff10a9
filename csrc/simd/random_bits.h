// The random bits of stochastic rounding.
#pragma once

#include "constants.h"
#include "simd/philox.h"

namespace fdpo::FDPO_ISA {

// 16 random bits for each of `count` elements from `first` on, a multiple of 8: the half-words of the stream of a
// parameter's index at a step that fdpo_fast/optim/eager.py describes. In memory they are its bytes, in order, for
// twice as many elements.
template <int64_t count>
inline void random_bits(uint64_t seed, uint64_t index, uint32_t step, uint64_t first, uint16_t (&bits)[count]) {
  constexpr int kOfCounter = 8;
  // The counters lie in the lanes such that interleaving two registers of words leaves them in order.
  static constexpr int64_t kLane[] = {0, 4, 1, 5, 2, 6, 3, 7}, kLane4[] = {0, 2, 1, 3}, kLane2[] = {0, 1};
  const I64 lanes = load<I64>(kDoubles == 8 ? kLane : kDoubles == 4 ? kLane4 : kLane2);
  uint64_t counter = first / kOfCounter;
  constexpr int64_t kSize = kOfCounter * kDoubles;
  for (int64_t at = 0; at < count; at += 2 * kSize) {
    U64 words[2][4];  // side by side: a round waits for the one before
    for (int k = 0; k < 2; ++k, counter += kDoubles) {
      words[k][0] = (U64)lanes + counter;
      words[k][1] = U64{} + step;
      words[k][2] = U64{} + (index & 0xFFFFFFFF);
      words[k][3] = U64{} + (index >> 32 << 8 | uint64_t(Stream::rounding));
    }
    philox<2>(words, uint32_t(seed), uint32_t(seed >> 32));
    for (int k = 0; k < 2; ++k) {
      const U64 half = (words[k][0] & 0xFFFFFFFF) | words[k][1] << 32;
      const U64 other = (words[k][2] & 0xFFFFFFFF) | words[k][3] << 32;
      store(bits + at + k * kSize, interleave_low(half, other));
      store(bits + at + k * kSize + kSize / 2, interleave_high(half, other));
    }
  }
}

}  // namespace fdpo::FDPO_ISA
