// The step kernels for float64 tensors: there to be right, for gradient checks.

#include "backward_steps.h"
#include "forward_steps.h"

namespace fastlstm::cuda {

template class ForwardSteps<Float64Product>;
template class BackwardSteps<Float64Product>;

}  // namespace fastlstm::cuda
