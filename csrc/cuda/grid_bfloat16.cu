// The whole-grid kernels for bfloat16 tensors.

#include "grid_launch.h"

namespace fastlstm::cuda {

template bool run_grid<BFloat16Product>(const ForwardArgs&, Launcher*, void*, size_t&);
template bool run_grid<BFloat16Product>(const BackwardArgs&, Launcher*, void*, size_t&);

}  // namespace fastlstm::cuda
