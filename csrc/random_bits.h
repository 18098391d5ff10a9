// The random bits of stochastic rounding. Included by code that is compiled for several instruction sets, hence static.
#pragma once

#include "adamw8bit.h"
#include "philox.h"

namespace fdpo {

// 16 random bits for each element: the half-words of the stream that fdpo_fast/optim/eager.py describes.
static inline void random_bits(const Parameter& parameter, int64_t first, uint16_t (&bits)[kBlock]) {
  constexpr int kOfCounter = 8;
  // The counters lie in the lanes such that interleaving two registers of words leaves them in order.
  static constexpr int64_t kLane[] = {0, 4, 1, 5, 2, 6, 3, 7}, kLane4[] = {0, 2, 1, 3}, kLane2[] = {0, 1};
  const I64 lanes = load<I64>(kDoubles == 8 ? kLane : kDoubles == 4 ? kLane4 : kLane2);
  uint64_t counter = (parameter.first + uint64_t(first)) / kOfCounter;
  constexpr int64_t kSize = kOfCounter * kDoubles;
  for (int64_t at = 0; at < kBlock; at += 2 * kSize) {
    U64 words[2][4];  // side by side: a round waits for the one before
    for (int k = 0; k < 2; ++k, counter += kDoubles) {
      words[k][0] = (U64)lanes + counter;
      words[k][1] = U64{} + parameter.step;
      words[k][2] = U64{} + (parameter.index & 0xFFFFFFFF);
      words[k][3] = U64{} + (parameter.index >> 32 << 8 | parameter.stream);
    }
    philox<2>(words, uint32_t(parameter.seed), uint32_t(parameter.seed >> 32));
    for (int k = 0; k < 2; ++k) {
      const U64 half = (words[k][0] & 0xFFFFFFFF) | words[k][1] << 32;
      const U64 other = (words[k][2] & 0xFFFFFFFF) | words[k][3] << 32;
      store(bits + at + k * kSize, interleave_low(half, other));
      store(bits + at + k * kSize + kSize / 2, interleave_high(half, other));
    }
  }
}

}  // namespace fdpo
