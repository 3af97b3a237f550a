#include "laws/router_laws.hpp"

#include <cmath>
#include <utility>

#include "moe/lora/router.hpp"

namespace moe::laws {

template <class Scalar, Index rank, WeightOn weight_on = WeightOn::output>
struct LoraRouters {
  static LoraRouter<Scalar> make(Index d_model) {
    Random random(5);
    auto weight = random.matrix<Weight<Scalar>>(11, d_model, 3 / std::sqrt(double(d_model)));
    auto a = random.matrix<Weight<Scalar>>(rank, d_model, 1 / std::sqrt(double(d_model)));
    auto b = random.matrix<Weight<Scalar>>(11, rank);
    return {{std::move(weight), {.top_k = 3, .renormalize = true, .weight_on = weight_on}},
            {std::move(a), std::move(b), /*alpha=*/2}};
  }
};

using Adapted = testing::Types<LoraRouters<float, 3>, LoraRouters<double, 8>, LoraRouters<float, 1, WeightOn::input>,
                               LoraRouters<float, 0>>;
INSTANTIATE_TYPED_TEST_SUITE_P(LoraRouter, RouterLaws, Adapted);
INSTANTIATE_TYPED_TEST_SUITE_P(LoraRouter, TokenChoiceLaws, Adapted);

TEST(LoraRouter, HasTheLogitsOfAWeightWithItsDelta) {
  for (const Index d_model : sizes) {
    const auto router = LoraRouters<float, 3>::make(d_model);
    const Weight<float> weight =
        router.logits().base().weight() +
        router.logits().adapter().scale() * router.logits().adapter().b.lazyProduct(router.logits().adapter().a);
    for (const Index tokens : token_counts) {
      const auto x = random_matrix<Matrix<float>>(d_model, tokens, 6);
      std::vector<Scratch> scratch;
      const Serial serial;
      Workers workers(serial, scratch);
      Routing<float> routing;
      router.route(Tokens<float>(x), routing, workers);
      EXPECT_TRUE(is_close(logits_of(routing, 11, tokens), weight.lazyProduct(x).eval())) << d_model << ", " << tokens;
    }
  }
}

}  // namespace moe::laws
