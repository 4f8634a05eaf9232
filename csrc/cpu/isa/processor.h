// The features of this processor by which kernels are chosen.
#pragma once

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace fastlstm {

enum class Vendor { kOther, kAmd, kIntel };

// avx512: F, BW, VL and DQ. amx: tiles of bfloat16, saved and permitted by the system, and of bytes with amx_int8.
// avxvnni and avx512vnni: products of bytes in vectors of 256 and of 512 bits; dotprod: aarch64's, SDOT.
struct Processor {
  Vendor vendor = Vendor::kOther;
  bool avx2 = false, avx512 = false, avx512bf16 = false, amx = false;
  bool avxvnni = false, avx512vnni = false, amx_int8 = false, dotprod = false;
  bool emulated = false;  // AVX-512's kernels are compiled for AVX2, slow: for tests that name them

  static const Processor& here();
};

#if defined(__x86_64__)
// Linux permits tiles on request, once for the process and its children.
inline bool amx_permitted() {
#if defined(__linux__)
  unsigned a, b, c, d;
  constexpr unsigned kSaved = 1u << 27, kTiles = 1u << 24, kBFloat16 = 1u << 22;
  if (!__get_cpuid(1, &a, &b, &c, &d) || (c & kSaved) == 0) return false;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & kTiles) == 0 || (d & kBFloat16) == 0) return false;
  unsigned low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  constexpr unsigned kTileState = 3u << 17;
  if ((low & kTileState) != kTileState) return false;
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

// Whether bit `bit` of register `which` (a, b, c, d) is set in this leaf.
inline bool cpuid_bit(unsigned leaf, unsigned subleaf, int which, int bit) {
  unsigned registers[4];
  if (!__get_cpuid_count(leaf, subleaf, &registers[0], &registers[1], &registers[2], &registers[3])) return false;
  return (registers[which] >> bit & 1) != 0;
}

inline Processor read_processor() {
  __builtin_cpu_init();
  Processor p;
  p.vendor = __builtin_cpu_is("amd") ? Vendor::kAmd : __builtin_cpu_is("intel") ? Vendor::kIntel : Vendor::kOther;
  p.avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#if defined(FASTLSTM_EMULATE_AVX512)
  p.emulated = p.avx512 = p.avx512bf16 = p.avxvnni = p.avx512vnni = p.avx2;
#else
  p.avx512 = p.avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  p.avx512bf16 = p.avx512 && __builtin_cpu_supports("avx512bf16");
  p.avxvnni = p.avx2 && cpuid_bit(7, 1, 0, 4);
  p.avx512vnni = p.avx512 && cpuid_bit(7, 0, 2, 11);
  p.amx = p.avx512 && amx_permitted();
  p.amx_int8 = p.amx && p.avx512vnni && cpuid_bit(7, 0, 3, 25);
#endif
  return p;
}
#else
inline Processor read_processor() {
  Processor p;
#if defined(__ARM_FEATURE_DOTPROD)
  p.dotprod = true;  // compiled for processors that have it, as everything for Apple's is
#elif defined(__aarch64__) && defined(__linux__)
  constexpr unsigned long kDotProducts = 1ul << 20;
  p.dotprod = (getauxval(AT_HWCAP) & kDotProducts) != 0;
#endif
  return p;
}
#endif

inline const Processor& Processor::here() {
  static const Processor read = read_processor();
  return read;
}

}  // namespace fastlstm
