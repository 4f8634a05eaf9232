// The whole-grid kernels for float32 tensors as they are.

#include "float32_grid.h"

#include "grid_launch.h"

namespace fastlstm::cuda {

template struct GridKernels<Float32Product, ForwardArgs>;
template struct GridKernels<Float32Product, BackwardArgs>;

}  // namespace fastlstm::cuda
