// The variants' kernels for bfloat16 tensors.

#include "cuda/variant/launch.h"

namespace fastlstm::cuda {

template size_t run_variant<BFloat16Product>(const ForwardArgs&, const Variant&, void*, Launcher*);
template size_t run_variant<BFloat16Product>(const BackwardArgs&, const Variant&, const VariantTape&, void*, Launcher*);

}  // namespace fastlstm::cuda
