// The order in which a direction takes the steps, and where a row's state is reset, once for every compiled backend.
// Directions: 0 forward, 1 reverse. Included inside its user's namespace, as lstm_cell.h is.
#pragma once

#include "core/inline.h"

struct Steps {
  int64_t T, N;
  const bool* reset_mask;  // [T, N] or null

  // Whether direction d of this row enters step t with zeros; `length` is the row's. The reverse direction is never cut
  // at a row's first step.
  FASTLSTM_INLINE bool cut_entering(int d, int64_t t, int64_t row, int64_t length) const {
    if (reset_mask == nullptr) return false;
    if (d == 0) return reset_mask[t * N + row];
    return t + 1 < length && reset_mask[(t + 1) * N + row];
  }

  // The k-th step of direction d.
  FASTLSTM_INLINE int64_t step_at(int d, int64_t k) const { return d == 0 ? k : T - 1 - k; }
  // The first and the last step of direction d in a row of this length.
  FASTLSTM_INLINE int64_t first_step(int d, int64_t length) const { return d == 0 ? 0 : length - 1; }
  FASTLSTM_INLINE int64_t last_step(int d, int64_t length) const { return d == 0 ? length - 1 : 0; }
  FASTLSTM_INLINE int64_t step_before(int d, int64_t t) const { return d == 0 ? t - 1 : t + 1; }
  FASTLSTM_INLINE int64_t step_after(int d, int64_t t) const { return d == 0 ? t + 1 : t - 1; }
};
