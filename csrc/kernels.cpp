// The loops over elements. Compiled once per instruction set, with FDPO_ISA its name; everything here is static, so
// that no code of a wider set can be picked by the linker for a narrower one.
#include "kernels.h"

#include "box_muller.h"
#include "half.h"
#include "isa.h"
#include "lanes.h"

namespace fdpo {
namespace {

constexpr int64_t kTile = 512;  // elements; the float copies of a tile stay in the first-level cache
using Tile = float[kTile];

int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t padded(int64_t count) { return (count + kWidth - 1) / kWidth * kWidth; }

// Visits the addresses of elements [first, first + count) of a row, relative to its start.
template <class Visit>
inline void each_offset(const Rows& rows, int64_t first, int64_t count, Visit visit) {
  int64_t k = first % rows.sizes[2], j = first / rows.sizes[2] % rows.sizes[1], i = first / rows.sizes[2] / rows.sizes[1];
  for (int64_t at = 0; at < count; ++at) {
    visit(at, i * rows.strides[0] + j * rows.strides[1] + k * rows.strides[2]);
    if (++k == rows.sizes[2]) {
      k = 0;
      if (++j == rows.sizes[1]) j = 0, ++i;
    }
  }
}

// The elements as floats: where they lie if they can be read from there, else in `buffer`, zeros up to a full vector.
const float* read(const Rows& rows, int64_t row, int64_t first, int64_t count, Tile& buffer) {
  const int64_t start = row * rows.row_stride;
  const auto* floats = static_cast<const float*>(rows.data) + start;
  const auto* halves = static_cast<const uint16_t*>(rows.data) + start;
  const bool single = rows.dtype == Dtype::float32;
  if (rows.dense() && single && count % kWidth == 0) return floats + first;
  uint16_t gathered[kTile];
  if (!rows.dense()) {
    if (single)
      each_offset(rows, first, count, [&](int64_t at, int64_t offset) { buffer[at] = floats[offset]; });
    else
      each_offset(rows, first, count, [&](int64_t at, int64_t offset) { gathered[at] = halves[offset]; });
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
float* place(const Rows& rows, int64_t row, int64_t first, int64_t count, Tile& buffer) {
  const bool direct = rows.dense() && rows.dtype == Dtype::float32 && count % kWidth == 0;
  return direct ? static_cast<float*>(rows.data) + row * rows.row_stride + first : buffer;
}

void write(const Rows& rows, int64_t row, int64_t first, int64_t count, const float* values, const Tile& buffer) {
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
constexpr int64_t kRun = 128;  // elements whose sums stay in float lanes, eight to a lane

bool straight(const Rows& rows, int64_t size) {
  return rows.dense() && rows.dtype == Dtype::bfloat16 && size % kWidth == 0;
}

Halves halves(const Rows& rows, int64_t row, int64_t first) {
  return {static_cast<const uint16_t*>(rows.data) + row * rows.row_stride + first};
}

struct Lanes3 {
  Totals delta, error, ref_error;

  template <class From>
  void add(From p, From r, From t, int64_t size) {
    for (int64_t run = 0; run < size; run += kRun) {
      F32 delta_lanes[kParts]{}, error_lanes[kParts]{}, ref_lanes[kParts]{};
      for (int64_t i = run; i < smaller(run + kRun, size); i += kWidth) {
        for (int k = 0; k < kParts; ++k) {
          const int64_t j = i + k * kFloats;
          const F32 pj = p.at(j), rj = r.at(j), tj = t.at(j), miss = pj - tj, ref_miss = rj - tj;
          delta_lanes[k] += (pj - rj) * (miss + ref_miss);
          error_lanes[k] += miss * miss;
          ref_lanes[k] += ref_miss * ref_miss;
        }
      }
      for (int k = 0; k < kParts; ++k) {
        delta.add(k, delta_lanes[k]);
        error.add(k, error_lanes[k]);
        ref_error.add(k, ref_lanes[k]);
      }
    }
  }
};

// use(at, size) for each tile of `count` elements.
template <class Use>
inline void each_tile(int64_t count, Use use) {
  for (int64_t at = 0; at < count; at += kTile) use(at, smaller(kTile, count - at));
}

Sums sums(const Rows& pred, const Rows& ref, const Rows& target, int64_t row, int64_t first, int64_t count) {
  Lanes3 lanes;
  Tile p, r, t;
  each_tile(count, [&](int64_t at, int64_t size) {
    const int64_t from = first + at;
    if (straight(pred, size) && straight(ref, size) && straight(target, size))
      lanes.add(halves(pred, row, from), halves(ref, row, from), halves(target, row, from), size);
    else
      lanes.add(Floats{read(pred, row, from, size, p)}, Floats{read(ref, row, from, size, r)},
                Floats{read(target, row, from, size, t)}, size);
  });
  return {lanes.delta.sum(), lanes.error.sum(), lanes.ref_error.sum()};
}

template <class From>
inline void add_squares(Totals& error, From p, From t, int64_t size) {
  for (int64_t i = 0; i < size; i += kWidth) {
    for (int k = 0; k < kParts; ++k) {
      const F32 miss = p.at(i + k * kFloats) - t.at(i + k * kFloats);
      error.add(k, miss * miss);  // a stored error will be subtracted: every sum is in double
    }
  }
}

double error(const Rows& pred, const Rows& target, int64_t row, int64_t first, int64_t count) {
  Totals error;
  Tile p, t;
  each_tile(count, [&](int64_t at, int64_t size) {
    const int64_t from = first + at;
    if (straight(pred, size) && straight(target, size))
      add_squares(error, halves(pred, row, from), halves(target, row, from), size);
    else
      add_squares(error, Floats{read(pred, row, from, size, p)}, Floats{read(target, row, from, size, t)}, size);
  });
  return error.sum();
}

void gradient(const Rows& pred, const Rows& target, const Rows& grad, float coefficient, bool past_cache, int64_t row,
              int64_t first, int64_t count) {
  Tile p_buffer, t_buffer, out_buffer;
  each_tile(count, [&](int64_t at, int64_t size) {
    const int64_t from = first + at;
    if (straight(pred, size) && straight(target, size) && straight(grad, size)) {
      const Halves p = halves(pred, row, from), t = halves(target, row, from);
      auto* out = const_cast<uint16_t*>(halves(grad, row, from).data);
      for (int64_t i = 0; i < size; i += kFloats) store(out + i, to_bfloat16(coefficient * (p.at(i) - t.at(i))));
      return;
    }
    const Floats p{read(pred, row, from, size, p_buffer)}, t{read(target, row, from, size, t_buffer)};
    float* out = place(grad, row, from, size, out_buffer);
    auto value = [=](int64_t i) { return coefficient * (p.at(i) - t.at(i)); };
    if (past_cache && out != out_buffer && reinterpret_cast<uintptr_t>(out) % kRegister == 0)
      for (int64_t i = 0; i < size; i += kFloats) stream(out + i, value(i));
    else
      for (int64_t i = 0; i < padded(size); i += kFloats) store(out + i, value(i));
    write(grad, row, from, size, out, out_buffer);
  });
  if (past_cache) streamed();
}

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

bool supported() {
#if defined(__x86_64__) && defined(FDPO_ARCH)
  return __builtin_cpu_supports(FDPO_ARCH);
#else
  return true;
#endif
}

}  // namespace

extern const Kernels FDPO_KERNELS;
const Kernels FDPO_KERNELS = {FDPO_STRING(FDPO_ISA), supported, sums,         error,   gradient,
                              mix,                   philox_words, normals, FDPO_STEP_BLOCKS};

}  // namespace fdpo
