// The loops over elements, which `Kernels` describes: compiled once per instruction set, with FDPO_ISA its name and its
// namespace, so that no code of a wider set can be picked by the linker for a narrower one.
#pragma once

#include "kernels.h"

namespace fdpo::FDPO_ISA {

Sums sums(const Rows& pred, const Rows& ref, const Rows& target, int64_t row, int64_t first, int64_t count);
double error(const Rows& pred, const Rows& target, int64_t row, int64_t first, int64_t count);
PairSums pair_sums(const Rows& pred, const Rows& ref, const Rows* target, const int64_t* row, int64_t first,
                   int64_t count);
void gradient(const Rows& pred, const Rows& target, const Rows& grad, float coefficient, bool past_cache, int64_t row,
              int64_t first, int64_t count);
void mix(const Rows& x, const Rows& noise, const Rows& mixed, float signal, float sigma, int64_t row, int64_t first,
         int64_t count);
void philox_words(uint32_t* words, uint32_t k0, uint32_t k1);
void normals(uint64_t seed, uint64_t pair_id, uint32_t visit, int64_t first, int64_t count, float* out);
void step_blocks(const Maps& maps, const Parameter& parameter, int64_t first, int64_t end);

}  // namespace fdpo::FDPO_ISA
