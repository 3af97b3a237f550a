/// @file  What every group of experts must do, as a suite to run on a group of your own.
///
///   #include "laws/experts_laws.hpp"  // first: it watches what is allocated
///   struct MyGroups {  // expert e is made from seeds[e] alone; numbers of order one in, numbers of order one out
///     static MyGroup make(moe::Index d_model, std::span<const unsigned> seeds);
///   };
///   namespace moe::laws { INSTANTIATE_TYPED_TEST_SUITE_P(Mine, ExpertsLaws, MyGroups); }
///
/// A group that cannot help allocating while warm says so: `static constexpr bool may_allocate = true;`.
/// Any expert is a group of experts in moe::laws::ListOf<MyExperts>; see expert_laws.hpp for MyExperts.
#pragma once

#include "laws/common.hpp"

#include <algorithm>
#include <limits>
#include <span>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "moe/experts/any_experts.hpp"
#include "moe/experts/expert_list.hpp"
#include "moe/layers/dense.hpp"
#include "moe/layers/moe_layer.hpp"
#include "moe/runtime/executors/openmp.hpp"
#include "moe/runtime/executors/serial.hpp"
#include "oracle.hpp"
#include "pools.hpp"

namespace moe::laws {

/// A list of experts as a group.
template <class Experts>
struct ListOf {
  static constexpr bool may_allocate = laws::may_allocate<Experts>;

  static auto make(Index d_model, std::span<const unsigned> seeds) {
    std::vector<decltype(Experts::make(d_model, 0U))> experts;
    for (const unsigned seed : seeds) experts.push_back(Experts::make(d_model, seed));
    return ExpertList(std::move(experts));
  }
};

/// Routes as no good router would write them: in any order, some tokens never, some several times to one expert.
template <class Scalar>
Routing<Scalar> random_routing(Index num_tokens, Index num_experts, Index num_routes, unsigned seed) {
  Random random(seed);
  Routing<Scalar> routing;
  for (Index r = 0; r < num_routes; ++r) {
    routing.add(random.below(num_tokens), random.below(num_experts), static_cast<Scalar>(random()));
  }
  return routing;
}

/// A group on its own, without a layer around it.
template <class Group>
void apply(const Group& group, const ConstMatrixRef<typename Group::Scalar>& x,
           const Routing<typename Group::Scalar>& routing, MatrixRef<typename Group::Scalar> y,
           ExecutorRef executor = Serial{}) {
  PlanMemory<typename Group::Scalar> memory;
  const auto plan = plan_dispatch(routing, x.cols(), group.num_experts(), memory);
  std::vector<Scratch> scratch;
  Workers workers(executor, scratch);
  group.apply(x, plan, y, workers);
}

/// The laws by themselves, compiled once for each scalar: what they are about is erased.
template <class Scalar_>
class ExpertsLawsOf : public testing::Test {
 public:
  using Scalar = Scalar_;

  void equal_the_oracle();
  void equal_the_oracle_with_weights_on_the_input();
  void add_what_any_routing_asks_for();
  void without_a_route_leave_y_as_it_was();
  void one_expert_is_that_expert();
  void identical_experts_are_that_expert();
  void all_experts_chosen_are_the_weighted_dense_sum();
  void renumbering_experts_changes_nothing();
  void tokens_do_not_see_each_other();
  void no_executor_changes_a_bit();
  void neither_strides_nor_alignment_change_a_bit();
  void a_warm_forward_allocates_nothing();
  void nor_does_a_smaller_batch_afterwards();

 protected:
  virtual AnyExperts<Scalar> make(Index d_model, std::span<const unsigned> seeds) const = 0;
  virtual bool may_allocate() const = 0;

  AnyExperts<Scalar> group(Index d_model, Index num_experts, unsigned first_seed = 1) const {
    return make(d_model, seeds_from(first_seed, num_experts));
  }
  MoeLayer<LinearTopK<Scalar>, AnyExperts<Scalar>> layer(Index d_model, Index num_experts, Index top_k,
                                                         WeightOn weight_on = WeightOn::output) const {
    return {router_for<Scalar>(d_model, num_experts, top_k, weight_on), group(d_model, num_experts)};
  }
  static Matrix<Scalar> tokens(Index d_model, Index num_tokens, unsigned seed = 99) {
    return random_matrix<Matrix<Scalar>>(d_model, num_tokens, seed);
  }
  /// What expert `seed` answers, asked in a group of its own.
  Matrix<Scalar> answer(Index d_model, unsigned seed, const Matrix<Scalar>& x) const {
    return DenseLayer(make(d_model, std::span(&seed, 1))).forward(x);
  }
  void expect_no_allocation(std::pair<Index, Index> warm_then_watched, ExecutorRef executor) const;
};

/// Warm after two batches (one to learn the sizes, one to join the memory), then a third.
template <class Scalar>
void ExpertsLawsOf<Scalar>::expect_no_allocation(std::pair<Index, Index> warm_then_watched,
                                                 ExecutorRef executor) const {
  const Index d_model = 17;
  const auto [warm, watched] = warm_then_watched;
  for (const WeightOn weight_on : {WeightOn::output, WeightOn::input}) {
    const auto layer = this->layer(d_model, 4, 2, weight_on);
    const auto x = tokens(d_model, std::max(warm, watched));
    Matrix<Scalar> y = x;
    Workspace<Scalar> ws;
    for (int i = 0; i < 2; ++i) layer.forward(x.leftCols(warm), y.leftCols(warm), ws, executor);
    const Index n = watched;
    EXPECT_EQ(test::allocations_in([&] { layer.forward(x.leftCols(n), y.leftCols(n), ws, executor); }), 0)
        << n << " tokens after " << warm << ", " << executor.workers() << " workers";
  }
}

template <class Scalar>
void ExpertsLawsOf<Scalar>::equal_the_oracle() {
  for (const Index d_model : sizes) {
    for (const Index num_experts : {1, 3, 8}) {
      for (Index top_k = 1; top_k <= num_experts; top_k += 2) {
        const auto layer = this->layer(d_model, num_experts, top_k);
        for (const Index num_tokens : {0, 1, 7, 64}) {
          const auto x = tokens(d_model, num_tokens);
          EXPECT_TRUE(is_close(layer.forward(x), test::oracle_forward(layer, x)))
              << d_model << " wide, " << top_k << " of " << num_experts << " experts, " << num_tokens << " tokens";
        }
      }
    }
  }
}

template <class Scalar>
void ExpertsLawsOf<Scalar>::equal_the_oracle_with_weights_on_the_input() {
  for (const Index d_model : {5, 16, 33}) {
    const auto layer = this->layer(d_model, 3, 2, WeightOn::input);
    for (const Index num_tokens : {0, 1, 7, 40}) {
      const auto x = tokens(d_model, num_tokens);
      EXPECT_TRUE(is_close(layer.forward(x), test::oracle_forward(layer, x)))
          << d_model << ", " << num_tokens << " tokens";
    }
  }
}

template <class Scalar>
void ExpertsLawsOf<Scalar>::add_what_any_routing_asks_for() {
  const Index d_model = 9, num_experts = 4;
  const auto group = this->group(d_model, num_experts);
  for (const Index num_tokens : {1, 5, 30}) {
    const auto x = tokens(d_model, num_tokens);
    for (const WeightOn weight_on : {WeightOn::output, WeightOn::input}) {
      auto routing = random_routing<Scalar>(num_tokens, num_experts, 2 * num_tokens, 5);
      routing.weight_on = weight_on;
      const auto before = random_matrix<Matrix<Scalar>>(d_model, num_tokens, 6);
      Matrix<Scalar> y = before, expected = before;
      apply(group, x, routing, y);

      std::vector<bool> routed(std::size_t(num_tokens), false);
      for (std::size_t r = 0; r < routing.token.size(); ++r) {
        const Index t = routing.token[r];
        const auto seed = static_cast<unsigned>(1 + routing.expert[r]);
        if (weight_on == WeightOn::output) {
          expected.col(t) += routing.weight[r] * answer(d_model, seed, x.col(t));
        } else {
          expected.col(t) += answer(d_model, seed, routing.weight[r] * x.col(t));
        }
        routed[std::size_t(t)] = true;
      }
      EXPECT_TRUE(is_close(y, expected)) << num_tokens << " tokens";
      for (Index t = 0; t < num_tokens; ++t) {
        if (!routed[std::size_t(t)]) {
          EXPECT_TRUE(same_bits(y.col(t), before.col(t))) << "nobody routed token " << t;
        }
      }
    }
  }
}

template <class Scalar>
void ExpertsLawsOf<Scalar>::without_a_route_leave_y_as_it_was() {
  const auto group = this->group(5, 3);
  const auto x = tokens(5, 4), before = tokens(5, 4, 6);
  Matrix<Scalar> y = before;
  apply(group, x, Routing<Scalar>{}, y);
  EXPECT_TRUE(same_bits(y, before));
}

template <class Scalar>
void ExpertsLawsOf<Scalar>::one_expert_is_that_expert() {
  for (const Index d_model : sizes) {
    const auto layer = this->layer(d_model, 1, 1);
    for (const Index num_tokens : token_counts) {
      const auto x = tokens(d_model, num_tokens);
      EXPECT_TRUE(same_bits(layer.forward(x), answer(d_model, 1, x))) << d_model << ", " << num_tokens;
    }
  }
}

template <class Scalar>
void ExpertsLawsOf<Scalar>::identical_experts_are_that_expert() {
  const std::vector<unsigned> seeds(6, 3);
  for (const Index d_model : {4, 17}) {
    for (const Index top_k : {1, 2, 6}) {
      const MoeLayer layer(router_for<Scalar>(d_model, 6, top_k), make(d_model, seeds));
      for (const Index num_tokens : token_counts) {
        const auto x = tokens(d_model, num_tokens);
        EXPECT_TRUE(is_close(layer.forward(x), answer(d_model, 3, x))) << d_model << ", " << num_tokens;
      }
    }
  }
}

template <class Scalar>
void ExpertsLawsOf<Scalar>::all_experts_chosen_are_the_weighted_dense_sum() {
  const Index d_model = 17, num_experts = 5;
  const auto layer = this->layer(d_model, num_experts, num_experts);
  for (const Index num_tokens : token_counts) {
    const auto x = tokens(d_model, num_tokens);
    const Matrix<Scalar> logits = layer.router().weight().lazyProduct(x);
    Matrix<Scalar> share = (logits.rowwise() - logits.colwise().maxCoeff()).array().exp();
    share.array().rowwise() /= share.array().colwise().sum().eval();
    Matrix<Scalar> expected = Matrix<Scalar>::Zero(d_model, num_tokens);
    for (Index e = 0; e < num_experts; ++e) {
      expected += answer(d_model, static_cast<unsigned>(1 + e), x) * share.row(e).asDiagonal();
    }
    EXPECT_TRUE(is_close(layer.forward(x), expected)) << num_tokens << " tokens";
  }
}

template <class Scalar>
void ExpertsLawsOf<Scalar>::renumbering_experts_changes_nothing() {
  const Index d_model = 9, num_experts = 8;
  const auto layer = this->layer(d_model, num_experts, 3);
  const Index new_place[] = {3, 7, 0, 1, 6, 2, 5, 4};
  std::vector<unsigned> seeds(8);
  Weight<Scalar> weight(num_experts, d_model);
  for (Index e = 0; e < num_experts; ++e) {
    seeds[std::size_t(new_place[e])] = static_cast<unsigned>(1 + e);
    weight.row(new_place[e]) = layer.router().weight().row(e);
  }
  const MoeLayer renumbered(LinearTopK<Scalar>(weight, layer.router().options()), make(d_model, seeds));
  for (const Index num_tokens : token_counts) {
    const auto x = tokens(d_model, num_tokens);
    EXPECT_TRUE(is_close(renumbered.forward(x), layer.forward(x))) << num_tokens << " tokens";
  }
}

template <class Scalar>
void ExpertsLawsOf<Scalar>::tokens_do_not_see_each_other() {
  for (const Index d_model : {7, 16}) {
    const auto layer = this->layer(d_model, 3, 2);
    const auto x = tokens(d_model, 64);
    const auto together = layer.forward(x);
    for (const Index t : {0, 1, 15, 16, 31, 32, 63}) {
      EXPECT_TRUE(is_close(layer.forward(x.col(t)), together.col(t))) << "token " << t << " alone";
    }

    // The neighbour's NaN stays with the neighbour. Its routes move, so the others may round differently.
    Matrix<Scalar> poisoned = x;
    poisoned(d_model / 2, 20) = std::numeric_limits<Scalar>::quiet_NaN();
    const auto y = layer.forward(poisoned);
    EXPECT_TRUE(y.col(20).hasNaN());
    EXPECT_TRUE(is_close(y.leftCols(20), together.leftCols(20)));
    EXPECT_TRUE(is_close(y.rightCols(43), together.rightCols(43)));
  }
}

template <class Scalar>
void ExpertsLawsOf<Scalar>::no_executor_changes_a_bit() {
  for (const Index d_model : {5, 17, 67}) {
    for (const Index num_experts : {1, 5}) {
      const auto layer = this->layer(d_model, num_experts, (num_experts + 1) / 2);
      for (const Index num_tokens : token_counts) {
        const auto x = tokens(d_model, num_tokens);
        const auto serial = layer.forward(x);
        for (const Index workers : {1, 2, 3, 5, 8}) {
          EXPECT_TRUE(same_bits(layer.forward(x, test::Shuffled{workers}), serial))
              << d_model << " wide, " << num_experts << " experts, " << num_tokens << " tokens, " << workers
              << " workers";
          EXPECT_TRUE(same_bits(layer.forward(x, test::open_mp(workers)), serial))
              << "OpenMP, " << workers << " workers";
        }
      }
    }
  }
}

template <class Scalar>
void ExpertsLawsOf<Scalar>::neither_strides_nor_alignment_change_a_bit() {
  const Index d_model = 17;
  const auto layer = this->layer(d_model, 3, 2);
  for (const Index num_tokens : token_counts) {
    const auto x = tokens(d_model, num_tokens);
    Matrix<Scalar> inside = tokens(d_model + 4, num_tokens + 2, 5);
    inside.block(1, 1, d_model, num_tokens) = x;
    Matrix<Scalar> around = tokens(d_model + 6, num_tokens + 2, 6), expected = around;
    expected.block(3, 1, d_model, num_tokens) = layer.forward(x);
    Workspace<Scalar> ws;
    layer.forward(inside.block(1, 1, d_model, num_tokens), around.block(3, 1, d_model, num_tokens), ws);
    EXPECT_TRUE(same_bits(around, expected)) << num_tokens << " tokens";  // and nothing around it was written
  }
}

template <class Scalar>
void ExpertsLawsOf<Scalar>::a_warm_forward_allocates_nothing() {
  if (may_allocate()) GTEST_SKIP() << "says that it may allocate";
  for (const Index num_tokens : token_counts) {
    expect_no_allocation({num_tokens, num_tokens}, Serial{});
    for (const Index workers : {1, 2, 3, 8}) expect_no_allocation({num_tokens, num_tokens}, test::open_mp(workers));
  }
}

template <class Scalar>
void ExpertsLawsOf<Scalar>::nor_does_a_smaller_batch_afterwards() {
  if (may_allocate()) GTEST_SKIP() << "says that it may allocate";
  for (const Index workers : {1, 3}) {
    for (const Index smaller : {0, 1, 7, 15, 16, 17, 33, 63})
      expect_no_allocation({64, smaller}, test::open_mp(workers));
  }
}

template <class Factory>
using GroupOf = decltype(Factory::make(Index(1), std::span<const unsigned>{}));

template <class Factory>
class ExpertsLaws : public ExpertsLawsOf<typename GroupOf<Factory>::Scalar> {
  using Scalar = typename GroupOf<Factory>::Scalar;
  static_assert(Experts<GroupOf<Factory>>);

  AnyExperts<Scalar> make(Index d_model, std::span<const unsigned> seeds) const override {
    return Factory::make(d_model, seeds);
  }
  bool may_allocate() const override { return laws::may_allocate<Factory>; }
};
TYPED_TEST_SUITE_P(ExpertsLaws);
TYPED_TEST_P(ExpertsLaws, EqualTheOracle) { this->equal_the_oracle(); }
TYPED_TEST_P(ExpertsLaws, EqualTheOracleWithWeightsOnTheInput) { this->equal_the_oracle_with_weights_on_the_input(); }
TYPED_TEST_P(ExpertsLaws, AddWhatAnyRoutingAsksFor) { this->add_what_any_routing_asks_for(); }
TYPED_TEST_P(ExpertsLaws, WithoutARouteLeaveYAsItWas) { this->without_a_route_leave_y_as_it_was(); }
TYPED_TEST_P(ExpertsLaws, OneExpertIsThatExpert) { this->one_expert_is_that_expert(); }
TYPED_TEST_P(ExpertsLaws, IdenticalExpertsAreThatExpert) { this->identical_experts_are_that_expert(); }
TYPED_TEST_P(ExpertsLaws, AllExpertsChosenAreTheWeightedDenseSum) {
  this->all_experts_chosen_are_the_weighted_dense_sum();
}
TYPED_TEST_P(ExpertsLaws, RenumberingExpertsChangesNothing) { this->renumbering_experts_changes_nothing(); }
TYPED_TEST_P(ExpertsLaws, TokensDoNotSeeEachOther) { this->tokens_do_not_see_each_other(); }
TYPED_TEST_P(ExpertsLaws, NoExecutorChangesABit) { this->no_executor_changes_a_bit(); }
TYPED_TEST_P(ExpertsLaws, NeitherStridesNorAlignmentChangeABit) { this->neither_strides_nor_alignment_change_a_bit(); }
TYPED_TEST_P(ExpertsLaws, AWarmForwardAllocatesNothing) { this->a_warm_forward_allocates_nothing(); }
TYPED_TEST_P(ExpertsLaws, NorDoesASmallerBatchAfterwards) { this->nor_does_a_smaller_batch_afterwards(); }

REGISTER_TYPED_TEST_SUITE_P(ExpertsLaws, EqualTheOracle, EqualTheOracleWithWeightsOnTheInput, AddWhatAnyRoutingAsksFor,
                            WithoutARouteLeaveYAsItWas, OneExpertIsThatExpert, IdenticalExpertsAreThatExpert,
                            AllExpertsChosenAreTheWeightedDenseSum, RenumberingExpertsChangesNothing,
                            TokensDoNotSeeEachOther, NoExecutorChangesABit, NeitherStridesNorAlignmentChangeABit,
                            AWarmForwardAllocatesNothing, NorDoesASmallerBatchAfterwards);

#ifdef MOE_LAWS_ARE_COMPILED
extern template class ExpertsLawsOf<float>;
extern template class ExpertsLawsOf<double>;
#endif

}  // namespace moe::laws
