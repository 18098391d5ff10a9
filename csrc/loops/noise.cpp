// The loops of the noise: words, normals, and their mixture with latents.
#include "loops/loops.h"
#include "loops/rows.h"
#include "simd/box_muller.h"

namespace fdpo::FDPO_ISA {

void mix(const Rows& x, const Rows& noise, const Rows& mixed, float signal, float sigma, int64_t row, int64_t first,
         int64_t count) {
  Tile x_buffer, noise_buffer, out_buffer;
  each_tile(count, [&](int64_t at, int64_t size) {
    const float* xs = read(x, row, first + at, size, x_buffer);
    const float* eps = read(noise, row, first + at, size, noise_buffer);
    float* out = place(mixed, row, first + at, size, out_buffer);
    for (int64_t i = 0; i < padded(size); i += kFloats)
      store(out + i, signal * load<F32>(xs + i) + sigma * load<F32>(eps + i));
    write(mixed, row, first + at, size, out, out_buffer);
  });
}

void philox_words(uint32_t* words, uint32_t k0, uint32_t k1) { philox(reinterpret_cast<Lanes*>(words), k0, k1); }

void normals(uint64_t seed, uint64_t pair_id, uint32_t visit, int64_t first, int64_t count, float* out) {
  constexpr int64_t kGroup = 4 * kLanes;
  for (int64_t at = 0; at < count; at += kGroup) {
    float group[kGroup];
    box_muller(seed, pair_id, visit, uint32_t((first + at) / 4), group);
    std::memcpy(out + at, group, smaller(kGroup, count - at) * sizeof(float));
  }
}

}  // namespace fdpo::FDPO_ISA
