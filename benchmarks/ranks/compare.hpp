/// @file  What moe_compare does on many ranks.
#pragma once

#include "command_line.hpp"

namespace moe::bench {

/// What `--distributed` stands for. Which source defines it depends on whether there is MPI to build with.
/// @return the exit code of the program
int compare_on_ranks(int argc, char** argv, const CommandLine& line);

}  // namespace moe::bench
