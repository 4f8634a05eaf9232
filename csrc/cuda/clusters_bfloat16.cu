// The cluster kernels for bfloat16 tensors.

#include "cluster_launch.h"

namespace fastlstm::cuda {

template bool forward_on_clusters<BFloat16Product>(const ForwardArgs&, Launcher*);
template bool backward_on_clusters<BFloat16Product>(const BackwardArgs&, Launcher*);

}  // namespace fastlstm::cuda
