// The variants' kernels for float64 tensors: for gradient checks.

#include "cuda/variant/launch.h"

namespace fastlstm::cuda {

template size_t run_variant<Float64Product>(const ForwardArgs&, const Variant&, void*, Launcher*);
template size_t run_variant<Float64Product>(const BackwardArgs&, const Variant&, const VariantTape&, void*, Launcher*);

}  // namespace fastlstm::cuda
