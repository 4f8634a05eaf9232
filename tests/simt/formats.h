// The number formats of the tensor cores, in plain arithmetic on bits.
#pragma once

#include <cstdint>
#include <cstring>

namespace simt {

inline uint32_t float_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

inline float bits_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

inline bool is_nan_bits(uint32_t bits) { return (bits & 0x7fffffff) > 0x7f800000; }

inline float bf16_to_float(uint16_t bits) { return bits_float(static_cast<uint32_t>(bits) << 16); }

inline uint16_t float_to_bf16(float x) {
  const uint32_t bits = float_bits(x);
  if (is_nan_bits(bits)) return 0x7fff;
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline float f16_to_float(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16;
  // The bits as those of a float are the number times 2^-112, subnormals too; past 65504 stand infinity and NaN.
  const float x = bits_float(static_cast<uint32_t>(bits & 0x7fff) << 13) * 0x1p112f;
  return bits_float((x >= 65536 ? float_bits(x) | 0x7f800000 : float_bits(x)) | sign);
}

inline uint16_t float_to_f16(float x) {
  const uint32_t bits = float_bits(x), magnitude = bits & 0x7fffffff;
  const auto sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
  if (is_nan_bits(bits)) return 0x7fff;
  if (magnitude >= 0x477ff000) return sign | 0x7c00;  // 65520, halfway from the largest number to the next
  if (magnitude < 0x38800000) {                       // below 2^-14: multiples of 2^-24, rounded by the addition
    return static_cast<uint16_t>(sign | (float_bits(bits_float(magnitude) + 0.5f) - float_bits(0.5f)));
  }
  const uint32_t rounded = magnitude - (112u << 23) + 0xfff + (magnitude >> 13 & 1);
  return static_cast<uint16_t>(sign | rounded >> 13);
}

inline uint32_t float_to_tf32(float x) {
  const uint32_t bits = float_bits(x);
  if (is_nan_bits(bits)) return 0x7fffffff;
  return (bits & 0x7f800000) == 0x7f800000 ? bits : (bits + 0x1000) & ~0x1fffu;
}

// What mma_tf32 makes of an operand: it does not look at the last 13 bits.
inline float tf32_operand(uint32_t bits) { return bits_float(bits & ~0x1fffu); }

}  // namespace simt
