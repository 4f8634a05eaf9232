// The cluster kernels for bfloat16 tensors.

#include "cluster_launch.h"

namespace fastlstm::cuda {

template bool run_clusters<BFloat16Product>(const ForwardArgs&, Launcher*);
template bool run_clusters<BFloat16Product>(const BackwardArgs&, Launcher*);

}  // namespace fastlstm::cuda
