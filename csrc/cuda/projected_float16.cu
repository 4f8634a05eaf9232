// The kernels with a projection that keep the weights on the chip, for float16.

#include "projected_launch.h"

namespace fastlstm::cuda {

template bool run_projected_clusters<Float16Product>(const ForwardArgs&, Launcher*);
template bool run_projected_clusters<Float16Product>(const BackwardArgs&, Launcher*);
template bool run_projected_grid<Float16Product>(const ForwardArgs&, Launcher*, void*, size_t&);
template bool run_projected_grid<Float16Product>(const BackwardArgs&, Launcher*, void*, size_t&);

}  // namespace fastlstm::cuda
