// The preference loss of B pairs on the host; what fdpo_fast/loss/eager.py says in torch.
#pragma once

#include "kernels.h"
#include "schedule/objective.h"

namespace fdpo {

// on[pair] * noise of its draw + on[B + pair] * data; without draws the data, and without data the noise.
struct Target {
  Rows data;
  Draws draws;
  const float* on;  // [2, B]

  // Rows of floats that a pair's target needs room for.
  int64_t rows() const { return !draws.words ? 0 : data.data ? 2 : 1; }
};

struct Problem {
  Pairs pairs;
  Rows pred, ref, grad;      // no ref.data: ref_errors; no grad.data: no gradient wanted
  const double* ref_errors;  // [2B]
  Target target;
  const float* weight;  // [B], or nullptr for ones
  const Objective& objective;
  float upstream;  // of each loss, in grad
  float* loss;     // [B], weighted; or, reduced, their sum times the share of a pair
  float* stats;    // [11, B], rows of Stat, then the share of positive margins, a tie counting one half

  // Of a pair in the loss.
  double share() const { return objective.mean ? 1 / double(pairs.pairs > 0 ? pairs.pairs : 1) : 1; }

  // Of the preferred sample (side 0) the row that is named, of the dispreferred one (side 1) the next.
  float& stat(Stat row, int side, int64_t pair) const { return stats[(int(row) + side) * pairs.pairs + pair]; }
};

void loss_forward(const Kernels& kernels, const Problem& problem, int threads);

// grad = grad_loss[pair * grad_loss_stride] * coefficients[side, pair] * (pred - target)
void loss_backward(const Kernels& kernels, const Pairs& pairs, const Rows& pred, const Target& target,
                   const float* coefficients, const float* grad_loss, int64_t grad_loss_stride, const Rows& grad,
                   int threads);

// What timesteps do to latents, each table [T]; density: of the 2^32 words, how many give at most this timestep, or
// nullptr for as many each.
struct Process {
  const float *signal, *sigma;
  const int64_t* density;
  int64_t timesteps;
};

// drawn[pair] = timestep of its draw t; out[row] = signal[t] * x[row] + sigma[t] * noise, for both rows of the pair
void add_noise(const Kernels& kernels, const Pairs& pairs, const Draws& draws, const Rows& x, const Process& process,
               const Rows& out, int64_t* drawn, int threads);

// out[row * count + i] = element i of the noise of draw `row`
void normals(const Kernels& kernels, const Draws& draws, int64_t rows, int64_t count, float* out, int threads);

}  // namespace fdpo
