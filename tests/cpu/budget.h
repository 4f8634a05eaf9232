// What tests/cpu/kernels_alone.cpp measures with: numbers of every dtype, errors against long double, the budget.
//
// The budget is that of fastlstm/testing.py: with r the largest error over the largest number of a tensor, r(kernel) <=
// 2 r(plain) + u, where "plain" is the same computation by plain loops in the type that is accumulated, and r(plain) the
// largest of its group of tensors.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <map>
#include <random>
#include <string>
#include <thread>
#include <type_traits>
#include <vector>

#include "core/types.h"

namespace fastlstm {

using Truth = long double;

inline float float_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

// 16-bit types by rounding to so many bits of a significand, with exponents of which none here is near the end.
template <int kBits>
float rounded_to(float x) {
  int exponent;
  const float part = std::frexp(x, &exponent);
  return std::ldexp(std::nearbyint(std::ldexp(part, kBits)), exponent - kBits);
}

template <class IO>
struct Type {
  using Acc = IO;
  static constexpr DType kDType = sizeof(IO) == 8 ? DType::kFloat64 : DType::kFloat32;
  static IO store(IO x) { return x; }
  static IO load(IO x) { return x; }
  static double unit() { return std::numeric_limits<IO>::epsilon() / 2; }
};
template <>
struct Type<BFloat16> {
  using Acc = float;
  static constexpr DType kDType = DType::kBFloat16;
  static BFloat16 store(float x) {
    const float r = rounded_to<8>(x);
    uint32_t bits;
    std::memcpy(&bits, &r, 4);
    return {static_cast<uint16_t>(bits >> 16)};
  }
  static float load(BFloat16 x) { return float_of(uint32_t{x.bits} << 16); }
  static double unit() { return 0x1p-9; }
};
template <>
struct Type<Float16> {
  using Acc = float;
  static constexpr DType kDType = DType::kFloat16;
  static float small(float x) {  // subnormal numbers are multiples of 2^-24
    return std::abs(x) < 0x1p-14f ? std::nearbyint(x * 0x1p24f) * 0x1p-24f : rounded_to<11>(x);
  }
  static Float16 store(float x) {
    const float r = small(x);
    const uint16_t sign = std::signbit(r) ? 0x8000 : 0;
    if (std::abs(r) < 0x1p-14f) return {static_cast<uint16_t>(sign | static_cast<int>(std::abs(r) * 0x1p24f))};
    uint32_t bits;
    std::memcpy(&bits, &r, 4);
    return {static_cast<uint16_t>(sign | (((bits & 0x7fffffff) >> 13) - (112 << 10)))};
  }
  static float load(Float16 x) {
    const uint32_t size = x.bits & 0x7fff, sign = uint32_t{x.bits & 0x8000u} << 16;
    if (size < 0x400) return (sign ? -1.0f : 1.0f) * static_cast<float>(size) * 0x1p-24f;
    return float_of(sign | ((size << 13) + (112u << 23)));
  }
  static double unit() { return 0x1p-12; }
};

// What storing leaves of a number, but of the truth's all.
template <class IO, class Real>
Real rounded(Real x) {
  if constexpr (std::is_same_v<Real, Truth>) return x;
  return static_cast<Real>(Type<IO>::load(Type<IO>::store(static_cast<typename Type<IO>::Acc>(x))));
}

inline std::mt19937 generator(1);

template <class IO>
std::vector<IO> numbers(size_t count, double scale = 1) {
  std::normal_distribution<double> normal(0, scale);
  std::vector<IO> made(count);
  for (IO& x : made) x = Type<IO>::store(static_cast<typename Type<IO>::Acc>(normal(generator)));
  return made;
}

// What a kernel is to write begins as NaN.
template <class IO>
std::vector<IO> poison(size_t count) {
  std::vector<IO> made(count);
  std::memset(made.data(), 0xff, count * sizeof(IO));
  return made;
}

using Tensors = std::map<std::string, std::vector<Truth>>;

template <class IO>
std::vector<Truth> wide(const std::vector<IO>& from) {
  std::vector<Truth> made(from.size());
  std::transform(from.begin(), from.end(), made.begin(), [](IO x) { return static_cast<Truth>(Type<IO>::load(x)); });
  return made;
}

// NaN where either has one.
inline double error(const std::vector<Truth>& got, const std::vector<Truth>& truth) {
  Truth most = 0, largest = 0;
  for (size_t k = 0; k < truth.size(); ++k) {
    const Truth off = std::abs(got[k] - truth[k]);
    most = off > most || off != off ? off : most;
    if (most != most) return NAN;
    largest = std::max(largest, std::abs(truth[k]));
  }
  return static_cast<double>(largest > 0 ? most / largest : most);
}

inline bool failed = false;

inline void judge(const std::string& problem, const Tensors& got, const Tensors& plain, const Tensors& truth,
                  double unit) {
  double own = 0, used = 0;
  for (const auto& [name, tensor] : truth) own = std::max(own, error(plain.at(name), tensor));
  std::string over;
  for (const auto& [name, tensor] : truth) {
    const double share = error(got.at(name), tensor) / (2 * own + unit);
    if (!(share <= 1)) over += " " + name;
    used = std::max(used, share);
  }
  failed = failed || !over.empty();
  std::printf("%s: %.0f %% of the budget%s%s\n", problem.c_str(), 100 * used,
              over.empty() ? "" : "; OVER:", over.c_str());
}

// Each chunk on a thread of its own, for chunks meet.
inline void on_threads(int64_t n, void (*fn)(int64_t, int64_t, void*), void* context) {
  std::vector<std::thread> threads;
  for (int64_t k = 1; k < n; ++k) threads.emplace_back(fn, k, k + 1, context);
  fn(0, 1, context);
  for (std::thread& thread : threads) thread.join();
}

}  // namespace fastlstm
