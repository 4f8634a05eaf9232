// Registers the CPU kernels for the ops whose schemas fastlstm/ops.py defines. LibTorch's stable ABI only: one library for every
// torch from 2.10 on, and no Python in it.

#include <torch/csrc/stable/library.h>

#include <string>

#include "cpu/recurrence.h"
#include "ops.h"

namespace fastlstm {
static std::string cpu_isa() { return cpu_kernels().isa; }
}  // namespace fastlstm

STABLE_TORCH_LIBRARY_FRAGMENT(fastlstm, m) { m.def("cpu_isa() -> str"); }

STABLE_TORCH_LIBRARY_IMPL(fastlstm, CompositeExplicitAutograd, m) { m.impl("cpu_isa", TORCH_BOX(&fastlstm::cpu_isa)); }

STABLE_TORCH_LIBRARY_IMPL(fastlstm, CPU, m) {
  m.impl("lstm_forward", TORCH_BOX(&fastlstm::lstm_forward));
  m.impl("lstm_backward", TORCH_BOX(&fastlstm::lstm_backward));
  m.impl("lstm_layer_forward", TORCH_BOX(&fastlstm::lstm_layer_forward));
  m.impl("lstm_layer_backward", TORCH_BOX(&fastlstm::lstm_layer_backward));
}
