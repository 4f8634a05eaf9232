// Measures what csrc/cuda/costs.h assumes, and what else decides which exchange is best: a line of JSON for each
// answer. An argument gives the rounds of each loop.
#include "probe.h"

int main(int argc, char** argv) {
  if (argc > 1) probe::rounds() = std::atoi(argv[1]);
#ifndef FASTLSTM_SIMT  // tests/simt has no graphs
  probe::probe_launches();
#endif
  probe::probe_rates();
  probe::probe_clusters();
  probe::probe_grid();
  return 0;
}
