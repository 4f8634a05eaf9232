// The layer with 8-bit weights for x86-64 with AMX's tiles of bytes beside AVX512-VNNI.

#if defined(__x86_64__)
#include "cpu/isa/processor.h"

#define FASTLSTM_SIMD_BYTES 64
#define FASTLSTM_TARGET "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c"
#include "cpu/isa/begin.h"

namespace fastlstm {
namespace int8_amx {
#include "cpu/int8/kernels.h"
#include "cpu/int8/vnni_dot.h"
#include "cpu/product/tiles.h"
#include "cpu/int8/tile_dot.h"

void run(const Int8Args& args, const Threads& threads) { int8_layer<TileDot>(args, threads); }
}  // namespace int8_amx

RunInt8Layer* int8_layer_of_amx(bool emulated) {
  const Processor& p = Processor::here();
  if (!p.avx512vnni) return int8_layer_avx2;
  if (!emulated && !p.amx_int8) return int8_layer_avx512vnni;
  int8_amx::Tiles::emulated = emulated;
  return int8_amx::run;
}
}  // namespace fastlstm

#include "cpu/isa/end.h"
#endif
