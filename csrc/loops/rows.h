// Elements of rows as floats, a tile at a time.
#pragma once

#include "kernels.h"
#include "simd/convert.h"
#include "simd/half.h"

namespace fdpo::FDPO_ISA {

constexpr int64_t kTile = 512;  // elements; the float copies of a tile stay in the first-level cache
using Tile = float[kTile];

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t padded(int64_t count) { return (count + kWidth - 1) / kWidth * kWidth; }

// Visits the addresses of elements [first, first + count) of a row, relative to its start.
template <class Visit>
inline void each_offset(const Rows& rows, int64_t first, int64_t count, Visit visit) {
  int64_t k = first % rows.sizes[2], j = first / rows.sizes[2] % rows.sizes[1],
          i = first / rows.sizes[2] / rows.sizes[1];
  for (int64_t at = 0; at < count; ++at) {
    visit(at, i * rows.strides[0] + j * rows.strides[1] + k * rows.strides[2]);
    if (++k == rows.sizes[2]) {
      k = 0;
      if (++j == rows.sizes[1]) j = 0, ++i;
    }
  }
}

// The elements as floats: where they lie if they can be read from there, else in `buffer`, zeros up to a full vector.
inline const float* read(const Rows& rows, int64_t row, int64_t first, int64_t count, Tile& buffer) {
  const int64_t start = row * rows.row_stride;
  const auto* floats = static_cast<const float*>(rows.data) + start;
  const auto* halves = static_cast<const uint16_t*>(rows.data) + start;
  const bool single = rows.dtype == Dtype::float32;
  if (rows.dense() && single && count % kWidth == 0) return floats + first;
  uint16_t gathered[kTile];
  if (!rows.dense()) {
    if (single) each_offset(rows, first, count, [&](int64_t at, int64_t offset) { buffer[at] = floats[offset]; });
    else each_offset(rows, first, count, [&](int64_t at, int64_t offset) { gathered[at] = halves[offset]; });
    halves = gathered;
  } else {
    if (single) widen_all(floats + first, buffer, count);
    halves += first;
  }
  if (rows.dtype == Dtype::bfloat16) widen_all<from_bfloat16>(halves, buffer, count);
  if (rows.dtype == Dtype::float16) widen_all<from_float16>(halves, buffer, count);
  std::memset(buffer + count, 0, (padded(count) - count) * sizeof(float));
  return buffer;
}

// Where results can be formed: in place, or in `buffer` for `write` to round and scatter.
inline float* place(const Rows& rows, int64_t row, int64_t first, int64_t count, Tile& buffer) {
  const bool direct = rows.dense() && rows.dtype == Dtype::float32 && count % kWidth == 0;
  return direct ? static_cast<float*>(rows.data) + row * rows.row_stride + first : buffer;
}

inline void write(const Rows& rows, int64_t row, int64_t first, int64_t count, const float* values,
                  const Tile& buffer) {
  if (values != buffer) return;
  const int64_t start = row * rows.row_stride;
  auto* floats = static_cast<float*>(rows.data) + start;
  auto* halves = static_cast<uint16_t*>(rows.data) + start;
  uint16_t rounded[kTile];
  uint16_t* to = rows.dense() ? halves + first : rounded;
  if (rows.dtype == Dtype::bfloat16) narrow_all<to_bfloat16>(values, to, count);
  if (rows.dtype == Dtype::float16) narrow_all<to_float16>(values, to, count);
  const bool single = rows.dtype == Dtype::float32;
  if (rows.dense() && single) widen_all(values, floats + first, count);
  if (!rows.dense())
    each_offset(rows, first, count, [&](int64_t at, int64_t offset) {
      if (single) floats[offset] = values[at];
      else halves[offset] = rounded[at];
    });
}

constexpr int kParts = kWidth / kFloats;

inline bool straight(const Rows& rows, int64_t size) {
  return rows.dense() && rows.dtype == Dtype::bfloat16 && size % kWidth == 0;
}

inline Halves halves(const Rows& rows, int64_t row, int64_t first) {
  return {static_cast<const uint16_t*>(rows.data) + row * rows.row_stride + first};
}

// use(at, size) for each tile of `count` elements.
template <class Use>
inline void each_tile(int64_t count, Use use) {
  for (int64_t at = 0; at < count; at += kTile) use(at, smaller(kTile, count - at));
}

}  // namespace fdpo::FDPO_ISA
