#include "moe/distributed/placement.hpp"

#include <gtest/gtest.h>

#include "errors.hpp"

namespace moe::distributed {

TEST(Placement, BlocksAreContiguousAndDifferByOneAtMost) {
  for (const Index num_experts : {1, 2, 3, 7, 8, 60}) {
    for (const int num_ranks : {1, 2, 3, 8, 9}) {
      const auto placement = place_in_blocks(num_experts, num_ranks);
      ASSERT_EQ(placement.num_experts(), num_experts);
      EXPECT_TRUE(std::ranges::is_sorted(placement.ranks_of));
      for (int rank = 0; rank < num_ranks; ++rank) {
        const Index held = std::ssize(placement.experts_of(rank));
        EXPECT_LE(num_experts / num_ranks, held);
        EXPECT_LE(held, (num_experts + num_ranks - 1) / num_ranks);
      }
    }
  }
  EXPECT_EQ(test::error_of([] { place_in_blocks(0, 2); }).substr(0, 36), "place_in_blocks: num_experts is 0, e");
  EXPECT_EQ(test::error_of([] { place_in_blocks(2, 0); }).substr(0, 34), "place_in_blocks: num_ranks is 0, e");
}

RoutingStats stats_with(const std::vector<Index>& loads) {
  Routing<float> routing;
  for (std::size_t e = 0; e < loads.size(); ++e) {
    for (Index i = 0; i < loads[e]; ++i) routing.add(routing.size(), Index(e), 1);
  }
  RoutingStats stats(Index(loads.size()));
  stats.add(routing, routing.size());
  return stats;
}

Index load_of(const RoutingStats& stats, const Placement& placement, int rank) {
  Index load = 0;
  for (const Index e : placement.experts_of(rank)) load += stats.load(e);
  return load;
}

TEST(Placement, ByLoadEvensOutWhatBlocksDoNot) {
  const auto stats = stats_with({50, 30, 20, 10, 5, 5, 0, 0});
  EXPECT_EQ(load_of(stats, place_in_blocks(8, 2), 0), 110);
  const auto placement = place_by_load(stats, 2);
  EXPECT_EQ(placement.ranks_of, (std::vector<std::vector<int>>{
                                    {0}, {1}, {1}, {0}, {1}, {1}, {0}, {0}}));  // 50 + 10 + 0 + 0 and 30 + 20 + 5 + 5
  EXPECT_EQ(load_of(stats, placement, 0), 60);
  EXPECT_EQ(load_of(stats, placement, 1), 60);
}

TEST(Placement, ByLoadKeepsMemoryEven) {
  for (const int num_ranks : {1, 2, 3, 8, 11}) {
    const auto placement = place_by_load(stats_with({90, 1, 1, 1, 1, 1, 1, 0, 0}), num_ranks);
    for (int rank = 0; rank < num_ranks; ++rank) {
      EXPECT_LE(std::ssize(placement.experts_of(rank)), (9 + num_ranks - 1) / num_ranks);
    }
  }
}

TEST(Placement, ByLoadCopiesTheHottestUntilEveryRankHasOne) {
  EXPECT_EQ(copies_by_load({90, 40, 1}, 4, 3), (std::vector{3, 2, 1}));  // 45 each, then 30, then 20
  EXPECT_EQ(copies_by_load({90, 40, 1}, 2, 100), (std::vector{2, 2, 2}));
  EXPECT_EQ(copies_by_load({0, 0}, 1, 1), (std::vector{1, 1}));

  const auto placement = place_by_load({90.0, 10, 10, 10}, 3, 2);
  EXPECT_EQ(placement.ranks_of, (std::vector<std::vector<int>>{{0, 1, 2}, {0}, {1}, {2}}));
  for (const Index spare : {0, 1, 5, 20}) {
    for (const int num_ranks : {1, 2, 3, 8}) {
      const std::vector<double> load{50, 3, 0, 20, 20, 9, 100};
      const auto spread = place_by_load(load, num_ranks, spare);
      const auto copies = copies_by_load(load, num_ranks, spare);
      Index all = 0;
      for (std::size_t e = 0; e < load.size(); ++e) {
        const auto& ranks = spread.ranks_of[e];
        EXPECT_EQ(std::ssize(ranks), copies[e]);
        EXPECT_EQ(std::ranges::adjacent_find(ranks, std::ranges::greater_equal{}), ranks.end()) << "a rank twice";
        all += copies[e];
      }
      for (int rank = 0; rank < num_ranks && spare == 0; ++rank) {
        EXPECT_LE(std::ssize(spread.experts_of(rank)), (all + num_ranks - 1) / num_ranks);
      }
    }
  }
  EXPECT_EQ(test::error_of([] { place_by_load(std::vector{1.0}, 2, -1); }).substr(0, 31),
            "place_by_load: spare is -1, exp");
}

}  // namespace moe::distributed
