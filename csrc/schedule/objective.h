// What becomes of a pair's sums: the link of a divergence, the loss, and how far the dispreferred sample may go.
#pragma once

#include <algorithm>
#include <cmath>
#include <optional>

#include "constants.h"

namespace fdpo {

// h(u) = linear u + scale expm1(rate u) + logistic log(2 sigmoid(u)); the exponential a tangent where rate u > kExpCap,
// and all of h where |u| > clip.
struct Link {
  double linear, scale, rate, logistic;
  double clip;  // infinity for none
};

// kept softplus(-z) + flipped softplus(z) + hinge max(0, 1 - z) + square (gap - 1 / (2 beta))^2,  z = beta gap
struct LossType {
  double kept, flipped, hinge, square;
};

// What is the same for all calls with the same options.
struct Objective {
  Link link;
  LossType type;
  double beta, ratio_scale;
  bool reduce, mean;
  std::optional<double> may_undo;  // see fdpo_fast/ops/call.py
  double sft_weight, offset;
};

struct Value {
  double value, slope;
};

inline double softplus(double x) { return std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x))); }
inline double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

// Whether a log-ratio is where the link, or a term of it, is a tangent.
inline bool past(const Link& h, double u) { return (h.scale != 0 && h.rate * u > kExpCap) || std::abs(u) > h.clip; }

// A term with coefficient zero is left out, not multiplied by zero: 0 * inf is NaN.
inline Value whole_link(const Link& h, double u) {
  Value out{0, 0};
  if (h.linear != 0) out = {h.linear * u, h.linear};
  if (h.scale != 0) {
    const double x = h.rate * u, below = std::min(x, kExpCap), slope = std::exp(below);
    out.value += h.scale * (x > kExpCap ? std::expm1(kExpCap) + slope * (x - kExpCap) : std::expm1(x));
    out.slope += h.scale * h.rate * slope;
  }
  if (h.logistic != 0) {
    out.value += h.logistic * (std::min(u, 0.0) - std::log1p(std::expm1(-std::abs(u)) / 2));
    out.slope += h.logistic * sigmoid(-u);
  }
  return out;
}

inline Value link(const Link& h, double u) {
  const double inside = std::clamp(u, -h.clip, h.clip);
  Value out = whole_link(h, inside);
  if (std::abs(u) > h.clip) out.value += out.slope * (u - inside);
  return out;
}

// The loss and its derivative by gap.
inline Value loss(const LossType& type, double gap, double beta) {
  const double z = beta * gap;
  Value out{0, 0};
  if (type.kept != 0) out = {type.kept * softplus(-z), -type.kept * beta * sigmoid(-z)};
  if (type.flipped != 0) out.value += type.flipped * softplus(z), out.slope += type.flipped * beta * sigmoid(z);
  if (type.hinge != 0 && !(z >= 1)) out.value += type.hinge * (1 - z), out.slope -= type.hinge * beta;
  if (type.square != 0) {
    const double miss = gap - 1 / (2 * beta);
    out.value += type.square * miss * miss;
    out.slope += 2 * type.square * miss;
  }
  return out;
}

// How far the gradient of the dispreferred sample is scaled, as fdpo_fast/loss/preserving.py says it. by_gap:
// derivative of the pair's weighted loss; own: what the preferred sample's log-ratio is pushed besides; slope: those of
// the link, preferred sample first; product: the mean of that of the misses.
inline double loser_scale(double may_undo, double by_gap, double own, const Value slope[2], double error,
                          double product) {
  const double most = may_undo * (slope[0].slope + own / -by_gap) * error, asked = slope[1].slope * product;
  return by_gap < 0 && most >= 0 && most < asked ? most / asked : 1;
}

}  // namespace fdpo
