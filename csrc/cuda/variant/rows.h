// What the variants' kernels do with whole rows: a block takes a row, each thread every blockDim.x-th unit of it. Sums
// over a row for layer normalisation, and zoneout's masks.
#pragma once

#include "core/variant.h"
#include "cuda/device/arrays.h"
#include "cuda/product/product.h"

namespace fastlstm::cuda {

#include "core/variant_directions.h"

constexpr int kRowThreads = 512;  // at most

// Zoneout of h (word 0) or c (word 1): by masks, by their means, or none. The counters are described in
// fastlstm/reference/zoneout_masks.py.
template <class Acc, int kWord>
struct Zone {
  Acc probability;
  uint32_t threshold;
  const int64_t* seed;  // or null
  int64_t stream, first_step;

  static Zone of(const Variant& v) {
    const double p = kWord == 0 ? v.zoneout_h : v.zoneout_c;
    Zone zone{};
    zone.probability = static_cast<Acc>(p);
    zone.threshold = zoneout_threshold(p);
    zone.seed = v.seed;
    zone.stream = v.stream;
    zone.first_step = v.first_step;
    return zone;
  }

  __device__ __forceinline__ Acc mix(const Place& at, Acc old_value, Acc new_value) const {
    if (probability == 0) return new_value;
    if (seed != nullptr) return keeps(at) ? old_value : new_value;
    return probability * old_value + (1 - probability) * new_value;
  }

 private:
  __device__ __forceinline__ bool keeps(const Place& at) const {
    const uint64_t key = static_cast<uint64_t>(*seed);
    uint32_t a = static_cast<uint32_t>(at.unit), b = static_cast<uint32_t>(at.n);
    uint32_t c = static_cast<uint32_t>(first_step + at.t), d = static_cast<uint32_t>(stream + at.d);
    uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
#pragma unroll
    for (int round = 0; round < 10; ++round) {
      const uint64_t first = uint64_t{a} * 0xD2511F53u, second = uint64_t{c} * 0xCD9E8D57u;
      a = static_cast<uint32_t>(second >> 32) ^ b ^ k0;
      b = static_cast<uint32_t>(second);
      c = static_cast<uint32_t>(first >> 32) ^ d ^ k1;
      d = static_cast<uint32_t>(first);
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
    return (kWord == 0 ? a : b) >> 8 < threshold;
  }
};

// What the kernels of both passes get of the variant.
template <class IO, class Acc>
struct VariantArrays {
  VariantSteps steps;
  const Acc* h_mask;
  const IO *norm_hh, *norm_c, *bias_c;
  Zone<Acc, 0> zone_h;
  Zone<Acc, 1> zone_c;

  void take_variant(const Variant& v, const Sizes& s, const bool* reset_mask) {
    steps = {{s.T, s.N, reset_mask}, static_cast<int>(v.stream % 2)};
    h_mask = static_cast<const Acc*>(v.h_mask);
    norm_hh = static_cast<const IO*>(v.norm_hh);
    norm_c = static_cast<const IO*>(v.norm_c);
    bias_c = static_cast<const IO*>(v.bias_c);
    zone_h = Zone<Acc, 0>::of(v);
    zone_c = Zone<Acc, 1>::of(v);
  }
};

// Sums over the block of one or two numbers of each thread, always in the same order; every thread gets them. `shared`
// has two numbers for each warp.
template <class Acc>
struct Sums {
  Acc first, second;
};

template <class Acc>
__device__ __forceinline__ Sums<Acc> block_sums(Acc first, Acc second, unsigned char* shared) {
  Acc* parts = reinterpret_cast<Acc*>(shared);
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    first += __shfl_xor_sync(0xffffffffu, first, lanes);
    second += __shfl_xor_sync(0xffffffffu, second, lanes);
  }
  __syncthreads();  // the sums before these have been read
  if (threadIdx.x % 32 == 0) {
    parts[threadIdx.x / 32 * 2] = first;
    parts[threadIdx.x / 32 * 2 + 1] = second;
  }
  __syncthreads();
  Sums<Acc> total{0, 0};
  for (unsigned warp = 0; warp < blockDim.x / 32; ++warp) {
    total.first += parts[warp * 2];
    total.second += parts[warp * 2 + 1];
  }
  return total;
}

template <class Acc>
constexpr size_t kSumsBytes = kRowThreads / 32 * 2 * sizeof(Acc);

template <class Acc>
struct Moments {
  Acc mean, scale;  // scale: 1 / sqrt(variance + epsilon)
};

// Mean and scale of a row of `count` numbers. After it, every thread of the block has read all that it reads of them.
template <class Acc>
__device__ __forceinline__ Moments<Acc> moments(const Acc* row, int64_t count, unsigned char* shared) {
  Acc sum = 0, squares = 0;
  for (int64_t k = threadIdx.x; k < count; k += blockDim.x) sum += row[k];
  const Acc mean = block_sums(sum, Acc{0}, shared).first / static_cast<Acc>(count);
  for (int64_t k = threadIdx.x; k < count; k += blockDim.x) squares += (row[k] - mean) * (row[k] - mean);
  const Acc variance = block_sums(squares, Acc{0}, shared).first / static_cast<Acc>(count);
  return {mean, Acc{1} / sqrt(variance + static_cast<Acc>(kNormEpsilon))};
}

// Threads for rows of `width` units.
inline int row_threads(int64_t width) {
  const int64_t threads = (width + 31) / 32 * 32;
  return static_cast<int>(threads < kRowThreads ? threads : kRowThreads);
}

// A B^T of two factors, into [D, rows, units]. Blocks: row tiles, unit tiles, directions.
template <class Policy, class Tile>
__global__ void __launch_bounds__(Tile::kThreads)
    lstm_variant_kernel_product(const __grid_constant__ Factors factors, typename Policy::Acc* out) {
  FASTLSTM_SHARED(shared);
  Product<Policy, Tile, 1>(shared).run(factors, [&](int d, int64_t row, int64_t unit, const auto& sums) {
    out[(d * factors.rows + row) * factors.units + unit] = sums[0];
  });
}

}  // namespace fastlstm::cuda
