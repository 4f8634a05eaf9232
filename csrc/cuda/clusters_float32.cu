// The cluster kernels for float32 tensors as they are.

#include "float32_clusters.h"

#include "cluster_launch.h"

namespace fastlstm::cuda {

template struct ClusterKernels<Float32Product, ForwardArgs>;
template struct ClusterKernels<Float32Product, BackwardArgs>;

}  // namespace fastlstm::cuda
