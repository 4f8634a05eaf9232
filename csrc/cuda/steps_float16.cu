// The step kernels for float16 tensors, on the tensor cores.

#include "backward_steps.h"
#include "forward_steps.h"

namespace fastlstm::cuda {

template class ForwardSteps<Float16Product>;
template class BackwardSteps<Float16Product>;

}  // namespace fastlstm::cuda
