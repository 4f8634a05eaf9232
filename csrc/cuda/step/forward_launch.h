// The forward recurrence as one launch for each step (two with a projection).
#pragma once

#include "core/layout.h"
#include "cuda/launch.h"
#include "cuda/product/matrix.h"
#include "cuda/product/tiles.h"
#include "cuda/step/forward.h"

namespace fastlstm::cuda {

template <class Policy>
class ForwardSteps {
 public:
  using IO = typename Policy::IO;
  using Acc = typename Policy::Acc;

  ForwardSteps(const ForwardArgs& args, void* workspace) : args_(args) {
    const Sizes& s = args.sizes;
    Layout layout(static_cast<char*>(workspace));
    call_.take(args);
    call_.steps = {s.T, s.N, args.reset_mask};
    call_.entering_width = padded<IO>(s.P);
    for (IO*& buffer : call_.entering_h) buffer = layout.array<IO>(s.D * s.N * call_.entering_width);
    call_.entering_c = layout.array<Acc>(s.D * s.N * s.H);
    call_.unprojected_width = padded<IO>(s.H);
    if (projected()) call_.unprojected = layout.array<IO>(s.D * s.N * call_.unprojected_width);
    if (!are_factors<IO>(args.weight_hh, s.D, s.P)) weight_hh_ = layout.array<IO>(s.D * 4 * s.H * call_.entering_width);
    if (projected() && !are_factors<IO>(args.weight_hr, s.D, s.H))
      weight_hr_ = layout.array<IO>(s.D * s.P * call_.unprojected_width);
    workspace_ = layout.used();
  }

  size_t workspace() const { return workspace_; }

  void run(Launcher& launch) {
    const Sizes& s = args_.sizes;
    const DeviceFacts device;
    const Factors gates = factors(launch, args_.weight_hh, weight_hh_, call_.entering_width, 4, s.H, s.P);
    const Factors out =
        projected() ? factors(launch, args_.weight_hr, weight_hr_, call_.unprojected_width, 1, s.P, s.H) : Factors{};
    const int64_t width = std::max(call_.entering_width, projected() ? call_.unprojected_width : s.H);
    launch.over(s.D * s.N * width, "lstm_forward_kernel_start", lstm_forward_kernel_start<IO, Acc>, call_, width);
    const TileSize gates_tile = choose_tile<Policy, 4>(s.N, s.H, s.P, s.D, device).size;
    const TileSize out_tile = choose_tile<Policy, 1>(s.N, s.P, s.H, s.D, device).size;
    visit_tile<Policy, 4>(gates_tile, [&](auto gates_sample) {
      visit_tile<Policy, 1>(
          out_tile, [&](auto out_sample) { steps<decltype(gates_sample), decltype(out_sample)>(launch, gates, out); });
    });
  }

 private:
  bool projected() const { return args_.weight_hr[0] != nullptr; }

  // The address of the state is set at each step.
  Factors factors(Launcher& launch, const void* const (&weight)[2], IO* copy, int64_t width, int gates, int64_t units,
                  int64_t K) const {
    const Sizes& s = args_.sizes;
    const DirectionBytes b = as_factors(launch, weight, copy, s.D, gates * units, K, width, false);
    return dense_factors(nullptr, s.N, b, units, width * sizeof(IO));
  }

  template <class GatesTile, class OutTile>
  void steps(Launcher& launch, Factors gates, Factors out) {
    const Sizes& s = args_.sizes;
    using GatesBlock = Product<Policy, GatesTile, 4>;
    using OutBlock = Product<Policy, OutTile, 1>;
    const auto step = lstm_forward_kernel_step<Policy, GatesTile>;
    const auto project = lstm_forward_kernel_project<Policy, OutTile>;
    launch.allow_shared("lstm_forward_kernel_step", step, GatesBlock::kSharedBytes);
    if (projected()) launch.allow_shared("lstm_forward_kernel_project", project, OutBlock::kSharedBytes);
    out.a = reinterpret_cast<const unsigned char*>(call_.unprojected);
    for (int64_t k = 0; k < s.T && !launch.failed(); ++k) {
      gates.a = reinterpret_cast<const unsigned char*>(call_.entering_h[k % 2]);
      launch("lstm_forward_kernel_step", step, tile_grid(s.N, GatesTile::kRows, s.H, GatesBlock::kUnits, s.D),
             GatesTile::kThreads, GatesBlock::kSharedBytes, call_, gates, k);
      if (projected()) {
        launch("lstm_forward_kernel_project", project, tile_grid(s.N, OutTile::kRows, s.P, OutBlock::kUnits, s.D),
               OutTile::kThreads, OutBlock::kSharedBytes, call_, out, k);
      }
    }
  }

  const ForwardArgs& args_;
  ForwardCall<IO, Acc> call_{};
  IO* weight_hh_ = nullptr;  // copies, if the weights cannot be factors as they are
  IO* weight_hr_ = nullptr;
  size_t workspace_;
};

}  // namespace fastlstm::cuda
