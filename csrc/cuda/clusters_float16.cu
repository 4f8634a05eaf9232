// The cluster kernels for float16 tensors.

#include "cluster_launch.h"

namespace fastlstm::cuda {

template bool run_clusters<Float16Product>(const ForwardArgs&, Launcher*);
template bool run_clusters<Float16Product>(const BackwardArgs&, Launcher*);

}  // namespace fastlstm::cuda
