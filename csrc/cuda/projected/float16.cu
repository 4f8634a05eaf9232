// The kernels with a projection that keep the weights on the chip, for float16 tensors.

#include "cuda/projected/launch.h"

namespace fastlstm::cuda {

template struct ProjectedClusterKernels<Float16Product, ForwardArgs>;
template struct ProjectedClusterKernels<Float16Product, BackwardArgs>;
template struct ProjectedGridKernels<Float16Product, ForwardArgs>;
template struct ProjectedGridKernels<Float16Product, BackwardArgs>;

}  // namespace fastlstm::cuda
