// The kernels with a projection that keep the weights on the chip, for float32 tensors.

#include "cuda/projected/launch.h"

namespace fastlstm::cuda {

template struct ProjectedClusterKernels<Float32Product, ForwardArgs>;
template struct ProjectedClusterKernels<Float32Product, BackwardArgs>;
template struct ProjectedGridKernels<Float32Product, ForwardArgs>;
template struct ProjectedGridKernels<Float32Product, BackwardArgs>;

}  // namespace fastlstm::cuda
