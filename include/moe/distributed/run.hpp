/// @file  The main() of a rank.
#pragma once

#include <exception>

#include <mpi.h>

#include "moe/distributed/communicator.hpp"

namespace moe::inline MOE_TARGET::distributed {

/// Between MPI_Init_thread and MPI_Finalize: program(). An exception that it throws is told on stderr with the rank,
/// and ends all ranks, which would else wait for this one.
///   int main(int argc, char** argv) { return moe::distributed::run(argc, argv, [&] { … return 0; }); }
/// @returns what the program returned
template <class Program>
int run(int& argc, char**& argv, const Program& program) {
  int provided = 0;  // MPI is called by the thread that calls the layer, and by no other
  check(MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &provided), "MPI_Init_thread");
  int result = 0;
  try {
    result = program();
  } catch (const std::exception& error) {
    end_all_ranks(MPI_COMM_WORLD, error.what());
  } catch (...) {
    end_all_ranks(MPI_COMM_WORLD, "an exception that is no std::exception");
  }
  MPI_Finalize();
  return result;
}

}  // namespace moe::inline MOE_TARGET::distributed
