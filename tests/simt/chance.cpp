#include "chance.h"

namespace simt {
namespace {

uint64_t the_seed = 0, launches = 0, state = 1;

}  // namespace

void set_seed(uint64_t seed) {
  the_seed = seed;
  launches = 0;
}

uint64_t seed() { return the_seed; }
bool adversarial() { return the_seed != 0; }

void begin_stream() {
  ++launches;
  state = (the_seed + 1) * 0x9e3779b97f4a7c15 ^ launches * 0xbf58476d1ce4e5b9;
  if (state == 0) state = 1;
  for (int i = 0; i < 4; ++i) draw_bits();
}

// xorshift64* (Vigna 2016, "An experimental exploration of Marsaglia's xorshift generators, scrambled").
uint64_t draw_bits() {
  state ^= state >> 12;
  state ^= state << 25;
  state ^= state >> 27;
  return state * 0x2545f4914f6cdd1d;
}

unsigned draw(unsigned n) { return adversarial() ? static_cast<unsigned>((draw_bits() >> 32) * n >> 32) : 0; }

}  // namespace simt
