/// @file  GoogleTest on every rank of mpirun. Rank 0 tells of all its tests, the others of what fails.
#include <cstdio>

#include <gtest/gtest.h>
#include <mpi.h>

#include "moe/distributed/run.hpp"

namespace {

class FailuresOnly : public testing::EmptyTestEventListener {
 public:
  explicit FailuresOnly(int rank) : rank_(rank) {}

 private:
  void OnTestPartResult(const testing::TestPartResult& result) override {
    if (result.failed())
      std::printf("rank %d: %s:%d: %s\n", rank_, result.file_name(), result.line_number(), result.message());
  }
  void OnTestEnd(const testing::TestInfo& test) override {
    if (test.result()->Failed()) std::printf("rank %d: %s.%s failed\n", rank_, test.test_suite_name(), test.name());
  }

  int rank_;
};

}  // namespace

int main(int argc, char** argv) {
  return moe::distributed::run(argc, argv, [&] {
    testing::InitGoogleTest(&argc, argv);
    int rank = 0;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    auto& listeners = testing::UnitTest::GetInstance()->listeners();
    if (rank != 0) {
      delete listeners.Release(listeners.default_result_printer());
      listeners.Append(new FailuresOnly(rank));
    }
    return RUN_ALL_TESTS();
  });
}
