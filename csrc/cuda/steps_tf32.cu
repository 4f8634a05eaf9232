// The step kernels for float32 tensors with factors rounded to tf32, on the tensor cores.

#include "backward_steps.h"
#include "forward_steps.h"

namespace fastlstm::cuda {

template class ForwardSteps<TF32Product>;
template class BackwardSteps<TF32Product>;

}  // namespace fastlstm::cuda
