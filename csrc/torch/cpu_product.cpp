// Products of large matrices by the kernels' own code (cpu/matrix_product.h), for tests and benchmarks.
//
// cpu_product: left [rows, depth] @ right [depth, columns] plus the addend if there is one, with float32 factors made of
// so many parts. packed: the right factor as cpu_packed gives it, as a layer's weights are packed.

#include "torch/layer_products.h"

namespace fastlstm {

namespace {

const MatrixProducts& products_in(ScalarType product) {
  const MatrixProducts* products = own_products(product);
  STD_TORCH_CHECK(products != nullptr, "fastlstm: products are float32 or float64, and so must the addend be");
  return *products;
}

void check_factor(const Tensor& t, const char* name, ScalarType product, bool narrow) {
  STD_TORCH_CHECK(t.dim() == 2, "fastlstm: ", name, " must have 2 dimensions");
  STD_TORCH_CHECK(t.scalar_type() == product || (narrow && t.scalar_type() == ScalarType::BFloat16), "fastlstm: ", name,
                  " has a dtype that these products do not take, expected float32 or float64, as the addend",
                  narrow ? ", or bfloat16" : "");
  check(t, name, {t.size(0), t.size(1)}, t.scalar_type());
  STD_TORCH_CHECK(t.stride(0) == 1 || t.stride(1) == 1, "fastlstm: ", name, " must have a stride of 1");
}

}  // namespace

static Tensor cpu_packed(Tensor right, int64_t parts) {
  const ScalarType product = wide_type(right.scalar_type());
  const MatrixProducts& products = products_in(product);
  check_factor(right, "right", product, products.widens || (products.narrow && parts == 1));
  STD_TORCH_CHECK(parts >= 1 && parts <= 3, "fastlstm: ", parts, " parts, expected 1, 2 or 3");
  const Factor factor = right_factor(Matrix::of(right), static_cast<int>(parts));
  const bool empty_factor = right.size(0) == 0 || right.size(1) == 0;
  Tensor packed = empty({empty_factor ? 0 : products.packed_bytes(factor, right.size(0))}, ScalarType::Byte);
  if (!empty_factor) products.pack(factor, right.size(0), packed.mutable_data_ptr(), threads());
  return packed;
}

static Tensor cpu_product(Tensor left, Tensor right, OptionalTensor addend, int64_t left_parts, int64_t right_parts,
                          OptionalTensor packed) {
  const ScalarType product = addend ? addend->scalar_type() : wide_type(left.scalar_type());
  const MatrixProducts& products = products_in(product);
  const bool narrow = products.narrow && left_parts == 1 && right_parts == 1;
  check_factor(left, "left", product, narrow);
  check_factor(right, "right", product, narrow || products.widens);
  const int64_t rows = left.size(0), depth = left.size(1), columns = right.size(1);
  STD_TORCH_CHECK(right.size(0) == depth, "fastlstm: left has ", depth, " columns and right ", right.size(0),
                  " rows, expected the same");
  check(addend, "addend", {rows, columns}, product);
  const bool served = (left_parts == right_parts && right_parts >= 1 && right_parts <= 3) ||
                      (left_parts == products.gradient_parts && right_parts == 1);
  STD_TORCH_CHECK(served, "fastlstm: ", left_parts, " and ", right_parts, " parts, expected (3, 3), (2, 2), (",
                  products.gradient_parts, ", 1) or (1, 1)");
  Tensor out = empty({rows, columns}, product);
  if (addend) torch::stable::copy_(out, *addend);
  if (rows == 0 || columns == 0) return out;
  if (depth == 0) return addend ? out : torch::stable::zero_(out);
  const Factor factor = right_factor(Matrix::of(right), static_cast<int>(right_parts));
  if (packed) check(packed, "packed", {products.packed_bytes(factor, depth)}, ScalarType::Byte);
  multiply_own(product, left.size(1), left_factor(Matrix::of(left), static_cast<int>(left_parts)),
               {target(Matrix::of(out), factor, packed ? packed->const_data_ptr() : nullptr, addend.has_value())});
  return out;
}

}  // namespace fastlstm

STABLE_TORCH_LIBRARY_FRAGMENT(fastlstm, m) {
  m.def(
      "cpu_product(Tensor left, Tensor right, Tensor? addend, int left_parts, int right_parts, Tensor? packed) -> "
      "Tensor");
  m.def("cpu_packed(Tensor right, int parts) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(fastlstm, CPU, m) {
  m.impl("cpu_product", TORCH_BOX(&fastlstm::cpu_product));
  m.impl("cpu_packed", TORCH_BOX(&fastlstm::cpu_packed));
}
