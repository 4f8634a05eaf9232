// Ops that describe the library and the machine. Every other op is registered in the file that defines it; schemas are
// in the package. LibTorch's stable ABI only: one library for every torch from 2.10 on, without Python.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <string>

#include "cpu/caches.h"
#include "cpu/cores.h"
#include "cpu/isa/choice.h"
#include "cpu/openmp.h"
#include "cpu/team.h"
#include "torch/tensors.h"

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
}

STABLE_TORCH_LIBRARY_IMPL(fastlstm, CompositeExplicitAutograd, m) {
  m.impl("cpu_isa", TORCH_BOX(&fastlstm::cpu_isa));
  m.impl("cpu_choice", TORCH_BOX(&fastlstm::cpu_choice_json));
  m.impl("cpu_workers", TORCH_BOX(&fastlstm::cpu_workers));
  m.impl("cpu_without_workers", TORCH_BOX(&fastlstm::cpu_without_workers));
  m.impl("cpu_quota", TORCH_BOX(&fastlstm::cpu_quota));
  m.impl("cuda_architectures", TORCH_BOX(&fastlstm::cuda_architectures));
}
