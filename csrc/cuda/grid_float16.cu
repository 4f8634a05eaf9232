// The whole-grid kernels for float16 tensors.

#include "grid_launch.h"

namespace fastlstm::cuda {

template bool forward_on_grid<Float16Product>(const ForwardArgs&, Launcher*, void*, size_t&);
template bool backward_on_grid<Float16Product>(const BackwardArgs&, Launcher*, void*, size_t&);

}  // namespace fastlstm::cuda
