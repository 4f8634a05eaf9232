// The step kernels for float32 tensors as they are.

#include "float32.h"

#include "backward_steps.h"
#include "forward_steps.h"

namespace fastlstm::cuda {

template size_t steps_workspace<Float32Product>(const ForwardArgs&);
template size_t steps_workspace<Float32Product>(const BackwardArgs&);
template void run_steps<Float32Product>(const ForwardArgs&, void*, Launcher&);
template void run_steps<Float32Product>(const BackwardArgs&, void*, Launcher&);

}  // namespace fastlstm::cuda
