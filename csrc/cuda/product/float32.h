// float32 factors on the tensor cores, with float32's own accuracy.
//
// A float32 number is the sum of three bfloat16 numbers of eight significant bits each: the upper half of its word, the
// upper half of the remainder, and the rest. The split is exact, and so are the tensor cores' products of the parts. Of
// the nine products of two numbers, the six with part + part < 3 matter: the others add at most 2^-21 of the product,
// 2^-24 on average, less than the roundings of a sum of a few terms. (Henry, Tang & Heinecke 2019, "Leveraging the
// bfloat16 artificial intelligence datatype for higher-precision computations".)
//
// Tensor cores align the terms of a sum to the largest one and truncate the others (Fasi et al. 2021, "Numerical
// behavior of NVIDIA tensor cores"), so long sums drift towards zero (Ootomo & Yokota 2022, "Recovering single
// precision accuracy from tensor cores while surpassing the FP32 theoretical peak performance"). So they add only 16
// terms of K, smallest products first, and an ordinary addition adds these sums to the total.
//
// Different from fused multiply-adds: an infinite factor gives NaN, since its remainder is infinity - infinity, and
// never a finite number; NaN gives NaN. Numbers below 2^-110 lose the bits below 2^-133, bfloat16's smallest number.
#pragma once

#include "cuda/product/operands.h"

namespace fastlstm::cuda {

struct Float32Product : TensorCoreFragments {
  using IO = float;

  // A slab has eight numbers a row. A thread has two of each row, which make a word; two of its parts fill the sixteen
  // k's of an mma.
  struct A {
    uint32_t part[3][2];
  };
  struct B {
    uint32_t part[3];
  };
  static constexpr int kProductsASlab = 3;

  static __device__ __forceinline__ void load(A& a, const unsigned char* tile, int lane) {
    Part words;
    TensorCoreFragments::load(words, tile, lane);
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      uint32_t parts[3];
      split(parts, words.bits[row], words.bits[row + 2]);
#pragma unroll
      for (int part = 0; part < 3; ++part) a.part[part][row] = parts[part];
    }
  }
  static __device__ __forceinline__ void load(B& b, const unsigned char* tile, int lane) {
    TensorCoreFragments::B words;
    TensorCoreFragments::load(words, tile, lane);
    split(b.part, words.bits[0], words.bits[1]);
  }
  static __device__ __forceinline__ void multiply(float (&d)[4], const A& a, const B& b) {
    float apart[4] = {};
    const auto add = [&](int first_a, int second_a, int first_b, int second_b) {
      const uint32_t as[4] = {a.part[first_a][0], a.part[first_a][1], a.part[second_a][0], a.part[second_a][1]};
      const uint32_t bs[2] = {b.part[first_b], b.part[second_b]};
      ptx::mma_bf16(apart, as, bs);
    };
    add(0, 2, 2, 0);
    add(0, 1, 1, 0);
    add(0, 1, 0, 1);
#pragma unroll
    for (int place = 0; place < 4; ++place) d[place] += apart[place];
  }

  // For stationary.h.
  static constexpr int kProducts = 6;
  static constexpr bool kApart = true;
  // For each two numbers: three words to pack, two parts to mask and subtract.
  static constexpr int kStateSlots = 2 * (3 + 2 * 4);

  // bfloat16 has two k's in a word: those of a thread's words w and w + 1. The order of K is free, if both factors have
  // the same.
  struct Weights {
    Part part[3];
  };
  struct State {
    uint32_t part[3][2];
  };

  template <class At>
  static __device__ __forceinline__ void pack(Weights& to, int q, const At& at) {
#pragma unroll
    for (int word = 0; word < 4; ++word) {
      const int k = word / 2 * 8 + q;
      uint32_t parts[3];
      split(parts, __float_as_uint(at(word % 2, k)), __float_as_uint(at(word % 2, k + 4)));
#pragma unroll
      for (int part = 0; part < 3; ++part) to.part[part].bits[word] = parts[part];
    }
  }

  static __device__ __forceinline__ State state(const uint32_t (&bits)[4]) {
    State s;
#pragma unroll
    for (int word = 0; word < 2; ++word) {
      uint32_t parts[3];
      split(parts, bits[2 * word], bits[2 * word + 1]);
#pragma unroll
      for (int part = 0; part < 3; ++part) s.part[part][word] = parts[part];
    }
    return s;
  }

  // Products from the smallest to the largest.
  static __device__ __forceinline__ void multiply(float (&d)[4], int product, const Weights& w, const State& s) {
    constexpr int kOfWeights[kProducts] = {2, 1, 0, 1, 0, 0}, kOfState[kProducts] = {0, 1, 2, 0, 1, 0};
    ptx::mma_bf16(d, w.part[kOfWeights[product]].bits, s.part[kOfState[product]]);
  }

 private:
  // The three parts of two numbers, the first number in the lower halves.
  static __device__ __forceinline__ void split(uint32_t (&parts)[3], uint32_t first, uint32_t second) {
    constexpr uint32_t kUpper = 0xffff0000;
    const auto rest = [](uint32_t bits) {
      return __float_as_uint(__uint_as_float(bits) - __uint_as_float(bits & kUpper));
    };
#pragma unroll
    for (int part = 0; part < 3; ++part) {
      parts[part] = first >> 16 | (second & kUpper);
      first = rest(first);
      second = rest(second);
    }
  }
};

}  // namespace fastlstm::cuda
