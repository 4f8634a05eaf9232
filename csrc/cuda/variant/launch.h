// The variants' recurrence as launches: for each step a product, then its rows; twice with a projection.
#pragma once

#include "core/layout.h"
#include "cuda/launch.h"
#include "cuda/product/matrix.h"
#include "cuda/product/tiles.h"
#include "cuda/variant/backward.h"
#include "cuda/variant/families.h"
#include "cuda/variant/forward.h"

namespace fastlstm::cuda {

// The product of a state's rows, which each step makes anew, with a matrix.
template <class Policy>
class VariantProduct {
 public:
  using IO = typename Policy::IO;
  using Acc = typename Policy::Acc;

  VariantProduct() = default;
  VariantProduct(const Sizes& s, const IO* state, const DirectionBytes& matrix, int64_t units, int64_t width, Acc* out)
      : sizes_(s), factors_(dense_factors(state, s.N, matrix, units, width * sizeof(IO))), out_(out) {}

  void operator()(Launcher& launch) const {
    const int64_t width = factors_.bytes / static_cast<int64_t>(sizeof(IO));
    const TileSize tile = choose_tile<Policy, 1>(sizes_.N, factors_.units, width, sizes_.D, DeviceFacts()).size;
    visit_tile<Policy, 1>(tile, [&](auto sample) {
      using Tile = decltype(sample);
      using Block = Product<Policy, Tile, 1>;
      const auto kernel = lstm_variant_kernel_product<Policy, Tile>;
      launch.allow_shared("lstm_variant_kernel_product", kernel, Block::kSharedBytes);
      launch("lstm_variant_kernel_product", kernel,
             tile_grid(sizes_.N, Tile::kRows, factors_.units, Block::kUnits, sizes_.D), Tile::kThreads,
             Block::kSharedBytes, factors_, out_);
    });
  }

 private:
  Sizes sizes_{};
  Factors factors_{};
  Acc* out_ = nullptr;
};

inline dim3 row_grid(const Sizes& s) { return dim3(static_cast<unsigned>(s.N), static_cast<unsigned>(s.D)); }

template <class Policy>
class VariantForwardSteps {
 public:
  using IO = typename Policy::IO;
  using Acc = typename Policy::Acc;

  VariantForwardSteps(const ForwardArgs& args, const Variant& v, void* workspace) : args_(args) {
    const Sizes& s = args.sizes;
    Layout layout(static_cast<char*>(workspace));
    call_.take(args);
    call_.take_variant(v, s, args.reset_mask);
    call_.factor_width = padded<IO>(s.P);
    call_.unprojected_width = padded<IO>(s.H);
    call_.h = layout.array<IO>(s.D * s.N * s.P);
    call_.factor = layout.array<IO>(s.D * s.N * call_.factor_width);
    call_.c = layout.array<Acc>(s.D * s.N * s.H);
    call_.products = layout.array<Acc>(s.D * s.N * 4 * s.H);
    call_.candidates = layout.array<Acc>(s.D * s.N * s.H);
    if (projected()) {
      call_.unprojected = layout.array<IO>(s.D * s.N * call_.unprojected_width);
      call_.projected = layout.array<Acc>(s.D * s.N * s.P);
    }
    if (!are_factors<IO>(args.weight_hh, s.D, s.P)) weight_hh_ = layout.array<IO>(s.D * 4 * s.H * call_.factor_width);
    if (projected() && !are_factors<IO>(args.weight_hr, s.D, s.H))
      weight_hr_ = layout.array<IO>(s.D * s.P * call_.unprojected_width);
    workspace_ = layout.used();
  }

  size_t workspace() const { return workspace_; }

  void run(Launcher& launch) {
    const Sizes& s = args_.sizes;
    const auto hh = as_factors(launch, args_.weight_hh, weight_hh_, s.D, 4 * s.H, s.P, call_.factor_width, false);
    const VariantProduct<Policy> multiply(s, call_.factor, hh, 4 * s.H, call_.factor_width, call_.products);
    VariantProduct<Policy> project;
    if (projected()) {
      const auto hr = as_factors(launch, args_.weight_hr, weight_hr_, s.D, s.P, s.H, call_.unprojected_width, false);
      project = {s, call_.unprojected, hr, s.P, call_.unprojected_width, call_.projected};
    }
    const dim3 rows = row_grid(s);
    launch("lstm_variant_kernel_start", lstm_variant_kernel_start<IO, Acc>, rows, row_threads(std::max(s.H, s.P)), 0,
           call_);
    for (int64_t k = 0; k < s.T && !launch.failed(); ++k) {
      multiply(launch);
      launch("lstm_variant_kernel_cell", lstm_variant_kernel_cell<IO, Acc>, rows, row_threads(s.H), kSumsBytes<Acc>,
             call_, k);
      if (!projected()) continue;
      project(launch);
      launch("lstm_variant_kernel_emit", lstm_variant_kernel_emit<IO, Acc>, rows, row_threads(s.P), 0, call_, k);
    }
  }

 private:
  bool projected() const { return args_.weight_hr[0] != nullptr; }

  const ForwardArgs& args_;
  VariantForwardCall<IO, Acc> call_{};
  IO* weight_hh_ = nullptr;  // copies, if the weights cannot be factors as they are
  IO* weight_hr_ = nullptr;
  size_t workspace_;
};

template <class Policy>
class VariantBackwardSteps {
 public:
  using IO = typename Policy::IO;
  using Acc = typename Policy::Acc;

  VariantBackwardSteps(const BackwardArgs& args, const Variant& v, const VariantTape& tape, void* workspace)
      : args_(args) {
    const Sizes& s = args.sizes;
    Layout layout(static_cast<char*>(workspace));
    call_.take(args);
    call_.take_variant(v, s, args.reset_mask);
    call_.candidates = static_cast<const Acc*>(tape.candidates);
    call_.product_hat = static_cast<const Acc*>(tape.product_hat);
    call_.product_scale = static_cast<const Acc*>(tape.product_scale);
    call_.cell_hat = static_cast<const Acc*>(tape.cell_hat);
    call_.cell_scale = static_cast<const Acc*>(tape.cell_scale);
    call_.dproducts = {tape.dproducts, args.wide_gates};
    call_.dshown = static_cast<Acc*>(tape.dshown);
    call_.factor_width = padded<IO>(4 * s.H);
    call_.projected_width = padded<IO>(s.P);
    call_.factor = layout.array<IO>(s.D * s.N * call_.factor_width);
    call_.sums = layout.array<Acc>(s.D * s.N * s.P);
    call_.kept = layout.array<Acc>(s.D * s.N * s.P);
    call_.unprojected = layout.array<Acc>(s.D * s.N * s.H);
    call_.dc = layout.array<Acc>(s.D * s.N * s.H);
    call_.work = layout.array<Acc>(s.D * s.N * 4 * s.H);
    weight_hh_ = layout.array<IO>(s.D * s.P * call_.factor_width);
    if (projected()) {
      call_.projected = layout.array<IO>(s.D * s.N * call_.projected_width);
      weight_hr_ = layout.array<IO>(s.D * s.H * call_.projected_width);
    }
    workspace_ = layout.used();
  }

  size_t workspace() const { return workspace_; }

  void run(Launcher& launch) {
    const Sizes& s = args_.sizes;
    // A gradient is multiplied by transposed weights.
    const auto hh = as_factors(launch, args_.weight_hh, weight_hh_, s.D, s.P, 4 * s.H, call_.factor_width, true);
    const VariantProduct<Policy> multiply(s, call_.factor, hh, s.P, call_.factor_width, call_.sums);
    VariantProduct<Policy> unproject;
    if (projected()) {
      const auto hr = as_factors(launch, args_.weight_hr, weight_hr_, s.D, s.H, s.P, call_.projected_width, true);
      unproject = {s, call_.projected, hr, s.H, call_.projected_width, call_.unprojected};
    }
    const dim3 rows = row_grid(s);
    const int widest = row_threads(std::max(s.H, s.P));
    launch("lstm_variant_kernel_start_backward", lstm_variant_kernel_start_backward<IO, Acc>, rows, widest, 0, call_);
    for (int64_t j = 0; j < s.T && !launch.failed(); ++j) {
      multiply(launch);
      if (projected()) {
        launch("lstm_variant_kernel_arrive", lstm_variant_kernel_arrive<IO, Acc>, rows, row_threads(s.P), 0, call_, j);
        unproject(launch);
      }
      launch("lstm_variant_kernel_cell_backward", lstm_variant_kernel_cell_backward<IO, Acc>, rows, row_threads(s.H),
             kSumsBytes<Acc>, call_, j);
    }
    multiply(launch);
    launch("lstm_variant_kernel_initial", lstm_variant_kernel_initial<IO, Acc>, rows, widest, 0, call_);
  }

 private:
  bool projected() const { return args_.weight_hr[0] != nullptr; }

  const BackwardArgs& args_;
  VariantBackwardCall<IO, Acc> call_{};
  IO* weight_hh_ = nullptr;  // [D, P, factor_width], transposed
  IO* weight_hr_ = nullptr;  // [D, H, projected_width], transposed
  size_t workspace_;
};

template <class Policy>
size_t run_variant(const ForwardArgs& args, const Variant& variant, void* workspace, Launcher* launch) {
  VariantForwardSteps<Policy> steps(args, variant, workspace);
  if (launch != nullptr) steps.run(*launch);
  return steps.workspace();
}

template <class Policy>
size_t run_variant(const BackwardArgs& args, const Variant& variant, const VariantTape& tape, void* workspace,
                   Launcher* launch) {
  VariantBackwardSteps<Policy> steps(args, variant, tape, workspace);
  if (launch != nullptr) steps.run(*launch);
  return steps.workspace();
}

}  // namespace fastlstm::cuda
