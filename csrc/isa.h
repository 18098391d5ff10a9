// Names of what is compiled once per instruction set.
#pragma once

#include "kernels.h"

#define FDPO_JOIN2(a, b) a##_##b
#define FDPO_JOIN(a, b) FDPO_JOIN2(a, b)
#define FDPO_STRING2(isa) #isa
#define FDPO_STRING(isa) FDPO_STRING2(isa)
#define FDPO_KERNELS FDPO_JOIN(kernels, FDPO_ISA)
#define FDPO_STEP_BLOCKS FDPO_JOIN(step_blocks, FDPO_ISA)

namespace fdpo {
void FDPO_STEP_BLOCKS(const Maps& maps, const Parameter& parameter, int64_t first, int64_t end);
}
