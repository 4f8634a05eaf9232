// The backward recurrence as one launch for each step (two with a projection), and one for the initial states.
#pragma once

#include "core/layout.h"
#include "cuda/launch.h"
#include "cuda/product/matrix.h"
#include "cuda/product/tiles.h"
#include "cuda/step/backward.h"

namespace fastlstm::cuda {

template <class Policy>
class BackwardSteps {
 public:
  using IO = typename Policy::IO;
  using Acc = typename Policy::Acc;

  BackwardSteps(const BackwardArgs& args, void* workspace) : args_(args) {
    const Sizes& s = args.sizes;
    Layout layout(static_cast<char*>(workspace));
    call_.take(args);
    call_.steps = {s.T, s.N, args.reset_mask};
    call_.passed_width = padded<IO>(4 * s.H);
    for (IO*& buffer : call_.passed) buffer = layout.array<IO>(s.D * s.N * call_.passed_width);
    call_.dc = layout.array<Acc>(s.D * s.N * s.H);
    call_.projected_width = padded<IO>(s.P);
    weight_hh_ = layout.array<IO>(s.D * s.P * call_.passed_width);
    if (projected()) {
      call_.projected = layout.array<IO>(s.D * s.N * call_.projected_width);
      weight_hr_ = layout.array<IO>(s.D * s.H * call_.projected_width);
    }
    workspace_ = layout.used();
  }

  size_t workspace() const { return workspace_; }

  void run(Launcher& launch) {
    const Sizes& s = args_.sizes;
    const DeviceFacts device;
    const Factors through_gates = factors(launch, args_.weight_hh, weight_hh_, s.P, 4 * s.H, call_.passed_width);
    const Factors through_projection =
        projected() ? factors(launch, args_.weight_hr, weight_hr_, s.H, s.P, call_.projected_width) : Factors{};
    const int64_t width = std::max(call_.passed_width, call_.projected_width);
    launch.over(s.D * s.N * width, "lstm_backward_kernel_start", lstm_backward_kernel_start<IO, Acc>, call_, width);
    const TileSize gates_tile = choose_tile<Policy, 1>(s.N, s.P, 4 * s.H, s.D, device).size;
    const TileSize out_tile = choose_tile<Policy, 1>(s.N, s.H, s.P, s.D, device).size;
    visit_tile<Policy, 1>(gates_tile, [&](auto gates_sample) {
      visit_tile<Policy, 1>(out_tile, [&](auto out_sample) {
        steps<decltype(gates_sample), decltype(out_sample)>(launch, through_gates, through_projection);
      });
    });
  }

 private:
  bool projected() const { return args_.weight_hr[0] != nullptr; }

  // A gradient is multiplied by transposed weights: [units, K] from [K, units].
  Factors factors(Launcher& launch, const void* const (&weight)[2], IO* copy, int64_t units, int64_t K,
                  int64_t width) const {
    const Sizes& s = args_.sizes;
    const DirectionBytes b = as_factors(launch, weight, copy, s.D, units, K, width, true);
    return dense_factors(nullptr, s.N, b, units, width * sizeof(IO));
  }

  template <class GatesTile, class OutTile>
  void steps(Launcher& launch, Factors gates, Factors out) {
    const Sizes& s = args_.sizes;
    const auto through_gates = lstm_backward_kernel_step<Policy, GatesTile>;
    const auto through_projection = lstm_backward_kernel_step<Policy, OutTile>;
    using GatesBlock = Product<Policy, GatesTile, 1>;
    using OutBlock = Product<Policy, OutTile, 1>;
    launch.allow_shared("lstm_backward_kernel_step", through_gates, GatesBlock::kSharedBytes);
    launch.allow_shared("lstm_backward_kernel_step", through_projection, OutBlock::kSharedBytes);
    const dim3 gates_grid = tile_grid(s.N, GatesTile::kRows, s.P, GatesBlock::kUnits, s.D);
    const dim3 out_grid = tile_grid(s.N, OutTile::kRows, s.H, OutBlock::kUnits, s.D);
    out.a = reinterpret_cast<const unsigned char*>(call_.projected);
    // The last launch is for the gradient of h0 alone.
    const int64_t launches = call_.dh0.data == nullptr ? s.T : s.T + 1;
    for (int64_t j = 0; j < launches && !launch.failed(); ++j) {
      gates.a = reinterpret_cast<const unsigned char*>(call_.passed[j % 2]);
      const Use use = j == s.T ? Use::kInitial : projected() ? Use::kHidden : Use::kCell;
      launch("lstm_backward_kernel_step", through_gates, gates_grid, GatesTile::kThreads, GatesBlock::kSharedBytes,
             call_, gates, j, use);
      if (use == Use::kHidden) {
        launch("lstm_backward_kernel_step", through_projection, out_grid, OutTile::kThreads, OutBlock::kSharedBytes,
               call_, out, j, Use::kCell);
      }
    }
  }

  const BackwardArgs& args_;
  BackwardCall<IO, Acc> call_{};
  IO* weight_hh_ = nullptr;  // [D, P, passed_width], transposed
  IO* weight_hr_ = nullptr;  // [D, H, projected_width], transposed
  size_t workspace_;
};

}  // namespace fastlstm::cuda
