// What the variants' loops do with whole rows: zoneout's masks, and sums for layer normalisation. Included inside a
// namespace of an instruction set.

// Philox4x32-10 on counters in 64-bit lanes, which use their lower halves.
struct ZoneoutGenerator {
  using Wide = VectorOf<double>::bits;

  uint32_t key[2];
  uint32_t row, step, stream;

  static FASTLSTM_INLINE Wide multiply(Wide a, uint32_t b) {
    const Wide factor = Wide{} + b;
#if FASTLSTM_SIMD_BYTES == 64
    return bit_cast<Wide>(_mm512_maskz_mul_epu32(0xff, bit_cast<__m512i>(a), bit_cast<__m512i>(factor)));
#elif FASTLSTM_SIMD_BYTES == 32
    return bit_cast<Wide>(_mm256_mul_epu32(bit_cast<__m256i>(a), bit_cast<__m256i>(factor)));
#else
    return (a & 0xffffffff) * factor;
#endif
  }

  // Word 0 (for h) or 1 (for c) of units unit, unit + 1, ...
  template <int kWord>
  FASTLSTM_INLINE Wide words(int64_t unit) const {
    constexpr int kLanes = FASTLSTM_SIMD_BYTES / 8;
    uint64_t units[kLanes];
    for (int j = 0; j < kLanes; ++j) units[j] = static_cast<uint32_t>(unit + j);
    Wide a = load_raw<Wide>(units), b = Wide{} + row, c = Wide{} + step, d = Wide{} + stream;
    uint32_t k0 = key[0], k1 = key[1];
    for (int round = 0; round < 10; ++round) {
      const Wide first = multiply(a, 0xD2511F53u), second = multiply(c, 0xCD9E8D57u);
      a = (second >> 32) ^ b ^ k0;
      b = second;
      c = (first >> 32) ^ d ^ k1;
      d = first;
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
    return (kWord == 0 ? a : b) & 0xffffffff;
  }
};

// `Recurrence` with a variant's directions.
struct VariantRecurrence : VariantSteps {
  const Recurrence base;

  VariantRecurrence(const Sizes& s, const Plan& plan, const bool* mask, const Variant& variant)
      : VariantSteps{{s.T, s.N, mask}, static_cast<int>(variant.stream % 2)}, base(s, plan, mask) {}

  template <class Body>
  void for_blocks(int group, const Body& body) const {
    base.for_blocks(group, body);
  }
};

// A mask of a vector of units: all ones in a lane that keeps its old value.
template <class Acc, int kWord>
FASTLSTM_INLINE typename VectorOf<Acc>::integer keeping(const ZoneoutGenerator& generator, int64_t unit,
                                                        uint32_t threshold) {
  using Wide = ZoneoutGenerator::Wide;
  using Signed = VectorOf<double>::integer;
  const auto kept = [&](int64_t first) FASTLSTM_INLINE_LAMBDA {
    return bit_cast<Signed>(generator.words<kWord>(first) >> 8) < bit_cast<Signed>(Wide{} + threshold);
  };
  if constexpr (sizeof(Acc) == 8) {
    return kept(unit);
  } else {
    typedef int32_t Half __attribute__((vector_size(FASTLSTM_SIMD_BYTES / 2)));
    constexpr int kLanes = FASTLSTM_SIMD_BYTES / 8;
    int32_t flags[2 * kLanes];
    store_raw(flags, __builtin_convertvector(kept(unit), Half));
    store_raw(flags + kLanes, __builtin_convertvector(kept(unit + kLanes), Half));
    return load_raw<typename VectorOf<Acc>::integer>(flags);
  }
}

// Zoneout of h (word 0) or c (word 1) in one row and step: by masks, by their means, or none.
template <class Acc, int kWord>
struct Zone {
  using V = Vec<Acc>;

  double probability;
  bool random;
  uint32_t threshold;
  ZoneoutGenerator generator;

  Zone(const Variant& variant, int d, int64_t row, int64_t t)
      : probability(kWord == 0 ? variant.zoneout_h : variant.zoneout_c),
        random(variant.seed != nullptr),
        threshold(zoneout_threshold(probability)) {
    const uint64_t seed = random ? static_cast<uint64_t>(*variant.seed) : 0;
    generator = {{static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)},
                 static_cast<uint32_t>(row),
                 static_cast<uint32_t>(variant.first_step + t),
                 static_cast<uint32_t>(variant.stream + d)};
  }

  FASTLSTM_INLINE V mix(int64_t unit, V old_value, V new_value) const {
    if (probability == 0) return new_value;
    if (random) return keeping<Acc, kWord>(generator, unit, threshold) ? old_value : new_value;
    const Acc p = static_cast<Acc>(probability);
    return p * old_value + (1 - p) * new_value;
  }

  // Splits a gradient between the old and the new value.
  FASTLSTM_INLINE void share(int64_t unit, V grad, V* to_old, V* to_new) const {
    *to_old = mix(unit, grad, V{});
    *to_new = mix(unit, V{}, grad);
  }
};

template <class Acc>
FASTLSTM_INLINE Acc sum_of(Vec<Acc> v) {
  Acc lanes_of_v[lanes<Acc>], total = 0;
  store_raw(lanes_of_v, v);
  for (int j = 0; j < lanes<Acc>; ++j) total += lanes_of_v[j];
  return total;
}

// v with zeros from lane n on.
template <class Acc>
FASTLSTM_INLINE Vec<Acc> first_lanes(Vec<Acc> v, int64_t n) {
  Acc all[lanes<Acc>];
  store_raw(all, v);
  return load_part<Acc>(all, n);
}

// body(first, count, whole) for each vector of a row of n.
template <class Acc, class Body>
FASTLSTM_INLINE void for_row(int64_t n, const Body& body) {
  constexpr int L = lanes<Acc>;
  int64_t j = 0;
  for (; j + L <= n; j += L) body(j, int64_t{L}, std::true_type{});
  if (j < n) body(j, n - j, std::false_type{});
}

template <class Acc>
struct Moments {
  Acc mean, scale;  // scale: 1 / sqrt(variance + epsilon)
};

// Mean and scale of `parts` * n numbers, in `parts` runs of n that are `stride` apart.
template <class Acc>
Moments<Acc> moments(const Acc* row, int parts, int64_t stride, int64_t n) {
  Vec<Acc> sum = {}, squares = {};
  for (int part = 0; part < parts; ++part) {
    for_row<Acc>(n, [&](int64_t j, int64_t count, auto whole) {
      sum += load<Acc, whole.value>(row + part * stride + j, count);
    });
  }
  const Acc mean = sum_of<Acc>(sum) / static_cast<Acc>(parts * n);
  for (int part = 0; part < parts; ++part) {
    for_row<Acc>(n, [&](int64_t j, int64_t count, auto whole) {
      Vec<Acc> off = load<Acc, whole.value>(row + part * stride + j, count) - mean;
      if (!whole.value) off = first_lanes<Acc>(off, count);
      squares += off * off;
    });
  }
  const Acc variance = sum_of<Acc>(squares) / static_cast<Acc>(parts * n);
  return {mean, 1 / static_cast<Acc>(__builtin_sqrt(variance + static_cast<Acc>(kNormEpsilon)))};
}
