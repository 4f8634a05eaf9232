// The cluster kernels for float16 tensors.

#include "cuda/cluster/launch.h"

namespace fastlstm::cuda {

template struct ClusterKernels<Float16Product, ForwardArgs>;
template struct ClusterKernels<Float16Product, BackwardArgs>;

}  // namespace fastlstm::cuda
