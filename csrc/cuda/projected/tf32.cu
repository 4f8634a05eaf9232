// The kernels with a projection that keep the weights on the chip, for float32 tensors with factors rounded to tf32.

#include "cuda/projected/launch.h"

namespace fastlstm::cuda {

template struct ProjectedClusterKernels<TF32Product, ForwardArgs>;
template struct ProjectedClusterKernels<TF32Product, BackwardArgs>;
template struct ProjectedGridKernels<TF32Product, ForwardArgs>;
template struct ProjectedGridKernels<TF32Product, BackwardArgs>;

}  // namespace fastlstm::cuda
