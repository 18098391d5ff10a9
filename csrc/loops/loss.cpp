// The loops of the loss: sums over the elements of a sample, and its gradient.
#include "loops/loops.h"
#include "loops/rows.h"

namespace fdpo::FDPO_ISA {
namespace {

constexpr int64_t kRun = 128;     // elements whose sums stay in float lanes, eight to a lane
constexpr int64_t kPiece = 1024;  // of both samples of a pair in turns: what is kept of one stays in the fastest cache

// What is done with the misses, pred - target: nothing; or they are kept; or multiplied with those that were.
struct Forget {
  static constexpr int64_t kFew = kTile;  // elements between calls of `end`
  void see(int, int64_t, F32) {}
  void end() {}
};

struct Keep {
  float* misses;
  static constexpr int64_t kFew = kTile;
  void see(int, int64_t at, F32 miss) { store(misses + at, miss); }
  void end() {}
};

struct Multiply {
  const float* misses;
  Totals product{};
  F32 lanes[kParts]{};
  static constexpr int64_t kFew = kRun;
  void see(int k, int64_t at, F32 miss) { lanes[k] = multiply_add(miss, load<F32>(misses + at), lanes[k]); }
  void end() {
    for (int k = 0; k < kParts; ++k) {
      product.add(k, lanes[k]);
      lanes[k] = F32{};
    }
  }
};

struct Lanes3 {
  Totals delta, error, ref_error;

  template <class From, class Misses>
  void add(From p, From r, From t, int64_t at, int64_t size, Misses& misses) {
    for (int64_t run = 0; run < size; run += kRun) {
      F32 delta_lanes[kParts]{}, error_lanes[kParts]{}, ref_lanes[kParts]{};
      for (int64_t i = run; i < smaller(run + kRun, size); i += kWidth) {
        for (int k = 0; k < kParts; ++k) {
          const int64_t j = i + k * kFloats;
          const F32 pj = p.at(j), rj = r.at(j), tj = t.at(j), miss = pj - tj, ref_miss = rj - tj;
          delta_lanes[k] = multiply_add(pj - rj, miss + ref_miss, delta_lanes[k]);
          error_lanes[k] = multiply_add(miss, miss, error_lanes[k]);
          ref_lanes[k] = multiply_add(ref_miss, ref_miss, ref_lanes[k]);
          misses.see(k, at + j, miss);
        }
      }
      for (int k = 0; k < kParts; ++k) {
        delta.add(k, delta_lanes[k]);
        error.add(k, error_lanes[k]);
        ref_error.add(k, ref_lanes[k]);
      }
      misses.end();
    }
  }

  Sums sum() const { return {delta.sum(), error.sum(), ref_error.sum()}; }
};

template <class Misses>
void add_sums(Lanes3& lanes, const Rows& pred, const Rows& ref, const Rows& target, int64_t row, int64_t first,
              int64_t count, Misses& misses) {
  Tile p, r, t;
  each_tile(count, [&](int64_t at, int64_t size) {
    const int64_t from = first + at;
    if (straight(pred, size) && straight(ref, size) && straight(target, size))
      lanes.add(halves(pred, row, from), halves(ref, row, from), halves(target, row, from), at, size, misses);
    else
      lanes.add(Floats{read(pred, row, from, size, p)}, Floats{read(ref, row, from, size, r)},
                Floats{read(target, row, from, size, t)}, at, size, misses);
  });
}

template <class From, class Misses>
void add_squares(Totals& error, From p, From t, int64_t at, int64_t size, Misses& misses) {
  for (int64_t few = 0; few < size; few += Misses::kFew) {
    for (int64_t i = few; i < smaller(few + Misses::kFew, size); i += kWidth) {
      for (int k = 0; k < kParts; ++k) {
        const int64_t j = i + k * kFloats;
        const F32 miss = p.at(j) - t.at(j);
        error.add(k, miss * miss);  // a stored error will be subtracted: every sum is in double
        misses.see(k, at + j, miss);
      }
    }
    misses.end();
  }
}

template <class Misses>
void add_errors(Totals& error, const Rows& pred, const Rows& target, int64_t row, int64_t first, int64_t count,
                Misses& misses) {
  Tile p, t;
  each_tile(count, [&](int64_t at, int64_t size) {
    const int64_t from = first + at;
    if (straight(pred, size) && straight(target, size))
      add_squares(error, halves(pred, row, from), halves(target, row, from), at, size, misses);
    else
      add_squares(error, Floats{read(pred, row, from, size, p)}, Floats{read(target, row, from, size, t)}, at, size,
                  misses);
  });
}

}  // namespace

Sums sums(const Rows& pred, const Rows& ref, const Rows& target, int64_t row, int64_t first, int64_t count) {
  Lanes3 lanes;
  Forget misses;
  add_sums(lanes, pred, ref, target, row, first, count, misses);
  return lanes.sum();
}

double error(const Rows& pred, const Rows& target, int64_t row, int64_t first, int64_t count) {
  Totals error;
  Forget misses;
  add_errors(error, pred, target, row, first, count, misses);
  return error.sum();
}

PairSums pair_sums(const Rows& pred, const Rows& ref, const Rows* target, const int64_t* row, int64_t first,
                   int64_t count) {
  alignas(kRegister) float misses[kPiece];
  Lanes3 of[2];
  Keep keep{misses};
  Multiply multiply{misses};
  for (int64_t at = 0; at < count; at += kPiece) {
    const int64_t from = first + at, size = smaller(kPiece, count - at);
    if (ref.data) {
      add_sums(of[0], pred, ref, target[0], row[0], from, size, keep);
      add_sums(of[1], pred, ref, target[1], row[1], from, size, multiply);
    } else {
      add_errors(of[0].error, pred, target[0], row[0], from, size, keep);
      add_errors(of[1].error, pred, target[1], row[1], from, size, multiply);
    }
  }
  return {{of[0].sum(), of[1].sum()}, multiply.product.sum()};
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
