// The step kernels for float64 tensors: for gradient checks.

#include "cuda/step/launch.h"

namespace fastlstm::cuda {

template struct StepKernels<Float64Product, ForwardArgs>;
template struct StepKernels<Float64Product, BackwardArgs>;

}  // namespace fastlstm::cuda
