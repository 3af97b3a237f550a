/// @file  What moe_compare does on many ranks, where there is no MPI.
#include <cstdio>

#include "ranks/compare.hpp"

int moe::bench::compare_on_ranks(int /*argc*/, char** /*argv*/, const CommandLine& /*line*/) {
  std::fprintf(stderr,
               "moe_compare: --distributed needs MPI: install it (libopenmpi-dev and openmpi-bin, as Debian and Ubuntu "
               "call it) and build anew, from cmake on\n");
  return 1;
}
