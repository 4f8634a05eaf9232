// The large products of a layer by the kernels' own (cpu/matrix_product.h).
#pragma once

#include <optional>
#include <vector>

#include "torch/layer_call.h"

namespace fastlstm {

// The number of bfloat16 numbers that stand for one in these products. values: of x, h and the weights; gradients: of
// gradients, which are made in the accumulation type. A bfloat16 value is one, a float16 value two.
struct PartCounts {
  int values, gradients;

  static PartCounts of(ScalarType dtype) {
    if (dtype == ScalarType::BFloat16) return {1, cpu_kernels().products->gradient_parts};
    if (dtype == ScalarType::Half) return {2, 2};
    const int parts = float32_parts(dtype);
    return {parts, parts};
  }
};

// The kernels' own products in this type, or null.
inline const MatrixProducts* own_products(ScalarType product) {
  if (product == ScalarType::Float) return cpu_kernels().products;
  return product == ScalarType::Double ? cpu_kernels().double_products : nullptr;
}

inline bool own_product(ScalarType product, int64_t rows, int64_t columns, int64_t depth, int left_parts,
                        int right_parts) {
  const MatrixProducts* products = own_products(product);
  return products != nullptr && products->worthwhile(rows, columns, depth, left_parts, right_parts);
}

// The type in which an own product gets a tensor's values: their own if it takes that. It takes bfloat16 in factors of
// one part only.
inline ScalarType value_type(ScalarType product, ScalarType dtype, int parts) {
  return dtype == ScalarType::BFloat16 && parts == 1 && own_products(product)->narrow ? dtype : product;
}

// The same of a right factor, such as a weight.
inline ScalarType right_type(ScalarType product, ScalarType dtype, int parts) {
  const bool widened = dtype == ScalarType::BFloat16 && own_products(product)->widens;
  return widened ? dtype : value_type(product, dtype, parts);
}

inline DType factor_dtype(ScalarType type) {
  return type == ScalarType::Double     ? DType::kFloat64
         : type == ScalarType::BFloat16 ? DType::kBFloat16
                                        : DType::kFloat32;
}

// For matrices with a stride of 1.
inline Factor left_factor(const Matrix& m, int parts) {
  Factor f{};
  f.data = m.data;
  f.dtype = factor_dtype(m.dtype);
  f.lines = m.rows;
  f.line_stride = m.row_stride;
  f.depth_stride = m.column_stride;
  f.parts = parts;
  return f;
}
inline Factor right_factor(const Matrix& m, int parts) { return left_factor(m.transposed(), parts); }
inline constexpr int kGates = 4;
inline Factor gate_lines(Factor f) {
  f.groups = kGates;
  return f;
}

inline Target target(const Matrix& out, const Factor& right, const void* packed, bool add) {
  Target t{};
  t.right = right;
  t.packed = packed;
  t.out = out.data;
  t.out_stride = out.row_stride;
  t.add = add;
  return t;
}

// `product`: the type of the targets.
inline void multiply_own(ScalarType product, int64_t depth, const Factor& left, const std::vector<Target>& targets,
                         int right_shares = 0, int64_t chain = kProductSlab) {
  ProductArgs args{};
  args.depth = depth;
  args.left = left;
  args.targets = targets.data();
  args.target_count = static_cast<int>(targets.size());
  args.right_shares = right_shares;
  args.chain = chain;
  own_products(product)->multiply(args, threads());
}

// A weight [4H, I] that rows of every chunk of steps are multiplied by: packed once, or not at all with `once`, which
// says that there is one chunk.
class OwnWeight {
 public:
  // For gates from x, or with `turned` for the gradient of x from that of the gates.
  OwnWeight(const Tensor& weight, ScalarType product, const PartCounts& parts, bool turned, bool once)
      : product_(product),
        left_parts_(turned ? parts.gradients : parts.values),
        weight_(torch::stable::contiguous(converted(weight, right_type(product, weight.scalar_type(), parts.values)))),
        factor_(turned ? right_factor(Matrix::of(weight_), parts.values)
                       : gate_lines(right_factor(Matrix::of(weight_).transposed(), parts.values))),
        packed_(empty({once ? 0 : own_products(product)->packed_bytes(factor_, depth(turned))}, ScalarType::Byte)) {
    if (!once) own_products(product)->pack(factor_, depth(turned), packed_.mutable_data_ptr(), threads());
  }

  // out (+)= rows @ weight^T, or with `turned` rows @ weight. With `shares` above one, that many workers share the
  // units of the former.
  void multiply(const Matrix& out, const Matrix& rows, bool add, int shares = 1) const {
    multiply_own(product_, rows.columns, left_factor(rows, left_parts_),
                 {target(out, factor_, packed_.size(0) > 0 ? packed_.const_data_ptr() : nullptr, add)},
                 shares > 1 ? shares : 0);
  }

 private:
  int64_t depth(bool turned) const { return weight_.size(turned ? 0 : 1); }

  ScalarType product_;
  int left_parts_;
  Tensor weight_;
  Factor factor_;
  Tensor packed_;
};

}  // namespace fastlstm
