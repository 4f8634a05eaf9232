// The steps of a variant's directions. Unlike a plain call, a variant's call of one direction may be of the reverse
// one. Included inside its user's namespace, after steps.h.
#pragma once

struct VariantSteps : Steps {
  int first;  // the direction that is number 0 of the call

  FASTLSTM_INLINE bool cut_entering(int d, int64_t t, int64_t row, int64_t length) const {
    return Steps::cut_entering(first + d, t, row, length);
  }
  FASTLSTM_INLINE int64_t step_at(int d, int64_t k) const { return Steps::step_at(first + d, k); }
  FASTLSTM_INLINE int64_t first_step(int d, int64_t length) const { return Steps::first_step(first + d, length); }
  FASTLSTM_INLINE int64_t last_step(int d, int64_t length) const { return Steps::last_step(first + d, length); }
  FASTLSTM_INLINE int64_t step_before(int d, int64_t t) const { return Steps::step_before(first + d, t); }
  FASTLSTM_INLINE int64_t step_after(int d, int64_t t) const { return Steps::step_after(first + d, t); }
};
