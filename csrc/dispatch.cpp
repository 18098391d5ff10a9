#include "kernels.h"

namespace fdpo {

#ifdef FDPO_X86
extern const Kernels kernels_avx512, kernels_avx2;
#endif
extern const Kernels kernels_portable;

std::span<const Kernels* const> all_kernels() {
  static const Kernels* const all[] = {
#ifdef FDPO_X86
      &kernels_avx512, &kernels_avx2,
#endif
      &kernels_portable};
  return all;
}

}  // namespace fdpo
