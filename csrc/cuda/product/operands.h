// How a warp multiplies: a policy for each type of factor, with its storage type (IO), accumulation type (Acc) and
// fragments.
//
// A policy adds A B^T for A of 16 rows and B of 8 columns over a slab of `kSlabBytes` along K. Both are in shared
// memory, rows and columns `kStride` bytes apart, K contiguous. With any policy, the thread with lane = 4 g + q holds,
// of the 16 x 8 results, those of rows g and g + 8 and columns 2 q and 2 q + 1, in this order: the layout of mma.sync's
// accumulators (PTX ISA, "Matrix Fragments for mma.m16n8k16"). So everything around the product is written once.
#pragma once

#include "cuda/device/numbers.h"
#include "cuda/families.h"

namespace fastlstm::cuda {

// Bytes of a tile's row in shared memory: 128 of numbers, and 16 of padding that put the 16-byte parts of eight rows on
// different banks.
constexpr int kRowBytes = 128;
constexpr int kStride = kRowBytes + 16;

// Loads for the tensor cores. ldmatrix moves 16-byte parts of rows, four threads to a part: pairs of 16-bit numbers, or
// single 32-bit ones, each to the thread where mma.sync needs it.
struct TensorCoreFragments {
  using Acc = float;
  static constexpr int kSlabBytes = 32;

  struct alignas(16) A {
    uint32_t bits[4];
  };
  struct B {
    uint32_t bits[2];
  };

  // The number of mma.sync for a slab.
  static constexpr int kProductsASlab = 1;

  // For stationary.h, which takes two slabs at a time: the weights of 16 columns, the state's words as ldmatrix loads
  // them, and the number of products. A pair of slabs has 16 words a row; the thread with lane = 4 g + q has words q +
  // 4 w of row g.
  using Part = A;
  struct Weights {
    Part part[2];
  };
  struct State {
    uint32_t bits[4];
  };
  static constexpr int kProducts = 2;
  // Whether the sums of a pair of slabs begin from zero and are then added to the total in float32.
  static constexpr bool kApart = false;
  // Instructions for four words of a state besides the products.
  static constexpr int kStateSlots = 0;

  static __device__ __forceinline__ void load(A& a, const unsigned char* tile, int lane) {
    ptx::ldmatrix_x4(a.bits, tile + (lane % 16) * kStride + lane / 16 * 16);
  }
  static __device__ __forceinline__ void load(B& b, const unsigned char* tile, int lane) {
    ptx::ldmatrix_x2(b.bits, tile + lane % 8 * kStride + lane / 8 % 2 * 16);
  }
};

// Two 16-bit numbers make a word of a fragment.
template <class T>
struct HalfFragments : TensorCoreFragments {
  using IO = T;

  // at(half, k) is the weight of this thread's row g + 8 half at k of the pair of slabs.
  template <class At>
  static __device__ __forceinline__ void pack(Weights& to, int q, const At& at) {
#pragma unroll
    for (int word = 0; word < 8; ++word) {
      const int k = word / 2 * 8 + q * 2;
      to.part[word / 4].bits[word % 4] = at(word % 2, k).bits | static_cast<uint32_t>(at(word % 2, k + 1).bits) << 16;
    }
  }
  static __device__ __forceinline__ State state(const uint32_t (&bits)[4]) {
    return {{bits[0], bits[1], bits[2], bits[3]}};
  }
};

struct BFloat16Product : HalfFragments<BFloat16> {
  static __device__ __forceinline__ void multiply(float (&d)[4], const A& a, const B& b) {
    ptx::mma_bf16(d, a.bits, b.bits);
  }
  static __device__ __forceinline__ void multiply(float (&d)[4], int product, const Weights& w, const State& s) {
    multiply(d, w.part[product], {{s.bits[2 * product], s.bits[2 * product + 1]}});
  }
};

struct Float16Product : HalfFragments<Float16> {
  static __device__ __forceinline__ void multiply(float (&d)[4], const A& a, const B& b) {
    ptx::mma_f16(d, a.bits, b.bits);
  }
  static __device__ __forceinline__ void multiply(float (&d)[4], int product, const Weights& w, const State& s) {
    multiply(d, w.part[product], {{s.bits[2 * product], s.bits[2 * product + 1]}});
  }
};

// float32 tensors, factors rounded to the nearest tf32: the hardware alone would truncate them.
struct TF32Product : TensorCoreFragments {
  using IO = float;

  static __device__ __forceinline__ void load(A& a, const unsigned char* tile, int lane) {
    TensorCoreFragments::load(a, tile, lane);
    round(a.bits);
  }
  static __device__ __forceinline__ void load(B& b, const unsigned char* tile, int lane) {
    TensorCoreFragments::load(b, tile, lane);
    round(b.bits);
  }
  static __device__ __forceinline__ void multiply(float (&d)[4], const A& a, const B& b) {
    ptx::mma_tf32(d, a.bits, b.bits);
  }

  static constexpr int kStateSlots = 4;

  template <class At>
  static __device__ __forceinline__ void pack(Weights& to, int q, const At& at) {
#pragma unroll
    for (int word = 0; word < 8; ++word)
      to.part[word / 4].bits[word % 4] = ptx::float_to_tf32(at(word % 2, word / 2 * 4 + q));
  }
  static __device__ __forceinline__ State state(const uint32_t (&bits)[4]) {
    State s{{bits[0], bits[1], bits[2], bits[3]}};
    round(s.bits);
    return s;
  }
  static __device__ __forceinline__ void multiply(float (&d)[4], int product, const Weights& w, const State& s) {
    multiply(d, w.part[product], {{s.bits[2 * product], s.bits[2 * product + 1]}});
  }

 private:
  template <int kCount>
  static __device__ __forceinline__ void round(uint32_t (&bits)[kCount]) {
#pragma unroll
    for (int k = 0; k < kCount; ++k) bits[k] = ptx::float_to_tf32(__uint_as_float(bits[k]));
  }
};

// Fused multiply-adds in the type itself.
template <class T>
struct PlainProduct {
  using IO = T;
  using Acc = T;
  static constexpr int kSlabBytes = 16, kProductsASlab = 0, kStateSlots = 0;
  static constexpr bool kApart = false;
  static constexpr int kCount = kSlabBytes / sizeof(T);

  struct alignas(kSlabBytes) Part {
    T k[kCount];
  };
  struct A {
    Part row[2];
  };
  struct B {
    Part column[2];
  };

  static __device__ __forceinline__ void load(A& a, const unsigned char* tile, int lane) {
    a.row[0] = part(tile, lane / 4);
    a.row[1] = part(tile, lane / 4 + 8);
  }
  static __device__ __forceinline__ void load(B& b, const unsigned char* tile, int lane) {
    b.column[0] = part(tile, lane % 4 * 2);
    b.column[1] = part(tile, lane % 4 * 2 + 1);
  }
  static __device__ __forceinline__ void multiply(T (&d)[4], const A& a, const B& b) {
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
#pragma unroll
      for (int place = 0; place < 4; ++place) d[place] += a.row[place / 2].k[k] * b.column[place % 2].k[k];
    }
  }

 private:
  static __device__ __forceinline__ Part part(const unsigned char* tile, int row) {
    return *reinterpret_cast<const Part*>(tile + row * kStride);
  }
};

}  // namespace fastlstm::cuda
