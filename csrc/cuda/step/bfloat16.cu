// The step kernels for bfloat16 tensors, on the tensor cores.

#include "cuda/step/launch.h"

namespace fastlstm::cuda {

template struct StepKernels<BFloat16Product, ForwardArgs>;
template struct StepKernels<BFloat16Product, BackwardArgs>;

}  // namespace fastlstm::cuda
