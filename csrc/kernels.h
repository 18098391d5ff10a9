// What the loops over elements share with the code that schedules them. The loops are compiled once per instruction
// set and give the same bits on each: no contraction, the same lanes, the same order of sums.
#pragma once

#include <cstdint>
#include <span>

#include "constants.h"

namespace fdpo {

// How rows of n elements each lie in memory: `strides` apart over `sizes` (outer to inner) within a row.
struct Layout {
  Dtype dtype = Dtype::float32;
  int64_t row_stride = 0;
  int64_t sizes[3] = {1, 1, 1}, strides[3] = {0, 0, 1};

  bool dense() const { return sizes[0] == 1 && sizes[1] == 1 && strides[2] == 1; }
};

struct Rows : Layout {
  void* data = nullptr;
};

// What the noise of each pair is a function of: seeds, pair ids and visits, [3, pairs]; see fdpo_fast/noise.py.
struct Draws {
  const int64_t* words = nullptr;
  int64_t pairs = 0;

  uint64_t seed(int64_t pair) const { return uint64_t(words[pair]); }
  uint64_t id(int64_t pair) const { return uint64_t(words[pairs + pair]); }
  uint32_t visit(int64_t pair) const { return uint32_t(words[2 * pairs + pair]); }
};

// B pairs of samples of n elements. Rows are [w...; l...], or w, l, w, l, ... when interleaved.
struct Pairs {
  int64_t pairs, n;
  bool interleaved;

  int64_t row(int64_t pair, int side) const { return interleaved ? 2 * pair + side : side * pairs + pair; }
};

constexpr int64_t kChunk = 4096;  // elements of both samples of a pair that are one piece of work
struct Sums {
  double delta = 0, error = 0, ref_error = 0;
};
// Those of both samples of a pair, and of the products of the two misses, pred - target.
struct PairSums {
  Sums of[2];
  double product = 0;
};

struct Maps;
struct Parameter;

// The loops over elements [first, first + count) of one row.
struct Kernels {
  const char* name;
  bool (*supported)();
  Sums (*sums)(const Rows& pred, const Rows& ref, const Rows& target, int64_t row, int64_t first, int64_t count);
  double (*error)(const Rows& pred, const Rows& target, int64_t row, int64_t first, int64_t count);
  // What these two give for each of two rows, the same bits, and the product in the same pass; no ref.data: error's.
  PairSums (*pair_sums)(const Rows& pred, const Rows& ref, const Rows* target, const int64_t* row, int64_t first,
                        int64_t count);
  // grad = coefficient * (pred - target); past the cache, if whoever reads it next would not find it there anyway
  void (*gradient)(const Rows& pred, const Rows& target, const Rows& grad, float coefficient, bool past_cache,
                   int64_t row, int64_t first, int64_t count);
  // out = signal * x + sigma * noise
  void (*mix)(const Rows& x, const Rows& noise, const Rows& out, float signal, float sigma, int64_t row, int64_t first,
              int64_t count);
  // Philox4x32-10 of 16 counters in place, word by word: words[4][16].
  void (*philox)(uint32_t* words, uint32_t k0, uint32_t k1);
  // Noise of (seed, pair_id, visit) into out[0 .. count); `first` is a multiple of 4.
  void (*normals)(uint64_t seed, uint64_t pair_id, uint32_t visit, int64_t first, int64_t count, float* out);
  // A step of the optimizer on blocks [first, end) of a parameter.
  void (*step_blocks)(const Maps& maps, const Parameter& parameter, int64_t first, int64_t end);
};

// Those compiled in, the widest first, the portable one last.
std::span<const Kernels* const> all_kernels();

}  // namespace fdpo
