// Which instruction set's kernels this machine runs.

#include <cstdlib>
#include <stdexcept>
#include <string>

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

#include "recurrence.h"

namespace fastlstm {

const Kernels& kernels_generic();

#if defined(__x86_64__)
const Kernels& kernels_avx2();
const Kernels& kernels_avx512();
const Kernels& kernels_avx512bf16();
const Kernels& kernels_amx(bool emulated);

// Whether AVX-512's instructions are emulated by AVX2's: then AVX2 is enough for its kernels, which are slow, so that they run only
// where FASTLSTM_CPU_ISA names them.
#if defined(FASTLSTM_EMULATE_AVX512)
constexpr bool kEmulated = true;
#else
constexpr bool kEmulated = false;
#endif

// Whether the processor has tiles of bfloat16, the system saves them, and lets this process use them: Linux wants to be asked, once
// for the process and what it forks.
static bool amx_permitted() {
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
#endif

static const Kernels& choose() {
  const char* variable = std::getenv("FASTLSTM_CPU_ISA");
  const std::string wanted = variable == nullptr ? "" : variable;
  std::string here;  // the best of what is here comes first
  const auto taken = [&](const char* isa) {
    here += here.empty() ? isa : std::string(", ") + isa;
    return wanted.empty() || wanted == isa;
  };
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = kEmulated ? avx2 && !wanted.empty()
                                : avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (avx512 && wanted == "amx-emulated") return kernels_amx(true);  // for tests alone
  if (avx512 && amx_permitted() && taken("amx")) return kernels_amx(false);
  // By itself on AMD (Zen 4 and later), where VDPBF16PS does twice the products of multiply-adds; the Intel processors without AMX that
  // were measured do half of them (benchmarks/log.md).
  const bool pairs_gain = __builtin_cpu_is("amd");
  const bool pairs = kEmulated || __builtin_cpu_supports("avx512bf16");
  if (avx512 && (pairs_gain || !wanted.empty()) && pairs && taken("avx512bf16")) {
    return kernels_avx512bf16();
  }
  if (avx512 && taken("avx512")) return kernels_avx512();
  if (avx2 && taken("avx2")) return kernels_avx2();
#endif
  if (taken("generic")) return kernels_generic();
  throw std::runtime_error("fastlstm: FASTLSTM_CPU_ISA=" + wanted + ": this machine has " + here +
                           "; name one of these, or unset the variable");
}

const Kernels& cpu_kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace fastlstm
