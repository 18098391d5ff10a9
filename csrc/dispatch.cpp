#include "kernels.h"

namespace fdpo {

#ifdef FDPO_X86
namespace avx512 {
extern const Kernels kernels;
}
namespace avx2 {
extern const Kernels kernels;
}
#endif
namespace portable {
extern const Kernels kernels;
}

std::span<const Kernels* const> all_kernels() {
  static const Kernels* const all[] = {
#ifdef FDPO_X86
      &avx512::kernels, &avx2::kernels,
#endif
      &portable::kernels};
  return all;
}

}  // namespace fdpo
