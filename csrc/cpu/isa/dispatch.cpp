// Which kernels this machine runs: a table by features and vendor, read once. Nothing is timed, so that results repeat
// from process to process; each row rests on measurements (benchmarks/log.md).

#include <cstdlib>
#include <stdexcept>
#include <string>

#include "cpu/isa/choice.h"
#include "cpu/isa/processor.h"

namespace fastlstm {

const Kernels& kernels_generic();
const Kernels& kernels_avx2();
const Kernels& kernels_avxvnni();
const Kernels& kernels_avx512();
const Kernels& kernels_avx512vnni();
const Kernels& kernels_avx512bf16();
const Kernels& kernels_dotprod();
const Kernels& kernels_amx(bool emulated);

namespace {

enum class When {
  kByItself,
  kNamed,     // where FASTLSTM_CPU_ISA names it
  kForTests,  // likewise, and not offered in messages
};

struct Row {
  const char* isa;
  bool here;
  When when;
  const Kernels& (*kernels)();
  ProductKinds products;
  const char* why;
};

constexpr const char kAdds[] = "multiply-adds";
constexpr ProductKinds kMultiplyAdds{kAdds, kAdds, kAdds};
constexpr ProductKinds kPairs{kAdds, "pairs of bfloat16 (VDPBF16PS)", kAdds};
constexpr ProductKinds kTiles{"AMX tiles, each number as three of bfloat16", "AMX tiles",
                              "AMX tiles, each number as two of bfloat16"};

// visit(row) for the rows of the table, best first, until it returns true.
template <class Visit>
void for_rows(const Visit& visit) {
#if defined(__x86_64__)
  const Processor& p = Processor::here();
  constexpr const char kNoAvx512[] = "this processor has AVX2 and no AVX-512";
#if defined(FASTLSTM_WITHOUT_AVX512)
  const char* why_avx2 =
      p.avx512 ? "the library was built without the kernels of AVX-512, which this processor has: build it again here"
               : kNoAvx512;
#else
  const char* why_avx2 = kNoAvx512;
  const When wide = p.emulated ? When::kNamed : When::kByItself;
  // Which product is faster depends on the vendor: VDPBF16PS did twice the products of multiply-adds on Zen 5, whose
  // datapath Zen 4 is assumed to share, and half of them on Sapphire Rapids.
  const bool amd = p.vendor == Vendor::kAmd && !p.emulated;
  if (visit(Row{"amx", p.amx, When::kByItself, []() -> const Kernels& { return kernels_amx(false); }, kTiles,
                "tiles of bfloat16 do many times the products of multiply-adds"}))
    return;
  const When pairs = amd ? When::kByItself : When::kNamed;
  if (visit(Row{"avx512bf16", p.avx512bf16, pairs, kernels_avx512bf16, kPairs,
                "pairs of bfloat16 did twice the products of multiply-adds on the AMD processor measured (Zen 5)"}))
    return;
  constexpr const char kNoPairs[] =
      "AVX-512 without AMX; pairs of bfloat16 did half the products of multiply-adds on the one Intel processor "
      "measured "
      "(Sapphire Rapids)";
  if (visit(Row{"avx512vnni", p.avx512vnni, wide, kernels_avx512vnni, kMultiplyAdds, kNoPairs})) return;
  if (visit(Row{"avx512", p.avx512, wide, kernels_avx512, kMultiplyAdds, kNoPairs})) return;
#endif
#if !defined(FASTLSTM_WITHOUT_AVXVNNI)
  const When narrow = p.emulated ? When::kNamed : When::kByItself;
  if (visit(Row{"avxvnni", p.avxvnni, narrow, kernels_avxvnni, kMultiplyAdds, why_avx2})) return;
#endif
  if (visit(Row{"avx2", p.avx2, When::kByItself, kernels_avx2, kMultiplyAdds, why_avx2})) return;
#if !defined(FASTLSTM_WITHOUT_AVX512)
  if (visit(Row{"amx-emulated", p.avx512, When::kForTests, []() -> const Kernels& { return kernels_amx(true); }, kTiles,
                "for tests"}))
    return;
#endif
#endif
#if defined(__aarch64__)
  constexpr const char kWhyGeneric[] = "vectors of 128 bits are NEON's here";
  if (visit(Row{"dotprod", Processor::here().dotprod, When::kByItself, kernels_dotprod, kMultiplyAdds,
                "vectors of 128 bits are NEON's here, and SDOT multiplies bytes"}))
    return;
#else
  constexpr const char kWhyGeneric[] = "there are no kernels for an instruction set of this processor";
#endif
  visit(Row{"generic", true, When::kByItself, kernels_generic, kMultiplyAdds, kWhyGeneric});
}

Choice choose() {
  const char* variable = std::getenv("FASTLSTM_CPU_ISA");
  const std::string wanted = variable == nullptr ? "" : variable;
  std::string here;
  Choice chosen{};
  for_rows([&](const Row& row) {
    if (!row.here) return false;
    if (row.when != When::kForTests) here += here.empty() ? row.isa : std::string(", ") + row.isa;
    if (wanted.empty() ? row.when != When::kByItself : wanted != row.isa) return false;
    chosen = {&row.kernels(), row.products, wanted.empty() ? row.why : "FASTLSTM_CPU_ISA names it"};
    return true;
  });
  if (chosen.kernels != nullptr) return chosen;
  throw std::runtime_error("fastlstm: FASTLSTM_CPU_ISA=" + wanted + ": this machine has " + here +
                           "; name one of these, or unset the variable");
}

}  // namespace

const Choice& cpu_choice() {
  static const Choice chosen = choose();
  return chosen;
}

const Kernels& cpu_kernels() { return *cpu_choice().kernels; }

}  // namespace fastlstm
