// The whole-grid kernels for float32 tensors.

#include "cuda/grid/float32_shapes.h"

#include "cuda/grid/launch.h"

namespace fastlstm::cuda {

template struct GridKernels<Float32Product, ForwardArgs>;
template struct GridKernels<Float32Product, BackwardArgs>;

}  // namespace fastlstm::cuda
