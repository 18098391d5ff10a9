// AdamW with blockwise 8-bit states, in bitsandbytes' format; the formulas are those of fdpo_fast/optim/eager.py.
#pragma once

#include "kernels.h"

namespace fdpo {

// A dynamic map as lines, rows of the table in fdpo_fast/optim/codebook.py.
struct Map {
  float offset[8], slope[8], threshold[8], start[8], rise[8], last[8];
};
struct Maps {
  Map m, v;
};

// What one step does to every element of a tensor.
struct AdamW {
  float beta1, one_minus_beta1, beta2, one_minus_beta2;
  float decay;      // lr * weight_decay
  float step_size;  // lr sqrt(1 - beta2^t) / (1 - beta1^t)
  float eps;        // times sqrt(1 - beta2^t)
};

// What the parameters of a group that are at the same step have in common. Half-precision parameters are rounded to
// nearest, or with the random words of (seed, a parameter's index, step).
struct Rule {
  AdamW rates;
  bool stochastic;
  uint64_t seed;
  uint32_t step;
  uint64_t first;  // of the random words: the first element's place in a larger tensor, a multiple of 8 (16: 24 bits)
};

// A parameter with its gradient and states.
struct Parameter {
  void* data;
  Dtype dtype;
  const void* grad;
  Dtype grad_dtype;
  void *m, *v;  // codes, or floats where there is no absmax
  float *absmax_m, *absmax_v;
  uint16_t* copy;  // bfloat16 of a float parameter, or nothing
  int8_t* low;     // the lowest byte of a bfloat16 parameter whose weights have 24 bits, or nothing
  int64_t count;
  uint64_t index;
  const Rule* rule;
};

}  // namespace fdpo
