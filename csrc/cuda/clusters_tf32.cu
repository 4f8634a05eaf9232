// The cluster kernels for float32 tensors with factors rounded to tf32.

#include "cluster_launch.h"

namespace fastlstm::cuda {

template bool run_clusters<TF32Product>(const ForwardArgs&, Launcher*);
template bool run_clusters<TF32Product>(const BackwardArgs&, Launcher*);

}  // namespace fastlstm::cuda
