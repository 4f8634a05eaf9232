// The gradients of a layer's weights, as sums of products over chunks of steps.
#pragma once

#include "cpu/threads.h"
#include "torch/layer_products.h"

namespace fastlstm {

template <class T>
void add_elements(void* into, const void* from, int64_t count) {
  constexpr int64_t kBlock = 1 << 12;
  const Threads team = threads();
  share_out(team, team.count, (count + kBlock - 1) / kBlock, count, [&](int64_t block) {
    T* a = static_cast<T*>(into);
    const T* b = static_cast<const T*>(from);
    for (int64_t k = block * kBlock; k < std::min(count, (block + 1) * kBlock); ++k) a[k] += b[k];
  });
}

// into (+)= the sum of contiguous rows, a column's by itself: its bits do not depend on threads. Rows are summed in
// slabs, so that errors grow with their number and that of a slab's rows, and not with all rows.
template <class T>
void add_row_sums(void* into, const Matrix& rows, bool first) {
  constexpr int64_t kColumns = 64;
  const int64_t blocks = (rows.columns + kColumns - 1) / kColumns;
  const Threads team = threads();
  share_out(team, team.count, blocks, rows.rows * rows.columns, [&](int64_t block) {
    const int64_t j = block * kColumns, count = std::min(kColumns, rows.columns - j);
    T* to = static_cast<T*>(into) + j;
    for (int64_t r0 = 0; r0 < rows.rows; r0 += kProductSlab) {
      T sums[kColumns] = {};
      for (int64_t r = r0; r < std::min(r0 + kProductSlab, rows.rows); ++r) {
        const T* row = static_cast<const T*>(rows.data) + r * rows.row_stride + j;
        if (count == kColumns) {
          for (int64_t k = 0; k < kColumns; ++k) sums[k] += row[k];
        } else {
          for (int64_t k = 0; k < count; ++k) sums[k] += row[k];
        }
      }
      for (int64_t k = 0; k < count; ++k) to[k] = first && r0 == 0 ? sums[k] : to[k] + sums[k];
    }
  });
}

// A gradient of a weight: a sum of matrix products over chunks, kept in the accumulation type.
class Sum {
 public:
  // Into `data`, [rows, columns] of `dtype`; nothing is summed where it is null.
  Sum(void* data, int64_t rows, int64_t columns, ScalarType dtype, ScalarType wide)
      : into_(Matrix::contiguous(data, rows, columns, dtype)), total_(into_) {
    if (data == nullptr || dtype == wide) return;
    kept_ = on_large_pages(empty({rows, columns}, wide));
    total_ = Matrix::of(*kept_);
  }

  bool wanted() const { return into_.data != nullptr; }

  // Adds a @ b by torch's product.
  void add(const Matrix& a, const Matrix& b) {
    const bool same = a.dtype == total_.dtype;
    if (same && first_) {
      mm_out(total_, a, b);
    } else {
      Tensor product = empty({total_.rows, total_.columns}, a.dtype);
      mm_out(Matrix::of(product), a, b);
      if (first_) clear();
      add_to(total_, converted(product, total_.dtype));
    }
    first_ = false;
  }

  // The same in the accumulation type, by the kernels' own product where that is worth it.
  void add(const Matrix& a, int a_parts, const Matrix& b, int b_parts) {
    if (!own_product(total_.dtype, total_.rows, total_.columns, a.columns, a_parts, b_parts)) return add(a, b);
    multiply_own(total_.dtype, a.columns, left_factor(a, a_parts), {own_target(right_factor(b, b_parts))}, 0,
                 kRowsChain);
  }

  // Adds the sum of rows, [rows, columns] in the accumulation type.
  void add_rows(const Matrix& rows) {
    (rows.dtype == ScalarType::Double ? add_row_sums<double> : add_row_sums<float>)(total_.data, rows, first_);
    first_ = false;
  }

  // The same sum as a target of the kernels' own product.
  Target own_target(const Factor& right) {
    const bool first = first_;
    first_ = false;
    return target(total_, right, nullptr, !first);
  }

  static void add_to(const Matrix& into, const Tensor& addend) {
    (into.dtype == ScalarType::Double ? add_elements<double> : add_elements<float>)(into.data, addend.const_data_ptr(),
                                                                                    into.rows * into.columns);
  }

  void finish() {
    if (!wanted()) return;
    if (first_) clear();
    if (!kept_) return;
    Tensor into = into_.tensor();
    torch::stable::copy_(into, *kept_);
  }

 private:
  void clear() {
    const int64_t bytes = total_.rows * total_.columns * bytes_of(total_.dtype);
    if (bytes > 0) __builtin_memset(total_.data, 0, bytes);
  }

  Matrix into_, total_;
  OptionalTensor kept_;
  bool first_ = true;
};

// The gradients of one direction's weights.
struct DirectionSums {
  Sum ih, hh, bias, hr;

  DirectionSums(const LayerShape& s, const WeightGradients& into)
      : ih(into.ih, 4 * s.H, s.I, s.dtype, s.wide),
        hh(into.hh, 4 * s.H, s.P, s.dtype, s.wide),
        bias(into.bias_ih ? into.bias_ih : into.bias_hh, 1, 4 * s.H, s.dtype, s.wide),
        hr(into.hr, s.P, s.H, s.dtype, s.wide) {}

  // Adds the products of the gates' gradients [rows, 4H] with the rows of x and of the h that entered, which `x_rows` and
  // `h_rows` give where they are wanted. With `own` by one product of the kernels' own; where `shares` workers made a row
  // of gates together, each takes the gates of its units. Else all lines are shared, which comes out more even.
  template <class XRows, class HRows>
  void add_gates(const Matrix& dgates, const PartCounts& parts, bool own, int shares, const XRows& x_rows,
                 const HRows& h_rows) {
    const Matrix left = dgates.transposed();
    std::vector<Target> targets;
    const auto add = [&](Sum& sum, const auto& rows) {
      if (!sum.wanted()) return;
      if (own) {
        targets.push_back(sum.own_target(right_factor(rows(), parts.values)));
      } else {
        sum.add(left, rows());
      }
    };
    add(ih, x_rows);
    add(hh, h_rows);
    if (targets.empty()) return;
    const Factor lines = left_factor(left, parts.gradients);
    multiply_own(dgates.dtype, left.columns, shares > 1 ? gate_lines(lines) : lines, targets, 0, kRowsChain);
  }

  // Adds the product of the gradients [rows, P] of h with what was projected [rows, H], both in the accumulation type.
  void add_projected(const Matrix& dhidden, const Matrix& unprojected) {
    constexpr int kWhole = 3;  // parts of a float32 number that is no rounded one
    hr.add(dhidden.transposed(), kWhole, unprojected, kWhole);
  }

  void finish(const LayerShape& s, const WeightGradients& into) {
    for (Sum* sum : {&ih, &hh, &bias, &hr}) sum->finish();
    if (into.bias_ih && into.bias_hh) __builtin_memcpy(into.bias_hh, into.bias_ih, 4 * s.H * bytes_of(s.dtype));
  }
};

}  // namespace fastlstm
