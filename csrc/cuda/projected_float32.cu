// The kernels with a projection that keep the weights on the chip, for float32 as it is.

#include "projected_launch.h"

namespace fastlstm::cuda {

template bool run_projected_clusters<Float32Product>(const ForwardArgs&, Launcher*);
template bool run_projected_clusters<Float32Product>(const BackwardArgs&, Launcher*);
template bool run_projected_grid<Float32Product>(const ForwardArgs&, Launcher*, void*, size_t&);
template bool run_projected_grid<Float32Product>(const BackwardArgs&, Launcher*, void*, size_t&);

}  // namespace fastlstm::cuda
