// Which instruction set's kernels this machine runs.

#include <cstdlib>
#include <cstring>

#include "recurrence.h"

namespace fastlstm {

const Kernels& kernels_generic();
#if defined(__x86_64__)
const Kernels& kernels_avx2();
const Kernels& kernels_avx512();
#endif

static const Kernels& choose() {
  const char* wanted = std::getenv("FASTLSTM_CPU_ISA");
  const auto allowed = [wanted](const char* isa) {
    return wanted == nullptr || *wanted == '\0' || std::strcmp(wanted, isa) == 0;
  };
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (avx512 && allowed("avx512")) return kernels_avx512();
  if (avx2 && allowed("avx2")) return kernels_avx2();
#endif
  (void)allowed;
  return kernels_generic();
}

const Kernels& cpu_kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace fastlstm
