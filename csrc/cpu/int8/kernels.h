// The layer with 8-bit weights and all that it is made of but the class that multiplies, which isa/int8_<isa>.cpp
// includes next. Included inside a namespace of an instruction set.

#include "core/lstm_cell.h"
#include "core/steps.h"

#include "cpu/simd/simd.h"
#include "cpu/simd/simd_math.h"
#include "cpu/steps/rows.h"
#include "cpu/int8/quantise.h"
#if FASTLSTM_SIMD_BYTES == 32
#include "cpu/int8/float_dot_256.h"
#else
#include "cpu/int8/float_dot.h"
#endif
#include "cpu/int8/layer.h"
