// The optimizer's step on the host.
#pragma once

#include "parameter.h"

namespace fdpo {

// One step of each parameter.
void adamw8bit(const Kernels& kernels, const Maps& maps, const Parameter* parameters, int64_t count, int threads);

}  // namespace fdpo
