// int8_stack: a whole stack with 8-bit weights, without a gradient, in one call; int8_call: the same for a module's call
// of padded rows, a step or a cell, whose arguments may not fit. Their schemas and meaning stand in
// fastlstm/stack/int8.py, the packed form in cpu/int8_recurrence.h.

#include <initializer_list>

#include "cpu/int8_recurrence.h"
#include "torch/fit.h"
#include "torch/tensors.h"

namespace fastlstm {

namespace {

std::string shape_of(const Tensor& t) {
  std::vector<int64_t> sizes;
  for (int64_t k = 0; k < t.dim(); ++k) sizes.push_back(t.size(k));
  return text(sizes);
}

const char* dtype_name(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Char:
      return "int8";
    case ScalarType::Long:
      return "int64";
    case ScalarType::Bool:
      return "bool";
    default:
      return "another dtype";
  }
}

// What the arguments are of, and what is done where they do not fit: an error says why, or `Unfit` is thrown.
struct Form {
  bool or_nothing = false, step = false, cell = false;  // a cell is a step whose states have no layers
};

// Throws unless t is of this type and shape on the CPU; `name()` is asked for then alone.
template <class Name>
void expect(const Form& form, const Tensor& t, const Extents& sizes, ScalarType dtype, const Name& name) {
  if (form.or_nothing) return fit(t, sizes, dtype);
  STD_TORCH_CHECK(is_of(t, sizes), "fastlstm: ", std::string(name()), " has shape ", shape_of(t), ", expected ",
                  text({sizes.begin(), sizes.end()}));
  STD_TORCH_CHECK(t.scalar_type() == dtype, "fastlstm: ", std::string(name()), " is of another dtype than ",
                  dtype_name(dtype));
  STD_TORCH_CHECK(Where::cpu().has(t), "fastlstm: ", std::string(name()), " is not on the CPU");
}

int64_t in_blocks(int64_t n, int64_t of) { return (n + of - 1) / of; }

class Int8Call {
 public:
  Int8Call(const Form& form, const Tensor& x, const OptionalTensor& h0, const OptionalTensor& c0,
           const std::vector<Tensor>& weights, int64_t layers, bool bidirectional, bool batch_first,
           const OptionalTensor& lengths, const OptionalTensor& reset_mask, bool weight_only, bool return_cells)
      : form_(form),
        weights_(weights),
        layers_(layers),
        batched_(x.dim() == (form.step ? 2 : 3)),
        turned_(batched_ && batch_first && !form.step) {
    const bool expected_dims = batched_ || x.dim() == (form.step ? 1 : 2);
    if (form.or_nothing) fit(expected_dims && x.scalar_type() == ScalarType::Float && Where::cpu().has(x));
    STD_TORCH_CHECK(expected_dims, "fastlstm: x has ", x.dim(), " dimensions, expected 3, or 2 without rows");
    STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float, "fastlstm: x is of another dtype than float32");
    STD_TORCH_CHECK(Where::cpu().has(x), "fastlstm: x is not on the CPU");
    Sizes& s = args_.sizes;
    s.D = bidirectional ? 2 : 1;
    const int64_t count = static_cast<int64_t>(weights.size());
    // Compared with the count first: layers may be any number.
    each_ = layers > 0 && layers <= count ? count / (layers * s.D) : 0;
    STD_TORCH_CHECK(each_ >= 4 && each_ <= 7 && count == each_ * layers * s.D, "fastlstm: got ", count, " weights for ",
                    layers, " layers of ", s.D, " directions, expected 4 to 7 for each");
    s.T = form.step ? 1 : x.size(turned_ ? 1 : 0);
    s.N = batched_ ? x.size(turned_ || form.step ? 0 : 1) : 1;
    args_.I = x.size(x.dim() - 1);
    const Tensor& scale = weights[3];
    STD_TORCH_CHECK(scale.dim() == 1 && scale.size(0) % 4 == 0 && scale.size(0) > 0, "fastlstm: weights[3], scale_hh, ",
                    "has shape ", shape_of(scale), ", expected (4H,)");
    s.H = scale.size(0) / 4;
    s.P = s.H;
    if (each_ >= 6) {
      const Tensor& out = weights[each_ - 1];
      STD_TORCH_CHECK(out.dim() == 1 && out.size(0) > 0, "fastlstm: weights[", each_ - 1, "], scale_hr, has shape ",
                      shape_of(out), ", expected (P,)");
      s.P = out.size(0);
    }
    if (lengths) set_lengths(*lengths);
    if (reset_mask) set_reset_mask(*reset_mask);
    args_.weight_only = weight_only;
    h0_ = states(h0, s.P, "h0");
    c0_ = states(c0, s.H, "c0");
    h_n_ = empty(state_sizes(s.P), ScalarType::Float);
    c_n_ = empty(state_sizes(s.H), ScalarType::Float);
    set_x(x);
    return_cells_ = return_cells;
    // Every layer's weights are checked before anything runs.
    for (int64_t k = 0; k < layers; ++k) {
      for (int64_t d = 0; d < s.D; ++d) check_weights(k, d, k == 0 ? args_.I : s.D * s.P);
    }
  }

  // output, h_n, c_n; with return_cells the cells.
  std::vector<Tensor> run() {
    const Sizes& s = args_.sizes;
    OptionalTensor cells;
    if (return_cells_) cells = empty_rows(s.H);
    float *h_n = floats(h_n_), *c_n = floats(c_n_);
    Tensor output = empty_rows(s.P), before = output;
    for (int64_t k = 0; k < layers_; ++k) {
      const int64_t state = k * s.D * s.N;
      if (k > 0) {
        before = std::move(output);
        output = empty_rows(s.P);
        args_.I = s.D * s.P;
        args_.x = floats(before);
        args_.x_stride_n = args_.I;
        args_.x_stride_t = s.N * args_.I;
      }
      for (int64_t d = 0; d < s.D; ++d) set_weights(k, d);
      args_.h0 = h0_ == nullptr ? nullptr : h0_ + state * s.P;
      args_.c0 = c0_ == nullptr ? nullptr : c0_ + state * s.H;
      args_.h_n = h_n + state * s.P;
      args_.c_n = c_n + state * s.H;
      args_.output = floats(output);
      args_.cells = cells && k + 1 == layers_ ? floats(*cells) : nullptr;
      if (s.N > 0) cpu_kernels().int8_layer(args_, threads_);
    }
    std::vector<Tensor> results;
    results.reserve(4);
    for (Tensor* made : {&output, &h_n_, &c_n_}) results.push_back(std::move(*made));
    if (cells) results.push_back(std::move(*cells));
    return results;
  }

 private:
  static float* floats(Tensor& t) { return static_cast<float*>(t.mutable_data_ptr()); }

  // A sequence as the caller has it, time-major in memory: [T, N, width], [N, T, width] or [T, width], of a step
  // [N, width] or [width].
  Tensor empty_rows(int64_t width) const {
    const Sizes& s = args_.sizes;
    const int64_t all = s.D * width;
    if (turned_) return empty({s.N, s.T, all}, {all, s.N * all, 1}, ScalarType::Float);
    if (form_.step) return empty(batched_ ? Extents{s.N, all} : Extents{all}, ScalarType::Float);
    return empty(batched_ ? Extents{s.T, s.N, all} : Extents{s.T, all}, ScalarType::Float);
  }

  const float* states(const OptionalTensor& t, int64_t width, const char* name) {
    if (!t) return nullptr;
    expect(form_, *t, state_sizes(width), ScalarType::Float, [name] { return name; });
    return static_cast<const float*>(held_.data(*t));
  }

  Extents state_sizes(int64_t width) const {
    const int64_t rows = layers_ * args_.sizes.D, N = args_.sizes.N;
    if (form_.cell) return batched_ ? Extents{N, width} : Extents{width};
    return batched_ ? Extents{rows, N, width} : Extents{rows, width};
  }

  // (N,), of a module's call without rows also ().
  void set_lengths(const Tensor& t) {
    const Sizes& s = args_.sizes;
    if (!form_.or_nothing || batched_ || t.dim() != 0) {
      expect(form_, t, {s.N}, ScalarType::Long, [] { return "lengths"; });
    } else {
      fit(t, {}, ScalarType::Long);
    }
    args_.lengths = static_cast<const int64_t*>(held_.data(t));
    for (int64_t n = 0; form_.or_nothing && n < s.N; ++n) fit(args_.lengths[n] >= 0 && args_.lengths[n] <= s.T);
  }

  // (T, N), of a module's call laid out as x.
  void set_reset_mask(const Tensor& t) {
    const Sizes& s = args_.sizes;
    const bool as_x = form_.or_nothing, turn = as_x && turned_;
    const Extents sizes = turn ? Extents{s.N, s.T} : as_x && !batched_ ? Extents{s.T} : Extents{s.T, s.N};
    expect(form_, t, sizes, ScalarType::Bool, [] { return "reset_mask"; });
    args_.reset_mask = static_cast<const bool*>(held_.data(turn ? torch::stable::transpose(t, 0, 1) : t));
  }

  void set_x(const Tensor& x) {
    const int64_t last = x.dim() - 1;
    const bool rows = args_.I <= 1 || x.stride(last) == 1;
    x_ = rows ? x : torch::stable::contiguous(x);
    args_.x = static_cast<const float*>(x_.const_data_ptr());
    args_.x_stride_t = form_.step ? 0 : x_.stride(turned_ ? 1 : 0);
    args_.x_stride_n = batched_ ? x_.stride(turned_ || form_.step ? 0 : 1) : 0;
  }

  const Tensor* weights_of(int64_t k, int64_t d) const { return weights_.data() + (k * args_.sizes.D + d) * each_; }
  bool biased() const { return each_ % 2 == 1; }
  bool projected() const { return each_ >= 6; }

  void check_weights(int64_t k, int64_t d, int64_t I) const {
    const Sizes& s = args_.sizes;
    const Tensor* w = weights_of(k, d);
    int64_t n = 0;
    const auto next = [&](const char* name, const Extents& sizes, ScalarType dtype) {
      const int64_t place = n++;
      expect(form_, w[place], sizes, dtype, [&] {
        return "weights[" + std::to_string((k * s.D + d) * each_ + place) + "], " + name + " of layer " +
               std::to_string(k) + (d == 0 ? "," : ", reverse,");
      });
    };
    const int64_t blocks = in_blocks(s.H, kInt8Units);
    next("packed_ih", {blocks, in_blocks(I, kInt8Depth), 4, kInt8Units, kInt8Depth}, ScalarType::Char);
    next("scale_ih", {4 * s.H}, ScalarType::Float);
    next("packed_hh", {blocks, in_blocks(s.P, kInt8Depth), 4, kInt8Units, kInt8Depth}, ScalarType::Char);
    next("scale_hh", {4 * s.H}, ScalarType::Float);
    if (biased()) next("bias", {4 * s.H}, ScalarType::Float);
    if (!projected()) return;
    next("packed_hr", {in_blocks(s.P, kInt8Units), in_blocks(s.H, kInt8Depth), 1, kInt8Units, kInt8Depth},
         ScalarType::Char);
    next("scale_hr", {s.P}, ScalarType::Float);
  }

  void set_weights(int64_t k, int64_t d) {
    const Tensor* w = weights_of(k, d);
    const auto bytes = [&](const Tensor& t) { return static_cast<const int8_t*>(held_.data(t)); };
    const auto numbers = [&](const Tensor& t) { return static_cast<const float*>(held_.data(t)); };
    Int8Weights& to = args_.weights[d];
    to = {bytes(w[0]), bytes(w[2]), nullptr, numbers(w[1]), numbers(w[3]), nullptr, nullptr};
    if (biased()) to.bias = numbers(w[4]);
    if (projected()) {
      to.hr = bytes(w[each_ - 2]);
      to.scale_hr = numbers(w[each_ - 1]);
    }
  }

  const Form form_;
  const std::vector<Tensor>& weights_;
  const int64_t layers_;
  const bool batched_, turned_;
  const Threads threads_ = threads();
  bool return_cells_ = false;
  int64_t each_;
  Int8Args args_{};
  Held held_;
  Tensor x_, h_n_, c_n_;
  const float *h0_, *c0_;
};

}  // namespace

// output, h_n, c_n, cells.
using Int8Results = std::tuple<Tensor, Tensor, Tensor, Tensor>;

static Int8Results int8_stack(Tensor x, OptionalTensor h0, OptionalTensor c0, std::vector<Tensor> weights,
                              int64_t layers, bool bidirectional, bool batch_first, OptionalTensor lengths,
                              OptionalTensor reset_mask, bool weight_only, bool return_cells) {
  Int8Call call(Form{}, x, h0, c0, weights, layers, bidirectional, batch_first, lengths, reset_mask, weight_only,
                return_cells);
  std::vector<Tensor> made = call.run();
  Tensor cells = return_cells ? made[3] : empty({0}, ScalarType::Float);
  return {made[0], made[1], made[2], cells};
}

static std::vector<Tensor> int8_call(Tensor x, OptionalTensor h0, OptionalTensor c0, std::vector<Tensor> weights,
                                     int64_t inputs, int64_t layers, bool bidirectional, bool batch_first,
                                     bool weight_only, bool step, bool cell, OptionalTensor lengths,
                                     OptionalTensor reset_mask, bool return_cells) {
  return if_fit([&] {
    fit(x.dim() > 0 && x.size(x.dim() - 1) == inputs);
    const Form form{true, step || cell, cell};
    Int8Call call(form, x, h0, c0, weights, layers, bidirectional, batch_first, lengths, reset_mask, weight_only,
                  return_cells);
    std::vector<Tensor> made = call.run();
    if (cell) made.erase(made.begin());
    return made;
  });
}

}  // namespace fastlstm

STABLE_TORCH_LIBRARY_IMPL(fastlstm, CPU, m) {
  m.impl("int8_stack", TORCH_BOX(&fastlstm::int8_stack));
  m.impl("int8_call", TORCH_BOX(&fastlstm::int8_call));
}
