// What csrc/cuda chooses for a call on the simulated device, without one: for a library loaded by Python.
#include "device.h"
#include "cuda/recurrence.h"

namespace {

template <class Args>
void describe(const int64_t* call, int64_t* choice) {
  using namespace fastlstm;
  alignas(16) static const char projection[16] = {};  // weights are looked at only for being there, and their places
  Args args{};
  args.dtype = static_cast<DType>(call[0]);
  args.tf32 = call[1] != 0;
  args.sizes = {call[2], call[3], call[4], call[5], call[6]};
  args.weight_hr[0] = call[7] != 0 ? projection : nullptr;
  const cuda::Choice found = cuda::choose(args);
  choice[0] = static_cast<int64_t>(found.family);
  choice[1] = found.offer.step;
  choice[2] = found.offer.once;
  choice[3] = found.offer.shape;
  choice[4] = static_cast<int64_t>(found.workspace);
}

}  // namespace

// call: dtype, tf32, T, N, D, H, P, whether there is a projection. choice: family, clocks of a step, clocks once,
// shape, workspace.
extern "C" SIMT_EXPORT void simt_choose(bool backward, const int64_t* call, int64_t* choice) {
  backward ? describe<fastlstm::cuda::BackwardArgs>(call, choice) : describe<fastlstm::cuda::ForwardArgs>(call, choice);
}
