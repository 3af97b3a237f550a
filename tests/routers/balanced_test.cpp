// Routers whose tokens compete: expert choice, Sinkhorn, BASE, quantile balancing.
#include "laws/router_laws.hpp"

#include "moe/routers/base_layers.hpp"
#include "moe/routers/expert_choice.hpp"
#include "moe/routers/filters/capacity.hpp"
#include "moe/routers/linear_top_k.hpp"
#include "moe/routers/quantile_balancing.hpp"
#include "moe/routers/sinkhorn.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include "errors.hpp"
#include "moe/experts/any_expert.hpp"
#include "moe/experts/function_expert.hpp"
#include "moe/experts/zero_compute.hpp"
#include "moe/layers/moe_layer.hpp"
#include "naive.hpp"

namespace moe::laws {

constexpr Index law_experts = 11;

template <class Scalar>
Weight<Scalar> law_weight(Index d_model) {
  return random_matrix<Weight<Scalar>>(law_experts, d_model, 3, 3 / std::sqrt(double(d_model)));
}

struct ExpertChoices {
  static ExpertChoice<float> make(Index d_model) { return {law_weight<float>(d_model)}; }
};
struct ExpertChoicesPerSequence {
  static ExpertChoice<double> make(Index d_model) {
    return {law_weight<double>(d_model), {.capacity = capacity_factor(1.25, 3), .per_sequence = true}};
  }
  static SideInputs<double> side(Index, Index count) {
    Index length = std::min<Index>(16, count);
    while (length > 1 && count % length != 0) --length;
    return {.sequence_length = length};
  }
};
template <class Scalar, Index top_k>
struct Sinkhorns {
  static Sinkhorn<Scalar> make(Index d_model) { return {law_weight<Scalar>(d_model), {.top_k = top_k}}; }
};
template <bool residual>
struct BaseLayersRouters {
  static BaseLayersRouter<float> make(Index d_model) { return {law_weight<float>(d_model), {.residual = residual}}; }
};
struct QuantileRouters {
  static QuantileBalanced<float> make(Index d_model) {
    return {law_weight<float>(d_model), {.choice = {.top_k = 3, .renormalize = true}}};
  }
};

using Balanced = testing::Types<ExpertChoices, ExpertChoicesPerSequence, Sinkhorns<float, 2>, Sinkhorns<double, 1>,
                                BaseLayersRouters<true>, QuantileRouters>;
INSTANTIATE_TYPED_TEST_SUITE_P(Balanced, RouterLaws, Balanced);

// Without balance, tokens do not compete.
struct GreedySinkhorns {
  static Sinkhorn<float> make(Index d_model) { return {law_weight<float>(d_model), {.top_k = 2, .balance = false}}; }
};
struct GreedyBaseLayersRouters {
  static BaseLayersRouter<float> make(Index d_model) { return {law_weight<float>(d_model), {.balance = false}}; }
};
using Greedy = testing::Types<GreedySinkhorns, GreedyBaseLayersRouters>;
INSTANTIATE_TYPED_TEST_SUITE_P(Greedy, TokenChoiceLaws, Greedy);

using MatrixD = Eigen::MatrixXd;
using Numbers = std::vector<double>;
using Indices = std::vector<Index>;
const double nan = std::numeric_limits<double>::quiet_NaN(), inf = std::numeric_limits<double>::infinity();

/// f(workers), with one thread.
template <class F>
auto with_workers(const F& f) {
  std::vector<Scratch> scratch;
  const Serial serial;
  Workers workers(serial, scratch);
  return f(workers);
}

/// What f(routing, workers) writes.
template <class Scalar = double, class F>
Routing<Scalar> routing_by(const F& f) {
  return with_workers([&](Workers& workers) {
    Routing<Scalar> routing;
    f(routing, workers);
    return routing;
  });
}

template <class Scalar = double>
Routing<Scalar> experts_choose(const Matrix<Scalar>& logits, const ExpertChoiceOptions& options,
                               Index sequence_length = 0) {
  return routing_by<Scalar>([&](auto& routing, Workers& workers) {
    let_experts_choose<Scalar>(logits, sequence_length, options, routing, workers);
  });
}

template <class Scalar = double>
Routing<Scalar> sinkhorn_routes(const Matrix<Scalar>& logits, const SinkhornOptions& options) {
  const SinkhornChoice<Scalar> choice(logits.rows(), options);
  return routing_by<Scalar>([&](auto& routing, Workers& workers) { choice.route(logits, routing, workers); });
}

template <class Scalar = double>
Routing<Scalar> base_routes(const Matrix<Scalar>& logits, const BaseLayersOptions& options) {
  const BaseLayersChoice<Scalar> choice(options);
  return routing_by<Scalar>([&](auto& routing, Workers& workers) { choice.route(logits, routing, workers); });
}

template <class Scalar = double>
Routing<Scalar> quantile_routes(const Matrix<Scalar>& logits, const QuantileOptions& options) {
  const QuantileChoice<Scalar> choice(logits.rows(), options);
  return routing_by<Scalar>([&](auto& routing, Workers& workers) { choice.route(logits, routing, workers); });
}

template <class Scalar>
Indices loads(const Routing<Scalar>& routing, Index num_experts) {
  Indices load(std::size_t(num_experts), 0);
  for (const Index e : routing.expert) ++load[std::size_t(e)];
  return load;
}

template <class Scalar>
double largest_over_mean_load(const Routing<Scalar>& routing, Index num_experts) {
  const Indices load = loads(routing, num_experts);
  return double(*std::max_element(load.begin(), load.end())) * double(num_experts) / double(routing.size());
}

/// Random logits, of which those of the last expert are `skew` larger than those of the first.
MatrixD skewed_logits(Index num_experts, Index num_tokens, double skew, unsigned seed) {
  auto logits = random_matrix<MatrixD>(num_experts, num_tokens, seed, 2);
  for (Index e = 0; e < num_experts; ++e) logits.row(e).array() += skew * double(e) / double(num_experts);
  return logits;
}

MatrixD softmax_of_columns(const MatrixD& logits) {
  MatrixD p(logits.rows(), logits.cols());
  for (Index t = 0; t < logits.cols(); ++t) {
    const auto s = test::naive::softmax({logits.col(t).begin(), logits.col(t).end()});
    for (Index e = 0; e < logits.rows(); ++e) p(e, t) = s[std::size_t(e)];
  }
  return p;
}

MatrixD without_column(const MatrixD& m, Index column) {
  MatrixD rest(m.rows(), m.cols() - 1);
  rest << m.leftCols(column), m.rightCols(m.cols() - column - 1);
  return rest;
}

// ---------------------------------------------------------------- all of them, on logits that no router wishes for

struct OnLogits {
  std::string name;
  bool lists_experts_of_each_token;
  Index extra_experts;
  std::function<Routing<double>(const MatrixD&)> route;  // for any number of experts from 1
};

const std::vector<OnLogits>& all_routers() {
  static const std::vector<OnLogits> routers = {
      {"expert choice", false, 0, [](const MatrixD& l) { return experts_choose(l, {}); }},
      {"expert choice, all", false, 0,
       [](const MatrixD& l) { return experts_choose(l, {.capacity = fixed_capacity(99)}); }},
      {"expert choice, per sequence", false, 0,
       [](const MatrixD& l) { return experts_choose(l, {.per_sequence = true}, 1); }},
      {"sinkhorn", true, 0, [](const MatrixD& l) { return sinkhorn_routes(l, {}); }},
      {"sinkhorn, all", true, 0, [](const MatrixD& l) { return sinkhorn_routes(l, {.top_k = l.rows()}); }},
      {"sinkhorn, greedy", true, 0, [](const MatrixD& l) { return sinkhorn_routes(l, {.balance = false}); }},
      {"base", true, 0, [](const MatrixD& l) { return base_routes(l, {.residual = false}); }},
      {"base, residual", true, 1, [](const MatrixD& l) { return base_routes(l, {}); }},
      {"base, greedy", true, 0, [](const MatrixD& l) { return base_routes(l, {.balance = false, .residual = false}); }},
      {"quantiles", true, 0, [](const MatrixD& l) { return quantile_routes(l, {}); }},
      {"quantiles of logits", true, 0,
       [](const MatrixD& l) { return quantile_routes(l, {.choice = {.score = Score::softmax_of_chosen}}); }},
      {"quantiles, all", true, 0,
       [](const MatrixD& l) { return quantile_routes(l, {.choice = {.top_k = l.rows(), .score = Score::sigmoid}}); }},
  };
  return routers;
}

/// Every route leads somewhere, no token twice to one expert; weights are finite where a token's logits are no NaN.
void expect_defined(const OnLogits& router, const MatrixD& logits) {
  SCOPED_TRACE(router.name + ", " + std::to_string(logits.rows()) + " experts, " + std::to_string(logits.cols()) +
               " tokens");
  const auto routing = router.route(logits);
  std::set<std::pair<Index, Index>> seen;
  for (Index r = 0; r < routing.size(); ++r) {
    const Index t = routing.token[std::size_t(r)], e = routing.expert[std::size_t(r)];
    ASSERT_TRUE(t >= 0 && t < logits.cols()) << "token " << t;
    ASSERT_TRUE(e >= 0 && e < logits.rows() + router.extra_experts) << "expert " << e;
    EXPECT_TRUE(seen.emplace(t, e).second) << "token " << t << " goes to expert " << e << " again";
    if (!logits.col(t).array().isNaN().any()) {
      EXPECT_TRUE(std::isfinite(routing.weight[std::size_t(r)]))
          << "token " << t << " with " << logits.col(t).transpose();
    }
  }
  if (router.lists_experts_of_each_token && logits.cols() > 0) {
    const Index routes_a_token = routing.size() / logits.cols();
    ASSERT_GE(routes_a_token, 1);
    ASSERT_EQ(routing.size(), routes_a_token * logits.cols());
    for (Index r = 0; r < routing.size(); ++r) EXPECT_EQ(routing.token[std::size_t(r)], r / routes_a_token);
  }
}

TEST(BalancedRouters, NoCombinationOfSpecialLogitsLeadsOutOfRange) {
  const double specials[] = {
      nan, inf, -inf, 0, 1000, -1000, std::numeric_limits<double>::max(), std::numeric_limits<double>::lowest()};
  MatrixD all(3, 512);
  for (Index code = 0; code < 512; ++code)
    all.col(code) << specials[code % 8], specials[code / 8 % 8], specials[code / 64];
  for (const OnLogits& router : all_routers()) {
    expect_defined(router, all);
    for (Index code = 0; code < 512; ++code) {
      expect_defined(router, all.col(code));
      expect_defined(router, all.col(code).replicate(1, 4));
      MatrixD beside_healthy = MatrixD{{1, 0, 2, 1.5, 0}, {0.5, 2, 0, 1, 0}, {0, 1, 0.25, 0, 0}};
      beside_healthy.col(code % 5) = all.col(code);
      expect_defined(router, beside_healthy);
    }
  }
}

TEST(BalancedRouters, OneExpertOneTokenNoTokenAndEqualLogits) {
  for (const OnLogits& router : all_routers()) {
    for (const Index num_experts : {1, 2, 7, 8, 9}) {
      for (const Index num_tokens : {0, 1, 2, 7, 8, 9, 33}) {
        expect_defined(router, random_matrix<MatrixD>(num_experts, num_tokens, 1));
        for (const double same : {0.0, 3.0, -2000.0, inf, -inf, nan}) {
          expect_defined(router, MatrixD::Constant(num_experts, num_tokens, same));
        }
      }
    }
    EXPECT_EQ(router.route(MatrixD(5, 0)).size(), 0) << router.name;
  }
}

TEST(BalancedRouters, OneTokenGoesWhereItWouldGoAlone) {
  const MatrixD logits = MatrixD{{0.5}, {2}, {-1}, {1.5}};
  EXPECT_EQ(sinkhorn_routes(logits, {.top_k = 4}).size(), 4);
  EXPECT_EQ(base_routes(logits, {.residual = false}).expert, Indices{1});
  EXPECT_EQ(quantile_routes(logits, {.choice = {.top_k = 2}}).expert, (Indices{1, 3}));
}

/// The laws' batches are too small to be split.
TEST(BalancedRouters, NoExecutorChangesABitOfALargeBatch) {
  const auto x = random_matrix<Matrix<float>>(4, 2000, 2, 2);
  const auto weight = random_matrix<Weight<float>>(75, 4, 3, 2);
  const auto expect_same = [&](const auto& router, const SideInputs<float>& side) {
    const auto serial = route(router, {x, side});
    for (const Index workers : {2, 3, 5, 8}) {
      const auto routing = route(router, {x, side}, test::Shuffled{workers});
      EXPECT_EQ(routing.token, serial.token);
      EXPECT_EQ(routing.expert, serial.expert);
      EXPECT_TRUE(same_bits(as_vector(routing.weight), as_vector(serial.weight))) << workers << " workers";
    }
  };
  expect_same(ExpertChoice<float>(weight), {});
  expect_same(ExpertChoice<float>(weight, {.per_sequence = true}), {.sequence_length = 500});
  expect_same(Sinkhorn<float>(weight, {.top_k = 2}), {});
  expect_same(BaseLayersRouter<float>(weight), {});
  expect_same(QuantileBalanced<float>(weight, {.choice = {.top_k = 2}}), {});

  const MatrixD logits = weight.lazyProduct(x).cast<double>();
  const auto matrix_with = [&](ExecutorRef executor) {
    std::vector<Scratch> scratch;
    Workers workers(executor, scratch);
    MatrixD matrix(75, 2000);
    sinkhorn<double>(logits, matrix, {}, workers);
    return matrix;
  };
  const MatrixD serial = matrix_with(Serial{});
  for (const Index workers : {2, 3, 5, 8}) EXPECT_TRUE(same_bits(matrix_with(test::Shuffled{workers}), serial));
}

// ---------------------------------------------------------------- expert choice

TEST(ExpertChoice, EqualsItsNaiveTwin) {
  const auto rules = {fixed_capacity(0),    fixed_capacity(1),     fixed_capacity(5),
                      fixed_capacity(1000), capacity_factor(1, 2), capacity_factor(1.25, 1)};
  for (const Index num_experts : {1, 2, 5, 8, 17}) {
    for (const Index num_tokens : token_counts) {
      for (const Index length : {num_tokens, num_tokens % 4 == 0 ? num_tokens / 4 : num_tokens}) {
        for (const CapacityRule& rule : rules) {
          const auto logits = random_matrix<Matrix<float>>(num_experts, num_tokens, 5, 3);
          const bool per_sequence = length != num_tokens;
          const auto routing = experts_choose<float>(logits, {.capacity = rule, .per_sequence = per_sequence}, length);
          MatrixD p = softmax_of_columns(logits.cast<double>());
          Routing<double> expected;
          for (Index first = 0; first < num_tokens; first += length) {
            for (Index e = 0; e < num_experts; ++e) {
              for (Index i = 0; i < std::min(rule(length, num_experts), length); ++i) {
                Index best = 0;
                const double most = p.row(e).segment(first, length).maxCoeff(&best);
                expected.add(first + best, e, most);
                p(e, first + best) = -1;
              }
            }
          }
          // One expert: p is 1 for every token, and only ties are left to decide.
          EXPECT_EQ(routing.token, expected.token) << num_experts << " experts, " << num_tokens << " tokens";
          EXPECT_EQ(routing.expert, expected.expert);
          EXPECT_TRUE(is_close(as_vector(routing.weight), as_vector(expected.weight)));
        }
      }
    }
  }
}

TEST(ExpertChoice, TakesByDefaultAsManyAsIfEachTokenHadTwoExperts) {
  EXPECT_EQ(loads(experts_choose<double>(MatrixD::Zero(4, 8), {}), 4), Indices(4, 4));
  EXPECT_EQ(loads(experts_choose<double>(MatrixD::Zero(3, 7), {}), 3), Indices(3, 5));  // ⌈14/3⌉
}

TEST(ExpertChoice, ATokenMayBeTakenByAllOrByNone) {
  // Softmax weighs experts, not tokens: the second token is sure of expert 0, the others hardly care.
  const auto routing = experts_choose(MatrixD{{0, 9, 0.1}, {0, 0, 0}}, {.capacity = fixed_capacity(1)});
  EXPECT_EQ(routing.expert, (Indices{0, 1}));
  EXPECT_EQ(routing.token, (Indices{1, 0}));
  const auto undecided = experts_choose(MatrixD{{0, 9, -9}, {0, -9, 9}, {4, 0, 0}}, {.capacity = fixed_capacity(2)});
  EXPECT_EQ(undecided.token, (Indices{1, 0, 2, 0, 0, 1}));
}

TEST(ExpertChoice, OfTiesTheLowerTokenWins) {
  for (const Index count : {1, 2, 31, 64, 65, 99, 100}) {
    Indices expected(std::size_t(count), 0);
    std::iota(expected.begin(), expected.end(), Index(0));
    const ExpertChoiceOptions options{.capacity = fixed_capacity(count)};
    EXPECT_EQ(experts_choose<float>(Matrix<float>::Constant(1, 100, 0.3F), options).token, expected);
    const auto of_three = experts_choose<float>(Matrix<float>::Constant(3, 100, 0.3F), options);
    EXPECT_TRUE(std::equal(expected.begin(), expected.end(), of_three.token.end() - count)) << count;
  }
}

TEST(ExpertChoice, ANotANumberIsTakenLastAndShowsInItsWeightAlone) {
  const MatrixD logits = MatrixD{{nan, 1, 0, 2}, {0, 0, 0, 0}};
  EXPECT_EQ(experts_choose(logits, {.capacity = fixed_capacity(3)}).token, (Indices{3, 1, 2, 2, 1, 3}));
  const auto all = experts_choose(logits, {.capacity = fixed_capacity(4)});
  for (std::size_t r = 0; r < 8; ++r) EXPECT_EQ(std::isnan(all.weight[r]), all.token[r] == 0);
}

TEST(ExpertChoice, SequencesDoNotSeeEachOther) {
  const auto logits = random_matrix<MatrixD>(5, 21, 6, 2);
  const ExpertChoiceOptions options{.capacity = capacity_factor(1, 2), .per_sequence = true};
  const auto together = experts_choose(logits, options, 7);
  Routing<double> one_by_one;
  for (Index s = 0; s < 3; ++s) {
    const auto alone = experts_choose<double>(logits.middleCols(7 * s, 7), options, 7);
    for (std::size_t r = 0; r < alone.token.size(); ++r) {
      one_by_one.add(7 * s + alone.token[r], alone.expert[r], alone.weight[r]);
    }
  }
  EXPECT_EQ(together.token, one_by_one.token);
  EXPECT_EQ(together.expert, one_by_one.expert);
  EXPECT_EQ(together.weight, one_by_one.weight);
  // Without the option, or without a length, it is one batch.
  const ExpertChoiceOptions whole{.capacity = options.capacity};
  EXPECT_EQ(experts_choose(logits, whole, 7).token, experts_choose(logits, options, 0).token);
}

TEST(ExpertChoice, RefusesWhatDoesNotFitWithTheNumbers) {
  using R = ExpertChoice<float>;
  EXPECT_EQ(test::error_of([] { R(Weight<float>(0, 4)); }), "ExpertChoice: needs at least one expert");
  EXPECT_EQ(test::error_of([] { R(Weight<float>::Zero(3, 4), {.capacity = nullptr}); }),
            "ExpertChoice: options.capacity is missing");
  EXPECT_EQ(test::error_of([] { experts_choose<double>(MatrixD::Zero(3, 7), {.per_sequence = true}, 3); }),
            "ExpertChoice: 7 tokens are not whole sequences of 3");
  EXPECT_EQ(test::error_of([] {
              experts_choose<double>(MatrixD::Zero(3, 7), {.capacity = [](Index, Index) { return Index(-1); }});
            }),
            "ExpertChoice: what options.capacity() returned is -1, expected at least 0");
}

// ---------------------------------------------------------------- Sinkhorn

struct Balance {
  MatrixD matrix;
  Index rounds;
};

template <class Scalar = double>
Balance balance(const MatrixD& logits, const SinkhornIteration& iteration = {}) {
  return with_workers([&](Workers& workers) {
    Matrix<Scalar> matrix(logits.rows(), logits.cols());
    const Index rounds = sinkhorn<Scalar>(logits.cast<Scalar>(), matrix, iteration, workers);
    return Balance{matrix.template cast<double>(), rounds};
  });
}

/// As the formula says: exp(logits) as they are.
Balance naive_balance(const MatrixD& logits, const SinkhornIteration& iteration = {}) {
  const MatrixD kernel = logits.array().exp();
  const Index num_experts = logits.rows(), num_tokens = logits.cols();
  Numbers d0(std::size_t(num_tokens), 1), d1(std::size_t(num_experts), 1);
  Index rounds = 0;
  for (double change = inf; change > iteration.tolerance && rounds < iteration.max_iterations; ++rounds) {
    for (Index t = 0; t < num_tokens; ++t) {
      double sum = 0;
      for (Index e = 0; e < num_experts; ++e) sum += kernel(e, t) * d1[std::size_t(e)];
      d0[std::size_t(t)] = 1 / double(num_tokens) / (sum + 1e-8);
    }
    change = 0;
    for (Index e = 0; e < num_experts; ++e) {
      double sum = 0;
      for (Index t = 0; t < num_tokens; ++t) sum += kernel(e, t) * d0[std::size_t(t)];
      const double next = 1 / double(num_experts) / (sum + 1e-8);
      change += std::abs(next - d1[std::size_t(e)]) / double(num_experts);
      d1[std::size_t(e)] = next;
    }
  }
  MatrixD matrix(num_experts, num_tokens);
  for (Index t = 0; t < num_tokens; ++t) {
    for (Index e = 0; e < num_experts; ++e) matrix(e, t) = d0[std::size_t(t)] * kernel(e, t) * d1[std::size_t(e)];
  }
  return {matrix, rounds};
}

TEST(Sinkhorn, BalancesAsItsNaiveTwinDoes) {
  for (const Index num_experts : {1, 2, 7, 8, 9, 17, 33}) {
    for (const Index num_tokens : {1, 2, 7, 16, 17, 64}) {
      for (const SinkhornIteration& iteration :
           {SinkhornIteration{}, {.max_iterations = 1}, {.tolerance = 0, .max_iterations = 40}}) {
        const auto logits = random_matrix<MatrixD>(num_experts, num_tokens, 7, 3);
        const auto expected = naive_balance(logits, iteration), got = balance(logits, iteration);
        if (iteration.tolerance > 0) {
          EXPECT_EQ(got.rounds, expected.rounds);  // else it ends where rounding comes to rest
        }
        // The 1e-8 is added where exp(logit) was divided by the token's largest, up to e³ times smaller or larger.
        EXPECT_LE((got.matrix - expected.matrix).cwiseAbs().maxCoeff(), 1e-8 * std::exp(3) * 2);
        EXPECT_LE((balance<float>(logits, {.tolerance = 0, .max_iterations = got.rounds}).matrix - got.matrix)
                      .cwiseAbs()
                      .maxCoeff(),
                  test::tolerance<float>(got.matrix.maxCoeff()));
      }
    }
  }
}

TEST(Sinkhorn, TokensAndExpertsWeighTheirShare) {
  const auto logits = random_matrix<MatrixD>(6, 40, 8);
  const auto result = balance(logits, {.tolerance = 0, .max_iterations = 500});
  const double left_out = 1e-8 * std::exp(2);  // an expert lacks 1e-8 times its factor, and logits differ by 2 at most
  for (Index t = 0; t < 40; ++t) EXPECT_NEAR(result.matrix.col(t).sum(), 1.0 / 40, left_out) << t;
  for (Index e = 0; e < 6; ++e) EXPECT_NEAR(result.matrix.row(e).sum(), 1.0 / 6, left_out) << e;
}

TEST(Sinkhorn, WhatIsAddedToAllLogitsOfATokenChangesNothing) {
  MatrixD logits = (random_matrix<MatrixD>(5, 12, 9) * 64).array().round() / 16;  // so that sums are exact
  const MatrixD expected = balance(logits).matrix;
  logits.col(0).array() += 4096;
  logits.col(7).array() -= 65536;
  EXPECT_TRUE(same_bits(balance(logits).matrix, expected));
  EXPECT_TRUE(balance<float>(logits).matrix.allFinite());
}

TEST(Sinkhorn, ATokenWithANotANumberTakesNoPart) {
  const auto healthy = random_matrix<MatrixD>(5, 12, 10, 2);
  for (const Index sick : {0, 5, 11}) {
    for (const Index at : {0, 4}) {
      MatrixD logits = healthy;
      logits(at, sick) = nan;
      const auto got = balance(logits), without = balance(without_column(healthy, sick));
      EXPECT_TRUE(got.matrix.col(sick).array().isNaN().all());
      EXPECT_TRUE(same_bits(without_column(got.matrix, sick), without.matrix));
      EXPECT_EQ(got.rounds, without.rounds);
    }
  }
  EXPECT_EQ(sinkhorn_routes<double>(MatrixD{{nan, 0}, {1, 0}, {2, 1}}, {.top_k = 2}).expert[0], 2);
  EXPECT_EQ(balance(MatrixD::Constant(3, 2, nan)).rounds, 0);
}

TEST(Sinkhorn, InfiniteLogitsAreLimits) {
  const MatrixD limit = balance(MatrixD{{inf, 0, 1}, {0, -inf, 2}, {3, 1, -inf}}).matrix;
  const MatrixD large = balance(MatrixD{{900, 0, 1}, {0, -900, 2}, {3, 1, -900}}).matrix;
  EXPECT_TRUE(is_close(limit, large));
  const MatrixD nothing = balance(MatrixD::Constant(4, 5, -inf)).matrix;
  for (const double share : nothing.reshaped()) EXPECT_NEAR(share, 1.0 / 20, 1e-8);
}

TEST(Sinkhorn, ChoosesByTheBalancedMatrixAndWeighsByTheLogits) {
  const auto logits = skewed_logits(7, 50, 4, 11);
  const MatrixD p = softmax_of_columns(logits);
  for (const Index top_k : {1, 2, 7}) {
    MatrixD rank = naive_balance(logits).matrix;
    const auto routing = sinkhorn_routes(logits, {.top_k = top_k});
    ASSERT_EQ(routing.size(), top_k * 50);
    for (Index r = 0; r < routing.size(); ++r) {
      Index e = 0;
      rank.col(r / top_k).maxCoeff(&e);
      rank(e, r / top_k) = -1;
      EXPECT_EQ(routing.token[std::size_t(r)], r / top_k);
      EXPECT_EQ(routing.expert[std::size_t(r)], e) << "route " << r;
      const double sigmoid = 1 / (1 + std::exp(-logits(e, r / top_k)));
      EXPECT_NEAR(routing.weight[std::size_t(r)], top_k == 1 ? sigmoid : p(e, r / top_k), test::tolerance<double>(1));
    }
  }
}

TEST(Sinkhorn, TheScoreOfTheWeightsCanBeChosen) {
  const auto logits = skewed_logits(7, 50, 4, 11);
  const auto left_open = sinkhorn_routes(logits, {});
  EXPECT_EQ(sinkhorn_routes(logits, {.score = Score::sigmoid}).weight, left_open.weight);
  const auto of_softmax = sinkhorn_routes(logits, {.score = Score::softmax});
  EXPECT_EQ(of_softmax.expert, left_open.expert);
  EXPECT_NE(of_softmax.weight, left_open.weight);
  const auto of_two = sinkhorn_routes(logits, {.top_k = 2});
  EXPECT_EQ(sinkhorn_routes(logits, {.top_k = 2, .score = Score::softmax}).weight, of_two.weight);
  EXPECT_NE(sinkhorn_routes(logits, {.top_k = 2, .score = Score::sigmoid}).weight, of_two.weight);
}

TEST(Sinkhorn, BalancesWhereTheLargestLogitsDoNot) {
  const auto logits = skewed_logits(8, 400, 6, 12);
  EXPECT_GT(largest_over_mean_load(sinkhorn_routes(logits, {.balance = false}), 8), 3);
  EXPECT_LT(largest_over_mean_load(sinkhorn_routes(logits, {}), 8), 1.5);
}

TEST(Sinkhorn, WithoutBalanceItIsTheRouterOfTheLargestLogits) {
  const auto x = random_matrix<Matrix<float>>(9, 30, 1);
  const auto weight = law_weight<float>(9);
  for (const Index top_k : {1, 3}) {
    const auto expected =
        route(LinearTopK<float>(weight, {.top_k = top_k, .score = top_k == 1 ? Score::sigmoid : Score::softmax}), x);
    const auto got = route(Sinkhorn<float>(weight, {.top_k = top_k, .balance = false}), x);
    EXPECT_EQ(got.expert, expected.expert);
    EXPECT_EQ(got.weight, expected.weight);
  }
}

TEST(Sinkhorn, OfEqualLogitsTheLowerExpertsWin) {
  EXPECT_EQ(sinkhorn_routes<double>(MatrixD::Zero(4, 3), {.top_k = 2}).expert, (Indices{0, 1, 0, 1, 0, 1}));
}

TEST(Sinkhorn, RefusesWhatDoesNotFitWithTheNumbers) {
  const auto complaint = [](Index num_experts, const SinkhornOptions& options) {
    return test::error_of([&] { Sinkhorn<float>(Weight<float>::Zero(num_experts, 4), options); });
  };
  EXPECT_EQ(complaint(6, {}), "no error");
  EXPECT_EQ(complaint(0, {}), "Sinkhorn: needs at least one expert");
  EXPECT_EQ(complaint(6, {.top_k = 7}), "Sinkhorn: top_k is 7, expected 1 to 6");
  EXPECT_EQ(complaint(6, {.iteration = {.tolerance = -1}}), "Sinkhorn: tolerance is -1.000000, expected 0 or more");
  EXPECT_EQ(complaint(6, {.iteration = {.tolerance = nan}}), "Sinkhorn: tolerance is nan, expected 0 or more");
  EXPECT_TRUE(
      complaint(6, {.iteration = {.max_iterations = 0}}).starts_with("Sinkhorn: max_iterations is 0, expected 1"));
}

// ---------------------------------------------------------------- BASE

Indices assign(const MatrixD& scores) {
  return with_workers([&](Workers& workers) {
    Indices expert(std::size_t(scores.cols()), -1);
    assign_balanced<double>(scores, expert, workers);
    return expert;
  });
}

double total(const MatrixD& scores, const Indices& expert) {
  double sum = 0;
  for (Index t = 0; t < scores.cols(); ++t) sum += scores(expert[std::size_t(t)], t);
  return sum;
}

void expect_balanced(const Indices& expert, Index num_experts) {
  const Index num_tokens = std::ssize(expert), least = num_tokens / num_experts;
  Routing<double> routing;
  routing.expert = expert;
  for (const Index load : loads(routing, num_experts)) {
    EXPECT_GE(load, least);
    EXPECT_LE(load, least + (num_tokens % num_experts != 0));
  }
}

/// The largest total of tokens t, t + 1, … where expert e has taken load[e].
double best_total(const MatrixD& scores, Index t, Indices& load) {
  const Index num_experts = scores.rows(), num_tokens = scores.cols(), least = num_tokens / num_experts;
  if (t == num_tokens) return *std::min_element(load.begin(), load.end()) >= least ? 0 : -inf;
  double best = -inf;
  for (Index e = 0; e < num_experts; ++e) {
    Index& of_expert = load[std::size_t(e)];
    if (of_expert == least + (num_tokens % num_experts != 0)) continue;
    ++of_expert;
    best = std::max(best, scores(e, t) + best_total(scores, t + 1, load));
    --of_expert;
  }
  return best;
}

TEST(BalancedAssignment, IsTheBestOfAll) {
  Random random(13);
  for (const Index num_experts : {1, 2, 3, 4, 5, 9}) {
    for (const Index num_tokens : {1, 2, 3, 4, 5, 6, 7}) {
      for (int repeat = 0; repeat < 20; ++repeat) {
        auto scores = random.matrix<MatrixD>(num_experts, num_tokens, 3);
        if (repeat % 2 == 1) scores = scores.array().round();                  // many ties
        if (repeat % 3 == 1) scores.row(0).array() += 4;                       // everybody wants the same
        if (repeat % 5 == 1) scores = (scores.col(0) * scores.row(0)).eval();  // and in the same order
        const Indices expert = assign(scores);
        expect_balanced(expert, num_experts);
        Indices load(std::size_t(num_experts), 0);
        const double best = best_total(scores, 0, load);
        EXPECT_NEAR(total(scores, expert), best, 1e-12 * (1 + scores.cwiseAbs().sum()))
            << num_experts << " experts, " << num_tokens << " tokens, repeat " << repeat;
      }
    }
  }
}

/// The least that a circle of moves (a token from one expert to the next, or an extra seat) loses; < 0 is an
/// improvement. An assignment is best if and only if there is no such circle. Floyd 1962.
double least_circle(const MatrixD& scores, const Indices& expert) {
  const Index n = scores.rows(), pool = n, num_tokens = scores.cols();
  MatrixD loss = MatrixD::Constant(n + 1, n + 1, inf);
  Indices load(std::size_t(n), 0);
  for (Index t = 0; t < num_tokens; ++t) {
    const Index from = expert[std::size_t(t)];
    ++load[std::size_t(from)];
    for (Index to = 0; to < n; ++to) {
      if (to != from) loss(from, to) = std::min(loss(from, to), scores(from, t) - scores(to, t));
    }
  }
  for (Index e = 0; e < n && num_tokens % n != 0; ++e) {
    const bool has_extra = load[std::size_t(e)] > num_tokens / n;
    (has_extra ? loss(pool, e) : loss(e, pool)) = 0;
  }
  for (Index k = 0; k <= n; ++k) {
    for (Index i = 0; i <= n; ++i) {
      for (Index j = 0; j <= n; ++j) loss(i, j) = std::min(loss(i, j), loss(i, k) + loss(k, j));
    }
  }
  return loss.diagonal().minCoeff();
}

TEST(BalancedAssignment, NoExchangeImprovesIt) {
  Random random(14);
  for (const Index num_experts : {2, 3, 8, 17, 32}) {
    for (const Index num_tokens : {31, 32, 33, 100, 257}) {
      for (const double skew : {0.0, 1.0, 8.0}) {
        for (const bool ties : {false, true}) {
          auto scores = random.matrix<MatrixD>(num_experts, num_tokens, 2);
          for (Index e = 0; e < num_experts; ++e) scores.row(e).array() += skew * double(e) / double(num_experts);
          if (ties) scores = scores.array().round();
          const Indices expert = assign(scores);
          expect_balanced(expert, num_experts);
          EXPECT_GE(least_circle(scores, expert), -1e-12 * (1 + skew))
              << num_experts << " experts, " << num_tokens << " tokens, skew " << skew;
        }
      }
    }
  }
}

TEST(BalancedAssignment, AnExchangeWouldImproveWhatIsNotTheBest) {
  const MatrixD scores = MatrixD{{1, 0}, {0, 1}};
  EXPECT_EQ(least_circle(scores, {0, 1}), 2);
  EXPECT_LE(least_circle(scores, {1, 0}), -2);
}

TEST(BalancedAssignment, IsBalancedWhateverTheScores) {
  Random random(15);
  const double specials[] = {nan, inf, -inf, 0, 1, 1e308, -1e308};
  for (const Index num_experts : {1, 2, 3, 8}) {
    for (const Index num_tokens : {1, 2, 7, 8, 9, 40}) {
      for (int repeat = 0; repeat < 20; ++repeat) {
        MatrixD scores(num_experts, num_tokens);
        for (double& score : scores.reshaped()) score = specials[random.below(repeat % 2 == 0 ? 7 : 3)];
        expect_balanced(assign(scores), num_experts);
      }
      for (const double same : specials)
        expect_balanced(assign(MatrixD::Constant(num_experts, num_tokens, same)), num_experts);
    }
  }
}

TEST(BalancedAssignment, ATokenWithANotANumberHasNoWishes) {
  Random random(16);
  for (int repeat = 0; repeat < 30; ++repeat) {
    auto scores = random.matrix<MatrixD>(3, 7, 3);
    MatrixD without = scores;
    without.col(repeat % 7).setZero();
    scores(repeat % 3, repeat % 7) = nan;
    EXPECT_EQ(assign(scores), assign(without));
  }
}

TEST(BalancedAssignment, AnInfiniteScoreOutweighsAllFiniteOnes) {
  EXPECT_EQ(assign(MatrixD{{0, 50, 50, 50}, {-inf, 0, 0, -50}}), (Indices{0, 1, 1, 0}));
  EXPECT_EQ(assign(MatrixD{{9, 9, 1, 1}, {-9, -9, inf, inf}}), (Indices{0, 0, 1, 1}));
  EXPECT_EQ(assign(MatrixD{{0, inf, 9}, {0, inf, 0}, {0, inf, 0}})[2], 0);
}

TEST(BalancedAssignment, RefusesAListOfAnotherSize) {
  Indices expert(3);
  EXPECT_EQ(test::error_of([&] {
              with_workers([&](Workers& workers) {
                assign_balanced<double>(MatrixD::Zero(2, 4), expert, workers);
                return 0;
              });
            }),
            "assign_balanced: expert.size() is 3, expected 4");
}

TEST(BaseLayersRouter, WeighsItsExpertByTheSigmoidAndTheTokenItselfByTheRest) {
  const auto logits = skewed_logits(5, 33, 4, 17);
  const auto routing = base_routes(logits, {}), alone = base_routes(logits, {.residual = false});
  ASSERT_EQ(routing.size(), 66);
  EXPECT_EQ(alone.expert, assign(logits));
  for (std::size_t t = 0; t < 33; ++t) {
    EXPECT_EQ(routing.token[2 * t], Index(t));
    EXPECT_EQ(routing.token[2 * t + 1], Index(t));
    EXPECT_EQ(routing.expert[2 * t], alone.expert[t]);
    EXPECT_EQ(routing.expert[2 * t + 1], 5);
    EXPECT_EQ(routing.weight[2 * t], alone.weight[t]);
    EXPECT_NEAR(alone.weight[t], 1 / (1 + std::exp(-logits(alone.expert[t], Index(t)))), test::tolerance<double>(1));
    EXPECT_EQ(routing.weight[2 * t + 1], 1 - alone.weight[t]);
  }
}

TEST(BaseLayersRouter, AnExpertThatReturnsItsInputMakesTheLayerOfThePaper) {
  const Index d_model = 6;
  const BaseLayersRouter<float> router(random_matrix<Weight<float>>(3, d_model, 18));
  EXPECT_EQ(router.num_experts(), 4);
  std::vector<AnyExpert<float>> experts;
  for (const float factor : {2.0F, -3.0F, 5.0F, 1.0F}) {
    experts.emplace_back(expert_from<float>(d_model, [factor](const auto& x, auto y) { y = factor * x; }));
  }
  const MoeLayer layer(router, experts);
  const auto x = random_matrix<Matrix<float>>(d_model, 10, 19, 2);
  const auto y = layer.forward(x);
  const auto routing = route(router, x);
  for (Index t = 0; t < 10; ++t) {
    const Index e = routing.expert[std::size_t(2 * t)];
    const float alpha = routing.weight[std::size_t(2 * t)], factor = e == 0 ? 2.0F : e == 1 ? -3.0F : 5.0F;
    EXPECT_TRUE(is_close(y.col(t), (alpha * factor * x.col(t) + (1 - alpha) * x.col(t)).eval()));
  }
}

TEST(BaseLayersRouter, WithoutBalanceTheLargestLogitChooses) {
  const MatrixD logits = MatrixD{{3, nan, 1, nan}, {2, 0, 1, nan}, {-1, 1, 0, nan}};
  const auto routing = base_routes(logits, {.balance = false, .residual = false});
  EXPECT_EQ(routing.expert, (Indices{0, 2, 0, 0}));
  EXPECT_EQ(routing.token, (Indices{0, 1, 2, 3}));
  EXPECT_TRUE(std::isnan(routing.weight[3]));
  EXPECT_DOUBLE_EQ(routing.weight[0], 1 / (1 + std::exp(-3.0)));
}

TEST(BaseLayersRouter, RefusesToHaveNoExpert) {
  EXPECT_EQ(test::error_of([] { BaseLayersRouter<float>(Weight<float>(0, 4)); }),
            "BaseLayersRouter: needs at least one expert");
}

// ---------------------------------------------------------------- quantile balancing

Eigen::VectorXd quantiles(const MatrixD& scores, Index top_k, Index rounds, Eigen::VectorXd beta = {}) {
  if (beta.size() == 0) beta = Eigen::VectorXd::Zero(scores.rows());
  with_workers([&](Workers& workers) {
    balance_quantiles<double>(scores, top_k, rounds, beta, workers);
    return 0;
  });
  return beta;
}

/// Between the count-th largest and the next.
double naive_threshold(Numbers numbers, Index count) {
  std::sort(numbers.begin(), numbers.end(), std::greater<>());
  return numbers[std::size_t(count - 1)] / 2 + numbers[std::size_t(count)] / 2;
}

Index load_of(const MatrixD& scores, Index top_k) {
  return Index(std::ceil(double(scores.cols() * top_k) / double(scores.rows())));
}

Eigen::VectorXd naive_alpha(const MatrixD& scores, Index top_k, const Eigen::VectorXd& beta) {
  Eigen::VectorXd alpha(scores.cols());
  for (Index t = 0; t < scores.cols(); ++t) {
    const Eigen::VectorXd margin = scores.col(t) - beta;
    alpha(t) = naive_threshold({margin.begin(), margin.end()}, top_k);
  }
  return alpha;
}

Eigen::VectorXd naive_quantiles(const MatrixD& scores, Index top_k, Index rounds, Eigen::VectorXd beta) {
  for (Index round = 0; round < rounds; ++round) {
    const Eigen::VectorXd alpha = naive_alpha(scores, top_k, beta);
    for (Index e = 0; e < scores.rows(); ++e) {
      const Eigen::VectorXd margin = scores.row(e).transpose() - alpha;
      beta(e) = naive_threshold({margin.begin(), margin.end()}, load_of(scores, top_k));
    }
  }
  return beta;
}

TEST(QuantileBalancing, EqualsItsNaiveTwinToTheLastBit) {
  for (const Index num_experts : {2, 5, 8, 17}) {
    for (const Index num_tokens : {3, 7, 16, 17, 64}) {
      for (const Index top_k : {Index(1), Index(2), num_experts - 1}) {
        const MatrixD scores = softmax_of_columns(skewed_logits(num_experts, num_tokens, 3, 20));
        if (top_k >= num_experts || load_of(scores, top_k) >= num_tokens) continue;
        for (const Index rounds : {0, 1, 2, 8}) {
          for (const double scale : {0.0, 0.1}) {
            const auto start = random_matrix<Eigen::VectorXd>(num_experts, 1, 21, scale);
            EXPECT_TRUE(
                same_bits(quantiles(scores, top_k, rounds, start), naive_quantiles(scores, top_k, rounds, start)))
                << num_experts << " experts, " << num_tokens << " tokens, top " << top_k;
          }
        }
      }
    }
  }
}

TEST(QuantileBalancing, NoRoundMakesTheDualWorse) {
  for (const Index top_k : {1, 3}) {
    const MatrixD scores = softmax_of_columns(skewed_logits(12, 90, 4, 22));
    const auto dual = [&](const Eigen::VectorXd& beta) {
      const Eigen::VectorXd alpha = naive_alpha(scores, top_k, beta);  // the best for this beta
      double sum = double(top_k) * alpha.sum() + double(load_of(scores, top_k)) * beta.sum();
      for (Index t = 0; t < 90; ++t) sum += (scores.col(t).array() - beta.array() - alpha(t)).max(0).sum();
      return sum;
    };
    double before = dual(Eigen::VectorXd::Zero(12));
    const double first = before;
    for (Index rounds = 1; rounds <= 20; ++rounds) {
      const double after = dual(quantiles(scores, top_k, rounds));
      EXPECT_LE(after, before + test::tolerance<double>(std::abs(before)));
      before = after;
    }
    EXPECT_LT(before, 0.95 * first);
  }
}

TEST(QuantileBalancing, EightRoundsBringTheLargestLoadCloseToTheMean) {
  struct Size {
    Index num_experts, num_tokens, top_k;
  };
  for (const auto& [num_experts, num_tokens, top_k] : {Size{16, 256, 2}, {128, 1024, 8}, {8, 64, 1}, {64, 2000, 1}}) {
    for (const Score score : {Score::softmax, Score::sigmoid}) {
      const auto logits = skewed_logits(num_experts, num_tokens, 4, 23);
      const TopKOptions choice{.top_k = top_k, .score = score};
      const double greedy =
          largest_over_mean_load(quantile_routes(logits, {.choice = choice, .rounds = 0}), num_experts);
      const double balanced = largest_over_mean_load(quantile_routes(logits, {.choice = choice}), num_experts);
      EXPECT_GT(greedy, 2.5) << num_experts << " experts";
      EXPECT_LE(balanced, 1.3) << num_experts << " experts, " << num_tokens << " tokens, top " << top_k;
    }
  }
}

TEST(QuantileBalancing, GoesOnFromTheBiasThatItIsGiven) {
  const MatrixD scores = softmax_of_columns(skewed_logits(9, 40, 3, 24));
  EXPECT_TRUE(same_bits(quantiles(scores, 2, 3, quantiles(scores, 2, 5)), quantiles(scores, 2, 8)));
}

TEST(QuantileBalancing, IsTheSelectionBiasOfATopKRouter) {
  const auto logits = skewed_logits(9, 40, 3, 24);
  const QuantileOptions options{.choice = {.top_k = 3, .renormalize = true, .scale = 2}};
  const Eigen::VectorXd beta = quantiles(softmax_of_columns(logits), 3, options.rounds);
  const LinearTopK<double> biased(Weight<double>::Identity(9, 9), options.choice, {}, -beta);
  const auto expected = route(biased, logits);
  const auto got = quantile_routes(logits, options);
  EXPECT_EQ(got.expert, expected.expert);
  EXPECT_EQ(got.token, expected.token);
  EXPECT_TRUE(is_close(as_vector(got.weight), as_vector(expected.weight)));
}

// As if each were a batch: in sequences of 7, of which padding leaves 4, none, all, and 1.
TEST(Padding, LeavesSequencesTheirOwnLengths) {
  const CapacityOptions room{
      .capacity = capacity_factor(0.75, 3), .priority = Priority::probability, .per_sequence = true};
  const LinearTopK<double> linear(law_weight<double>(9), {.top_k = 3});
  for (const AnyRouter<double>& router :
       {AnyRouter<double>(ExpertChoicesPerSequence::make(9)), AnyRouter<double>(WithCapacity(linear, room))}) {
    const MoeLayer layer(router, std::vector<CopyExpert<double>>(std::size_t(law_experts), CopyExpert<double>{9}));
    const MatrixD x = random_matrix<MatrixD>(9, 28, 27);
    std::vector<std::uint8_t> mask(28, 0);
    for (const int t : {1, 2, 4, 5, 14, 15, 16, 17, 18, 19, 20, 27}) mask[std::size_t(t)] = 1;
    Workspace<double> ws, its;
    ws.numerics.batch_invariant = its.numerics.batch_invariant = true;
    ws.side.mask = mask;
    ws.side.sequence_length = 7;
    const MatrixD y = layer.forward(x, ws);
    const std::vector<Index> starts{0, 7, 14, 21, 28};
    ws.side.sequence_length = 0;
    ws.side.sequence_starts = starts;
    EXPECT_TRUE(same_bits(layer.forward(x, ws), y));
    Index dropped = 0;
    for (Index first = 0; first < 28; first += 7) {
      MatrixD alone(9, 0), expected = MatrixD::Zero(9, 7);
      std::vector<Index> place;
      for (Index t = 0; t < 7; ++t) {
        if (mask[std::size_t(first + t)] != 0) place.push_back(t);
      }
      alone =
          x(every,
            (Eigen::Map<const Eigen::Array<Index, Eigen::Dynamic, 1>>(place.data(), std::ssize(place)) + first).eval());
      const MatrixD answer = layer.forward(alone, its);
      for (std::size_t i = 0; i < place.size(); ++i) expected.col(place[i]) = answer.col(Index(i));
      EXPECT_TRUE(same_bits(y.middleCols(first, 7).eval(), expected)) << "sequence from " << first << " on";
      dropped += its.routing.num_dropped();
    }
    EXPECT_EQ(ws.routing.num_dropped(), dropped);
  }
}

TEST(Padding, IsRefusedWithTheNumbersWhereItDoesNotFit) {
  const MoeLayer layer(LinearTopK<double>(law_weight<double>(9), {}),
                       std::vector<CopyExpert<double>>(std::size_t(law_experts), CopyExpert<double>{9}));
  const std::vector<std::uint8_t> mask(6, 1), modality(4);
  const std::vector<Index> ids(13), starts{0, 3, 7};
  const auto complaint = [&](const SideInputs<double>& side, Index num_tokens = 6) {
    Workspace<double> ws;
    ws.side = side;
    MatrixD y = MatrixD::Zero(9, num_tokens);
    const auto error = test::error_of([&] { layer.forward(MatrixD::Ones(9, num_tokens), y, ws); });
    EXPECT_EQ(ws.side.mask.size(), side.mask.size());
    return error;
  };
  EXPECT_EQ(complaint({.mask = mask}), "no error");
  EXPECT_EQ(complaint({.mask = mask}, 7), "forward: mask.size() is 6, expected 7");
  EXPECT_EQ(complaint({.mask = mask, .token_ids = ids}),
            "forward: side.token_ids.size() is 13, expected as much for each of 6 tokens");
  EXPECT_EQ(complaint({.mask = mask, .modality = modality}),
            "forward: side.modality.size() is 4, expected as much for each of 6 tokens");
  EXPECT_EQ(complaint({.mask = mask, .sequence_length = 4}), "forward: 6 tokens are not whole sequences of 4");
  EXPECT_EQ(complaint({.mask = mask, .sequence_starts = starts}),
            "forward: side.sequence_starts do not ascend from 0 to 6");
  Workspace<double> ws;
  ws.side.mask = mask;
  MatrixD both = MatrixD::Ones(9, 6);
  EXPECT_EQ(test::error_of([&] { layer.forward(both, both, ws); }), "forward: y overlaps x");
}

TEST(QuantileBalancing, ATokenThatIsNotFiniteTakesNoPart) {
  const MatrixD scores = softmax_of_columns(skewed_logits(5, 20, 3, 25));
  for (const double poison : {nan, inf, -inf}) {
    for (const Index sick : {0, 7, 19}) {
      MatrixD poisoned = scores;
      poisoned(sick % 5, sick) = poison;
      EXPECT_TRUE(same_bits(quantiles(poisoned, 2, 4), quantiles(without_column(scores, sick), 2, 4)));
    }
  }
}

TEST(QuantileBalancing, WhereAnExpertHasRoomForAllTheBiasStays) {
  const Eigen::VectorXd beta = Eigen::Vector3d(0.5, -1, 2);
  EXPECT_TRUE(same_bits(quantiles(MatrixD::Constant(3, 8, nan), 1, 4, beta), beta));
  EXPECT_TRUE(same_bits(quantiles(MatrixD(3, 0), 1, 4, beta), beta));
  EXPECT_TRUE(same_bits(quantiles(random_matrix<MatrixD>(3, 1, 1), 2, 4, beta), beta));
  EXPECT_TRUE(same_bits(quantiles(random_matrix<MatrixD>(3, 8, 1), 3, 4, beta), beta));
}

TEST(QuantileBalancing, TheBiasIsFiniteForAnyFiniteScores) {
  const double most = std::numeric_limits<double>::max();
  MatrixD scores = random_matrix<MatrixD>(4, 12, 26, 1) * most;
  for (Index t = 0; t < 12; t += 2) scores.col(t) << most, -most, most, -most;
  EXPECT_TRUE(quantiles(scores, 2, 8).allFinite());
  EXPECT_TRUE(quantiles(scores, 1, 8, Eigen::Vector4d(-most, most, 0, 1)).allFinite());
}

TEST(QuantileBalancing, RefusesWhatDoesNotFitWithTheNumbers) {
  const auto complaint = [](Index num_experts, const QuantileOptions& options) {
    return test::error_of([&] { QuantileBalanced<float>(Weight<float>::Zero(num_experts, 4), options); });
  };
  EXPECT_EQ(complaint(6, {}), "no error");
  EXPECT_EQ(complaint(0, {}), "QuantileBalanced: needs at least one expert");
  EXPECT_EQ(complaint(6, {.choice = {.top_k = 7}}), "QuantileBalanced: top_k is 7, expected 1 to 6");
  EXPECT_EQ(complaint(6, {.choice = {.num_groups = 2}}), "QuantileBalanced: num_groups is 2, expected 1");
  EXPECT_EQ(complaint(6, {.choice = {.always_chosen = 1}}), "QuantileBalanced: always_chosen is 1, expected 0");
  EXPECT_TRUE(complaint(6, {.rounds = -1}).starts_with("QuantileBalanced: rounds is -1, expected 0"));

  const MatrixD scores = MatrixD::Zero(3, 4);
  const auto refused = [&](Index top_k, Index rounds, const Eigen::VectorXd& beta) {
    return test::error_of([&] { quantiles(scores, top_k, rounds, beta); });
  };
  EXPECT_EQ(refused(4, 1, Eigen::Vector3d::Zero()), "balance_quantiles: top_k is 4, expected 1 to 3");
  EXPECT_TRUE(refused(1, -1, Eigen::Vector3d::Zero()).starts_with("balance_quantiles: rounds is -1, expected 0"));
  EXPECT_EQ(refused(1, 1, Eigen::Vector2d::Zero()), "balance_quantiles: beta.size() is 2, expected 3");
  EXPECT_EQ(refused(1, 1, Eigen::Vector3d(0, nan, 0)), "balance_quantiles: beta is not finite");
}

}  // namespace moe::laws
