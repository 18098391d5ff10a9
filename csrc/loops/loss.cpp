// The loops of the loss: sums over the elements of a sample, and its gradient.
#include "loops/loops.h"
#include "loops/rows.h"

namespace fdpo::FDPO_ISA {
namespace {

constexpr int64_t kRun = 128;  // elements whose sums stay in float lanes, eight to a lane

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
          delta_lanes[k] = multiply_add(pj - rj, miss + ref_miss, delta_lanes[k]);
          error_lanes[k] = multiply_add(miss, miss, error_lanes[k]);
          ref_lanes[k] = multiply_add(ref_miss, ref_miss, ref_lanes[k]);
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

}  // namespace

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
void add_squares(Totals& error, From p, From t, int64_t size) {
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
    else add_squares(error, Floats{read(pred, row, from, size, p)}, Floats{read(target, row, from, size, t)}, size);
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

}  // namespace fdpo::FDPO_ISA
