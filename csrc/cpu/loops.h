// What every instruction set compiles for itself, in the order in which it builds up. Included inside a namespace of an instruction
// set.

#include "../core/lstm_cell.h"
#include "../core/steps.h"

#include "simd.h"
#include "simd_math.h"
#include "pack.h"
#include "product.h"
#include "rows.h"
#include "dot.h"
#include "gates.h"
#include "forward.h"
#include "backward_tape.h"
#include "backward.h"
#include "step.h"
