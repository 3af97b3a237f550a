/// @file  What every token-choice router must do, as a suite to run on a router of your own.
///
///   #include "laws/router_laws.hpp"  // first: it watches what is allocated
///   struct MyRouters {  // with any number of experts
///     static MyRouter make(moe::Index d_model);
///   };
///   namespace moe::laws { INSTANTIATE_TYPED_TEST_SUITE_P(Mine, RouterLaws, MyRouters); }
///
/// Token choice: what a token is routed to depends on that token alone.
#pragma once

#include "laws/common.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <span>
#include <vector>

#include <gtest/gtest.h>

#include "moe/concepts.hpp"
#include "moe/executors/openmp.hpp"
#include "moe/executors/serial.hpp"
#include "moe/workers.hpp"
#include "pools.hpp"

namespace moe::laws {

/// What a router says to tokens.
template <class R>
Routing<typename R::Scalar> route(const R& router, const ConstMatrixRef<typename R::Scalar>& x,
                                  ExecutorRef executor = Serial{}) {
  std::vector<Scratch> scratch;
  Workers workers(executor, scratch);
  Routing<typename R::Scalar> routing;
  router.route(x, routing, workers);
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

template <class Factory>
class RouterLaws : public testing::Test {
 public:
  using R = decltype(Factory::make(Index(1)));
  using Scalar = typename R::Scalar;
  static_assert(Router<R>);

  static Matrix<Scalar> tokens(Index d_model, Index num_tokens, unsigned seed = 99) {
    return random_matrix<Matrix<Scalar>>(d_model, num_tokens, seed, 2);
  }
  /// Every route leads from a token that is there to an expert that is there, and to no expert twice.
  static void expect_valid(const Routing<Scalar>& routing, Index num_tokens, Index num_experts) {
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
};
TYPED_TEST_SUITE_P(RouterLaws);

TYPED_TEST_P(RouterLaws, RoutesToWhatIsThere) {
  for (const Index d_model : sizes) {
    const auto router = TypeParam::make(d_model);
    EXPECT_EQ(Index(router.d_model()), d_model);
    EXPECT_GE(Index(router.num_experts()), 1);
    for (const Index num_tokens : token_counts) {
      const auto routing = route(router, this->tokens(d_model, num_tokens));
      this->expect_valid(routing, num_tokens, router.num_experts());
      EXPECT_TRUE(as_vector(routing.weight).allFinite()) << d_model << " wide, " << num_tokens << " tokens";
    }
  }
}

TYPED_TEST_P(RouterLaws, TokensDoNotSeeEachOther) {
  const Index d_model = 9;
  const auto router = TypeParam::make(d_model);
  const Index num_experts = router.num_experts();
  for (const Index num_tokens : token_counts) {
    const auto x = this->tokens(d_model, num_tokens);
    const auto together = weights_of(route(router, x), num_experts, num_tokens);
    for (Index t = 0; t < num_tokens; ++t) {
      EXPECT_TRUE(is_close(weights_of(route(router, x.col(t)), num_experts, 1), together.col(t))) << "token " << t;
    }
  }
}

TYPED_TEST_P(RouterLaws, NoExecutorChangesABit) {
  for (const Index d_model : {1, 9, 40}) {
    const auto router = TypeParam::make(d_model);
    for (const Index num_tokens : token_counts) {
      const auto x = this->tokens(d_model, num_tokens);
      const auto serial = route(router, x);
      const auto expect_same = [&](const auto& routing) {
        EXPECT_EQ(routing.token, serial.token);
        EXPECT_EQ(routing.expert, serial.expert);
        EXPECT_TRUE(same_bits(as_vector(routing.weight), as_vector(serial.weight))) << num_tokens << " tokens";
        EXPECT_TRUE(same_bits(as_vector(routing.logits), as_vector(serial.logits))) << num_tokens << " tokens";
      };
      for (const Index workers : {1, 2, 3, 5, 8}) {
        expect_same(route(router, x, test::Shuffled{workers}));
        expect_same(route(router, x, OpenMp(workers)));
      }
    }
  }
}

TYPED_TEST_P(RouterLaws, WhereTheRoutingLiesChangesNoBit) {
  using S = typename TestFixture::Scalar;
  const Index d_model = 9, num_tokens = 20;
  const auto router = TypeParam::make(d_model);
  const auto x = this->tokens(d_model, num_tokens);
  const auto expected = route(router, x);
  std::vector<Routing<S>> kept(8);  // all alive, so each lies elsewhere, and all but the first are moved about
  for (auto& routing : kept) {
    std::vector<Scratch> scratch;
    const Serial serial;
    Workers workers(serial, scratch);
    routing.weight.reserve(std::size_t(1 + (&routing - kept.data())));
    router.route(x, routing, workers);
    EXPECT_TRUE(same_bits(as_vector(routing.weight), as_vector(expected.weight)));
  }
}

TYPED_TEST_P(RouterLaws, NotANumberStaysWithItsToken) {
  using S = typename TestFixture::Scalar;
  const Index d_model = 9, num_tokens = 20;
  const auto router = TypeParam::make(d_model);
  const auto x = this->tokens(d_model, num_tokens);
  const auto healthy = route(router, x);
  const S infinity = std::numeric_limits<S>::infinity();
  for (const S poison : {std::numeric_limits<S>::quiet_NaN(), infinity, -infinity}) {
    for (const Index sick : {0, 7, 19}) {
      for (const Index rows : {Index(1), d_model}) {
        Matrix<S> poisoned = x;
        poisoned.col(sick).head(rows).setConstant(poison);
        const auto routing = route(router, poisoned);
        this->expect_valid(routing, num_tokens, router.num_experts());
        for (Index t = 0; t < num_tokens; ++t) {
          if (t != sick) {
            EXPECT_EQ(routes_of(routing, t), routes_of(healthy, t)) << "token " << t << ", sick is " << sick;
          }
        }
      }
    }
  }
}

TYPED_TEST_P(RouterLaws, AWarmRouteAllocatesNothing) {
  using S = typename TestFixture::Scalar;
  if constexpr (may_allocate<TypeParam>) GTEST_SKIP() << "says that it may allocate";
  const auto router = TypeParam::make(17);
  const auto watch = [&](ExecutorRef executor) {
    std::vector<Scratch> scratch;
    Routing<S> routing;
    const auto x = this->tokens(17, 64);
    const auto once = [&](Index n) {
      Workers workers(executor, scratch);
      routing.clear();
      router.route(x.leftCols(n), routing, workers);
    };
    for (int warming = 0; warming < 2; ++warming) once(64);
    for (const Index n : {64, 33, 17, 16, 15, 1, 0}) {
      EXPECT_EQ(test::allocations_in([&] { once(n); }), 0) << n << " tokens, " << executor.workers() << " workers";
    }
  };
  watch(Serial{});
  for (const Index workers : {2, 3}) watch(OpenMp(workers));
}

REGISTER_TYPED_TEST_SUITE_P(RouterLaws, RoutesToWhatIsThere, TokensDoNotSeeEachOther, NoExecutorChangesABit,
                            WhereTheRoutingLiesChangesNoBit, NotANumberStaysWithItsToken, AWarmRouteAllocatesNothing);

}  // namespace moe::laws
