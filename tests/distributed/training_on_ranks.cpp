#include "allocations.hpp"  // before Eigen

#include "moe/train/distributed/expert_parallel.hpp"

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "compare.hpp"
#include "distributed/learn.hpp"
#include "distributed/ranks.hpp"
#include "expert_factories.hpp"
#include "laws/experts_laws.hpp"
#include "moe/distributed/balance.hpp"
#include "moe/moe.hpp"
#include "moe/train.hpp"
#include "moe/train/distributed/gradient_reducer.hpp"

namespace moe::laws {
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(ExpertsLaws);  // of which ListOf is wanted here alone
}

namespace moe::distributed {

using laws::router_for;
using test::Batch;
using test::copied;
using test::dealt;
using test::expect_same_bits;
using test::learn;
using test::my_rank;
using test::named;
using test::num_ranks;
using test::rank_by_rank;
using test::same_bits;

/// An expert of a list has all of its tokens at once when it computes its forward pass again for the way back, and may
/// round otherwise where it has others.
template <class Group>
inline constexpr bool sees_other_tokens = false;
template <class E>
inline constexpr bool sees_other_tokens<ExpertList<E>> = true;

template <class Factory>
class TrainOnRanks : public testing::Test, public test::GroupsOf<Factory> {
 public:
  using typename test::GroupsOf<Factory>::Group;
  using typename test::GroupsOf<Factory>::Scalar;

  /// y, d_x, d_weight and the gradients of experts are those of one process with all tokens; that of the router is the
  /// sum of those of each rank's tokens.
  template <class Layer, class Whole>
  static void expect_bits_of_one_process(const Layer& layer, const Whole& whole, Index most, const std::string& what,
                                         ExecutorRef executor = Serial{}) {
    const bool to_rounding =
        sees_other_tokens<Group> && layer.router().options().weight_on == WeightOn::input;  // gradients of weights
    const Batch<Scalar> x(layer.d_model(), most, 11), d_y(layer.d_model(), most, 12);
    auto expected = learn(whole, x.all, d_y.all);
    auto got = learn(layer, x.own(), d_y.own(), executor);
    const Index tokens = x.own().cols(), first = x.first[std::size_t(my_rank())];
    const Index routes = x.all.cols() == 0 ? 0 : expected.d_weight.size() / x.all.cols();  // of a token
    EXPECT_TRUE(same_bits(got.y, expected.y.middleCols(first, tokens))) << "y of " << what;
    EXPECT_TRUE(same_bits(got.d_x, expected.d_x.middleCols(first, tokens))) << "d_x of " << what;
    EXPECT_TRUE(same_bits(got.d_weight, expected.d_weight.middleCols(first * routes, tokens * routes)))
        << "d_weight of " << what;
    GradientReducer sums(parameters(got.gradient), MPI_COMM_WORLD);
    sums.sum();
    expect_same_bits<Scalar>(named(got.gradient), named(expected.gradient), "experts.", what);
    const auto of_router = rank_by_rank(whole, x, d_y).at("gate.weight"), its = named(got.gradient).at("gate.weight");
    EXPECT_TRUE(to_rounding ? test::is_close(its, of_router) : same_bits(its, of_router)) << "router of " << what;
  }
};

using Factories = testing::Types<test::GatedFfnBanks<float, GptOssGlu, true>, test::GatedFfnBanks<double>,
                                 laws::ListOf<test::Ffns<float, Gelu>>>;
TYPED_TEST_SUITE(TrainOnRanks, Factories);

/// Each rank has padding of its own, which is not a number.
TYPED_TEST(TrainOnRanks, PaddingStaysAtHome) {
  using S = typename TestFixture::Scalar;
  constexpr S nan = std::numeric_limits<S>::quiet_NaN();
  const Index d_model = 9, num_experts = 5;
  const MoeLayer layer(router_for<S>(d_model, num_experts, 2),
                       this->shared_out(d_model, place_in_blocks(num_experts, num_ranks())));
  for (const Index most : {0, 1, 20}) {
    const Matrix<S> x = Batch<S>(d_model, most, 11).own(), d_y = Batch<S>(d_model, most, 12).own();
    std::vector<std::uint8_t> mask(static_cast<std::size_t>(my_rank()));
    for (Index t = 0; t < x.cols(); ++t) mask.insert(mask.end(), {std::uint8_t(1), std::uint8_t(0)});
    mask.push_back(0);
    const auto padded = [&](const Matrix<S>& real, S filling) {
      Matrix<S> all = Matrix<S>::Constant(d_model, std::ssize(mask), filling);
      for (Index t = 0; t < real.cols(); ++t) all.col(my_rank() + 2 * t) = real.col(t);
      return all;
    };
    auto expected = learn(layer, x, d_y);
    auto got = learn(layer, padded(x, nan), padded(d_y, nan), Serial{}, Copies::first, {.mask = mask});
    EXPECT_TRUE(same_bits(got.y, padded(expected.y, 0)));
    EXPECT_TRUE(same_bits(got.d_x, padded(expected.d_x, 0)));
    EXPECT_TRUE(same_bits(got.d_weight, expected.d_weight));
    expect_same_bits<S>(named(got.gradient), named(expected.gradient), "", "padding");
  }
}

TYPED_TEST(TrainOnRanks, AnyPlacementGivesTheGradientsOfOneProcess) {
  for (const Index d_model : {1, 17}) {
    for (const Index num_experts : {1, 3, 8}) {
      for (const WeightOn weight_on : {WeightOn::output, WeightOn::input}) {
        const Index top_k = (num_experts + 1) / 2;
        const auto router = router_for<typename TestFixture::Scalar>(d_model, num_experts, top_k, weight_on);
        const MoeLayer whole(router, this->whole(d_model, num_experts));
        for (const auto& placement : {place_in_blocks(num_experts, num_ranks()), dealt(num_experts, num_ranks()),
                                      copied(num_experts, num_ranks())}) {
          const MoeLayer layer(router, this->shared_out(d_model, placement, {.chunks = 2}));
          for (const Index most : {0, 1, 100}) {
            this->expect_bits_of_one_process(layer, whole, most,
                                             std::to_string(num_experts) + " experts, " + std::to_string(d_model) +
                                                 " wide, " + std::to_string(most) + " tokens");
          }
        }
      }
    }
  }
}

TYPED_TEST(TrainOnRanks, ThreadsChangeNoBit) {
  const Index d_model = 17, num_experts = 7;
  for (const WeightOn weight_on : {WeightOn::output, WeightOn::input}) {
    const auto router = router_for<typename TestFixture::Scalar>(d_model, num_experts, 3, weight_on);
    const MoeLayer whole(router, this->whole(d_model, num_experts));
    const MoeLayer layer(router, this->shared_out(d_model, dealt(num_experts, num_ranks())));
    this->expect_bits_of_one_process(layer, whole, 40, "two threads", test::open_mp(2));
    this->expect_bits_of_one_process(layer, whole, 40, "three workers in any order", test::Shuffled{3});
  }
}

TYPED_TEST(TrainOnRanks, CopiesThatLearnTogetherHaveTheSameGradientToRounding) {
  using S = typename TestFixture::Scalar;
  const Index d_model = 9, num_experts = 5;
  const auto router = router_for<S>(d_model, num_experts, 2);
  const MoeLayer whole(router, this->whole(d_model, num_experts));
  const MoeLayer layer(router, this->shared_out(d_model, copied(num_experts, num_ranks())));
  const Batch<S> x(d_model, 30, 21), d_y(d_model, 30, 22);
  auto expected = learn(whole, x.all, d_y.all);
  auto got = learn(layer, x.own(), d_y.own(), Serial{}, Copies::all);
  GradientReducer(parameters(got.gradient), MPI_COMM_WORLD).sum();
  const auto values = named(expected.gradient);
  for (const auto& [name, gradient] : named(got.gradient)) {
    EXPECT_TRUE(test::is_close(gradient, values.at(name))) << name;
  }
  const auto d_x = expected.d_x.middleCols(x.first[std::size_t(my_rank())], x.own().cols());
  EXPECT_TRUE(sees_other_tokens<typename TestFixture::Group> ? test::is_close(got.d_x, d_x) : same_bits(got.d_x, d_x));
}

TYPED_TEST(TrainOnRanks, RoundedOnTheWireGradientsAreThoseOfOneRankThatRoundsToo) {
  using S = typename TestFixture::Scalar;
  const Index d_model = 17, num_experts = 5;
  for (const WeightOn weight_on : {WeightOn::output, WeightOn::input}) {
    const auto router = router_for<S>(d_model, num_experts, 2, weight_on);
    const MoeLayer alone(
        router, this->shared_out(d_model, place_in_blocks(num_experts, 1), {.wire = Wire::bfloat16}, MPI_COMM_SELF));
    const MoeLayer layer(router, this->shared_out(d_model, dealt(num_experts, num_ranks()), {.wire = Wire::bfloat16}));
    this->expect_bits_of_one_process(layer, alone, 30, "rounded");

    // What is rounded is off by 2^-9 of itself; these are a few of them.
    const MoeLayer exact(router, this->whole(d_model, num_experts));
    const Batch<S> x(d_model, 30, 11), d_y(d_model, 30, 12);
    auto rounded = learn(alone, x.all, d_y.all);
    auto expected = learn(exact, x.all, d_y.all);
    EXPECT_LE((rounded.d_x - expected.d_x).norm(), 0x1p-6 * expected.d_x.norm());
    EXPECT_GT((rounded.d_x - expected.d_x).norm(), 0);
    const auto of_exact = named(expected.gradient);
    for (const auto& [name, gradient] : named(rounded.gradient)) {
      if (name.starts_with("experts.")) {
        EXPECT_LE((gradient - of_exact.at(name)).norm(), 0x1p-6 * of_exact.at(name).norm()) << name;
      }
    }
  }
}

TYPED_TEST(TrainOnRanks, SumsPerRankEqualOneProcessToRounding) {
  using S = typename TestFixture::Scalar;
  const Index d_model = 9, num_experts = 7;
  for (const WeightOn weight_on : {WeightOn::output, WeightOn::input}) {
    const auto router = router_for<S>(d_model, num_experts, 4, weight_on);
    const MoeLayer whole(router, this->whole(d_model, num_experts));
    const MoeLayer layer(router,
                         this->shared_out(d_model, dealt(num_experts, num_ranks()), {.answers = Answers::summed}));
    for (const Index most : {0, 1, 30}) {
      const Batch<S> x(d_model, most, 31), d_y(d_model, most, 32);
      auto expected = learn(whole, x.all, d_y.all);
      auto got = learn(layer, x.own(), d_y.own());
      const Index first = x.first[std::size_t(my_rank())];
      EXPECT_TRUE(test::is_close(got.y, expected.y.middleCols(first, x.own().cols())));
      EXPECT_TRUE(test::is_close(got.d_x, expected.d_x.middleCols(first, x.own().cols())));
      expect_same_bits<S>(named(got.gradient), named(expected.gradient), "experts.", "experts, who sum nothing");
    }
  }
}

TYPED_TEST(TrainOnRanks, AfterStepsOfAdamWParametersHaveTheBitsOfOneProcess) {
  using S = typename TestFixture::Scalar;
  const Index d_model = 9, num_experts = 6;
  const auto router = router_for<S>(d_model, num_experts, 2);
  for (const auto& placement : {dealt(num_experts, num_ranks()), copied(num_experts, num_ranks())}) {
    MoeLayer whole(router, this->whole(d_model, num_experts));
    MoeLayer layer(router, this->shared_out(d_model, placement));
    AdamW<S> adam_of_whole(parameters(whole), {.learning_rate = 0.05});
    AdamW<S> adam(parameters(layer), {.learning_rate = 0.05});
    for (unsigned step = 0; step < 4; ++step) {
      const Batch<S> x(d_model, 20, 40 + step), d_y(d_model, 20, 50 + step);
      auto of_whole = learn(whole, x.all, d_y.all);
      const auto sums = rank_by_rank(whole, x, d_y);
      for (const auto& parameter : matching(parameters(of_whole.gradient), {"gate.*"})) {
        parameter.matrix() = sums.at(parameter.name);
      }
      adam_of_whole.step(parameters(of_whole.gradient));

      auto learnt = learn(layer, x.own(), d_y.own());
      GradientReducer gradients(parameters(learnt.gradient), MPI_COMM_WORLD);
      gradients.sum();
      adam.step(gradients.parameters());
    }
    const auto expected = named(whole);
    expect_same_bits<S>(named(layer), expected, "", "four steps");
    MoeLayer before(router, this->whole(d_model, num_experts));
    EXPECT_FALSE(same_bits(expected.at("gate.weight"), named(before).at("gate.weight")));
  }
}

TYPED_TEST(TrainOnRanks, AWarmStepAllocatesNothing) {
  using S = typename TestFixture::Scalar;
  const Index d_model = 17;
  const MoeLayer layer(router_for<S>(d_model, 6, 2), this->shared_out(d_model, copied(6, num_ranks())));
  const Batch<S> x(d_model, 40, 60), d_y(d_model, 40, 61);
  const Matrix<S> own = x.own(), d_own = d_y.own();
  Matrix<S> y = own, d_x = own;
  auto tape = tape_of(layer);
  auto gradient = zeros_like(layer);
  GradientReducer gradients(parameters(gradient), MPI_COMM_WORLD);
  ExpertShares shares;
  Scratch scratch;
  const auto step = [&] {
    forward(layer, own, y, tape);
    scratch.reset();
    measure_shares(tape.ws.routing, own.cols(), 6, {}, shares, scratch);
    all_reduce(shares, gradients.communicator(), scratch);
    backward(layer, own, d_own, tape, d_x, gradient);
    gradients.sum();
    gradients.clip(1.0);
  };
  step();
  step();
  EXPECT_EQ(test::allocations_in(step), 0);
}

}  // namespace moe::distributed
