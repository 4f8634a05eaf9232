// The step kernels for float32 tensors with factors rounded to tf32, on the tensor cores.

#include "cuda/step/launch.h"

namespace fastlstm::cuda {

template struct StepKernels<TF32Product, ForwardArgs>;
template struct StepKernels<TF32Product, BackwardArgs>;

}  // namespace fastlstm::cuda
