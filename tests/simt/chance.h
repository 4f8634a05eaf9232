// All that a seed decides: one stream of numbers for each launch.
#pragma once

#include <cstdint>

namespace simt {

// Of all launches that follow, until set again.
void set_seed(uint64_t seed);
uint64_t seed();

// Whether anything is drawn at all: with seed 0 nothing is.
bool adversarial();

// The stream of the next launch.
void begin_stream();

uint64_t draw_bits();
unsigned draw(unsigned n);  // below n; 0 with seed 0

}  // namespace simt
