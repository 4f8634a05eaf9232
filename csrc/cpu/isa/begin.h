// Begins the source of one instruction set: headers that stay outside of its namespace, then the compiler's target,
// which end.h closes. The target is a pragma because setuptools has no flags per file. It comes after the headers:
// inline functions of system headers compiled for the target could be linked into code that runs on any processor.
//
// The source defines, before this:
//   FASTLSTM_SIMD_BYTES  width of a vector
//   FASTLSTM_TARGET      the target's features, as the compiler names them; undefined if every processor has them

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <utility>
#include <vector>

#include "cpu/isa/int8.h"
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
