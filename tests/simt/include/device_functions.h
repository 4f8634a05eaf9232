// CUDA's built-in variables and functions of a thread. Those that wait for others say where they were called.
#pragma once

#include <climits>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "simt/collectives.h"
#include "simt/grid.h"
#include "vector_types.h"

// Of the thread that runs; the scheduler sets them at each switch.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

// -- Barriers and fences

inline void __syncthreads(simt::Place place = simt::here()) { simt::block_barrier("__syncthreads", 0, place); }

inline int __syncthreads_count(int predicate, simt::Place place = simt::here()) {
  return simt::block_barrier("__syncthreads_count", predicate, place).sum;
}

inline int __syncthreads_or(int predicate, simt::Place place = simt::here()) {
  return simt::block_barrier("__syncthreads_or", predicate, place).sum > 0;
}

inline int __syncthreads_and(int predicate, simt::Place place = simt::here()) {
  return simt::block_barrier("__syncthreads_and", predicate, place).all;
}

inline void __syncwarp(unsigned mask = ~0u, simt::Place place = simt::here()) {
  simt::warp_operation("__syncwarp", false, mask, nullptr, nullptr, place);
}

inline void __threadfence() { simt::preempt(); }
inline void __threadfence_block() { simt::preempt(); }
inline void __threadfence_system() { simt::preempt(); }
inline void __nanosleep(unsigned) { simt::preempt(); }

// Not a time: a count of its calls.
inline long long clock64() {
  static long long calls = 0;
  simt::preempt();
  return ++calls;
}

// -- Shuffles and votes

namespace simt {

template <class T>
struct Shuffle {
  T value, result;
  unsigned source;  // lane
  const char* name;
  Place place;
};

template <class T>
void shuffle_lanes(Warp& warp, uint32_t mask) {
  for (uint32_t left = mask; left; left &= left - 1) {
    auto* own = static_cast<Shuffle<T>*>(warp.operand[__builtin_ctz(left)]);
    if (!(mask >> own->source & 1)) {
      fail(Failure::misuse, std::string(own->name) + " reads lane " + std::to_string(own->source) + ", not in the mask",
           own->place);
    }
    own->result = static_cast<const Shuffle<T>*>(warp.operand[own->source])->value;
  }
}

template <class T>
T shuffle(const char* name, unsigned mask, T value, unsigned source, Place place) {
  Shuffle<T> operand{value, value, source, name, place};
  warp_operation(name, false, mask, &operand, shuffle_lanes<T>, place);
  return operand.result;
}

// The lane `source` if it lies in the caller's part of `width` lanes, else the caller.
inline unsigned within(int source, int first, int last) {
  return source < first || source > last ? self().lane : static_cast<unsigned>(source);
}

inline int first_lane(int width) { return static_cast<int>(self().lane) & ~(width - 1); }

}  // namespace simt

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, simt::Place place = simt::here()) {
  const int first = simt::first_lane(width);
  return simt::shuffle("__shfl_sync", mask, value, static_cast<unsigned>(first + (source & (width - 1))), place);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, simt::Place place = simt::here()) {
  const int first = simt::first_lane(width);
  // Lanes of earlier parts may be read, of later parts not.
  const unsigned source = simt::within(static_cast<int>(simt::self().lane) ^ lanes, 0, first + width - 1);
  return simt::shuffle("__shfl_xor_sync", mask, value, source, place);
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, simt::Place place = simt::here()) {
  const int first = simt::first_lane(width), source = static_cast<int>(simt::self().lane + delta);
  return simt::shuffle("__shfl_down_sync", mask, value, simt::within(source, first, first + width - 1), place);
}

template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, simt::Place place = simt::here()) {
  const int first = simt::first_lane(width), source = static_cast<int>(simt::self().lane) - static_cast<int>(delta);
  return simt::shuffle("__shfl_up_sync", mask, value, simt::within(source, first, first + width - 1), place);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, simt::Place place = simt::here()) {
  return simt::vote("__ballot_sync", mask, predicate != 0, place);
}

inline int __any_sync(unsigned mask, int predicate, simt::Place place = simt::here()) {
  return simt::vote("__any_sync", mask, predicate != 0, place) != 0;
}

inline int __all_sync(unsigned mask, int predicate, simt::Place place = simt::here()) {
  return simt::vote("__all_sync", mask, predicate != 0, place) == mask;
}

// -- Atomics. One that changes nothing may be a poll: see simt::saw.

namespace simt {

template <class T>
struct Plain {
  using type = T;
};

template <class T, class Update>
T atomic(T* address, const char* name, Place place, Update update) {
  preempt();
  const T old = *address;
  *address = update(old);
  if (std::memcmp(address, &old, sizeof(T)) != 0) {
    progress();
  } else {
    uint64_t bits = 0;
    std::memcpy(&bits, &old, sizeof(T));
    if (saw(address, bits, name, place)) return atomic(address, name, place, update);
  }
  preempt();
  return old;
}

}  // namespace simt

template <class T>
T atomicAdd(T* address, typename simt::Plain<T>::type value, simt::Place place = simt::here()) {
  return simt::atomic(address, "atomicAdd", place, [=](T old) { return static_cast<T>(old + value); });
}

template <class T>
T atomicMax(T* address, typename simt::Plain<T>::type value, simt::Place place = simt::here()) {
  return simt::atomic(address, "atomicMax", place, [=](T old) { return old < value ? value : old; });
}

template <class T>
T atomicMin(T* address, typename simt::Plain<T>::type value, simt::Place place = simt::here()) {
  return simt::atomic(address, "atomicMin", place, [=](T old) { return value < old ? value : old; });
}

template <class T>
T atomicOr(T* address, typename simt::Plain<T>::type value, simt::Place place = simt::here()) {
  return simt::atomic(address, "atomicOr", place, [=](T old) { return old | value; });
}

template <class T>
T atomicExch(T* address, typename simt::Plain<T>::type value, simt::Place place = simt::here()) {
  return simt::atomic(address, "atomicExch", place, [=](T) { return value; });
}

template <class T>
T atomicCAS(T* address, typename simt::Plain<T>::type expected, typename simt::Plain<T>::type value,
            simt::Place place = simt::here()) {
  return simt::atomic(address, "atomicCAS", place, [=](T old) { return old == expected ? value : old; });
}

#include "math_functions.h"
