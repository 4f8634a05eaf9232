// The step kernels for float32 tensors as they are.

#include "cuda/product/float32.h"

#include "cuda/step/launch.h"

namespace fastlstm::cuda {

template struct StepKernels<Float32Product, ForwardArgs>;
template struct StepKernels<Float32Product, BackwardArgs>;

}  // namespace fastlstm::cuda
