// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), `kLanes` counters at once.
// Included by code that is compiled for several instruction sets, hence static.
#pragma once

#include <cstdint>

namespace fdpo {

constexpr int kLanes = 16;
using Lanes = uint32_t[kLanes];

static inline void philox(Lanes c[4], uint32_t k0, uint32_t k1) {
  for (int round = 0; round < 10; ++round) {
    for (int i = 0; i < kLanes; ++i) {
      const uint64_t p0 = uint64_t{0xD2511F53u} * c[0][i];
      const uint64_t p1 = uint64_t{0xCD9E8D57u} * c[2][i];
      c[0][i] = uint32_t(p1 >> 32) ^ c[1][i] ^ k0;
      c[1][i] = uint32_t(p1);
      c[2][i] = uint32_t(p0 >> 32) ^ c[3][i] ^ k1;
      c[3][i] = uint32_t(p0);
    }
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
}

}  // namespace fdpo
