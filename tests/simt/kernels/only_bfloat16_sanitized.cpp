// What the program for bfloat16 alone does without beside never_sanitized.cpp.
#include "left_out.h"

namespace fastlstm::cuda {

FASTLSTM_LEFT_OUT_FOR(StepKernels, Float64Product)
FASTLSTM_LEFT_OUT_FOR(StepKernels, Float32Product)
FASTLSTM_LEFT_OUT_FOR(StepKernels, TF32Product)
FASTLSTM_LEFT_OUT_FOR(ClusterKernels, TF32Product)
FASTLSTM_LEFT_OUT_FOR(GridKernels, TF32Product)

}  // namespace fastlstm::cuda
