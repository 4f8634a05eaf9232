// The whole-grid kernels for bfloat16 tensors.

#include "cuda/grid/launch.h"

namespace fastlstm::cuda {

template struct GridKernels<BFloat16Product, ForwardArgs>;
template struct GridKernels<BFloat16Product, BackwardArgs>;

}  // namespace fastlstm::cuda
