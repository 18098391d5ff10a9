#include "schedule/loss.h"

#include <algorithm>
#include <cmath>
#include <memory>

#include "schedule/parallel.h"

namespace fdpo {

namespace {

// From the sums over both samples of a pair to its loss, statistics and coefficients of the gradient.
void finish(const Problem& p, int64_t pair, const PairSums& sums, float* losses) {
  const Objective& to = p.objective;
  const double n = double(p.pairs.n), share = p.share();
  float u[2];
  Value h[2];
  for (int side = 0; side < 2; ++side) {
    const int64_t row = p.pairs.row(pair, side);
    const double error = sums.of[side].error / n;
    double ref_error = sums.of[side].ref_error / n, delta = sums.of[side].delta / n;
    if (!p.ref.data) {
      ref_error = p.ref_errors[row];
      delta = error - ref_error;
    }
    u[side] = float(-to.ratio_scale * delta);
    h[side] = link(to.link, u[side]);
    p.stat(Stat::error_w, side, pair) = float(error);
    p.stat(Stat::ref_error_w, side, pair) = float(ref_error);
    p.stat(Stat::log_ratio_w, side, pair) = u[side];
  }
  const double gap = h[0].value - h[1].value;
  const Value out = loss(to.type, gap - to.offset, to.beta);
  const double weight = p.weight ? p.weight[pair] : 1, error_w = sums.of[0].error / n;
  losses[pair] = float(weight * (to.sft_weight != 0 ? out.value + to.sft_weight * error_w : out.value));
  p.stat(Stat::margin, 0, pair) = float(to.beta * gap);
  p.stat(Stat::clipped, 0, pair) = float(past(to.link, u[0]) + past(to.link, u[1]));
  const std::optional<double> undo = to.may_undo;
  const double product = sums.product / n, own = weight * to.sft_weight / to.ratio_scale;
  const double scale[2] = {1, undo && *undo > 0 ? loser_scale(*undo, weight * out.slope, own, h, error_w, product) : 1};
  p.stat(Stat::loser_scale, 0, pair) = float(undo == 0 ? product : scale[1]);
  for (int side = 0; side < 2; ++side) {
    const double inner = (side ? 1 : -1) * h[side].slope * to.ratio_scale * 2 / n;
    double coefficient = share * weight * out.slope * inner * scale[side];
    if (side == 0 && to.sft_weight != 0) coefficient += share * weight * to.sft_weight * 2 / n;
    p.stat(Stat::coefficient_w, side, pair) = float(coefficient);
  }
}

Rows dense(const float* data) {
  Rows rows;
  rows.data = const_cast<float*>(data);
  rows.sizes[2] = INT64_MAX;
  return rows;
}

// The targets of both samples of a pair.
struct Sides {
  Rows of[2];
};

// Where they are, or will be: the samples' n floats lie one after the other in `room`.
Sides sides(const Target& target, float* room, int64_t n) {
  if (!target.draws.words) return {{target.data, target.data}};
  return {{dense(room), dense(room + (target.rows() - 1) * n)}};
}

// Forms elements [first, first + count) of those that are drawn.
void form_target(const Kernels& kernels, const Target& target, const Pairs& pairs, int64_t pair, int64_t first,
                 int64_t count, const Sides& to) {
  const Draws& draws = target.draws;
  if (!draws.words) return;
  float room[kChunk];
  float* noise = target.data.data ? room : static_cast<float*>(to.of[0].data) + first;
  kernels.normals(draws.seed(pair), draws.id(pair), draws.visit(pair), first, count, noise);
  if (!target.data.data) return;
  for (int side = 0; side < 2; ++side)
    kernels.mix(target.data, dense(noise - first), to.of[side], target.on[pairs.pairs + pair], target.on[pair],
                pairs.row(pair, side), first, count);
}

void add(PairSums& to, const PairSums& piece) {
  for (int side = 0; side < 2; ++side) {
    const Sums &a = to.of[side], &b = piece.of[side];
    to.of[side] = {a.delta + b.delta, a.error + b.error, a.ref_error + b.ref_error};
  }
  to.product += piece.product;
}

PairSums sums_of(const Kernels& kernels, const Problem& p, const Sides& target, int64_t pair, int64_t first,
                 int64_t count) {
  const int64_t row[2] = {p.pairs.row(pair, 0), p.pairs.row(pair, 1)};
  if (p.objective.may_undo) return kernels.pair_sums(p.pred, p.ref, target.of, row, first, count);
  PairSums sums;
  for (int side = 0; side < 2; ++side) {
    if (p.ref.data) sums.of[side] = kernels.sums(p.pred, p.ref, target.of[side], row[side], first, count);
    else sums.of[side].error = kernels.error(p.pred, target.of[side], row[side], first, count);
  }
  return sums;
}

// A gradient of this size will not be in the cache of the core that reads it next.
bool past_cache(const Pairs& pairs) { return 2 * pairs.pairs * pairs.n * int64_t{sizeof(float)} >= int64_t{1} << 21; }

void form_gradient(const Kernels& kernels, const Problem& p, const Sides& target, int64_t pair, int64_t first,
                   int64_t count) {
  for (int side = 0; side < 2; ++side) {
    const int64_t row = p.pairs.row(pair, side);
    kernels.gradient(p.pred, target.of[side], p.grad, p.upstream * p.stat(Stat::coefficient_w, side, pair),
                     past_cache(p.pairs), row, first, count);
  }
}

// Room for the targets of one pair; kept by its thread, since a fresh one costs page faults.
float* own_room(int64_t floats) {
  thread_local std::unique_ptr<float[]> room;
  thread_local int64_t size = 0;
  if (size < floats) room.reset(new float[floats]), size = floats;
  return room.get();
}

// Threads that have enough to do to be worth waking.
int worth(int threads, const Pairs& pairs) {
  constexpr int64_t kElements = 1 << 16;
  return int(std::clamp<int64_t>(2 * pairs.pairs * pairs.n / kElements, 1, threads));
}

// Errors, losses and gradients of every pair.
void all_pairs(const Kernels& kernels, const Problem& p, float* losses, int threads) {
  const int64_t pairs = p.pairs.pairs, n = p.pairs.n, chunks = (n + kChunk - 1) / kChunk;
  auto length = [=](int64_t chunk) { return std::min(kChunk, n - chunk * kChunk); };

  // As many whole pairs as give every thread the same number: a pair's gradient is formed while its p and t are still
  // in the cache of the core that read them.
  const int64_t whole = pairs / threads * threads;
  parallel_for(whole, threads, [&](int64_t pair) {
    const Sides target = sides(p.target, own_room(p.target.rows() * n), n);
    PairSums sums;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const int64_t first = chunk * kChunk;
      form_target(kernels, p.target, p.pairs, pair, first, length(chunk), target);
      add(sums, sums_of(kernels, p, target, pair, first, length(chunk)));
    }
    finish(p, pair, sums, losses);
    if (!p.grad.data) return;
    for (int64_t chunk = 0; chunk < chunks; ++chunk)
      form_gradient(kernels, p, target, pair, chunk * kChunk, length(chunk));
  });

  // The other pairs are shared out chunk by chunk; the sums are added in the same order.
  const int64_t rest = pairs - whole, pieces = rest * chunks;
  if (rest == 0) return;
  std::unique_ptr<PairSums[]> sums(new PairSums[pieces]);
  const int64_t room_of_pair = p.target.rows() * n;
  std::unique_ptr<float[]> room(new float[rest * room_of_pair]);
  auto target_of = [&](int64_t i) { return sides(p.target, room.get() + i * room_of_pair, n); };
  auto shared = [&](const auto& work) {
    const int64_t shares = std::min<int64_t>(threads, pieces);
    parallel_for(shares, threads, [&](int64_t share) {
      for (int64_t piece = pieces * share / shares; piece < pieces * (share + 1) / shares; ++piece)
        work(piece, piece / chunks, piece % chunks);
    });
  };
  shared([&](int64_t piece, int64_t i, int64_t chunk) {
    const int64_t first = chunk * kChunk;
    const Sides target = target_of(i);
    form_target(kernels, p.target, p.pairs, whole + i, first, length(chunk), target);
    sums[piece] = sums_of(kernels, p, target, whole + i, first, length(chunk));
  });
  for (int64_t i = 0; i < rest; ++i) {
    PairSums all;
    for (int64_t piece = i * chunks; piece < (i + 1) * chunks; ++piece) add(all, sums[piece]);
    finish(p, whole + i, all, losses);
  }
  if (!p.grad.data) return;
  shared([&](int64_t, int64_t i, int64_t chunk) {
    form_gradient(kernels, p, target_of(i), whole + i, chunk * kChunk, length(chunk));
  });
}

// body(pair, first, count) over all elements of all pairs, some chunks at a time.
template <class Body>
void each_chunk(const Pairs& pairs, int threads, const Body& body) {
  const int64_t chunks = (pairs.n + kChunk - 1) / kChunk;
  parallel_for(pairs.pairs * chunks, worth(threads, pairs), [&](int64_t piece) {
    const int64_t first = piece % chunks * kChunk;
    body(piece / chunks, first, std::min(kChunk, pairs.n - first));
  });
}

// By the first word of the stream of timesteps: uniform by a product's high half, else looked up in the density.
int64_t timestep(const Kernels& kernels, const Draws& draws, int64_t pair, const Process& process) {
  const uint64_t id = draws.id(pair);
  uint32_t words[4][16] = {};
  words[1][0] = draws.visit(pair);
  words[2][0] = uint32_t(id);
  words[3][0] = uint32_t(id >> 32) << 8 | uint32_t(Stream::timestep);
  kernels.philox(words[0], uint32_t(draws.seed(pair)), uint32_t(draws.seed(pair) >> 32));
  const uint32_t word = words[0][0];
  if (!process.density) return int64_t(uint64_t(word) * uint64_t(process.timesteps) >> 32);
  return std::upper_bound(process.density, process.density + process.timesteps, int64_t(word)) - process.density;
}

}  // namespace

void loss_forward(const Kernels& kernels, const Problem& p, int threads) {
  const int64_t pairs = p.pairs.pairs;
  const bool reduce = p.objective.reduce;
  std::unique_ptr<float[]> room(reduce ? new float[pairs] : nullptr);
  float* losses = reduce ? room.get() : p.loss;
  all_pairs(kernels, p, losses, worth(threads, p.pairs));
  double total = 0, right = 0;
  for (int64_t pair = 0; pair < pairs; ++pair) {
    const float margin = p.stat(Stat::margin, 0, pair);
    total += losses[pair];
    right += margin > 0 ? 1 : margin == 0 ? 0.5 : 0;
  }
  if (reduce) *p.loss = float(p.share() * total);
  p.stats[std::size(kStats) * size_t(pairs)] = float(right / double(std::max<int64_t>(pairs, 1)));
}

void loss_backward(const Kernels& kernels, const Pairs& pairs, const Rows& pred, const Target& target,
                   const float* coefficients, const float* grad_loss, int64_t grad_loss_stride, const Rows& grad,
                   int threads) {
  each_chunk(pairs, threads, [&](int64_t pair, int64_t first, int64_t count) {
    float room[2 * kChunk];
    const Sides formed = sides(target, room - first, kChunk);
    form_target(kernels, target, pairs, pair, first, count, formed);
    for (int side = 0; side < 2; ++side) {
      const int64_t row = pairs.row(pair, side);
      const float coefficient = grad_loss[pair * grad_loss_stride] * coefficients[side * pairs.pairs + pair];
      kernels.gradient(pred, formed.of[side], grad, coefficient, past_cache(pairs), row, first, count);
    }
  });
}

void add_noise(const Kernels& kernels, const Pairs& pairs, const Draws& draws, const Rows& x, const Process& process,
               const Rows& out, int64_t* drawn, int threads) {
  for (int64_t pair = 0; pair < pairs.pairs; ++pair) drawn[pair] = timestep(kernels, draws, pair, process);
  each_chunk(pairs, threads, [&](int64_t pair, int64_t first, int64_t count) {
    float noise[kChunk];
    kernels.normals(draws.seed(pair), draws.id(pair), draws.visit(pair), first, count, noise);
    const int64_t t = drawn[pair];
    for (int side = 0; side < 2; ++side)
      kernels.mix(x, dense(noise - first), out, process.signal[t], process.sigma[t], pairs.row(pair, side), first,
                  count);
  });
}

void normals(const Kernels& kernels, const Draws& draws, int64_t rows, int64_t count, float* out, int threads) {
  each_chunk(Pairs{rows, count, false}, threads, [&](int64_t row, int64_t first, int64_t size) {
    kernels.normals(draws.seed(row), draws.id(row), draws.visit(row), first, size, out + row * count + first);
  });
}

}  // namespace fdpo
