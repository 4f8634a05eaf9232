// The variants' kernels for float32 tensors, products in tf32.

#include "cuda/variant/launch.h"

namespace fastlstm::cuda {

template size_t run_variant<TF32Product>(const ForwardArgs&, const Variant&, void*, Launcher*);
template size_t run_variant<TF32Product>(const BackwardArgs&, const Variant&, const VariantTape&, void*, Launcher*);

}  // namespace fastlstm::cuda
