// The step kernels for float64 tensors: there to be right, for gradient checks.

#include "backward_steps.h"
#include "forward_steps.h"

namespace fastlstm::cuda {

template size_t steps_workspace<Float64Product>(const ForwardArgs&);
template size_t steps_workspace<Float64Product>(const BackwardArgs&);
template void run_steps<Float64Product>(const ForwardArgs&, void*, Launcher&);
template void run_steps<Float64Product>(const BackwardArgs&, void*, Launcher&);

}  // namespace fastlstm::cuda
