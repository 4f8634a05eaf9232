// Registers the CPU kernels for the ops whose schemas fastlstm/ops.py defines. LibTorch's stable ABI only: one library for every
// torch from 2.10 on, and no Python in it. Every shape, dtype and stride is checked here, before a kernel sees a pointer.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <initializer_list>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "cpu/recurrence.h"

namespace fastlstm {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

DType dtype_of(const Tensor& t, const char* name) {
  switch (t.scalar_type()) {
    case ScalarType::Double: return DType::kFloat64;
    case ScalarType::Float: return DType::kFloat32;
    case ScalarType::BFloat16: return DType::kBFloat16;
    case ScalarType::Half: return DType::kFloat16;
    default: break;
  }
  STD_TORCH_CHECK(false, "fastlstm: ", name, " must be float64, float32, bfloat16 or float16");
}

ScalarType wide_type(ScalarType dtype) {
  return dtype == ScalarType::BFloat16 || dtype == ScalarType::Half ? ScalarType::Float : dtype;
}

std::string text(const std::vector<int64_t>& sizes) {
  std::string s = "(";
  for (size_t k = 0; k < sizes.size(); ++k) s += (k ? ", " : "") + std::to_string(sizes[k]);
  return s + ")";
}

void check(const Tensor& t, const char* name, const std::vector<int64_t>& sizes, ScalarType dtype) {
  std::vector<int64_t> got;
  for (int64_t k = 0; k < t.dim(); ++k) got.push_back(t.size(k));
  STD_TORCH_CHECK(got == sizes, "fastlstm: ", name, " has shape ", text(got), ", expected ", text(sizes));
  STD_TORCH_CHECK(t.scalar_type() == dtype, "fastlstm: ", name, " has the wrong dtype for h0's");
  STD_TORCH_CHECK(t.is_cpu(), "fastlstm: ", name, " is not on the CPU");
}

// Tensors made contiguous for a call, kept until it ends.
class Held {
 public:
  const void* data(const Tensor& t) {
    tensors_.push_back(torch::stable::contiguous(t));
    return tensors_.back().const_data_ptr();
  }
  const void* data(const OptionalTensor& t) { return t.has_value() ? data(*t) : nullptr; }

  // [T, N, ...] with any strides of T and N over contiguous rest, as a gradient or a batch-first tensor comes.
  const void* rows(const Tensor& t, int64_t* stride_t, int64_t* stride_n) {
    int64_t expected = 1;
    bool inner_contiguous = true;
    for (int64_t k = t.dim() - 1; k >= 2; --k) {
      inner_contiguous = inner_contiguous && (t.size(k) == 1 || t.stride(k) == expected);
      expected *= t.size(k);
    }
    tensors_.push_back(inner_contiguous ? t : torch::stable::contiguous(t));
    *stride_t = tensors_.back().stride(0);
    *stride_n = tensors_.back().stride(1);
    return tensors_.back().const_data_ptr();
  }

 private:
  std::vector<Tensor> tensors_;
};

void check_masks(const OptionalTensor& lengths, const OptionalTensor& reset_mask, int64_t T, int64_t N) {
  if (lengths) check(*lengths, "lengths", {N}, ScalarType::Long);
  if (reset_mask) check(*reset_mask, "reset_mask", {T, N}, ScalarType::Bool);
}

void parallel_for(int64_t n, void (*fn)(int64_t, int64_t, void*), void* context) {
  torch::stable::parallel_for(0, n, 1, [&](int64_t begin, int64_t end) { fn(begin, end, context); });
}

Threads threads() { return {static_cast<int>(torch::stable::get_num_threads()), parallel_for}; }

Tensor empty(std::initializer_list<int64_t> sizes, ScalarType dtype) {
  const std::vector<int64_t> list(sizes);
  return torch::stable::empty({list.data(), list.size()}, dtype);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> lstm_forward(
    Tensor gates_x, Tensor h0, Tensor c0, Tensor weight_hh, OptionalTensor weight_hr, OptionalTensor lengths,
    OptionalTensor reset_mask, bool save_tape, bool save_cells) {
  STD_TORCH_CHECK(gates_x.dim() == 4, "fastlstm: gates_x has ", gates_x.dim(), " dimensions, expected 4: (T, N, D, 4H)");
  STD_TORCH_CHECK(h0.dim() == 3 && c0.dim() == 3, "fastlstm: h0 and c0 must have 3 dimensions, (D, N, P) and (D, N, H)");
  const int64_t T = gates_x.size(0), N = gates_x.size(1), D = gates_x.size(2), P = h0.size(2), H = c0.size(2);
  const ScalarType dtype = h0.scalar_type(), wide = wide_type(dtype);
  const bool wide_gates = gates_x.scalar_type() != dtype;
  const DType io = dtype_of(h0, "h0");
  STD_TORCH_CHECK(D == 1 || D == 2, "fastlstm: gates_x has ", D, " directions, expected 1 or 2");
  check(gates_x, "gates_x", {T, N, D, 4 * H}, wide_gates ? wide : dtype);
  check(h0, "h0", {D, N, P}, dtype);
  check(c0, "c0", {D, N, H}, dtype);
  check(weight_hh, "weight_hh", {D, 4 * H, P}, dtype);
  if (weight_hr) check(*weight_hr, "weight_hr", {D, P, H}, dtype);
  STD_TORCH_CHECK(weight_hr || P == H, "fastlstm: h0 is ", P, " wide, expected H = ", H, " without weight_hr");
  check_masks(lengths, reset_mask, T, N);

  Tensor output = empty({T, N, D * P}, dtype), h_n = empty({D, N, P}, dtype), c_n = empty({D, N, H}, dtype);
  const bool keep_cells = save_tape || save_cells;
  Tensor cells = keep_cells ? empty({T, N, D, H}, wide) : empty({0}, wide);
  Tensor gates = save_tape ? empty({T, N, D, 4 * H}, dtype) : empty({0}, dtype);
  if (T == 0 || N == 0) {
    torch::stable::copy_(h_n, h0);
    torch::stable::copy_(c_n, c0);
    return {output, h_n, c_n, cells, gates};
  }
  Held held;
  ForwardArgs args{};
  args.sizes = {T, N, D, H, P};
  args.dtype = io;
  args.wide_gates = wide_gates;
  args.gates_x = held.rows(gates_x, &args.gates_stride_t, &args.gates_stride_n);
  args.h0 = held.data(h0);
  args.c0 = held.data(c0);
  args.weight_hh = held.data(weight_hh);
  args.weight_hr = held.data(weight_hr);
  args.lengths = static_cast<const int64_t*>(held.data(lengths));
  args.reset_mask = static_cast<const bool*>(held.data(reset_mask));
  args.output = output.mutable_data_ptr();
  args.h_n = h_n.mutable_data_ptr();
  args.c_n = c_n.mutable_data_ptr();
  args.cells = keep_cells ? cells.mutable_data_ptr() : nullptr;
  args.gates = save_tape ? gates.mutable_data_ptr() : nullptr;
  cpu_kernels().forward(args, threads());
  return {output, h_n, c_n, cells, gates};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> lstm_backward(
    OptionalTensor doutput, OptionalTensor dh_n, OptionalTensor dc_n, OptionalTensor dcells, OptionalTensor dgates_out,
    Tensor h0, Tensor c0, Tensor weight_hh, OptionalTensor weight_hr, Tensor cells, Tensor gates, OptionalTensor lengths,
    OptionalTensor reset_mask, bool wide_gates) {
  STD_TORCH_CHECK(!dgates_out, "fastlstm: a gradient of the gates is the reference's to take: call reference_backward");
  STD_TORCH_CHECK(gates.dim() == 4, "fastlstm: gates has ", gates.dim(), " dimensions, expected 4: the tape of lstm_forward");
  STD_TORCH_CHECK(h0.dim() == 3 && c0.dim() == 3, "fastlstm: h0 and c0 must have 3 dimensions, (D, N, P) and (D, N, H)");
  const int64_t T = gates.size(0), N = gates.size(1), D = gates.size(2), P = h0.size(2), H = c0.size(2);
  const ScalarType dtype = h0.scalar_type(), wide = wide_type(dtype);
  const DType io = dtype_of(h0, "h0");
  STD_TORCH_CHECK(D == 1 || D == 2, "fastlstm: gates has ", D, " directions, expected 1 or 2");
  check(gates, "gates", {T, N, D, 4 * H}, dtype);
  check(cells, "cells", {T, N, D, H}, wide);
  check(h0, "h0", {D, N, P}, dtype);
  check(c0, "c0", {D, N, H}, dtype);
  check(weight_hh, "weight_hh", {D, 4 * H, P}, dtype);
  if (weight_hr) check(*weight_hr, "weight_hr", {D, P, H}, dtype);
  STD_TORCH_CHECK(weight_hr || P == H, "fastlstm: h0 is ", P, " wide, expected H = ", H, " without weight_hr");
  if (doutput) check(*doutput, "doutput", {T, N, D * P}, dtype);
  if (dh_n) check(*dh_n, "dh_n", {D, N, P}, dtype);
  if (dc_n) check(*dc_n, "dc_n", {D, N, H}, dtype);
  if (dcells) check(*dcells, "dcells", {T, N, D, H}, wide);
  check_masks(lengths, reset_mask, T, N);

  Tensor dgates_x = empty({T, N, D, 4 * H}, wide_gates ? wide : dtype), dh0 = empty({D, N, P}, dtype),
         dc0 = empty({D, N, H}, dtype);
  Tensor dhidden = weight_hr ? empty({T, N, D, P}, wide) : empty({0}, wide);
  if (T == 0 || N == 0) {
    if (dh_n) torch::stable::copy_(dh0, *dh_n); else torch::stable::zero_(dh0);
    if (dc_n) torch::stable::copy_(dc0, *dc_n); else torch::stable::zero_(dc0);
    return {dgates_x, dh0, dc0, dhidden};
  }
  Held held;
  BackwardArgs args{};
  args.sizes = {T, N, D, H, P};
  args.dtype = io;
  args.wide_gates = wide_gates && wide != dtype;
  if (doutput) args.doutput = held.rows(*doutput, &args.doutput_stride_t, &args.doutput_stride_n);
  args.dh_n = held.data(dh_n);
  args.dc_n = held.data(dc_n);
  args.dcells = held.data(dcells);
  args.c0 = held.data(c0);
  args.weight_hh = held.data(weight_hh);
  args.weight_hr = held.data(weight_hr);
  args.cells = held.data(cells);
  args.gates = held.data(gates);
  args.lengths = static_cast<const int64_t*>(held.data(lengths));
  args.reset_mask = static_cast<const bool*>(held.data(reset_mask));
  args.dgates_x = dgates_x.mutable_data_ptr();
  args.dh0 = dh0.mutable_data_ptr();
  args.dc0 = dc0.mutable_data_ptr();
  args.dhidden = weight_hr ? dhidden.mutable_data_ptr() : nullptr;
  cpu_kernels().backward(args, threads());
  return {dgates_x, dh0, dc0, dhidden};
}

std::string cpu_isa() { return cpu_kernels().isa; }

}  // namespace
}  // namespace fastlstm

STABLE_TORCH_LIBRARY_FRAGMENT(fastlstm, m) { m.def("cpu_isa() -> str"); }

STABLE_TORCH_LIBRARY_IMPL(fastlstm, CompositeExplicitAutograd, m) { m.impl("cpu_isa", TORCH_BOX(&fastlstm::cpu_isa)); }

STABLE_TORCH_LIBRARY_IMPL(fastlstm, CPU, m) {
  m.impl("lstm_forward", TORCH_BOX(&fastlstm::lstm_forward));
  m.impl("lstm_backward", TORCH_BOX(&fastlstm::lstm_backward));
}
