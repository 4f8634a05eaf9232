// The kernels with a projection that keep the weights on the chip, for bfloat16 tensors.

#include "cuda/projected/launch.h"

namespace fastlstm::cuda {

template struct ProjectedClusterKernels<BFloat16Product, ForwardArgs>;
template struct ProjectedClusterKernels<BFloat16Product, BackwardArgs>;
template struct ProjectedGridKernels<BFloat16Product, ForwardArgs>;
template struct ProjectedGridKernels<BFloat16Product, BackwardArgs>;

}  // namespace fastlstm::cuda
