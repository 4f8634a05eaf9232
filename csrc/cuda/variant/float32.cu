// The variants' kernels for float32 tensors.

#include "cuda/product/float32.h"

#include "cuda/variant/launch.h"

namespace fastlstm::cuda {

template size_t run_variant<Float32Product>(const ForwardArgs&, const Variant&, void*, Launcher*);
template size_t run_variant<Float32Product>(const BackwardArgs&, const Variant&, const VariantTape&, void*, Launcher*);

}  // namespace fastlstm::cuda
