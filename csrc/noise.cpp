#include "noise.h"

#include <cmath>
#include <numbers>

#include "parallel.h"
#include "philox.h"

namespace fdpo {

namespace {

constexpr uint32_t kNoiseStream = 0;
constexpr double kUnit = 0x1p-32;

// Box-Muller in double, rounded once by the caller's store.
inline void box_muller(uint32_t x, uint32_t y, float* out) {
  const double radius = std::sqrt(-2.0 * std::log((double(x) + 1.0) * kUnit));
  const double angle = double(y) * (2.0 * std::numbers::pi * kUnit);
  out[0] = float(radius * std::cos(angle));
  out[1] = float(radius * std::sin(angle));
}

}  // namespace

void normals(uint64_t seed, const int64_t* pair_ids, const int64_t* visits, int64_t rows, int64_t count, float* out,
             int threads) {
  const int64_t blocks = (count + 3) / 4;
  parallel_for(rows * blocks, 4096, threads, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i / blocks, block = i % blocks;
      const uint64_t id = uint64_t(pair_ids[row]);
      const Words words = philox({uint32_t(block), uint32_t(visits[row]), uint32_t(id),
                                  uint32_t(id >> 32) << 8 | kNoiseStream},
                                 uint32_t(seed), uint32_t(seed >> 32));
      float four[4];
      box_muller(words[0], words[1], four);
      box_muller(words[2], words[3], four + 2);
      std::copy_n(four, std::min<int64_t>(4, count - 4 * block), out + row * count + 4 * block);
    }
  });
}

}  // namespace fdpo
