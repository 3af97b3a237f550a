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

#include "moe/concepts.hpp"
#include "moe/executors/openmp.hpp"
#include "moe/executors/serial.hpp"
#include "moe/workers.hpp"
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

template <class Factory>
class RouterLaws : public testing::Test {
 public:
  using R = decltype(Factory::make(Index(1)));
  using Scalar = typename R::Scalar;
  static_assert(Router<R>);

  static SideInputs<Scalar> side(Index first, Index count) {
    if constexpr (requires { Factory::side(first, count); }) {
      return Factory::side(first, count);
    } else {
      return {};
    }
  }
  /// What a router says to all these tokens.
  static Routing<Scalar> route_all(const R& router, const ConstMatrixRef<Scalar>& x, ExecutorRef executor = Serial{}) {
    return route(router, {x, side(0, x.cols())}, executor);
  }

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

template <class Factory>
class TokenChoiceLaws : public RouterLaws<Factory> {};
TYPED_TEST_SUITE_P(TokenChoiceLaws);

TYPED_TEST_P(RouterLaws, RoutesToWhatIsThere) {
  for (const Index d_model : sizes) {
    const auto router = TypeParam::make(d_model);
    EXPECT_EQ(Index(router.d_model()), d_model);
    EXPECT_GE(Index(router.num_experts()), 1);
    for (const Index num_tokens : token_counts) {
      const auto routing = this->route_all(router, this->tokens(d_model, num_tokens));
      this->expect_valid(routing, num_tokens, router.num_experts());
      EXPECT_TRUE(as_vector(routing.weight).allFinite()) << d_model << " wide, " << num_tokens << " tokens";
    }
  }
}

TYPED_TEST_P(TokenChoiceLaws, TokensDoNotSeeEachOther) {
  const Index d_model = 9;
  const auto router = TypeParam::make(d_model);
  const Index num_experts = router.num_experts();
  for (const Index num_tokens : token_counts) {
    const auto x = this->tokens(d_model, num_tokens);
    const auto together = weights_of(this->route_all(router, x), num_experts, num_tokens);
    for (Index t = 0; t < num_tokens; ++t) {
      const auto alone = weights_of(route(router, {x.col(t), this->side(t, 1)}), num_experts, 1);
      EXPECT_TRUE(is_close(alone, together.col(t))) << "token " << t;
    }
  }
}

TYPED_TEST_P(TokenChoiceLaws, WhereAskedTokensDoNotSeeEachOtherByASingleBit) {
  const Numerics invariant{.batch_invariant = true};
  for (const Index d_model : {9, 33}) {
    const auto router = TypeParam::make(d_model);
    for (const Index num_tokens : token_counts) {
      const auto x = this->tokens(d_model, num_tokens);
      const auto together = route(router, {x, this->side(0, num_tokens)}, test::Shuffled{3}, invariant);
      for (Index t = 0; t < num_tokens; ++t) {
        const auto alone = route(router, {x.col(t), this->side(t, 1)}, Serial{}, invariant);
        EXPECT_EQ(routes_of(alone, 0), routes_of(together, t)) << "token " << t << " of " << num_tokens;
      }
    }
  }
}

TYPED_TEST_P(RouterLaws, NoExecutorChangesABit) {
  for (const Index d_model : {1, 9, 40}) {
    const auto router = TypeParam::make(d_model);
    for (const Index num_tokens : token_counts) {
      const auto x = this->tokens(d_model, num_tokens);
      const auto serial = this->route_all(router, x);
      const auto expect_same = [&](const auto& routing) {
        EXPECT_EQ(routing.token, serial.token);
        EXPECT_EQ(routing.expert, serial.expert);
        EXPECT_EQ(routing.dropped, serial.dropped);
        EXPECT_TRUE(same_bits(as_vector(routing.weight), as_vector(serial.weight))) << num_tokens << " tokens";
        EXPECT_TRUE(same_bits(as_vector(routing.logits), as_vector(serial.logits))) << num_tokens << " tokens";
      };
      for (const Index workers : {1, 2, 3, 5, 8}) {
        expect_same(this->route_all(router, x, test::Shuffled{workers}));
        expect_same(this->route_all(router, x, test::open_mp(workers)));
      }
    }
  }
}

TYPED_TEST_P(RouterLaws, WhereTheRoutingLiesChangesNoBit) {
  using S = typename TestFixture::Scalar;
  const Index d_model = 9, num_tokens = 20;
  const auto router = TypeParam::make(d_model);
  const auto x = this->tokens(d_model, num_tokens);
  const auto expected = this->route_all(router, x);
  std::vector<Routing<S>> kept(8);  // all alive, so each lies elsewhere, and all but the first are moved about
  for (auto& routing : kept) {
    std::vector<Scratch> scratch;
    const Serial serial;
    Workers workers(serial, scratch);
    routing.weight.reserve(std::size_t(1 + (&routing - kept.data())));
    router.route(Tokens(x, this->side(0, num_tokens)), routing, workers);
    EXPECT_TRUE(same_bits(as_vector(routing.weight), as_vector(expected.weight)));
  }
}

TYPED_TEST_P(TokenChoiceLaws, NotANumberStaysWithItsToken) {
  using S = typename TestFixture::Scalar;
  const Index d_model = 9, num_tokens = 20;
  const auto router = TypeParam::make(d_model);
  const auto x = this->tokens(d_model, num_tokens);
  const auto healthy = this->route_all(router, x);
  const S infinity = std::numeric_limits<S>::infinity();
  for (const S poison : {std::numeric_limits<S>::quiet_NaN(), infinity, -infinity}) {
    for (const Index sick : {0, 7, 19}) {
      for (const Index rows : {Index(1), d_model}) {
        Matrix<S> poisoned = x;
        poisoned.col(sick).head(rows).setConstant(poison);
        const auto routing = this->route_all(router, poisoned);
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
      const auto side = this->side(0, n);
      Workers workers(executor, scratch);
      routing.clear();
      router.route(Tokens<S>(x.leftCols(n), side), routing, workers);
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
TYPED_TEST_P(RouterLaws, NoInputLeadsOutOfRange) {
  using S = typename TestFixture::Scalar;
  const Index d_model = 9;
  const auto router = TypeParam::make(d_model);
  const S infinity = std::numeric_limits<S>::infinity();
  for (const Index num_tokens : {1, 7, 20}) {
    for (const S poison : {std::numeric_limits<S>::quiet_NaN(), infinity, -infinity, std::numeric_limits<S>::max()}) {
      for (const Index rows : {Index(1), d_model}) {
        for (const Index sick : {Index(1), (num_tokens + 1) / 2, num_tokens}) {
          auto x = this->tokens(d_model, num_tokens);
          x.topLeftCorner(rows, sick).setConstant(poison);
          this->expect_valid(this->route_all(router, x), num_tokens, router.num_experts());
        }
      }
    }
  }
  const auto nothing = Matrix<S>::Zero(d_model, 7).eval();
  const auto routing = this->route_all(router, nothing);
  this->expect_valid(routing, 7, router.num_experts());
  EXPECT_TRUE(as_vector(routing.weight).allFinite());
}

REGISTER_TYPED_TEST_SUITE_P(RouterLaws, RoutesToWhatIsThere, NoExecutorChangesABit, WhereTheRoutingLiesChangesNoBit,
                            NoInputLeadsOutOfRange, AWarmRouteAllocatesNothing);
REGISTER_TYPED_TEST_SUITE_P(TokenChoiceLaws, TokensDoNotSeeEachOther, WhereAskedTokensDoNotSeeEachOtherByASingleBit,
                            NotANumberStaysWithItsToken);

}  // namespace moe::laws
