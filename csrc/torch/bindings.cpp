// Registers the CPU's ops, except those of the recurrence and its variants (recurrence.cpp, variant.cpp) and CUDA's
// (cuda.cpp, cuda_variant.cpp). Schemas are in the package. LibTorch's stable ABI only: one library for every torch
// from 2.10 on, without Python.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <string>

#include "cpu/caches.h"
#include "cpu/cores.h"
#include "cpu/isa/choice.h"
#include "cpu/openmp.h"
#include "cpu/team.h"
#include "torch/ops.h"

namespace fastlstm {
static std::string cpu_isa() { return cpu_kernels().isa; }

// A JSON object with plain words as values.
static std::string cpu_choice_json() {
  const Choice& choice = cpu_choice();
  const auto text = [](const std::string& name, const std::string& value) {
    return '"' + name + "\": \"" + value + '"';
  };
  const ProductKinds& p = choice.products;
  return "{" + text("isa", choice.kernels->isa) + ", " + text("why", choice.why) +
         ", \"l2_bytes\": " + std::to_string(second_level_bytes()) + ", \"products\": {" +
         text("float64", "multiply-adds") + ", " + text("float32", p.float32) + ", " + text("bfloat16", p.bfloat16) +
         ", " + text("float16", p.float16) + "}}";
}

static int64_t cpu_workers() { return planned_workers(static_cast<int>(torch::stable::get_num_threads())); }
static bool cpu_without_workers() { return without_workers(); }
static double cpu_quota(std::string root) { return cores_of_quota(root); }

#define FASTLSTM_AS_TEXT(...) #__VA_ARGS__
#define FASTLSTM_TEXT(...) FASTLSTM_AS_TEXT(__VA_ARGS__)

// Separated by commas. "80" includes PTX for later architectures; "90a" is for that one alone.
static std::string cuda_architectures() {
#if defined(FASTLSTM_WITH_CUDA)
  return FASTLSTM_TEXT(FASTLSTM_WITH_CUDA);
#else
  return "";
#endif
}
}  // namespace fastlstm

STABLE_TORCH_LIBRARY_FRAGMENT(fastlstm, m) {
  m.def("cpu_isa() -> str");
  m.def("cpu_choice() -> str");
  m.def("cpu_workers() -> int");
  m.def("cpu_without_workers() -> bool");
  m.def("cpu_quota(str root) -> float");
  m.def("cuda_architectures() -> str");
  m.def(
      "cpu_product(Tensor left, Tensor right, Tensor? addend, int left_parts, int right_parts, Tensor? packed) -> "
      "Tensor");
  m.def("cpu_packed(Tensor right, int parts) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(fastlstm, CompositeExplicitAutograd, m) {
  m.impl("cpu_isa", TORCH_BOX(&fastlstm::cpu_isa));
  m.impl("cpu_choice", TORCH_BOX(&fastlstm::cpu_choice_json));
  m.impl("cpu_workers", TORCH_BOX(&fastlstm::cpu_workers));
  m.impl("cpu_without_workers", TORCH_BOX(&fastlstm::cpu_without_workers));
  m.impl("cpu_quota", TORCH_BOX(&fastlstm::cpu_quota));
  m.impl("cuda_architectures", TORCH_BOX(&fastlstm::cuda_architectures));
}

STABLE_TORCH_LIBRARY_IMPL(fastlstm, CPU, m) {
  m.impl("lstm_layer_forward", TORCH_BOX(&fastlstm::lstm_layer_forward));
  m.impl("lstm_layer_backward", TORCH_BOX(&fastlstm::lstm_layer_backward));
  m.impl("lstm_step", TORCH_BOX(&fastlstm::lstm_step));
  m.impl("lstm_stack_forward", TORCH_BOX(&fastlstm::lstm_stack_forward));
  m.impl("lstm_stack_backward", TORCH_BOX(&fastlstm::lstm_stack_backward));
  m.impl("int8_stack", TORCH_BOX(&fastlstm::int8_stack));
  m.impl("int8_call", TORCH_BOX(&fastlstm::int8_call));
  m.impl("lstm_cell", TORCH_BOX(&fastlstm::lstm_cell));
  m.impl("lstm_cell_training_forward", TORCH_BOX(&fastlstm::lstm_cell_training_forward));
  m.impl("lstm_cell_training_backward", TORCH_BOX(&fastlstm::lstm_cell_training_backward));
  m.impl("lstm_cell_weight_gradients", TORCH_BOX(&fastlstm::lstm_cell_weight_gradients));
  m.impl("cpu_product", TORCH_BOX(&fastlstm::cpu_product));
  m.impl("cpu_packed", TORCH_BOX(&fastlstm::cpu_packed));
}
