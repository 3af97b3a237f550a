// What a step through every router promises: its bits, and no allocations.
#include "allocations.hpp"

#include "moe/train.hpp"

#include <gtest/gtest.h>

#include "laws/gradient_laws.hpp"
#include "moe/moe.hpp"
#include "train/all_routers.hpp"
#include "train/factories.hpp"

namespace moe {
namespace {

using test::for_each_router;
using test::layer_of;

TEST(RouterGradients, AreTheSameBitsForAnyNumberOfThreads) {
  for_each_router([](const auto& router, const SideInputs<float>& side) {
    laws::expect_the_same_bits_for_any_number_of_threads(layer_of(router), side);
  });
}

TEST(RouterGradients, AWarmStepAllocatesNothing) {
  for_each_router([](const auto& router, const SideInputs<float>& side) {
    laws::expect_warm_steps_to_allocate_nothing(layer_of(router), side);
  });
}

}  // namespace
}  // namespace moe
