#include "laws/experts_laws.hpp"

#include <gtest/gtest.h>

#include "expert_factories.hpp"
#include "normed_factories.hpp"

namespace moe::laws {

using test::NormedGroups;
using Normed = testing::Types<NormedGroups<ListOf<test::Ffns<double>>>,
                              NormedGroups<test::GatedFfnBanks<float, SwiGlu, true>, GainOn::input>>;
INSTANTIATE_TYPED_TEST_SUITE_P(Normed, ExpertsLaws, Normed);

}  // namespace moe::laws
