// The cluster kernels for bfloat16 tensors.

#include "cuda/cluster/launch.h"

namespace fastlstm::cuda {

template struct ClusterKernels<BFloat16Product, ForwardArgs>;
template struct ClusterKernels<BFloat16Product, BackwardArgs>;

}  // namespace fastlstm::cuda
