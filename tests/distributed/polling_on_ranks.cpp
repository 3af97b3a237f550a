#include "laws/common.hpp"

#include <atomic>

#include <gtest/gtest.h>
#include <mpi.h>

#include "compare.hpp"
#include "distributed/ranks.hpp"
#include "errors.hpp"
#include "expert_factories.hpp"
#include "laws/executor_laws.hpp"
#include "moe/distributed/polling.hpp"
#include "moe/runtime/executors/openmp.hpp"
#include "pools.hpp"

namespace {
int polls = 0;
}

/// Instead of MPI's own, of which it makes use.
extern "C" int MPI_Iprobe(int source, int tag, MPI_Comm comm, int* flag, MPI_Status* status) {
  ++polls;
  return PMPI_Iprobe(source, tag, comm, flag, status);
}

namespace moe::laws {

struct PollingSerials {
  static distributed::Polling<Serial> make(Index workers) { return distributed::Polling(Serial{}, workers); }
};
struct PollingPools {
  static distributed::Polling<test::OwnThreads> make(Index workers) {
    return distributed::Polling(test::OwnThreads{workers}, 3);
  }
};
using Executors = testing::Types<PollingSerials, PollingPools>;
INSTANTIATE_TYPED_TEST_SUITE_P(Polling, ExecutorLaws, Executors);

}  // namespace moe::laws

namespace moe::distributed {

using Bank = test::GatedFfnBanks<float>;

TEST(Polling, ChangesNoBitWhileChunksTravel) {
  const Index d_model = 17, num_experts = 7;
  const auto router = laws::router_for<float>(d_model, num_experts, 3);
  const MoeLayer whole(router, Bank::make(d_model, laws::seeds_from(1, num_experts)));
  const MoeLayer layer(router, shard_experts(whole.experts(), MPI_COMM_WORLD, {.chunks = 3}));
  for (const Index most : {0, 1, 64}) {
    const auto x = test::random_matrix<Matrix<float>>(d_model, test::tokens_of(test::my_rank(), most), 1);
    const auto expected = test::invariant_forward(whole, x);
    EXPECT_TRUE(test::same_bits(test::invariant_forward(layer, x, Polling(Serial{})), expected));
    EXPECT_TRUE(test::same_bits(test::invariant_forward(layer, x, Polling(test::open_mp(2), 3)), expected));
  }
}

TEST(Polling, CallsMpiAfterEachPieceOfTheCallersWork) {
  std::atomic<int> runs = 0;
  const auto run = [&](Index, Index) { ++runs; };
  polls = 0;
  Polling(Serial{}, 4).for_each(10, Task(run));
  EXPECT_EQ(runs, 10);
  EXPECT_EQ(polls, 10);
  polls = 0;
  Polling(test::OwnThreads{2}).for_each(10, Task(run));
  EXPECT_EQ(runs, 20);
  EXPECT_EQ(polls, 0) << "MPI is called by no other thread";
}

TEST(Polling, RefusesNoPieces) {
  EXPECT_EQ(test::error_of([] { Polling(Serial{}, 0); }), "Polling: pieces is 0, expected at least 1");
}

}  // namespace moe::distributed
