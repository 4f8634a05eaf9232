// The whole-grid kernels for float16 tensors.

#include "cuda/grid/launch.h"

namespace fastlstm::cuda {

template struct GridKernels<Float16Product, ForwardArgs>;
template struct GridKernels<Float16Product, BackwardArgs>;

}  // namespace fastlstm::cuda
