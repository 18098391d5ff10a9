// The loops of the loss: sums over the elements of a sample, and its gradient.
#include "loops/loops.h"
#include "loops/rows.h"

namespace fdpo::FDPO_ISA {
namespace {

constexpr int64_t kRun = 128;  // elements whose sums stay in float lanes, eight to a lane

// The sums of a run, in the lanes of one register.
struct Run {
  F32 delta{}, error{}, ref_error{};

  // Adds elements, and returns how far p misses t.
  F32 add(F32 p, F32 r, F32 t) {
    const F32 miss = p - t, ref_miss = r - t;
    delta = multiply_add(p - r, miss + ref_miss, delta);
    error = multiply_add(miss, miss, error);
    ref_error = multiply_add(ref_miss, ref_miss, ref_error);
    return miss;
  }
};

struct Lanes3 {
  Totals delta, error, ref_error;

  void add(int k, const Run& run) {
    delta.add(k, run.delta);
    error.add(k, run.error);
    ref_error.add(k, run.ref_error);
  }

  template <class From>
  void add(From p, From r, From t, int64_t size) {
    for (int64_t first = 0; first < size; first += kRun) {
      Run runs[kParts];
      for (int64_t i = first; i < smaller(first + kRun, size); i += kWidth) {
        for (int k = 0; k < kParts; ++k) {
          const int64_t j = i + k * kFloats;
          runs[k].add(p.at(j), r.at(j), t.at(j));
        }
      }
      for (int k = 0; k < kParts; ++k) add(k, runs[k]);
    }
  }

  Sums sum() const { return {delta.sum(), error.sum(), ref_error.sum()}; }
};

// Both samples of a pair. A register's lanes at a time, since the sums of all of them would not fit the registers.
struct Pair {
  Lanes3 of[2];
  Totals product;

  template <class From>
  void add(const From (&p)[2], const From (&r)[2], const From (&t)[2], int64_t size) {
    for (int64_t first = 0; first < size; first += kRun) {
      for (int k = 0; k < kParts; ++k) {
        Run runs[2];
        F32 products{};
        for (int64_t j = first + k * kFloats; j < smaller(first + kRun, size); j += kWidth) {
          const F32 miss = runs[0].add(p[0].at(j), r[0].at(j), t[0].at(j));
          products = multiply_add(miss, runs[1].add(p[1].at(j), r[1].at(j), t[1].at(j)), products);
        }
        for (int side = 0; side < 2; ++side) of[side].add(k, runs[side]);
        product.add(k, products);
      }
    }
  }

  // Without a reference, where every sum is in double.
  template <class From>
  void add(const From (&p)[2], const From (&t)[2], int64_t size) {
    for (int k = 0; k < kParts; ++k) {
      for (int64_t j = k * kFloats; j < size; j += kWidth) {
        const F32 miss[2] = {p[0].at(j) - t[0].at(j), p[1].at(j) - t[1].at(j)};
        for (int side = 0; side < 2; ++side) of[side].error.add(k, miss[side] * miss[side]);
        product.add(k, miss[0] * miss[1]);
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
  return lanes.sum();
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

PairSums pair_sums(const Rows& pred, const Rows& ref, const Rows* target, const int64_t* row, int64_t first,
                   int64_t count) {
  Pair pair;
  Tile p[2], r[2], t[2];
  each_tile(count, [&](int64_t at, int64_t size) {
    const int64_t from = first + at;
    const auto add = [&](const auto& of) {
      const auto of_p = of(pred, row[0], p[0]), of_p_l = of(pred, row[1], p[1]);
      const auto of_t = of(target[0], row[0], t[0]), of_t_l = of(target[1], row[1], t[1]);
      if (!ref.data) return pair.add({of_p, of_p_l}, {of_t, of_t_l}, size);
      pair.add({of_p, of_p_l}, {of(ref, row[0], r[0]), of(ref, row[1], r[1])}, {of_t, of_t_l}, size);
    };
    if (straight(pred, size) && (!ref.data || straight(ref, size)) && straight(target[0], size) &&
        straight(target[1], size))
      add([&](const Rows& rows, int64_t of_row, Tile&) { return halves(rows, of_row, from); });
    else
      add([&](const Rows& rows, int64_t of_row, Tile& buffer) {
        return Floats{read(rows, of_row, from, size, buffer)};
      });
  });
  return {{pair.of[0].sum(), pair.of[1].sum()}, pair.product.sum()};
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
