// The cluster kernels for float32 tensors as they are.

#include "float32_clusters.h"

#include "cluster_launch.h"

namespace fastlstm::cuda {

template bool run_clusters<Float32Product>(const ForwardArgs&, Launcher*);
template bool run_clusters<Float32Product>(const BackwardArgs&, Launcher*);

}  // namespace fastlstm::cuda
