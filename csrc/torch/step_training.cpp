// lstm_cell_training_forward, lstm_cell_training_backward and lstm_cell_weight_gradients: one step with its gradients,
// on the CPU, from the weights as they lie at the call. Nothing is packed beforehand and nothing is kept. The gradients
// of the weights are an op of their own, for the steps of a loop over cells together: made step by step, a matrix as
// large as the weights would be written, read and added to another for every one.

#include "torch/step_call.h"
#include "torch/weight_sums.h"

namespace fastlstm {

namespace {

struct CellShape {
  int64_t N, I, H, P;
  bool batched;
  ScalarType dtype, wide;

  // Of c, (N, H) or (H), and the weights. Throws Unfit.
  CellShape(const Tensor& c, const Tensor& weight_ih, const Tensor& weight_hh)
      : batched(c.dim() == 2), dtype(c.scalar_type()) {
    fit((c.dim() == 1 || batched) && is_floating(dtype) && weight_ih.dim() == 2 && weight_hh.dim() == 2);
    wide = wide_type(dtype);
    N = batched ? c.size(0) : 1;
    H = c.size(c.dim() - 1);
    I = weight_ih.size(1);
    P = weight_hh.size(1);
    fit(H > 0 && P > 0);
  }

  Extents sizes(int64_t width) const { return batched ? Extents{N, width} : Extents{width}; }

  // Whether the rows are few enough for products with the weights as they lie, without large products.
  bool few() const { return N <= kMaxStepRows; }

  // In 16 bits or with weight_hr, more rows would need the weights widened or packed whole.
  bool takes(bool projected) const { return few() || (dtype == wide && !projected); }
};

std::vector<Tensor> cell_forward(const Tensor& x, const Tensor& h, const Tensor& c, const Tensor& weight_ih,
                                 const Tensor& weight_hh, const OptionalTensor& bias_ih, const OptionalTensor& bias_hh,
                                 const OptionalTensor& weight_hr) {
  const CellShape s(c, weight_ih, weight_hh);
  fit(s.takes(weight_hr.has_value()) && weight_ih.scalar_type() == s.dtype && weight_hh.scalar_type() == s.dtype);
  fit(x, s.sizes(s.I), s.dtype);
  fit(h, s.sizes(s.P), s.dtype);
  fit(c, s.sizes(s.H), s.dtype);
  Held held;
  StepArgs args{};
  args.N = s.N;
  args.I = s.I;
  args.H = s.H;
  args.P = s.P;
  args.dtype = dtype_of(c, "c");
  const auto optional = [](const OptionalTensor& t) { return t ? &*t : nullptr; };
  set_weights({&weight_ih, &weight_hh, optional(bias_ih), optional(bias_hh), optional(weight_hr)}, s.dtype, held, args);
  args.x = held.data(x);
  args.h = held.data(h);
  args.c = held.data(c);
  Tensor h_n = empty(s.sizes(s.P), s.dtype), c_n = empty(s.sizes(s.H), s.dtype), cells = empty(s.sizes(s.H), s.wide),
         gates = empty(s.sizes(4 * s.H), s.dtype);
  args.h_out = h_n.mutable_data_ptr();
  args.c_out = c_n.mutable_data_ptr();
  args.cells = cells.mutable_data_ptr();
  args.gates = gates.mutable_data_ptr();
  if (!s.few()) {
    const PartCounts parts = PartCounts::of(s.dtype);
    char* made = Workspace::take(s.N * 4 * s.H * bytes_of(s.wide), Workspace::kGates);
    Sum sum(made, s.N, 4 * s.H, s.wide, s.wide);
    const auto add = [&](const void* rows, const void* weight, int64_t width) {
      sum.add(Matrix::contiguous(rows, s.N, width, s.dtype), parts.values,
              Matrix::contiguous(weight, 4 * s.H, width, s.dtype).transposed(), parts.values);
    };
    add(args.x, args.weight_ih, s.I);
    add(args.h, args.weight_hh, s.P);
    args.gates_x = made;
  }
  if (s.N > 0) cpu_kernels().step(args, threads());
  return {h_n, c_n, cells, gates};
}

}  // namespace

// h_n, c_n, cells, gates; nothing where the arguments do not fit each other.
static std::vector<Tensor> lstm_cell_training_forward(Tensor x, Tensor h, Tensor c, Tensor weight_ih, Tensor weight_hh,
                                                      OptionalTensor bias_ih, OptionalTensor bias_hh,
                                                      OptionalTensor weight_hr) {
  return if_fit([&] { return cell_forward(x, h, c, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr); });
}

// dx, dh_in, dc_in, dgates, unprojected.
using CellGradientResults = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

static CellGradientResults lstm_cell_training_backward(OptionalTensor dh, OptionalTensor dc, Tensor c, Tensor cells,
                                                       Tensor gates, Tensor weight_ih, Tensor weight_hh,
                                                       OptionalTensor weight_hr, bool need_dx, bool need_dh,
                                                       bool need_dc) {
  const CellShape s = must_fit("lstm_cell_training_backward", [&] { return CellShape(c, weight_ih, weight_hh); });
  STD_TORCH_CHECK(s.takes(weight_hr.has_value()), "fastlstm: c has ", s.N, " rows, expected at most ", kMaxStepRows,
                  " in 16 bits or with weight_hr");
  check(dh, "dh", s.sizes(s.P), s.dtype);
  check(dc, "dc", s.sizes(s.H), s.dtype);
  check(c, "c", s.sizes(s.H), s.dtype);
  check(cells, "cells", s.sizes(s.H), s.wide);
  check(gates, "gates", s.sizes(4 * s.H), s.dtype);
  check(weight_ih, "weight_ih", {4 * s.H, s.I}, s.dtype);
  check(weight_hh, "weight_hh", {4 * s.H, s.P}, s.dtype);
  check(weight_hr, "weight_hr", {s.P, s.H}, s.dtype);
  STD_TORCH_CHECK(weight_hr || s.P == s.H, "fastlstm: weight_hh has ", s.P, " columns, expected H = ", s.H,
                  " without weight_hr");
  const auto result = [&](bool wanted, int64_t width, ScalarType dtype) {
    return empty(wanted ? s.sizes(width) : Extents{0}, dtype);
  };
  Tensor dx = result(need_dx, s.I, s.dtype), dh_in = result(need_dh, s.P, s.dtype),
         dc_in = result(need_dc, s.H, s.dtype), dgates = result(true, 4 * s.H, s.wide),
         unprojected = result(weight_hr.has_value(), s.H, s.wide);
  Held held;
  StepBackwardArgs args{s.N, s.I, s.H, s.P, dtype_of(c, "c")};
  args.dh = held.data(dh);
  args.dc = held.data(dc);
  args.c = held.data(c);
  args.cells = held.data(cells);
  args.gates = held.data(gates);
  args.weight_ih = held.data(weight_ih);
  args.weight_hh = held.data(weight_hh);
  args.weight_hr = held.data(weight_hr);
  args.dgates = dgates.mutable_data_ptr();
  args.dc_in = need_dc ? dc_in.mutable_data_ptr() : nullptr;
  args.unprojected = weight_hr ? unprojected.mutable_data_ptr() : nullptr;
  if (s.few()) {
    args.dx = need_dx ? dx.mutable_data_ptr() : nullptr;
    args.dh_in = need_dh ? dh_in.mutable_data_ptr() : nullptr;
  }
  if (s.N > 0) cpu_kernels().step_backward(args, threads());
  if (!s.few()) {
    const PartCounts parts = PartCounts::of(s.dtype);
    const Matrix left = Matrix::contiguous(args.dgates, s.N, 4 * s.H, s.dtype);
    const auto make = [&](Tensor& out, const void* weight, int64_t width) {
      Sum(out.mutable_data_ptr(), s.N, width, s.dtype, s.dtype)
          .add(left, parts.gradients, Matrix::contiguous(weight, 4 * s.H, width, s.dtype), parts.values);
    };
    if (need_dx) make(dx, args.weight_ih, s.I);
    if (need_dh) make(dh_in, args.weight_hh, s.P);
  }
  return {dx, dh_in, dc_in, dgates, unprojected};
}

namespace {

// Rows of several tensors, (N, width) or (width) each, as one matrix of `dtype`, `most` of them at a time.
class Rows {
 public:
  Rows(const std::vector<Tensor>& of, const char* name, int64_t total, int64_t most, ScalarType dtype) : dtype_(dtype) {
    int64_t found = 0;
    for (const Tensor& t : of) {
      STD_TORCH_CHECK(t.dim() == 1 || t.dim() == 2, "fastlstm: ", name, " has ", t.dim(),
                      " dimensions, expected 2, or 1 without rows");
      parts_.push_back(torch::stable::contiguous(t));
      if (t.dim() == 1) parts_.back() = torch::stable::unsqueeze(parts_.back(), 0);
      width_ = parts_[0].size(1);
      found += parts_.back().size(0);
      check(parts_.back(), name, {parts_.back().size(0), width_}, of[0].scalar_type());
    }
    STD_TORCH_CHECK(found == total, "fastlstm: ", name, " has ", found, " rows, expected ", total);
    if (of.size() > 1 || of[0].scalar_type() != dtype) kept_ = empty({most, width_}, dtype);
  }

  int64_t width() const { return width_; }

  // The next `count` rows.
  Matrix next(int64_t count) {
    if (!kept_) {
      const char* data = static_cast<const char*>(parts_[0].const_data_ptr()) + row_ * width_ * bytes_of(dtype_);
      row_ += count;
      return Matrix::contiguous(data, count, width_, dtype_);
    }
    for (int64_t made = 0; made < count;) {
      const Tensor& from = parts_[part_];
      const int64_t taken = std::min(from.size(0) - row_, count - made);
      copy(from, row_, taken, made);
      made += taken;
      row_ += taken;
      if (row_ == from.size(0)) {
        row_ = 0;
        ++part_;
      }
    }
    return Matrix::contiguous(kept_->const_data_ptr(), count, width_, dtype_);
  }

 private:
  void copy(const Tensor& from, int64_t first, int64_t count, int64_t to) {
    if (from.scalar_type() == dtype_) {
      const int64_t bytes = width_ * bytes_of(dtype_);
      char* into = static_cast<char*>(kept_->mutable_data_ptr()) + to * bytes;
      if (count * bytes > 0)
        __builtin_memcpy(into, static_cast<const char*>(from.const_data_ptr()) + first * bytes, count * bytes);
      return;
    }
    Tensor into = torch::stable::narrow(*kept_, 0, to, count);
    torch::stable::copy_(into, torch::stable::narrow(const_cast<Tensor&>(from), 0, first, count));
  }

  const ScalarType dtype_;
  std::vector<Tensor> parts_;
  int64_t width_ = 0, part_ = 0, row_ = 0;
  OptionalTensor kept_;
};

}  // namespace

// The gradients of weight_ih, weight_hh, both biases and weight_hr that `needs` asks for, summed over steps.
static std::vector<Tensor> lstm_cell_weight_gradients(std::vector<Tensor> dgates, std::vector<Tensor> x,
                                                      std::vector<Tensor> h, std::vector<Tensor> dh,
                                                      std::vector<Tensor> unprojected, std::vector<bool> needs) {
  STD_TORCH_CHECK(!dgates.empty() && x.size() == dgates.size() && h.size() == dgates.size() &&
                      dh.size() == unprojected.size() && (dh.empty() || dh.size() == dgates.size()),
                  "fastlstm: lists of different lengths: dgates ", dgates.size(), ", x ", x.size(), ", h ", h.size(),
                  ", dh ", dh.size(), ", unprojected ", unprojected.size());
  STD_TORCH_CHECK(needs.size() == 5 && (!needs[4] || !dh.empty()), "fastlstm: needs has ", needs.size(),
                  " entries, expected 5, the last of them true only with dh");
  const ScalarType dtype = x[0].scalar_type(), wide = wide_type(dtype);
  STD_TORCH_CHECK(dgates[0].scalar_type() == wide, "fastlstm: dgates has a dtype that does not fit x's");
  int64_t total = 0;
  for (const Tensor& t : dgates) total += t.dim() == 2 ? t.size(0) : 1;
  const int64_t H4 = dgates[0].size(dgates[0].dim() - 1);
  const int64_t most =
      std::min(total, std::max(kRowsForProduct, backward_bytes() / std::max<int64_t>(H4 * bytes_of(wide), 1)));
  const PartCounts parts = PartCounts::of(dtype);
  const int64_t I = x[0].size(x[0].dim() - 1), P = h[0].size(h[0].dim() - 1);
  const bool own = own_product(wide, H4, I + P, most, parts.gradients, parts.values);
  const ScalarType values = own ? value_type(wide, dtype, parts.values) : wide;
  Rows dgates_rows(dgates, "dgates", total, most, wide), x_rows(x, "x", total, most, values),
      h_rows(h, "h", total, most, values);
  LayerShape s{};
  s.I = I;
  s.H = H4 / 4;
  s.P = P;
  s.dtype = dtype;
  s.wide = wide;
  std::optional<Rows> dh_rows, unprojected_rows;
  if (needs[4]) {
    dh_rows.emplace(dh, "dh", total, most, wide);
    unprojected_rows.emplace(unprojected, "unprojected", total, most, wide);
    STD_TORCH_CHECK(dh_rows->width() == P && unprojected_rows->width() == s.H, "fastlstm: dh is ", dh_rows->width(),
                    " and unprojected ", unprojected_rows->width(), " wide, expected ", P, " and ", s.H);
  }
  std::vector<Tensor> results;
  results.reserve(needs.size());
  const auto gradient = [&](int64_t k, const Extents& sizes) -> void* {
    if (!needs[k]) return nullptr;
    results.push_back(on_large_pages(empty(sizes, dtype)));
    return results.back().mutable_data_ptr();
  };
  const WeightGradients into{gradient(0, {H4, I}), gradient(1, {H4, P}), gradient(2, {H4}), gradient(3, {H4}),
                             gradient(4, {P, s.H})};
  DirectionSums sums(s, into);
  for (int64_t first = 0; first < total; first += most) {
    const int64_t count = std::min(most, total - first);
    const Matrix rows = dgates_rows.next(count);
    sums.add_gates(rows, parts, own, 1, [&] { return x_rows.next(count); }, [&] { return h_rows.next(count); });
    if (sums.bias.wanted()) sums.bias.add_rows(rows);
    if (needs[4]) sums.add_projected(dh_rows->next(count), unprojected_rows->next(count));
  }
  sums.finish(s, into);
  return results;
}

}  // namespace fastlstm

STABLE_TORCH_LIBRARY_IMPL(fastlstm, CPU, m) {
  m.impl("lstm_cell_training_forward", TORCH_BOX(&fastlstm::lstm_cell_training_forward));
  m.impl("lstm_cell_training_backward", TORCH_BOX(&fastlstm::lstm_cell_training_backward));
  m.impl("lstm_cell_weight_gradients", TORCH_BOX(&fastlstm::lstm_cell_weight_gradients));
}
