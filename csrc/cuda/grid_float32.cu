// The whole-grid kernels for float32 tensors as they are.

#include "float32_grid.h"

#include "grid_launch.h"

namespace fastlstm::cuda {

template bool run_grid<Float32Product>(const ForwardArgs&, Launcher*, void*, size_t&);
template bool run_grid<Float32Product>(const BackwardArgs&, Launcher*, void*, size_t&);

}  // namespace fastlstm::cuda
