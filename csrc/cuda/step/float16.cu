// The step kernels for float16 tensors, on the tensor cores.

#include "cuda/step/launch.h"

namespace fastlstm::cuda {

template struct StepKernels<Float16Product, ForwardArgs>;
template struct StepKernels<Float16Product, BackwardArgs>;

}  // namespace fastlstm::cuda
