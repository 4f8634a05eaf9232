// The whole-grid kernels for float32 tensors with factors rounded to tf32.

#include "cuda/grid/launch.h"

namespace fastlstm::cuda {

template struct GridKernels<TF32Product, ForwardArgs>;
template struct GridKernels<TF32Product, BackwardArgs>;

}  // namespace fastlstm::cuda
