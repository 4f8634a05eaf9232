// The step kernels for float32 tensors as they are.

#include "float32.h"

#include "step_launch.h"

namespace fastlstm::cuda {

template struct StepKernels<Float32Product, ForwardArgs>;
template struct StepKernels<Float32Product, BackwardArgs>;

}  // namespace fastlstm::cuda
