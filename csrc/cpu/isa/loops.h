// The loops over steps and what they stand on, in order. Included inside a namespace of an instruction set.

#include "core/lstm_cell.h"
#include "core/steps.h"

#include "cpu/simd/simd.h"
#include "cpu/simd/simd_math.h"
#include "cpu/product/pack.h"
#include "cpu/product/product.h"
#include "cpu/steps/rows.h"
#include "cpu/product/dot.h"
#include "cpu/steps/gates.h"
#include "cpu/steps/forward_cells.h"
#include "cpu/steps/forward.h"
#include "cpu/steps/backward_tape.h"
#include "cpu/steps/backward_cells.h"
#include "cpu/steps/backward.h"
#include "cpu/steps/step.h"
#include "cpu/steps/step_backward.h"
