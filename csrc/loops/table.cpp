// An instruction set's loops, as the code that schedules them calls them.
#include "loops/loops.h"

#define FDPO_STRING2(isa) #isa
#define FDPO_STRING(isa) FDPO_STRING2(isa)

namespace fdpo::FDPO_ISA {

static bool supported() {
#if defined(__x86_64__) && defined(FDPO_ARCH)
  return __builtin_cpu_supports(FDPO_ARCH);
#else
  return true;
#endif
}

extern const Kernels kernels;
const Kernels kernels = {
    .name = FDPO_STRING(FDPO_ISA),
    .supported = supported,
    .sums = sums,
    .error = error,
    .pair_sums = pair_sums,
    .gradient = gradient,
    .mix = mix,
    .philox = philox_words,
    .normals = normals,
    .step_blocks = step_blocks,
};

}  // namespace fdpo::FDPO_ISA
