// What a variant has beyond the plain LSTM, for every compiled backend: layer normalisation, recurrent dropout,
// zoneout. The equations are in fastlstm/reference/variant.py, zoneout's counters in
// fastlstm/reference/zoneout_masks.py.
#pragma once

#include <cstdint>

namespace fastlstm {

struct Variant {
  const void* h_mask;                     // [D, N, P] wide, or null
  const void *norm_hh, *norm_c, *bias_c;  // [D, 4H], [D, H], [D, H]; null without layer normalisation
  const int64_t* seed;                    // of zoneout's masks, or null for their means
  double zoneout_h, zoneout_c;
  int64_t stream, first_step;  // zoneout's number of direction d is stream + d; that of a reverse one is 2 * layer + 1
};

// What the backward loop takes and makes beyond Variant: arrays for all steps, made before it, and results that are
// used after it.
struct VariantTape {
  const void* candidates;  // c~ [T, N, D, H] wide
  // LN(W_hh h) [T, N, D, 4H] and its 1 / sqrt(var + epsilon) [T, N, D]; wide, or null
  const void *product_hat, *product_scale;
  const void *cell_hat, *cell_scale;  // LN(c~) [T, N, D, H] and [T, N, D]; wide, or null
  void *dproducts, *dshown;           // [T, N, D, 4H] as dgates_x, [T, N, D, H] wide; null without layer normalisation
};

constexpr double kNormEpsilon = 1e-5;

// The bound that the upper 24 bits of a random word are below with this probability.
inline uint32_t zoneout_threshold(double probability) { return static_cast<uint32_t>(probability * 16777216.0 + 0.5); }

}  // namespace fastlstm
