// The cluster kernels for float32 tensors with factors rounded to tf32.

#include "cuda/cluster/launch.h"

namespace fastlstm::cuda {

template struct ClusterKernels<TF32Product, ForwardArgs>;
template struct ClusterKernels<TF32Product, BackwardArgs>;

}  // namespace fastlstm::cuda
