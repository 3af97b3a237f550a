// Filters of routers, and groups made of groups, pass on what is asked of the layer around them.
#include "laws/wrapper_laws.hpp"

#include <gtest/gtest.h>

#include "moe/moe.hpp"
#include "moe/train.hpp"
#include "train/factories.hpp"

namespace moe::laws {
namespace {

constexpr Index d = 12, experts = 5;

auto router() {
  return with_lora(test::random_router(experts, d, {.top_k = 2, .renormalize = true}, 3), {.rank = 2, .dropout = 0.5});
}
auto bank(Index its_experts = experts, unsigned seed = 4) {
  return with_lora(test::random_bank(its_experts, d, 9, seed), {.rank = 3, .dropout = 0.5});
}

TEST(WrappersOfRouters, NothingAtAll) { expect_to_pass_everything_on(MoeLayer(router(), bank())); }

TEST(WrappersOfRouters, Capacity) {
  const CapacityOptions options{.capacity = capacity_factor(1.5, 2)};
  expect_to_pass_everything_on(MoeLayer(WithCapacity(router(), options), bank()), {.tokens_see_each_other = true});
}

TEST(WrappersOfRouters, CapacityThatRenormalizes) {
  const CapacityOptions options{.capacity = capacity_factor(1.1, 2), .renormalize = true};
  expect_to_pass_everything_on(MoeLayer(WithCapacity(router(), options), bank()), {.tokens_see_each_other = true});
}

TEST(WrappersOfRouters, MergedExperts) {
  expect_to_pass_everything_on(MoeLayer(WithMergedExperts(router(), {1, 0, 1, 2, 0}), bank(3)));
}

TEST(WrappersOfRouters, CapacityOfMergedExperts) {
  const CapacityOptions options{.capacity = capacity_factor(0.8, 2), .renormalize = true};
  expect_to_pass_everything_on(MoeLayer(WithCapacity(WithMergedExperts(router(), {1, 0, 1, 2, 0}), options), bank(3)),
                               {.tokens_see_each_other = true});
}

TEST(WrappersOfRouters, SecondExpert) {
  const SecondExpertOptions options{.keep = KeepSecond::above_threshold, .threshold = 0.3};
  expect_to_pass_everything_on(MoeLayer(WithSecondExpert(router(), options), bank()));
}

TEST(WrappersOfRouters, Replay) { expect_to_pass_everything_on(MoeLayer(moe::Replay(router()), bank())); }

TEST(WrappersOfRouters, CapacityOfASecondExpert) {
  const SecondExpertOptions second{.keep = KeepSecond::above_threshold, .threshold = 0.3};
  const CapacityOptions options{.capacity = capacity_factor(1.5, 2)};
  expect_to_pass_everything_on(MoeLayer(WithCapacity(WithSecondExpert(router(), second), options), bank()),
                               {.tokens_see_each_other = true});
}

TEST(WrappersOfRouters, JoinedGroups) {
  expect_to_pass_everything_on(
      MoeLayer(router(), JoinedExperts(bank(3), ExpertList(std::vector{CopyExpert<double>{d}}), bank(1, 5))));
}

}  // namespace
}  // namespace moe::laws
