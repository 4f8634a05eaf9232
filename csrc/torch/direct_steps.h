// A layer of a few steps and rows, from its weights as they lie: packing these first takes longer.
#pragma once

#include "torch/stack.h"
#include "torch/step_call.h"

namespace fastlstm {

namespace step_order {
#include "core/steps.h"
}

// Up to so many steps, these are faster.
constexpr int64_t kDirectSteps = 4;

class DirectSteps {
 public:
  DirectSteps(const Stack& s, const Masks& masks, DType dtype)
      : s_(s),
        masks_(masks),
        dtype_(dtype),
        steps_{s.T, s.N, masks.reset_mask},
        h_bytes_(s.P * s.bytes()),
        c_bytes_(s.H * s.bytes()),
        states_(s.T > 1 || masks.reset_mask != nullptr ? 3 * s.N * (h_bytes_ + c_bytes_) : 0) {}

  static bool serve(const Stack& s) { return s.T > 0 && s.N > 0 && s.T <= kDirectSteps && s.N <= kMaxStepRows; }

  // Direction d of a layer. x: (T, N, I) contiguous; h, c, h_n, c_n: the direction's, (N, P) and (N, H); y: (T, N, D * P);
  // cells: (T, N, D * H) of the dtype, or null.
  void run(int64_t d, const StepWeights& weights, int64_t I, const void* x, const char* h, const char* c, char* y,
           char* h_n, char* c_n, char* cells) {
    Held held;
    StepArgs args{};
    args.N = s_.N;
    args.I = I;
    args.P = s_.P;
    args.H = s_.H;
    args.dtype = dtype_;
    set_weights(weights, s_.dtype, held, args);
    for (int64_t k = 0; k < s_.T; ++k) {
      const int64_t t = steps_.step_at(d, k);
      const bool last = k + 1 == s_.T;
      args.x = static_cast<const char*>(x) + t * s_.N * I * s_.bytes();
      args.h_out = last ? h_n : state(k % 2);
      args.c_out = last ? c_n : state(k % 2) + s_.N * h_bytes_;
      enter(d, t, h, c, args);
      cpu_kernels().step(args, threads_.of(args));
      leave(d, t, h, c, args, y, cells);
      h = static_cast<const char*>(args.h_out);
      c = static_cast<const char*>(args.c_out);
    }
  }

 private:
  // Room for the states of a step: two take turns, the third is for states that enter as zeros.
  char* state(int64_t k) { return states_.data() + k * s_.N * (h_bytes_ + c_bytes_); }
  int64_t length(int64_t n) const { return masks_.lengths == nullptr ? s_.T : masks_.lengths[n]; }

  // The states that enter step t: h and c, zeros for rows that are cut there.
  void enter(int64_t d, int64_t t, const char* h, const char* c, StepArgs& args) {
    args.h = h;
    args.c = c;
    for (int64_t n = 0; masks_.reset_mask != nullptr && n < s_.N; ++n) {
      if (t >= length(n) || !steps_.cut_entering(d, t, n, length(n))) continue;
      char *zeroed_h = state(2), *zeroed_c = zeroed_h + s_.N * h_bytes_;
      if (args.h == h) {
        __builtin_memcpy(zeroed_h, h, s_.N * h_bytes_);
        __builtin_memcpy(zeroed_c, c, s_.N * c_bytes_);
        args.h = zeroed_h;
        args.c = zeroed_c;
      }
      __builtin_memset(zeroed_h + n * h_bytes_, 0, h_bytes_);
      __builtin_memset(zeroed_c + n * c_bytes_, 0, c_bytes_);
    }
  }

  // Rows for which step t does not exist keep their state, and their output is zero; then the step's results go to the
  // sequences.
  void leave(int64_t d, int64_t t, const char* h, const char* c, const StepArgs& args, char* y, char* cells) {
    for (int64_t n = 0; n < s_.N; ++n) {
      char *h_out = static_cast<char*>(args.h_out) + n * h_bytes_,
           *c_out = static_cast<char*>(args.c_out) + n * c_bytes_;
      char* y_row = y + ((t * s_.N + n) * s_.D + d) * h_bytes_;
      char* cell_row = cells == nullptr ? nullptr : cells + ((t * s_.N + n) * s_.D + d) * c_bytes_;
      const bool exists = t < length(n);
      if (!exists) {
        __builtin_memcpy(h_out, h + n * h_bytes_, h_bytes_);
        __builtin_memcpy(c_out, c + n * c_bytes_, c_bytes_);
        __builtin_memset(y_row, 0, h_bytes_);
        if (cell_row != nullptr) __builtin_memset(cell_row, 0, c_bytes_);
        continue;
      }
      __builtin_memcpy(y_row, h_out, h_bytes_);
      if (cell_row != nullptr) __builtin_memcpy(cell_row, c_out, c_bytes_);
    }
  }

  const Stack& s_;
  const Masks& masks_;
  const DType dtype_;
  const step_order::Steps steps_;
  const int64_t h_bytes_, c_bytes_;  // of a row
  StepThreads threads_;
  std::vector<char> states_;
};

}  // namespace fastlstm
