// Counter-based normals; the layout of the counter is documented in fdpo_fast/noise.py.
#pragma once

#include <cstdint>

namespace fdpo {

// out[row * count + i] = element i of the noise of (seed, pair_ids[row], visits[row]).
void normals(uint64_t seed, const int64_t* pair_ids, const int64_t* visits, int64_t rows, int64_t count, float* out,
             int threads);

}  // namespace fdpo
