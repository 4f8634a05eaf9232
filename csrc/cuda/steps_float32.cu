// The step kernels for float32 tensors as they are.

#include "backward_steps.h"
#include "forward_steps.h"

namespace fastlstm::cuda {

template class ForwardSteps<Float32Product>;
template class BackwardSteps<Float32Product>;

}  // namespace fastlstm::cuda
