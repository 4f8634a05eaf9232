// The step kernels for float32 tensors with factors rounded to tf32, on the tensor cores.

#include "backward_steps.h"
#include "forward_steps.h"

namespace fastlstm::cuda {

template size_t steps_workspace<TF32Product>(const ForwardArgs&);
template size_t steps_workspace<TF32Product>(const BackwardArgs&);
template void run_steps<TF32Product>(const ForwardArgs&, void*, Launcher&);
template void run_steps<TF32Product>(const BackwardArgs&, void*, Launcher&);

}  // namespace fastlstm::cuda
