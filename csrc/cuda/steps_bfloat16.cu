// The step kernels for bfloat16 tensors, on the tensor cores.

#include "backward_steps.h"
#include "forward_steps.h"

namespace fastlstm::cuda {

template size_t steps_workspace<BFloat16Product>(const ForwardArgs&);
template size_t steps_workspace<BFloat16Product>(const BackwardArgs&);
template void run_steps<BFloat16Product>(const ForwardArgs&, void*, Launcher&);
template void run_steps<BFloat16Product>(const BackwardArgs&, void*, Launcher&);

}  // namespace fastlstm::cuda
