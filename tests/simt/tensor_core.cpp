// mma and ldmatrix: the last lane of a warp to come computes for all, from the layouts that csrc/cuda/device/ptx.h
// describes.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "device.h"
#include "ptx.h"

namespace fastlstm {
namespace ptx {
namespace {

using simt::kLanes;
using simt::Warp;

constexpr uint32_t kAll = ~0u;

struct Mma {
  float* d;
  const uint32_t* a;
  const uint32_t* b;
};

// 2^exponent, for what double holds in normal form.
double power_of_two(int exponent) {
  const uint64_t bits = static_cast<uint64_t>(exponent + 1023) << 52;
  double x;
  std::memcpy(&x, &bits, 8);
  return x;
}

int exponent_of(double x) {
  uint64_t bits;
  std::memcpy(&bits, &x, 8);
  return static_cast<int>(bits >> 52 & 0x7ff) - 1023;
}

// The sum of `count` exact terms as tensor cores were found to make it: all are aligned to the largest, cut off towards
// zero `extra_bits` bits below that one's last place in float32, added, and the sum is cut off to float32. After Fasi,
// Higham, Mikaitis & Pranesh 2021, "Numerical behavior of NVIDIA tensor cores" (V100, T4, A100), and Khattak & Mikaitis
// 2025, "Accurate models of NVIDIA tensor cores" (to B200). Architectures differ in the extra bits and in how many
// terms they take at a time; fewer bits are the harder test. Here the largest is told by its normalised exponent, which
// cuts off the same or a bit more.
float cut_off_sum(const double* terms, int count, int extra_bits) {
  double largest = 0;
  for (int k = 0; k < count; ++k) largest = std::max(largest, std::fabs(terms[k]));
  if (largest == 0) return 0;
  const int last = exponent_of(largest) - 23 - extra_bits;
  const double scale = power_of_two(-last);
  int64_t sum = 0;
  for (int k = 0; k < count; ++k) sum += static_cast<int64_t>(terms[k] * scale);
  int64_t magnitude = sum < 0 ? -sum : sum;
  for (int64_t above = magnitude >> 24, bit = 0; above != 0; above >>= 1, ++bit) magnitude &= ~(int64_t{1} << bit);
  const double total = static_cast<double>(magnitude) * power_of_two(last);
  return static_cast<float>(sum < 0 ? -total : total);
}

// d + a b, for one row of a and column of b.
template <int K>
float cut_off_dot(float d, const float (&a)[K], const float (&b)[K][8], int column) {
  double terms[K + 1] = {d};
  float plain = d;
  for (int k = 0; k < K; ++k) {
    terms[k + 1] = static_cast<double>(a[k]) * b[k][column];
    plain += a[k] * b[k][column];
  }
  // Infinities and NaN come out as in any other order.
  return std::isfinite(plain) ? cut_off_sum(terms, K + 1, simt::device().tensor_core_extra_bits) : plain;
}

// d += a b, products exact; sums in float32 in the order of k, unless the device cuts off.
template <int K>
void multiply(Warp& warp, const float (&a)[16][K], const float (&b)[K][8]) {
  float d[16][8];
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    const float* from = static_cast<const Mma*>(warp.operand[lane])->d;
    const unsigned group = lane / 4, column = lane % 4 * 2;
    std::memcpy(&d[group][column], from, 8);
    std::memcpy(&d[group + 8][column], from + 2, 8);
  }
  for (int m = 0; m < 16; ++m) {
    if (simt::device().tensor_core_extra_bits >= 0) {
      for (int n = 0; n < 8; ++n) d[m][n] = cut_off_dot<K>(d[m][n], a[m], b, n);
      continue;
    }
    for (int k = 0; k < K; ++k) {
      for (int n = 0; n < 8; ++n) d[m][n] += a[m][k] * b[k][n];
    }
  }
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    float* to = static_cast<const Mma*>(warp.operand[lane])->d;
    const unsigned group = lane / 4, column = lane % 4 * 2;
    std::memcpy(to, &d[group][column], 8);
    std::memcpy(to + 2, &d[group + 8][column], 8);
  }
}

template <float (*to_float)(uint16_t)>
void multiply_16_bit(Warp& warp, uint32_t) {
  float a[16][16], b[16][8];
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    const Mma& mma = *static_cast<const Mma*>(warp.operand[lane]);
    const unsigned group = lane / 4, pair = lane % 4 * 2;
    for (unsigned half = 0; half < 2; ++half) {
      const auto element = [&](uint32_t word) { return to_float(static_cast<uint16_t>(word >> (16 * half))); };
      const unsigned k = pair + half;
      a[group][k] = element(mma.a[0]);
      a[group + 8][k] = element(mma.a[1]);
      a[group][k + 8] = element(mma.a[2]);
      a[group + 8][k + 8] = element(mma.a[3]);
      b[k][group] = element(mma.b[0]);
      b[k + 8][group] = element(mma.b[1]);
    }
  }
  multiply(warp, a, b);
}

void multiply_tf32(Warp& warp, uint32_t) {
  float a[16][8], b[8][8];
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    const Mma& mma = *static_cast<const Mma*>(warp.operand[lane]);
    const unsigned group = lane / 4, k = lane % 4;
    a[group][k] = simt::tf32_operand(mma.a[0]);
    a[group + 8][k] = simt::tf32_operand(mma.a[1]);
    a[group][k + 4] = simt::tf32_operand(mma.a[2]);
    a[group + 8][k + 4] = simt::tf32_operand(mma.a[3]);
    b[k][group] = simt::tf32_operand(mma.b[0]);
    b[k + 4][group] = simt::tf32_operand(mma.b[1]);
  }
  multiply(warp, a, b);
}

struct Ldmatrix {
  uint32_t* r;
  const unsigned char* row;
};

template <unsigned kMatrices>
void load_matrices(Warp& warp, uint32_t) {
  for (unsigned m = 0; m < kMatrices; ++m) {
    uint16_t matrix[8][8];
    for (unsigned r = 0; r < 8; ++r) {
      std::memcpy(matrix[r], static_cast<const Ldmatrix*>(warp.operand[8 * m + r])->row, 16);
    }
    for (unsigned lane = 0; lane < kLanes; ++lane) {
      const unsigned at = lane / 4, pair = lane % 4 * 2;
      const uint32_t low = matrix[at][pair], high = matrix[at][pair + 1];
      static_cast<const Ldmatrix*>(warp.operand[lane])->r[m] = low | high << 16;
    }
  }
}

template <unsigned kMatrices>
void ldmatrix(const char* name, uint32_t (&r)[kMatrices], const void* row, Place place) {
  const simt::Thread& thread = simt::self();
  Ldmatrix operand{r, nullptr};
  if (thread.lane < 8 * kMatrices) operand.row = thread.block->shared.checked(row, 16, 16, name, place);
  simt::warp_operation(name, true, kAll, &operand, load_matrices<kMatrices>, place);
}

void mma(const char* name, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
         void (*compute)(Warp&, uint32_t), Place place) {
  Mma operand{d, a, b};
  simt::warp_operation(name, true, kAll, &operand, compute, place);
}

}  // namespace

void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Place place) {
  mma("mma_bf16", d, a, b, multiply_16_bit<simt::bf16_to_float>, place);
}

void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Place place) {
  mma("mma_f16", d, a, b, multiply_16_bit<simt::f16_to_float>, place);
}

void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Place place) {
  mma("mma_tf32", d, a, b, multiply_tf32, place);
}

void ldmatrix_x4(uint32_t (&r)[4], const void* row, Place place) { ldmatrix<4>("ldmatrix_x4", r, row, place); }
void ldmatrix_x2(uint32_t (&r)[2], const void* row, Place place) { ldmatrix<2>("ldmatrix_x2", r, row, place); }

}  // namespace ptx
}  // namespace fastlstm
