// The whole-grid kernels for float32 tensors with factors rounded to tf32.

#include "grid_launch.h"

namespace fastlstm::cuda {

template bool run_grid<TF32Product>(const ForwardArgs&, Launcher*, void*, size_t&);
template bool run_grid<TF32Product>(const BackwardArgs&, Launcher*, void*, size_t&);

}  // namespace fastlstm::cuda
