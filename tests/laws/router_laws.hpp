/// @file  What every router must do, as suites to run on a router of your own.
///
///   #include "laws/router_laws.hpp"  // first: it watches what is allocated
///   struct MyRouters {  // with any number of experts
///     static MyRouter make(moe::Index d_model);
///     // If it reads any: what is said of tokens [first, first + count) of a batch. What it points to must live on.
///     static moe::SideInputs<float> side(moe::Index first, moe::Index count);
///   };
///   namespace moe::laws {
///   INSTANTIATE_TYPED_TEST_SUITE_P(Mine, RouterLaws, MyRouters);
///   INSTANTIATE_TYPED_TEST_SUITE_P(Mine, TokenChoiceLaws, MyRouters);
///   }
///
/// RouterLaws are for all of them; TokenChoiceLaws for those whose routes of a token depend on that token alone.
#pragma once

#include "laws/common.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <span>
#include <vector>

#include <gtest/gtest.h>

#include "moe/core/concepts.hpp"
#include "moe/routers/any_router.hpp"
#include "moe/runtime/executors/openmp.hpp"
#include "moe/runtime/executors/serial.hpp"
#include "moe/runtime/workers.hpp"
#include "pools.hpp"

namespace moe::laws {

/// What a router says to tokens.
template <class R>
Routing<typename R::Scalar> route(const R& router, const Tokens<std::type_identity_t<typename R::Scalar>>& tokens,
                                  ExecutorRef executor = Serial{}, const Numerics& numerics = {}) {
  std::vector<Scratch> scratch;
  Workers workers(executor, scratch, numerics);
  Routing<typename R::Scalar> routing;
  router.route(tokens, routing, workers);
  return routing;
}

/// The weight of each expert for each token, (num_experts × n_tokens).
template <class Scalar>
Matrix<Scalar> weights_of(const Routing<Scalar>& routing, Index num_experts, Index num_tokens) {
  Matrix<Scalar> weight = Matrix<Scalar>::Zero(num_experts, num_tokens);
  for (std::size_t r = 0; r < routing.token.size(); ++r) {
    weight(routing.expert[r], routing.token[r]) += routing.weight[r];
  }
  return weight;
}

/// The routes of one token, as numbers that compare: expert, then the weight.
template <class Scalar>
std::vector<std::pair<Index, Scalar>> routes_of(const Routing<Scalar>& routing, Index token) {
  std::vector<std::pair<Index, Scalar>> routes;
  for (std::size_t r = 0; r < routing.token.size(); ++r) {
    if (routing.token[r] == token) routes.emplace_back(routing.expert[r], routing.weight[r]);
  }
  return routes;
}

template <class Scalar>
Eigen::Map<const Eigen::Matrix<Scalar, Eigen::Dynamic, 1>> as_vector(const std::vector<Scalar>& numbers) {
  return {numbers.data(), Index(numbers.size())};
}

/// The laws by themselves, compiled once for each scalar: what they are about is erased.
template <class Scalar_>
class RouterLawsOf : public testing::Test {
 public:
  using Scalar = Scalar_;

  void routes_to_what_is_there();
  void tokens_do_not_see_each_other();
  void where_asked_tokens_do_not_see_each_other_by_a_single_bit();
  void no_executor_changes_a_bit();
  void where_the_routing_lies_changes_no_bit();
  void not_a_number_stays_with_its_token();
  void a_warm_route_allocates_nothing();
  void no_input_leads_out_of_range();

  /// Every route leads from a token that is there to an expert that is there, and to no expert twice.
  static void expect_valid(const Routing<Scalar>& routing, Index num_tokens, Index num_experts);

 protected:
  virtual AnyRouter<Scalar> make(Index d_model) const = 0;
  virtual SideInputs<Scalar> side(Index first, Index count) const = 0;
  virtual bool may_allocate() const = 0;

  /// What a router says to all these tokens.
  Routing<Scalar> route_all(const AnyRouter<Scalar>& router, const ConstMatrixRef<Scalar>& x,
                            ExecutorRef executor = Serial{}) const {
    return route(router, {x, side(0, x.cols())}, executor);
  }
  static Matrix<Scalar> tokens(Index d_model, Index num_tokens, unsigned seed = 99) {
    return random_matrix<Matrix<Scalar>>(d_model, num_tokens, seed, 2);
  }
};

template <class Scalar>
void RouterLawsOf<Scalar>::expect_valid(const Routing<Scalar>& routing, Index num_tokens, Index num_experts) {
  ASSERT_EQ(routing.expert.size(), routing.token.size());
  ASSERT_EQ(routing.weight.size(), routing.token.size());
  Eigen::MatrixXi times = Eigen::MatrixXi::Zero(num_experts, num_tokens);
  for (std::size_t r = 0; r < routing.token.size(); ++r) {
    const Index t = routing.token[r], e = routing.expert[r];
    ASSERT_TRUE(0 <= t && t < num_tokens) << "token " << t << " of " << num_tokens;
    ASSERT_TRUE(0 <= e && e < num_experts) << "expert " << e << " of " << num_experts;
    EXPECT_EQ(++times(e, t), 1) << "token " << t << " goes to expert " << e << " again";
  }
}

template <class Scalar>
void RouterLawsOf<Scalar>::routes_to_what_is_there() {
  for (const Index d_model : sizes) {
    const auto router = make(d_model);
    EXPECT_EQ(Index(router.d_model()), d_model);
    EXPECT_GE(Index(router.num_experts()), 1);
    for (const Index num_tokens : token_counts) {
      const auto routing = route_all(router, tokens(d_model, num_tokens));
      expect_valid(routing, num_tokens, router.num_experts());
      EXPECT_TRUE(as_vector(routing.weight).allFinite()) << d_model << " wide, " << num_tokens << " tokens";
    }
  }
}

template <class Scalar>
void RouterLawsOf<Scalar>::tokens_do_not_see_each_other() {
  const Index d_model = 9;
  const auto router = make(d_model);
  const Index num_experts = router.num_experts();
  for (const Index num_tokens : token_counts) {
    const auto x = tokens(d_model, num_tokens);
    const auto together = weights_of(route_all(router, x), num_experts, num_tokens);
    for (Index t = 0; t < num_tokens; ++t) {
      const auto alone = weights_of(route(router, {x.col(t), side(t, 1)}), num_experts, 1);
      EXPECT_TRUE(is_close(alone, together.col(t))) << "token " << t;
    }
  }
}

template <class Scalar>
void RouterLawsOf<Scalar>::where_asked_tokens_do_not_see_each_other_by_a_single_bit() {
  const Numerics invariant{.batch_invariant = true};
  for (const Index d_model : {9, 33}) {
    const auto router = make(d_model);
    for (const Index num_tokens : token_counts) {
      const auto x = tokens(d_model, num_tokens);
      const auto together = route(router, {x, side(0, num_tokens)}, test::Shuffled{3}, invariant);
      for (Index t = 0; t < num_tokens; ++t) {
        const auto alone = route(router, {x.col(t), side(t, 1)}, Serial{}, invariant);
        EXPECT_EQ(routes_of(alone, 0), routes_of(together, t)) << "token " << t << " of " << num_tokens;
      }
    }
  }
}

template <class Scalar>
void RouterLawsOf<Scalar>::no_executor_changes_a_bit() {
  for (const Index d_model : {1, 9, 40}) {
    const auto router = make(d_model);
    for (const Index num_tokens : token_counts) {
      const auto x = tokens(d_model, num_tokens);
      const auto serial = route_all(router, x);
      const auto expect_same = [&](const auto& routing) {
        EXPECT_EQ(routing.token, serial.token);
        EXPECT_EQ(routing.expert, serial.expert);
        EXPECT_EQ(routing.dropped, serial.dropped);
        EXPECT_TRUE(same_bits(as_vector(routing.weight), as_vector(serial.weight))) << num_tokens << " tokens";
        EXPECT_TRUE(same_bits(as_vector(routing.logits), as_vector(serial.logits))) << num_tokens << " tokens";
      };
      for (const Index workers : {1, 2, 3, 5, 8}) {
        expect_same(route_all(router, x, test::Shuffled{workers}));
        expect_same(route_all(router, x, test::open_mp(workers)));
      }
    }
  }
}

template <class Scalar>
void RouterLawsOf<Scalar>::where_the_routing_lies_changes_no_bit() {
  const Index d_model = 9, num_tokens = 20;
  const auto router = make(d_model);
  const auto x = tokens(d_model, num_tokens);
  const auto expected = route_all(router, x);
  std::vector<Routing<Scalar>> kept(8);  // all alive, so each lies elsewhere, and all but the first are moved about
  for (auto& routing : kept) {
    std::vector<Scratch> scratch;
    const Serial serial;
    Workers workers(serial, scratch);
    routing.weight.reserve(std::size_t(1 + (&routing - kept.data())));
    router.route(Tokens(x, side(0, num_tokens)), routing, workers);
    EXPECT_TRUE(same_bits(as_vector(routing.weight), as_vector(expected.weight)));
  }
}

template <class Scalar>
void RouterLawsOf<Scalar>::not_a_number_stays_with_its_token() {
  const Index d_model = 9, num_tokens = 20;
  const auto router = make(d_model);
  const auto x = tokens(d_model, num_tokens);
  const auto healthy = route_all(router, x);
  const Scalar infinity = std::numeric_limits<Scalar>::infinity();
  for (const Scalar poison : {std::numeric_limits<Scalar>::quiet_NaN(), infinity, -infinity}) {
    for (const Index sick : {0, 7, 19}) {
      for (const Index rows : {Index(1), d_model}) {
        Matrix<Scalar> poisoned = x;
        poisoned.col(sick).head(rows).setConstant(poison);
        const auto routing = route_all(router, poisoned);
        expect_valid(routing, num_tokens, router.num_experts());
        for (Index t = 0; t < num_tokens; ++t) {
          if (t != sick) {
            EXPECT_EQ(routes_of(routing, t), routes_of(healthy, t)) << "token " << t << ", sick is " << sick;
          }
        }
      }
    }
  }
}

template <class Scalar>
void RouterLawsOf<Scalar>::a_warm_route_allocates_nothing() {
  if (may_allocate()) GTEST_SKIP() << "says that it may allocate";
  const auto router = make(17);
  const auto watch = [&](ExecutorRef executor) {
    std::vector<Scratch> scratch;
    Routing<Scalar> routing;
    const auto x = tokens(17, 64);
    const auto once = [&](Index n) {
      const auto its_side = side(0, n);
      Workers workers(executor, scratch);
      routing.clear();
      router.route(Tokens<Scalar>(x.leftCols(n), its_side), routing, workers);
    };
    for (int warming = 0; warming < 2; ++warming) once(64);
    for (const Index n : {64, 33, 17, 16, 15, 1, 0}) {
      EXPECT_EQ(test::allocations_in([&] { once(n); }), 0) << n << " tokens, " << executor.workers() << " workers";
    }
  };
  watch(Serial{});
  for (const Index workers : {2, 3}) watch(test::open_mp(workers));
}

/// NaN and ±∞, in one token, in several, in all.
template <class Scalar>
void RouterLawsOf<Scalar>::no_input_leads_out_of_range() {
  const Index d_model = 9;
  const auto router = make(d_model);
  const Scalar infinity = std::numeric_limits<Scalar>::infinity();
  for (const Index num_tokens : {1, 7, 20}) {
    for (const Scalar poison :
         {std::numeric_limits<Scalar>::quiet_NaN(), infinity, -infinity, std::numeric_limits<Scalar>::max()}) {
      for (const Index rows : {Index(1), d_model}) {
        for (const Index sick : {Index(1), (num_tokens + 1) / 2, num_tokens}) {
          auto x = tokens(d_model, num_tokens);
          x.topLeftCorner(rows, sick).setConstant(poison);
          expect_valid(route_all(router, x), num_tokens, router.num_experts());
        }
      }
    }
  }
  const auto nothing = Matrix<Scalar>::Zero(d_model, 7).eval();
  const auto routing = route_all(router, nothing);
  expect_valid(routing, 7, router.num_experts());
  EXPECT_TRUE(as_vector(routing.weight).allFinite());
}

template <class Factory>
using RouterOf = decltype(Factory::make(Index(1)));

template <class Factory>
class RouterLaws : public RouterLawsOf<typename RouterOf<Factory>::Scalar> {
  using Scalar = typename RouterOf<Factory>::Scalar;
  static_assert(Router<RouterOf<Factory>>);

  AnyRouter<Scalar> make(Index d_model) const override { return Factory::make(d_model); }
  SideInputs<Scalar> side([[maybe_unused]] Index first, [[maybe_unused]] Index count) const override {
    if constexpr (requires { Factory::side(first, count); }) {
      return Factory::side(first, count);
    } else {
      return {};
    }
  }
  bool may_allocate() const override { return laws::may_allocate<Factory>; }
};
TYPED_TEST_SUITE_P(RouterLaws);

template <class Factory>
class TokenChoiceLaws : public RouterLaws<Factory> {};
TYPED_TEST_SUITE_P(TokenChoiceLaws);
TYPED_TEST_P(RouterLaws, RoutesToWhatIsThere) { this->routes_to_what_is_there(); }
TYPED_TEST_P(TokenChoiceLaws, TokensDoNotSeeEachOther) { this->tokens_do_not_see_each_other(); }
TYPED_TEST_P(TokenChoiceLaws, WhereAskedTokensDoNotSeeEachOtherByASingleBit) {
  this->where_asked_tokens_do_not_see_each_other_by_a_single_bit();
}
TYPED_TEST_P(RouterLaws, NoExecutorChangesABit) { this->no_executor_changes_a_bit(); }
TYPED_TEST_P(RouterLaws, WhereTheRoutingLiesChangesNoBit) { this->where_the_routing_lies_changes_no_bit(); }
TYPED_TEST_P(TokenChoiceLaws, NotANumberStaysWithItsToken) { this->not_a_number_stays_with_its_token(); }
TYPED_TEST_P(RouterLaws, AWarmRouteAllocatesNothing) { this->a_warm_route_allocates_nothing(); }
TYPED_TEST_P(RouterLaws, NoInputLeadsOutOfRange) { this->no_input_leads_out_of_range(); }

REGISTER_TYPED_TEST_SUITE_P(RouterLaws, RoutesToWhatIsThere, NoExecutorChangesABit, WhereTheRoutingLiesChangesNoBit,
                            NoInputLeadsOutOfRange, AWarmRouteAllocatesNothing);
REGISTER_TYPED_TEST_SUITE_P(TokenChoiceLaws, TokensDoNotSeeEachOther, WhereAskedTokensDoNotSeeEachOtherByASingleBit,
                            NotANumberStaysWithItsToken);

#ifdef MOE_LAWS_ARE_COMPILED
extern template class RouterLawsOf<float>;
extern template class RouterLawsOf<double>;
#endif

}  // namespace moe::laws
