// What every program of test_simt_recurrence.py does without.
#include "left_out.h"

namespace fastlstm::cuda {

FASTLSTM_LEFT_OUT_FOR(StepKernels, Float16Product)
FASTLSTM_LEFT_OUT_FOR(ClusterKernels, Float16Product)
FASTLSTM_LEFT_OUT_FOR(GridKernels, Float16Product)
FASTLSTM_LEFT_OUT_FOR(ClusterKernels, Float32Product)
FASTLSTM_LEFT_OUT_FOR(GridKernels, Float32Product)
FASTLSTM_LEFT_OUT_FOR(ProjectedClusterKernels, BFloat16Product)
FASTLSTM_LEFT_OUT_FOR(ProjectedClusterKernels, Float16Product)
FASTLSTM_LEFT_OUT_FOR(ProjectedClusterKernels, TF32Product)
FASTLSTM_LEFT_OUT_FOR(ProjectedClusterKernels, Float32Product)
FASTLSTM_LEFT_OUT_FOR(ProjectedGridKernels, BFloat16Product)
FASTLSTM_LEFT_OUT_FOR(ProjectedGridKernels, Float16Product)
FASTLSTM_LEFT_OUT_FOR(ProjectedGridKernels, TF32Product)
FASTLSTM_LEFT_OUT_FOR(ProjectedGridKernels, Float32Product)

}  // namespace fastlstm::cuda
