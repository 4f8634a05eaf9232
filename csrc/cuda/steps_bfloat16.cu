// The step kernels for bfloat16 tensors, on the tensor cores.

#include "backward_steps.h"
#include "forward_steps.h"

namespace fastlstm::cuda {

template class ForwardSteps<BFloat16Product>;
template class BackwardSteps<BFloat16Product>;

}  // namespace fastlstm::cuda
