#include "laws/experts_laws.hpp"
#include "laws/layer_laws.hpp"

#include <gtest/gtest.h>

#include "latent_factories.hpp"
#include "moe/layers/moe_layer.hpp"

namespace moe::laws {

using test::LatentGroups;
using Between = testing::Types<LatentGroups<double, ListOf<test::Ffns<double>>>,
                               LatentGroups<float, test::GatedFfnBanks<float, SwiGlu, true>>,
                               LatentGroups<bfloat16, test::MappedGatedFfnBanks<float16>>>;
INSTANTIATE_TYPED_TEST_SUITE_P(BetweenProjections, ExpertsLaws, Between);

/// With all that experts between projections may have.
struct LayersOfLatentExperts {
  static auto make(Index d_model) {
    const auto bank = test::GatedFfnBanks<float>::make(test::latent_size(d_model), seeds_from(3, 5));
    return MoeLayer(router_for<float>(d_model, 5, 2),
                    test::random_latent<bfloat16>(d_model, bank, 9, true, RmsNormOptions{.offset = 1},
                                                  RmsNormOptions{.epsilon = 0.1}));
  }
};
INSTANTIATE_TYPED_TEST_SUITE_P(OfLatentExperts, LayerLaws, LayersOfLatentExperts);

}  // namespace moe::laws
