// Opens the source of one instruction set: the headers outside of its namespace, then the compiler's target. end.h
// closes the target again. setuptools has no flags per file, and headers of the system that were compiled for the
// target would be linked into code that runs on any processor: so the target begins after them. The source defines
//   FASTLSTM_SIMD_BYTES  width of a vector
//   FASTLSTM_TARGET      features, as the compiler names them; not defined where every processor has them

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <utility>
#include <vector>

#include "cpu/recurrence.h"
#include "cpu/steps/plan.h"
#include "cpu/workspace.h"

#if defined(FASTLSTM_TARGET)
#if defined(FASTLSTM_EMULATE_AVX512) && !defined(__clang__)
#undef FASTLSTM_TARGET
#define FASTLSTM_TARGET "avx2,fma,f16c"
#endif

#define FASTLSTM_PRAGMA_TEXT(...) _Pragma(#__VA_ARGS__)
#define FASTLSTM_PRAGMA(...) FASTLSTM_PRAGMA_TEXT(__VA_ARGS__)
#if defined(__clang__)
FASTLSTM_PRAGMA(clang attribute push(__attribute__((target(FASTLSTM_TARGET))), apply_to = function))
#else
FASTLSTM_PRAGMA(GCC push_options)
FASTLSTM_PRAGMA(GCC target(FASTLSTM_TARGET))
#endif
#endif
