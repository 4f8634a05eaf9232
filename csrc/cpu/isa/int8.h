// The layer with 8-bit weights of each instruction set: an int8_<isa>.cpp each, since products of bytes come and go with
// other features than the rest. A row of the table in dispatch.cpp has the fastest that its processors have.
#pragma once

#include "cpu/int8_recurrence.h"
#include "cpu/threads.h"

#if defined(__x86_64__) && defined(__has_include)
#if !__has_include(<avxvnniintrin.h>)
#define FASTLSTM_WITHOUT_AVXVNNI  // a compiler that does not know it
#endif
#endif

namespace fastlstm {

using RunInt8Layer = void(const Int8Args&, const Threads&);

RunInt8Layer int8_layer_generic, int8_layer_avx2, int8_layer_avxvnni, int8_layer_avx512vnni, int8_layer_dotprod;
// Tiles where the processor multiplies bytes by them, or where they are emulated; else as without AMX.
RunInt8Layer* int8_layer_of_amx(bool emulated);

}  // namespace fastlstm
