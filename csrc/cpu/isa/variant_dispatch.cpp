// The variants' kernels go by the instruction set that was chosen for the plain ones.

#include <cstring>

#include "cpu/variant.h"

namespace fastlstm {

const VariantKernels& variant_kernels_generic();
#if defined(__x86_64__)
const VariantKernels& variant_kernels_avx2();
const VariantKernels& variant_kernels_avx512();
#endif

const VariantKernels& cpu_variant_kernels() {
#if defined(__x86_64__)
  const char* isa = cpu_kernels().isa;
  if (std::strcmp(isa, "avx2") == 0) return variant_kernels_avx2();
#if !defined(FASTLSTM_WITHOUT_AVX512)
  if (std::strcmp(isa, "generic") != 0) return variant_kernels_avx512();
#endif
#endif
  return variant_kernels_generic();
}

}  // namespace fastlstm
