// The cluster kernels for float32 tensors.

#include "cuda/cluster/float32_shapes.h"

#include "cuda/cluster/launch.h"

namespace fastlstm::cuda {

template struct ClusterKernels<Float32Product, ForwardArgs>;
template struct ClusterKernels<Float32Product, BackwardArgs>;

}  // namespace fastlstm::cuda
