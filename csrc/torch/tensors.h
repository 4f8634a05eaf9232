// Checks and small helpers for stable-ABI tensors.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "cpu/recurrence.h"
#include "cpu/team.h"
#include "cpu/workspace.h"

// This name is newer than the headers of torch 2.12, which have the older one.
#if !defined(STABLE_TORCH_ERROR_CODE_CHECK)
#define STABLE_TORCH_ERROR_CODE_CHECK(call) TORCH_ERROR_CODE_CHECK(call)
#endif

namespace fastlstm {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

using ForwardResults = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;  // output, h_n, c_n, cells, gates
using BackwardResults = std::tuple<Tensor, Tensor, Tensor, Tensor>;         // dgates_x, dh0, dc0, dhidden

// What an op of torch's dispatcher gives for these arguments.
template <class Result, class... Args>
Result call_op(const char* name, const char* overload, const Args&... args) {
  StableIValue stack[std::max<size_t>(sizeof...(args), 1)] = {torch::stable::detail::from(args)...};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, overload, stack, TORCH_ABI_VERSION));
  return torch::stable::detail::to<Result>(stack[0]);
}

inline DType dtype_of(const Tensor& t, const char* name) {
  switch (t.scalar_type()) {
    case ScalarType::Double:
      return DType::kFloat64;
    case ScalarType::Float:
      return DType::kFloat32;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    case ScalarType::Half:
      return DType::kFloat16;
    default:
      break;
  }
  STD_TORCH_CHECK(false, "fastlstm: ", name, " must be float64, float32, bfloat16 or float16");
}

inline ScalarType wide_type(ScalarType dtype) {
  return dtype == ScalarType::BFloat16 || dtype == ScalarType::Half ? ScalarType::Float : dtype;
}

inline int64_t bytes_of(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Double:
      return 8;
    case ScalarType::Float:
      return 4;
    case ScalarType::Byte:
      return 1;
    default:
      return 2;
  }
}

// A shape, or strides, of a tensor that is made or checked: an allocation for each is a tenth of the shortest calls.
class Extents {
 public:
  static constexpr size_t kMost = 5;

  Extents(std::initializer_list<int64_t> values) : count_(values.size()) {
    STD_TORCH_CHECK(count_ <= kMost, "fastlstm: a shape of ", count_, " dimensions");
    std::copy(values.begin(), values.end(), values_);
  }
  explicit Extents(const Tensor& t) : count_(t.dim()) {
    STD_TORCH_CHECK(count_ <= kMost, "fastlstm: a tensor of ", count_, " dimensions");
    for (size_t k = 0; k < count_; ++k) values_[k] = t.size(static_cast<int64_t>(k));
  }
  const int64_t* data() const { return values_; }
  const int64_t* begin() const { return values_; }
  const int64_t* end() const { return values_ + count_; }
  size_t size() const { return count_; }
  int64_t& operator[](size_t k) { return values_[k]; }
  int64_t operator[](size_t k) const { return values_[k]; }

 private:
  int64_t values_[kMost];
  size_t count_;
};

inline std::string text(const std::vector<int64_t>& sizes) {
  std::string s = "(";
  for (size_t k = 0; k < sizes.size(); ++k) s += (k ? ", " : "") + std::to_string(sizes[k]);
  return s + ")";
}

// The type of a call's weight matrices, by two of them: that of the other tensors, or bfloat16 beside float32 tensors.
inline ScalarType matrix_type(const Tensor& ih, const Tensor& hh, ScalarType dtype) {
  const bool narrow = ih.scalar_type() == ScalarType::BFloat16 && hh.scalar_type() == ScalarType::BFloat16;
  return dtype == ScalarType::Float && narrow ? ScalarType::BFloat16 : dtype;
}

// The device of a tensor, which all tensors of a call must share.
struct Where {
  int32_t type, index;

  static Where cpu() { return {aoti_torch_device_type_cpu(), -1}; }
  static Where of(const Tensor& t) {
    Where where;
    STD_TORCH_CHECK(aoti_torch_get_device_type(t.get(), &where.type) == 0 &&
                        aoti_torch_get_device_index(t.get(), &where.index) == 0,
                    "fastlstm: a tensor has no device");
    return where;
  }
  // Whether t is there; the index, which the CPU has not, is asked for elsewhere alone.
  bool has(const Tensor& t) const {
    int32_t of;
    if (aoti_torch_get_device_type(t.get(), &of) != 0 || of != type) return false;
    return type == aoti_torch_device_type_cpu() || Where::of(t) == *this;
  }
  bool operator==(const Where& other) const {
    return type == other.type && (index == other.index || type == aoti_torch_device_type_cpu());
  }
  std::string name() const {
    return type == aoti_torch_device_type_cpu() ? "the CPU"
                                                : "device " + std::to_string(index) + " of another kind than the CPU";
  }
};

// Whether t has these sizes.
inline bool is_of(const Tensor& t, const Extents& sizes) {
  bool fits = t.dim() == static_cast<int64_t>(sizes.size());
  for (size_t k = 0; fits && k < sizes.size(); ++k) fits = t.size(k) == sizes[k];
  return fits;
}

inline void check(const Tensor& t, const char* name, const Extents& sizes, ScalarType dtype,
                  const Where& where = Where::cpu()) {
  if (!is_of(t, sizes)) {
    std::vector<int64_t> got;
    for (int64_t k = 0; k < t.dim(); ++k) got.push_back(t.size(k));
    STD_TORCH_CHECK(false, "fastlstm: ", name, " has shape ", text(got), ", expected ",
                    text({sizes.begin(), sizes.end()}));
  }
  STD_TORCH_CHECK(t.scalar_type() == dtype, "fastlstm: ", name, " has a dtype that does not fit h0's");
  const Where found = Where::of(t);
  STD_TORCH_CHECK(found == where, "fastlstm: ", name, " is on ", found.name(), ", expected ", where.name());
}

inline void check(const OptionalTensor& t, const char* name, const Extents& sizes, ScalarType dtype,
                  const Where& where = Where::cpu()) {
  if (t) check(*t, name, sizes, dtype, where);
}

inline void check_units(int64_t H, int64_t P) {
  STD_TORCH_CHECK(H > 0 && P > 0, "fastlstm: c0 is ", H, " and h0 ", P, " wide, expected at least one unit");
}

inline void check_masks(const OptionalTensor& lengths, const OptionalTensor& reset_mask, int64_t T, int64_t N,
                        const Where& where = Where::cpu()) {
  check(lengths, "lengths", {N}, ScalarType::Long, where);
  check(reset_mask, "reset_mask", {T, N}, ScalarType::Bool, where);
}

// Tensors made contiguous for a call, kept until it ends.
class Held {
 public:
  const void* data(const Tensor& t) {
    if (t.is_contiguous()) return t.const_data_ptr();
    tensors_.push_back(torch::stable::contiguous(t));
    return tensors_.back().const_data_ptr();
  }
  const void* data(const OptionalTensor& t) { return t ? data(*t) : nullptr; }

  // A tensor [T, N, ...] with any strides of T and N, and the rest contiguous, as gradients and batch-first tensors
  // have.
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

inline int32_t code_of(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Double:
      return aoti_torch_dtype_float64();
    case ScalarType::Float:
      return aoti_torch_dtype_float32();
    case ScalarType::BFloat16:
      return aoti_torch_dtype_bfloat16();
    case ScalarType::Half:
      return aoti_torch_dtype_float16();
    case ScalarType::Byte:
      return aoti_torch_dtype_uint8();
    default:
      break;
  }
  STD_TORCH_CHECK(false, "fastlstm: no tensors of this dtype are made");
}

// A new tensor, made without the dispatcher, which would take longer than a short step.
inline Tensor empty(const Extents& sizes, const Extents& strides, ScalarType dtype, const Where& where = Where::cpu()) {
  AtenTensorHandle handle;
  STD_TORCH_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(),
                                           code_of(dtype), where.type, std::max(where.index, 0), &handle) == 0,
                  "fastlstm: API call failed: a tensor of shape ", text({sizes.begin(), sizes.end()}),
                  " could not be allocated");
  Tensor t(handle);
  if (where.type == aoti_torch_device_type_cpu()) poison(t.mutable_data_ptr(), t.numel() * bytes_of(dtype));
  return t;
}

inline Tensor empty(const Extents& sizes, ScalarType dtype, const Where& where = Where::cpu()) {
  Extents strides = sizes;
  int64_t expected = 1;
  for (size_t k = sizes.size(); k-- > 0;) {
    strides[k] = expected;
    expected *= std::max<int64_t>(sizes[k], 1);
  }
  return empty(sizes, strides, dtype, where);
}

// A tensor of memory that is there; it does not own it.
inline Tensor tensor_at(const void* data, const Extents& sizes, const Extents& strides, ScalarType dtype,
                        const Where& where = Where::cpu()) {
  AtenTensorHandle handle;
  STD_TORCH_CHECK(aoti_torch_create_tensor_from_blob(const_cast<void*>(data), static_cast<int64_t>(sizes.size()),
                                                     sizes.data(), strides.data(), 0, code_of(dtype), where.type,
                                                     std::max(where.index, 0), &handle) == 0,
                  "fastlstm: memory of shape ", text({sizes.begin(), sizes.end()}), " could not be made a tensor");
  return Tensor(handle);
}

inline Tensor empty_beside(const Tensor& like, const Extents& sizes, ScalarType dtype) {
  return torch::stable::new_empty(like, {sizes.data(), sizes.size()}, dtype);
}

// A large new tensor on large pages: every call gets fresh memory for its tape.
inline Tensor on_large_pages(Tensor t) {
  constexpr int64_t kWorthwhile = int64_t{8} << 20;
  const int64_t bytes = t.numel() * bytes_of(t.scalar_type());
  if (bytes >= kWorthwhile) ask_for_large_pages(t.mutable_data_ptr(), bytes);
  return t;
}

// The number of parts of a float32 number that torch's settings ask for, if tensors are float32 and the kernels use
// parts. Python answers (fastlstm/backends/cpu.py).
inline int float32_parts(ScalarType dtype) {
  if (dtype != ScalarType::Float || !cpu_kernels().takes_parts) return 3;
  return static_cast<int>(call_op<int64_t>("fastlstm::cpu_parts", ""));
}

// torch's threads, as many as there are cores for.
inline Threads threads() {
  const int asked = static_cast<int>(torch::stable::get_num_threads());
  return {planned_workers(asked), [](int64_t n, void (*fn)(int64_t, int64_t, void*), void* context) {
            const ParallelFor team = [](int64_t n, void (*fn)(int64_t, int64_t, void*), void* context) {
              torch::stable::parallel_for(0, n, 1, [&](int64_t begin, int64_t end) { fn(begin, end, context); });
            };
            run_by_team(team, static_cast<int>(torch::stable::get_num_threads()), n, fn, context);
          }};
}

}  // namespace fastlstm
