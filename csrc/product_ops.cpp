// cpu_product: one of the kernels' own products of large matrices by itself, to be tested and timed beside torch.mm.

#include "layer_products.h"

namespace fastlstm {

Tensor cpu_product(Tensor left, Tensor right, OptionalTensor addend, int64_t left_parts, int64_t right_parts, bool packed) {
  STD_TORCH_CHECK(left.dim() == 2 && right.dim() == 2, "fastlstm: left and right must have 2 dimensions");
  const int64_t rows = left.size(0), depth = left.size(1), columns = right.size(1);
  const ScalarType product = addend ? addend->scalar_type() : wide_type(left.scalar_type());
  const MatrixProducts* products = own_products(product);
  STD_TORCH_CHECK(products != nullptr, "fastlstm: products are float32 or float64, and so must the addend be");
  const bool narrow = products->narrow && left_parts == 1 && right_parts == 1;
  check(left, "left", {rows, depth}, narrow ? left.scalar_type() : product);
  check(right, "right", {depth, columns}, narrow ? right.scalar_type() : product);
  check(addend, "addend", {rows, columns}, product);
  for (const Tensor& t : {left, right}) {
    STD_TORCH_CHECK(t.scalar_type() == product || t.scalar_type() == ScalarType::BFloat16, "fastlstm: left and right must be float32 or bfloat16");
    STD_TORCH_CHECK(t.stride(0) == 1 || t.stride(1) == 1, "fastlstm: left and right must have a stride of 1");
  }
  const bool served = (left_parts == right_parts && right_parts >= 1 && right_parts <= 3) ||
                      (left_parts == products->gradient_parts && right_parts == 1);
  STD_TORCH_CHECK(served, "fastlstm: ", left_parts, " and ", right_parts, " parts, expected (3, 3), (2, 2), (", products->gradient_parts,
                  ", 1) or (1, 1)");
  Tensor out = empty({rows, columns}, product);
  if (addend) torch::stable::copy_(out, *addend);
  if (rows == 0 || columns == 0) return out;
  if (depth == 0) return addend ? out : torch::stable::zero_(out);
  const Factor factor = right_factor(Matrix::of(right), static_cast<int>(right_parts));
  Tensor bytes = empty({packed ? products->packed_bytes(factor, depth) : 0}, ScalarType::Byte);
  if (packed) products->pack(factor, depth, bytes.mutable_data_ptr(), threads());
  multiply_own(product, Matrix::of(left), static_cast<int>(left_parts),
               {target(Matrix::of(out), factor, packed ? bytes.const_data_ptr() : nullptr, addend.has_value())});
  return out;
}

}  // namespace fastlstm
