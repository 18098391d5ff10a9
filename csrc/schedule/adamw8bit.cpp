// Scheduling of the optimizer's blocks over threads.
#include "schedule/adamw8bit.h"

#include <algorithm>
#include <vector>

#include "schedule/parallel.h"

namespace fdpo {

void adamw8bit(const Kernels& kernels, const Maps& maps, const Parameter* parameters, int64_t count, int threads) {
  constexpr int64_t kPiece = 64;  // blocks
  std::vector<int64_t> ends(count);
  int64_t pieces = 0, elements = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t blocks = (parameters[i].count + kStateBlock - 1) / kStateBlock;
    ends[i] = pieces += (blocks + kPiece - 1) / kPiece;
    elements += parameters[i].count;
  }
  constexpr int64_t kWorthThreads = 1 << 15;
  parallel_for(pieces, elements < kWorthThreads ? 1 : threads, [&](int64_t piece) {
    const int64_t i = std::upper_bound(ends.begin(), ends.end(), piece) - ends.begin();
    const Parameter& parameter = parameters[i];
    const int64_t first = (piece - (i ? ends[i - 1] : 0)) * kPiece,
                  blocks = (parameter.count + kStateBlock - 1) / kStateBlock;
    kernels.step_blocks(maps, parameter, first, std::min(first + kPiece, blocks));
  });
}

}  // namespace fdpo
