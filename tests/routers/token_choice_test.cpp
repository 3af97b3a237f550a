#include "laws/router_laws.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "errors.hpp"
#include "moe/core/random_number.hpp"
#include "moe/routers/carried_top_k.hpp"
#include "moe/routers/cosine_top_k.hpp"
#include "moe/routers/noisy_top_k.hpp"
#include "moe/routers/normed_top_k.hpp"
#include "moe/routers/random_router.hpp"
#include "moe/routers/relu_router.hpp"
#include "moe/routers/token_hash.hpp"
#include "moe/routers/top_p.hpp"
#include "naive.hpp"

namespace moe::laws {

using Experts = std::vector<Index>;
using Numbers = std::vector<float>;
using Side = SideInputs<float>;
using test::error_of;
using test::naive::MatrixD;

const float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
constexpr Index num_experts = 11, vocabulary = 50;
constexpr TopKOptions deepseek_v4 = {
    .top_k = 3, .score = Score::sqrt_softplus, .renormalize = true, .epsilon = 1e-20, .scale = 1.5};

/// Weights that make of numbers of order one logits of order three.
Weight<float> make_weight(Index rows, Index cols, unsigned seed) {
  return random_matrix<Weight<float>>(rows, cols, seed, 3 / std::sqrt(double(cols)));
}

/// (num_experts × 64) numbers that live on: noise, or what the layer before this one computed.
std::span<const float> standing_numbers(Index first, Index count) {
  static const auto numbers = random_matrix<Matrix<float>>(num_experts, 64, 77, 2);
  return {numbers.data() + num_experts * first, std::size_t(num_experts * count)};
}

std::span<const Index> standing_ids(Index first, Index count) {
  static const std::vector<Index> ids = [] {
    Random random(5);
    std::vector<Index> made;
    for (int t = 0; t < 64; ++t) made.push_back(random.below(vocabulary));
    return made;
  }();
  return std::span(ids).subspan(std::size_t(first), std::size_t(count));
}

struct NoisyTopKs {
  static NoisyTopK<float> make(Index d_model) {
    return {make_weight(num_experts, d_model, 3), make_weight(num_experts, d_model, 4), {.top_k = 2}};
  }
  static Side side(Index first, Index count) { return {.noise = standing_numbers(first, count)}; }
};

/// V-MoE's; its noise is drawn for the place in the batch, so no law of token choice holds.
struct SeededNoisyTopKs {
  static NoisyTopK<float> make(Index d_model) {
    return {make_weight(num_experts, d_model, 3), {}, {.top_k = 2}, 1.0 / num_experts};
  }
  static Side side(Index, Index) { return {.seed = 6}; }
};

struct TokenHashes {
  static TokenHash<float> make(Index d_model) {
    return {make_weight(num_experts, d_model, 3), deepseek_v4, random_hash_table(vocabulary, num_experts, 3, 8)};
  }
  static Side side(Index first, Index count) { return {.token_ids = standing_ids(first, count)}; }
};

struct TokenHashesWithoutWeight {
  static TokenHash<float> make(Index d_model) {
    return {d_model, num_experts, random_hash_table(vocabulary, num_experts, 2, 9)};
  }
  static Side side(Index first, Index count) { return TokenHashes::side(first, count); }
};

struct RandomRouters {
  static RandomRouter<float> make(Index d_model) { return {d_model, num_experts, 3, 4}; }
};

struct CosineTopKs {
  static CosineTopK<float> make(Index d_model) {
    return {make_weight(6, d_model, 3), make_weight(num_experts, 6, 4), {.top_k = 2}, std::log(5.0)};
  }
};

struct TopPs {
  static TopP<float> make(Index d_model) {
    return {make_weight(num_experts, d_model, 3), {.top_p = 0.8, .max_experts = 6, .renormalize = true}};
  }
};

struct ReluRouters {
  static ReluRouter<float> make(Index d_model) { return ReluRouter<float>(make_weight(num_experts, d_model, 3)); }
};

struct NormedTopKs {
  static NormedTopK<float> make(Index d_model) {
    using Vector = NormedTopK<float>::Vector;
    return {make_weight(num_experts, d_model, 3),
            2 * Vector::Ones(d_model) + random_matrix<Vector>(d_model, 1, 4),
            2 * Vector::Ones(num_experts) + random_matrix<Vector>(num_experts, 1, 5),
            {.top_k = 3, .score = Score::softmax_of_chosen}};
  }
};

struct CarriedTopKs {
  static CarriedTopK<float> make(Index d_model) {
    return {make_weight(num_experts, d_model, 3), make_weight(num_experts, num_experts, 4), {.top_k = 2}};
  }
  static Side side(Index first, Index count) { return {.previous_logits = standing_numbers(first, count)}; }
};

using OfTokens = testing::Types<NoisyTopKs, TokenHashes, TokenHashesWithoutWeight, CosineTopKs, TopPs, ReluRouters,
                                NormedTopKs, CarriedTopKs>;
INSTANTIATE_TYPED_TEST_SUITE_P(TokenChoice, RouterLaws, OfTokens);
INSTANTIATE_TYPED_TEST_SUITE_P(TokenChoice, TokenChoiceLaws, OfTokens);
using OfPlaces = testing::Types<SeededNoisyTopKs, RandomRouters>;
INSTANTIATE_TYPED_TEST_SUITE_P(ByPlaceInTheBatch, RouterLaws, OfPlaces);

// ---------------------------------------------------------------------------------------------------------------------
// What all of them owe, whatever the input.

/// A router whose d_model is its number of experts, and whose logits are its input, where it has any.
struct Named {
  std::string name;
  bool has_logits;
  std::function<Routing<float>(const Matrix<float>& x)> route;
};

template <class R>
Named named(const std::string& name, R router) {
  const bool has_logits = !name.starts_with("Random") && !name.starts_with("TokenHash");
  return {name, has_logits, [router](const Matrix<float>& x) {
            const Matrix<float> zeros = Matrix<float>::Zero(x.rows(), x.cols());
            std::vector<Index> ids;
            for (Index t = 0; t < x.cols(); ++t) ids.push_back(t % 7);
            const std::span<const float> nothing{zeros.data(), std::size_t(zeros.size())};
            return laws::route(router, {x, {.token_ids = ids, .noise = nothing, .previous_logits = nothing}});
          }};
}

/// One of each, which gives each token top_k of `experts` experts, or with TopP up to so many.
std::vector<Named> one_of_each(Index experts, Index top_k) {
  using Vector = Eigen::VectorXf;
  const Weight<float> identity = Weight<float>::Identity(experts, experts);
  const TopKOptions options{.top_k = top_k, .renormalize = true};
  const HashTable table = random_hash_table(7, experts, top_k, 3);
  return {named("NoisyTopK", NoisyTopK<float>(identity, identity, options)),
          named("TokenHash", TokenHash<float>(identity, options, table)),
          named("TokenHash without weight", TokenHash<float>(experts, experts, table)),
          named("RandomRouter", RandomRouter<float>(experts, experts, top_k, 3)),
          named("CosineTopK", CosineTopK<float>(identity, identity, options, 1)),
          named("TopP", TopP<float>(identity, {.top_p = 1, .max_experts = top_k, .renormalize = true})),
          named("NormedTopK", NormedTopK<float>(identity, Vector::Ones(experts), Vector::Ones(experts), options)),
          named("CarriedTopK", CarriedTopK<float>(identity, identity, options))};
}

TEST(TokenChoiceRouters, LeadNoCombinationOfSpecialInputsOutOfRange) {
  const std::array<float, 5> specials = {nan, inf, -inf, 0, 1e30F};
  Matrix<float> x(4, 625);
  for (Index t = 0; t < 625; ++t) {
    for (Index e = 0, rest = t; e < 4; ++e, rest /= 5) x(e, t) = specials[std::size_t(rest % 5)];
  }
  auto routers = one_of_each(4, 3);
  routers.push_back(named("ReluRouter", ReluRouter<float>(Weight<float>::Identity(4, 4))));
  for (const Named& router : routers) {
    SCOPED_TRACE(router.name);
    const auto routing = router.route(x);
    RouterLaws<ReluRouters>::expect_valid(routing, 625, 4);
    for (std::size_t r = 0; r < routing.token.size(); ++r) {
      const bool finite = x.col(routing.token[r]).allFinite();
      EXPECT_TRUE(!finite || std::isfinite(routing.weight[r])) << "token " << routing.token[r];
    }
  }
}

TEST(TokenChoiceRouters, OfEqualLogitsTheLowerIndexWins) {
  for (const Named& router : one_of_each(9, 4)) {
    if (!router.has_logits) continue;
    const auto routing = router.route(Matrix<float>::Zero(9, 2));
    EXPECT_EQ(routing.expert, (Experts{0, 1, 2, 3, 0, 1, 2, 3})) << router.name;
    EXPECT_EQ(routing.weight, Numbers(8, 0.25F)) << router.name;
  }
}

TEST(TokenChoiceRouters, MayChooseAllExperts) {
  const auto x = random_matrix<Matrix<float>>(9, 20, 1);
  for (const Named& router : one_of_each(9, 9)) {
    const auto routing = router.route(x);
    EXPECT_EQ(routing.size(), 9 * 20) << router.name;
    RouterLaws<ReluRouters>::expect_valid(routing, 20, 9);
    const auto sums = weights_of(routing, 9, 20).colwise().sum().eval();
    EXPECT_TRUE(is_close(sums, Matrix<float>::Ones(1, 20).eval())) << router.name;
  }
}

TEST(TokenChoiceRouters, OneExpertGetsEveryTokenWhole) {
  const auto x = random_matrix<Matrix<float>>(1, 5, 1);
  for (const Named& router : one_of_each(1, 1)) {
    const auto routing = router.route(x);
    EXPECT_EQ(routing.token, (Experts{0, 1, 2, 3, 4})) << router.name;
    EXPECT_EQ(routing.expert, Experts(5, 0)) << router.name;
    EXPECT_EQ(routing.weight, Numbers(5, 1)) << router.name;
  }
}

TEST(TokenChoiceRouters, OneTokenAndNoToken) {
  for (const Named& router : one_of_each(6, 2)) {
    const auto one = router.route(random_matrix<Matrix<float>>(6, 1, 2));
    EXPECT_EQ(one.token, (Experts{0, 0})) << router.name;
    const auto none = router.route(Matrix<float>(6, 0));
    EXPECT_EQ(none.size(), 0) << router.name;
    EXPECT_TRUE(none.expert.empty() && none.weight.empty() && none.logits.empty()) << router.name;
  }
}

TEST(TokenChoiceRouters, LogitsThatUnderflowGiveWeightsOfZero) {
  Matrix<float> x = Matrix<float>::Constant(6, 3, -2000);
  x.row(4).setConstant(2000);
  for (const Named& router : one_of_each(6, 2)) {
    if (!router.has_logits || router.name == "CosineTopK" || router.name == "NormedTopK") continue;  // of order one
    const auto weights = weights_of(router.route(x), 6, 3);
    EXPECT_EQ(weights.row(4), Matrix<float>::Ones(1, 3)) << router.name;
    EXPECT_EQ(weights.sum(), 3) << router.name;
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Each against its formula.

void for_each_size(const std::function<void(Index d_model, const Matrix<float>& x)>& check) {
  for (const Index d_model : {1, 8, 17, 40}) {
    for (const Index num_tokens : token_counts) {
      SCOPED_TRACE(std::to_string(d_model) + " wide, " + std::to_string(num_tokens) + " tokens");
      check(d_model, random_matrix<Matrix<float>>(d_model, num_tokens, 4));
    }
  }
}

MatrixD product(const Weight<float>& w, const Matrix<float>& x) {
  return test::naive::product(test::naive::exact(w), test::naive::exact(x));
}

Numbers logits_of_token(const Routing<float>& routing, Index t, Index experts = num_experts) {
  const auto first = routing.logits.begin() + t * experts;
  return {first, first + experts};
}

void expect_logits(const Routing<float>& routing, const MatrixD& expected) {
  ASSERT_EQ(Index(routing.logits.size()), expected.size());
  EXPECT_TRUE(is_close(logits_of(routing, expected.rows(), expected.cols()), expected));
}

/// The routes are what the naive twin chooses from the logits of the routing, times a factor for each expert.
void expect_top_k(const Routing<float>& routing, Index num_tokens, const TopKOptions& options,
                  const Eigen::VectorXf& factor = Eigen::VectorXf::Ones(num_experts)) {
  ASSERT_EQ(routing.size(), options.top_k * num_tokens);
  for (Index t = 0; t < num_tokens; ++t) {
    const Numbers logits = logits_of_token(routing, t);
    const auto expected = test::naive::choose({logits.begin(), logits.end()}, options);
    for (Index k = 0; k < options.top_k; ++k) {
      const auto r = std::size_t(t * options.top_k + k);
      const auto& [expert, weight] = expected[std::size_t(k)];
      EXPECT_EQ(routing.token[r], t);
      EXPECT_EQ(routing.expert[r], expert) << "token " << t << ", choice " << k;
      const double scaled = weight * double(factor(expert));
      EXPECT_NEAR(routing.weight[r], scaled, test::tolerance<float>(std::abs(scaled))) << "token " << t;
    }
  }
}

std::span<const float> span_of(const Matrix<float>& m) { return {m.data(), std::size_t(m.size())}; }

MatrixD softplus_of(MatrixD m) {
  for (double& number : m.reshaped()) number = std::log(1 + std::exp(number));
  return m;
}

TEST(NoisyTopK, EqualsItsNaiveTwin) {
  for (const TopKOptions& options :
       {TopKOptions{.top_k = 2}, TopKOptions{.top_k = 3, .score = Score::softmax_of_chosen}, deepseek_v4}) {
    for_each_size([&](Index d_model, const Matrix<float>& x) {
      const NoisyTopK<float> router(make_weight(num_experts, d_model, 1), make_weight(num_experts, d_model, 2), options,
                                    0.25);
      const auto noise = random_matrix<Matrix<float>>(num_experts, x.cols(), 3, 2);
      const auto routing = route(router, {x, {.noise = span_of(noise)}});
      const MatrixD sigma = softplus_of(product(router.logits().noise_weight(), x)).array() + 0.25;
      const MatrixD shift = test::naive::exact(noise).cwiseProduct(sigma);
      // Without tokens there is no noise to look at, and nothing to add.
      expect_logits(routing, product(router.weight(), x) + shift);
      expect_top_k(routing, x.cols(), options);
    });
  }
}

TEST(NoisyTopK, TellsTheStandardDeviationOfEachLogit) {
  std::vector<Scratch> scratch;
  const Serial serial;
  Workers workers(serial, scratch);
  for_each_size([&](Index d_model, const Matrix<float>& x) {
    const NoisyTopK<float> learned(make_weight(num_experts, d_model, 1), make_weight(num_experts, d_model, 2), {}, 0.5);
    Matrix<float> sigma(num_experts, x.cols());
    learned.logits().stddev(x, sigma, workers);
    EXPECT_TRUE(
        is_close(sigma, (softplus_of(product(learned.logits().noise_weight(), x)).array() + 0.5).matrix().eval()));

    const NoisyTopK<float> constant(make_weight(num_experts, d_model, 1), {}, {}, 0.5);
    constant.logits().stddev(x, sigma, workers);
    EXPECT_EQ(sigma, Matrix<float>::Constant(num_experts, x.cols(), 0.5F));
  });
  const auto router = NoisyTopKs::make(4);
  const auto complaint = [&](Index rows, Index experts, Index cols) {
    Matrix<float> sigma(experts, cols);
    return error_of([&] { router.logits().stddev(Matrix<float>::Zero(rows, 3), sigma, workers); });
  };
  EXPECT_EQ(complaint(5, 11, 3), "NoisyTopK: x.rows() is 5, expected 4");
  EXPECT_EQ(complaint(4, 12, 3), "NoisyTopK: sigma.rows() is 12, expected 11");
  EXPECT_EQ(complaint(4, 11, 2), "NoisyTopK: sigma.cols() is 2, expected 3");
}

TEST(NoisyTopK, WithoutNoiseWeightsTheNoiseHasTheSameStandardDeviationEverywhere) {
  const auto x = random_matrix<Matrix<float>>(9, 20, 1);
  const auto noise = random_matrix<Matrix<float>>(num_experts, 20, 3, 2);
  const NoisyTopK<float> router(make_weight(num_experts, 9, 1), {}, {.top_k = 2}, 1.0 / num_experts);
  const auto routing = route(router, {x, {.noise = span_of(noise)}});
  expect_logits(routing, product(router.weight(), x) + test::naive::exact(noise) / num_experts);
  expect_top_k(routing, 20, router.options());
}

TEST(NoisyTopK, DrawsFromTheSeedWhatOneCouldHaveGivenIt) {
  const auto router = NoisyTopKs::make(9);
  const auto x = random_matrix<Matrix<float>>(9, 20, 1);
  Matrix<float> noise(num_experts, 20);
  for (Index i = 0; i < noise.size(); ++i) noise(i) = float(normal_number(12, std::uint64_t(i)));
  const auto drawn = route(router, {x, {.seed = 12}}), given = route(router, {x, {.noise = span_of(noise)}});
  EXPECT_TRUE(same_bits(as_vector(drawn.logits), as_vector(given.logits)));
  EXPECT_EQ(drawn.expert, given.expert);
  EXPECT_EQ(drawn.weight, given.weight);
  EXPECT_NE(route(router, {x, {.seed = 13}}).logits, drawn.logits);
  // What is given goes before what could be drawn.
  EXPECT_EQ(route(router, {x, {.noise = span_of(noise), .seed = 13}}).logits, given.logits);
}

TEST(NoisyTopK, WithoutNoiseIsLinearTopK) {
  const auto router = NoisyTopKs::make(9);
  const auto x = random_matrix<Matrix<float>>(9, 20, 1);
  const auto quiet = route(router, x), linear = route(LinearTopK<float>(router.weight(), router.options()), x);
  EXPECT_TRUE(same_bits(as_vector(quiet.logits), as_vector(linear.logits)));
  EXPECT_EQ(quiet.expert, linear.expert);
  EXPECT_EQ(quiet.weight, linear.weight);
}

TEST(NoisyTopK, LargeStandardDeviationsDoNotOverflow) {
  const NoisyTopK<double> router(Weight<double>::Zero(2, 1), Weight<double>{{1}, {-1}}, {}, 0);
  const auto routing = route(router, {Matrix<double>{{1000}}, {.noise = std::array{1.0, 1.0}}});
  EXPECT_EQ(routing.logits, (std::vector<double>{1000, 0}));
}

TEST(NoisyTopK, RefusesWhatDoesNotFitWithTheNumbers) {
  const auto complaint = [](Index noise_rows, Index noise_cols, double min_stddev = 0, Index top_k = 1) {
    return error_of([&] {
      NoisyTopK<float>(Weight<float>::Zero(6, 4), Weight<float>::Zero(noise_rows, noise_cols), {.top_k = top_k},
                       min_stddev);
    });
  };
  EXPECT_EQ(complaint(6, 4), "no error");
  EXPECT_EQ(complaint(5, 4), "NoisyTopK: noise_weight.rows() is 5, expected 6");
  EXPECT_EQ(complaint(6, 3), "NoisyTopK: noise_weight.cols() is 3, expected 4");
  EXPECT_EQ(complaint(6, 4, -1), "NoisyTopK: min_stddev is -1.000000, expected 0 or more");
  EXPECT_EQ(complaint(6, 4, 0, 7), "NoisyTopK: top_k is 7, expected 1 to 6");
  const auto router = NoisyTopKs::make(4);
  EXPECT_EQ(error_of([&] { route(router, {Matrix<float>::Zero(4, 3), {.noise = standing_numbers(0, 2)}}); }),
            "NoisyTopK: side.noise.size() is 22, expected 33");
}

TEST(TokenHash, TakesExpertsFromTheTableAndWeightsFromTheScores) {
  for_each_size([](Index d_model, const Matrix<float>& x) {
    const auto router = TokenHashes::make(d_model);
    const auto ids = standing_ids(0, x.cols());
    const auto routing = route(router, {x, {.token_ids = ids}});
    expect_logits(routing, product(router.weight(), x));
    ASSERT_EQ(routing.size(), 3 * x.cols());
    for (Index t = 0; t < x.cols(); ++t) {
      std::array<double, 3> score{};
      for (Index k = 0; k < 3; ++k) {
        const Index e = router.choice().table()(k, ids[std::size_t(t)]);
        EXPECT_EQ(routing.expert[std::size_t(3 * t + k)], e);
        EXPECT_EQ(routing.token[std::size_t(3 * t + k)], t);
        score[std::size_t(k)] =
            std::sqrt(std::log(1 + std::exp(double(routing.logits[std::size_t(t * num_experts + e)]))));
      }
      for (Index k = 0; k < 3; ++k) {
        const double expected = 1.5 * score[std::size_t(k)] / (score[0] + score[1] + score[2]);
        EXPECT_NEAR(routing.weight[std::size_t(3 * t + k)], expected, test::tolerance<float>(1.5));
      }
    }
  });
}

TEST(TokenHash, AddsItsBiasToTheLogits) {
  const TokenHash<double> router(Weight<double>::Identity(3, 3), {.top_k = 1}, HashTable{{2, 0}},
                                 Eigen::Vector3d(0, 0, 1));
  const auto routing = route(router, {Matrix<double>{{1}, {2}, {3}}, {.token_ids = std::array<Index, 1>{0}}});
  EXPECT_EQ(routing.logits, (std::vector<double>{1, 2, 4}));
  EXPECT_EQ(routing.expert, Experts{2});
  EXPECT_DOUBLE_EQ(routing.weight[0], 1 / (1 + std::exp(-2.0) + std::exp(-3.0)));
}

TEST(TokenHash, WithoutALinearLayerAllWeightsAreEqual) {
  const TokenHash<float> router(4, 6, HashTable{{5, 1, 2}, {3, 0, 4}});
  const std::array<Index, 4> ids = {2, 0, 0, 1};
  const auto routing = route(router, {Matrix<float>::Constant(4, 4, nan), {.token_ids = ids}});
  EXPECT_EQ(routing.token, (Experts{0, 0, 1, 1, 2, 2, 3, 3}));
  EXPECT_EQ(routing.expert, (Experts{2, 4, 5, 3, 5, 3, 1, 0}));
  EXPECT_EQ(routing.weight, Numbers(8, 0.5F));
  EXPECT_TRUE(routing.logits.empty());
}

TEST(TokenHash, ARandomTableHasDifferentExpertsForEachIdAndAllOfThemAlikeOften) {
  const HashTable table = random_hash_table(6000, 6, 2, 1);
  ASSERT_EQ(table.rows(), 2);
  ASSERT_EQ(table.cols(), 6000);
  EXPECT_EQ(error_of([&] { TokenHash<float>(4, 6, table); }), "no error");
  for (Index e = 0; e < 6; ++e) {
    EXPECT_NEAR(double((table.array() == e).count()), 2000,
                5 * std::sqrt(6000 / 3. * 2 / 3.));  // 5 standard deviations
  }
  EXPECT_EQ(table, random_hash_table(6000, 6, 2, 1));
  EXPECT_NE(table, random_hash_table(6000, 6, 2, 2));
  EXPECT_EQ(random_hash_table(0, 6, 2, 1).cols(), 0);
  EXPECT_EQ(error_of([] { random_hash_table(5, 6, 7, 1); }), "random_hash_table: top_k is 7, expected 1 to 6");
}

TEST(TokenHash, RefusesWhatDoesNotFitWithTheNumbers) {
  const auto complaint = [](const HashTable& table, Index top_k = 2, const Eigen::VectorXf& bias = {}) {
    return error_of([&] { TokenHash<float>(Weight<float>::Zero(6, 4), {.top_k = top_k}, table, bias); });
  };
  EXPECT_EQ(complaint(HashTable{{5, 0}, {0, 1}}), "no error");
  EXPECT_EQ(complaint(HashTable{{5, 0}, {0, 6}}), "TokenHash: table sends id 1 to expert 6, expected 0 to 5");
  EXPECT_EQ(complaint(HashTable{{5, -1}, {0, 1}}), "TokenHash: table sends id 1 to expert -1, expected 0 to 5");
  EXPECT_EQ(complaint(HashTable{{5, 1}, {0, 1}}), "TokenHash: table sends id 1 to expert 1 twice");
  EXPECT_EQ(complaint(HashTable{{5, 0}, {0, 1}}, 3), "TokenHash: table.rows() is 2, expected 3");
  EXPECT_EQ(error_of([] {
              const TopKOptions options{.top_k = 1, .always_chosen = 1};
              TokenHash<float>(Weight<float>::Zero(6, 4), options, HashTable{{5, 0}, {0, 1}});
            }),
            "TokenHash: always_chosen is 1, expected 0");
  EXPECT_EQ(complaint(HashTable{{5, 0}, {0, 1}}, 2, Eigen::VectorXf::Zero(5)),
            "TokenHash: bias.size() is 5, expected 6");
  EXPECT_EQ(error_of([] { TokenHash<float>(4, 6, HashTable(0, 3)); }), "TokenHash: top_k is 0, expected 1 to 6");

  const TokenHash<float> router(4, 6, random_hash_table(50'000, 6, 2, 1));
  const auto routing_complaint = [&](const std::vector<Index>& ids) {
    return error_of([&] { route(router, {Matrix<float>::Zero(4, 5), {.token_ids = ids}}); });
  };
  EXPECT_EQ(routing_complaint({0, 49'999, 0, 0, 0}), "no error");
  EXPECT_EQ(routing_complaint({}), "TokenHash: side.token_ids.size() is 0, expected 5");
  EXPECT_EQ(routing_complaint({1, 2, 3, 4}), "TokenHash: side.token_ids.size() is 4, expected 5");
  EXPECT_EQ(routing_complaint({1, 2, 3, 70'000, 5}), "TokenHash: token 3 has id 70000, expected 0 to 49999");
  EXPECT_EQ(routing_complaint({-1, 2, 3, 4, 5}), "TokenHash: token 0 has id -1, expected 0 to 49999");
}

TEST(RandomRouter, UsesAllExpertsAlikeOften) {
  const auto routing = route(RandomRouter<float>(1, 6, 2, 1), Matrix<float>::Zero(1, 6000));
  RouterLaws<RandomRouters>::expect_valid(routing, 6000, 6);
  for (Index e = 0; e < 6; ++e) {
    EXPECT_NEAR(double(std::ranges::count(routing.expert, e)), 2000, 5 * std::sqrt(6000 / 3. * 2 / 3.));
  }
}

TEST(RandomRouter, IsAFunctionOfPlaceAndSeedAlone) {
  const auto router = RandomRouters::make(9);
  const auto x = random_matrix<Matrix<float>>(9, 64, 1);
  const auto routing = route(router, x);
  EXPECT_EQ(routing.weight, Numbers(3 * 64, 1 / 3.F));
  EXPECT_TRUE(routing.logits.empty());
  EXPECT_EQ(route(router, Matrix<float>::Constant(9, 64, nan)).expert, routing.expert);
  const auto fewer = route(router, x.leftCols(20));
  EXPECT_TRUE(std::equal(fewer.expert.begin(), fewer.expert.end(), routing.expert.begin()));
  EXPECT_EQ(route(router, {x, {.seed = 4}}).expert, routing.expert);  // its own is 4
  EXPECT_NE(route(router, {x, {.seed = 5}}).expert, routing.expert);
  EXPECT_EQ(route(router, {x, {.seed = 5}}).expert, route(RandomRouter<float>(9, num_experts, 3, 5), x).expert);
}

TEST(RandomRouter, RefusesMoreExpertsThanThereAre) {
  EXPECT_EQ(error_of([] { RandomRouter<float>(4, 6, 7, 1); }), "RandomRouter: top_k is 7, expected 1 to 6");
  EXPECT_EQ(error_of([] { RandomRouter<float>(4, 6, 0, 1); }), "RandomRouter: top_k is 0, expected 1 to 6");
}

TEST(CosineTopK, EqualsItsNaiveTwin) {
  for (const double log_scale : {-1.0, std::log(5.0), 9.0}) {
    for_each_size([&](Index d_model, const Matrix<float>& x) {
      for (const Index d_projected : {1, 8, 9}) {
        const CosineTopK<float> router(make_weight(d_projected, d_model, 3), make_weight(num_experts, d_projected, 4),
                                       {.top_k = 3}, log_scale);
        const auto routing = route(router, x);
        const MatrixD projected = product(router.logits().projection(), x);
        MatrixD cosine = test::naive::product(test::naive::exact(router.logits().experts()), projected);
        for (Index t = 0; t < x.cols(); ++t) {
          for (Index e = 0; e < num_experts; ++e) {
            cosine(e, t) /= projected.col(t).norm() * test::naive::exact(router.logits().experts()).row(e).norm();
          }
        }
        const double scale = std::min(std::exp(log_scale), 100.0);
        EXPECT_NEAR(router.logits().scale(), scale, test::tolerance<float>(scale));
        // The projection's rounding errors are relative to the length of what was summed, which may cancel.
        ASSERT_EQ(Index(routing.logits.size()), cosine.size());
        for (Index t = 0; t < x.cols(); ++t) {
          const double sum =
              (test::naive::exact(router.logits().projection()).cwiseAbs() * test::naive::exact(x.col(t)).cwiseAbs())
                  .norm();
          const double cancels = 1 + sum / projected.col(t).norm();
          const MatrixD expected = scale * cosine.col(t);
          const MatrixD got = logits_of(routing, num_experts, x.cols()).col(t).cast<double>();
          EXPECT_LE((got - expected).cwiseAbs().maxCoeff(), cancels * test::tolerance<float>(scale));
        }
        expect_top_k(routing, x.cols(), router.options());
      }
    });
  }
}

TEST(CosineTopK, LengthsDoNotMatterHoweverSmallOrLarge) {
  const auto x = random_matrix<Matrix<float>>(9, 20, 1);
  const auto weight = make_weight(num_experts, 6, 4);
  const auto routing_of = [&](float token_scale, float expert_scale) {
    return route(CosineTopK<float>(make_weight(6, 9, 3), weight * expert_scale, {.top_k = 2}, 1), x * token_scale);
  };
  const auto expected = routing_of(1, 1);
  for (const float scale : {0x1p-100F, 0.125F, 4.0F, 0x1p100F}) {  // powers of two: to the last bit
    EXPECT_EQ(routing_of(scale, 1).logits, expected.logits) << scale;
    EXPECT_EQ(routing_of(1, scale).logits, expected.logits) << scale;
  }
}

TEST(CosineTopK, AVectorOfZerosHasCosineZeroWithAny) {
  const Weight<float> identity = Weight<float>::Identity(3, 3);
  Weight<float> experts = identity;
  experts.row(1).setZero();
  const CosineTopK<float> router(identity, experts, {.top_k = 2}, std::log(8.0));
  const auto routing = route(router, Matrix<float>{{-3, 0}, {4, 0}, {0, 0}});
  EXPECT_TRUE(is_close(as_vector(routing.logits), (Eigen::VectorXf(6) << -4.8F, 0, 0, 0, 0, 0).finished()));
  EXPECT_EQ(routing.expert, (Experts{1, 2, 0, 1}));
}

TEST(CosineTopK, RefusesWhatDoesNotFitWithTheNumbers) {
  const auto complaint = [](Index rows, Index cols, Index top_k = 1, Index d_projected = 3) {
    return error_of([&] {
      CosineTopK<float>(Weight<float>::Zero(d_projected, 4), Weight<float>::Zero(rows, cols), {.top_k = top_k}, 1);
    });
  };
  EXPECT_EQ(complaint(6, 3), "no error");
  EXPECT_EQ(complaint(6, 4), "CosineTopK: experts.cols() is 4, expected 3");
  EXPECT_EQ(complaint(0, 3), "CosineTopK: needs at least one expert");
  EXPECT_EQ(complaint(6, 3, 7), "CosineTopK: top_k is 7, expected 1 to 6");
  EXPECT_EQ(complaint(6, 0, 1, 0), "CosineTopK: projection.rows() is 0, expected 1 or more");
}

/// The experts of one token by the definition of a smallest set: best first, until they have enough.
std::vector<test::naive::Choice> naive_top_p(const Numbers& logits, const TopPOptions& options) {
  std::vector<double> p = test::naive::softmax({logits.begin(), logits.end()});
  std::vector<test::naive::Choice> chosen;
  double sum = 0;
  do {
    const std::size_t best = test::naive::argmax(p);
    chosen.push_back({Index(best), p[best]});
    sum += p[best];
    p[best] = -1;
  } while (sum < options.top_p && Index(chosen.size()) < options.max_experts && chosen.size() < p.size());
  for (auto& choice : chosen) choice.weight /= options.renormalize ? sum : 1;
  return chosen;
}

TEST(TopP, EqualsItsNaiveTwin) {
  std::vector<bool> seen(num_experts + 1);
  for (const double top_p : {0.1, 0.4, 0.8, 0.95, 0.999}) {
    for (const Index most : {Index(1), Index(3), num_experts, std::numeric_limits<Index>::max()}) {
      for (const bool renormalize : {false, true}) {
        const TopPOptions options{.top_p = top_p, .max_experts = most, .renormalize = renormalize};
        for_each_size([&](Index d_model, const Matrix<float>& x) {
          const TopP<float> router(make_weight(num_experts, d_model, 3), options,
                                   make_weight(num_experts, 1, 4).col(0) / 6);
          const auto routing = route(router, x);
          MatrixD expected_logits = product(router.weight(), x);
          expected_logits.colwise() += router.bias().cast<double>();
          expect_logits(routing, expected_logits);
          std::size_t r = 0;
          for (Index t = 0; t < x.cols(); ++t) {
            const auto expected = naive_top_p(logits_of_token(routing, t), options);
            seen[expected.size()] = true;
            for (const auto& [expert, weight] : expected) {
              ASSERT_LT(r, routing.token.size());
              EXPECT_EQ(routing.token[r], t);
              EXPECT_EQ(routing.expert[r], expert);
              EXPECT_NEAR(routing.weight[r], weight, test::tolerance<float>(1));
              ++r;
            }
          }
          EXPECT_EQ(r, routing.token.size());
        });
      }
    }
  }
  for (Index count = 1; count < num_experts; ++count) {
    EXPECT_TRUE(seen[std::size_t(count)]) << "no token had " << count << " experts";
  }
}

/// A router that sees nothing adds its bias as logits; so these may be infinite.
template <class R, class... Options>
Routing<float> choose(const Numbers& logits, const Options&... options) {
  const Eigen::VectorXf bias = as_vector(logits);
  return route(R(Weight<float>::Zero(bias.size(), 1), options..., bias), Matrix<float>::Zero(1, 1));
}

TEST(TopP, TakesNoExpertMoreThanItNeeds) {
  const auto shares = [](const TopPOptions& options) { return choose<TopP<float>>({0, 0, 0, 0}, options); };
  EXPECT_EQ(shares({.top_p = 0.25}).expert, (Experts{0}));
  EXPECT_EQ(shares({.top_p = 0.26}).expert, (Experts{0, 1}));
  EXPECT_EQ(shares({.top_p = 0.5}).weight, (Numbers{0.25F, 0.25F}));
  EXPECT_EQ(shares({.top_p = 1}).expert, (Experts{0, 1, 2, 3}));
  EXPECT_EQ(shares({.top_p = 0.7, .max_experts = 2, .renormalize = true}).weight, (Numbers{0.5F, 0.5F}));
}

TEST(TopP, IsDefinedForSpecialLogits) {
  const TopPOptions all{.top_p = 1};
  const auto infinite = choose<TopP<float>>({0, inf, 5, inf}, all);
  EXPECT_EQ(infinite.expert, (Experts{1, 3}));
  EXPECT_EQ(infinite.weight, (Numbers{0.5F, 0.5F}));
  const auto underflown = choose<TopP<float>>({-2000, 0, -inf}, all);
  EXPECT_EQ(underflown.expert, Experts{1});
  EXPECT_EQ(underflown.weight, Numbers{1});
  const auto none = choose<TopP<float>>({-inf, -inf}, all);
  EXPECT_EQ(none.expert, (Experts{0, 1}));
  EXPECT_EQ(none.weight, (Numbers{0.5F, 0.5F}));
  for (const bool renormalize : {false, true}) {
    const TopPOptions options{.top_p = 1, .renormalize = renormalize};
    const auto sick = choose<TopP<float>>({nan, 1, 2, nan}, options);
    EXPECT_EQ(sick.expert, Experts{2});
    EXPECT_TRUE(std::isnan(sick.weight[0]));
    EXPECT_EQ(choose<TopP<float>>({nan, nan, nan}, options).expert, Experts{0});
  }
}

TEST(TopP, RefusesWhatDoesNotFitWithTheNumbers) {
  const auto complaint = [](const TopPOptions& options, Index experts = 6, Index bias = 0) {
    return error_of([&] { TopP<float>(Weight<float>::Zero(experts, 4), options, Eigen::VectorXf::Zero(bias)); });
  };
  EXPECT_EQ(complaint({}), "no error");
  EXPECT_EQ(complaint({}, 0), "TopP: needs at least one expert");
  EXPECT_EQ(complaint({.top_p = 0}), "TopP: top_p is 0.000000, expected more than 0, up to 1");
  EXPECT_EQ(complaint({.top_p = 1.5}), "TopP: top_p is 1.500000, expected more than 0, up to 1");
  EXPECT_EQ(complaint({.top_p = double(nan)}), "TopP: top_p is nan, expected more than 0, up to 1");
  EXPECT_EQ(complaint({.max_experts = 0}), "TopP: max_experts is 0, expected 1 or more");
  EXPECT_EQ(complaint({}, 6, 5), "TopP: bias.size() is 5, expected 6");
}

TEST(ReluRouter, EqualsItsNaiveTwin) {
  for_each_size([](Index d_model, const Matrix<float>& x) {
    const ReluRouter<float> router(make_weight(num_experts, d_model, 3), make_weight(num_experts, 1, 4).col(0));
    const auto routing = route(router, x);
    MatrixD expected_logits = product(router.weight(), x);
    expected_logits.colwise() += router.bias().cast<double>();
    expect_logits(routing, expected_logits);
    const auto logits = logits_of(routing, num_experts, x.cols());
    EXPECT_EQ(routing.size(), (logits.array() > 0).count());
    EXPECT_EQ(weights_of(routing, num_experts, x.cols()), logits.cwiseMax(0));
    for (std::size_t r = 1; r < routing.token.size(); ++r) {
      EXPECT_LE(routing.token[r - 1], routing.token[r]);
      EXPECT_TRUE(routing.token[r - 1] != routing.token[r] || routing.weight[r - 1] >= routing.weight[r]);
    }
  });
}

TEST(ReluRouter, ATokenMayHaveNoRouteOrAllOfThem) {
  const ReluRouter<float> router(Weight<float>::Identity(3, 3));
  const auto routing = route(router, Matrix<float>{{-1, 1, 0}, {0, 5, -1}, {-3, 2, -2}});
  EXPECT_EQ(routing.token, (Experts{1, 1, 1}));
  EXPECT_EQ(routing.expert, (Experts{1, 2, 0}));
  EXPECT_EQ(routing.weight, (Numbers{5, 2, 1}));
}

TEST(ReluRouter, IsDefinedForSpecialLogits) {
  const auto infinite = choose<ReluRouter<float>>({1, inf, -inf, 1});
  EXPECT_EQ(infinite.expert, (Experts{1, 0, 3}));
  EXPECT_EQ(infinite.weight, (Numbers{inf, 1, 1}));
  const auto sick = choose<ReluRouter<float>>({nan, 1, -1, nan, 2});
  EXPECT_EQ(sick.expert, (Experts{4, 1, 0, 3}));
  EXPECT_TRUE(std::isnan(sick.weight[2]) && std::isnan(sick.weight[3]));
  EXPECT_EQ(choose<ReluRouter<float>>({0, -0.F}).size(), 0);
}

TEST(ReluRouter, RefusesWhatDoesNotFitWithTheNumbers) {
  EXPECT_EQ(error_of([] { ReluRouter<float>(Weight<float>::Zero(0, 4)); }), "ReluRouter: needs at least one expert");
  EXPECT_EQ(error_of([] { ReluRouter<float>(Weight<float>::Zero(6, 4), Eigen::VectorXf::Zero(5)); }),
            "ReluRouter: bias.size() is 5, expected 6");
}

TEST(NormedTopK, EqualsItsNaiveTwin) {
  const double norm_epsilon = 0.01;
  for (const TopKOptions& options :
       {TopKOptions{.top_k = 3, .score = Score::softmax_of_chosen}, TopKOptions{.top_k = 2, .renormalize = true}}) {
    for_each_size([&](Index d_model, const Matrix<float>& x) {
      using Vector = NormedTopK<float>::Vector;
      const auto norm_scale = random_matrix<Vector>(d_model, 1, 4, 2);
      const NormedTopK<float> router(make_weight(num_experts, d_model, 3), norm_scale,
                                     random_matrix<Vector>(num_experts, 1, 5, 2), options, norm_epsilon);
      const auto routing = route(router, x);
      MatrixD normed = test::naive::exact(x);
      for (Index t = 0; t < x.cols(); ++t) {
        double squares = 0;
        for (Index i = 0; i < d_model; ++i) squares += normed(i, t) * normed(i, t);
        const double rms = std::sqrt(squares / double(d_model) + norm_epsilon);
        for (Index i = 0; i < d_model; ++i) normed(i, t) *= double(norm_scale(i)) / rms / std::sqrt(double(d_model));
      }
      expect_logits(routing, test::naive::product(test::naive::exact(router.weight()), normed));
      expect_top_k(routing, x.cols(), options, router.choice().expert_scale());
    });
  }
}

TEST(NormedTopK, LengthDoesNotMatterWithoutAnEpsilonAndZeroStaysZero) {
  const Eigen::VectorXf ones = Eigen::VectorXf::Ones(num_experts);
  const NormedTopK<float> router(make_weight(num_experts, 9, 3), Eigen::VectorXf::Ones(9), ones, {.top_k = 2}, 0);
  const auto x = random_matrix<Matrix<float>>(9, 20, 1);
  EXPECT_EQ(route(router, x).logits, route(router, 8 * x).logits);
  EXPECT_EQ(route(router, Matrix<float>::Zero(9, 2)).logits, Numbers(2 * num_experts));
}

TEST(NormedTopK, RefusesWhatDoesNotFitWithTheNumbers) {
  const auto complaint = [](Index norm_scale, Index expert_scale, double norm_epsilon = 0, Index top_k = 1) {
    return error_of([&] {
      NormedTopK<float>(Weight<float>::Zero(6, 4), Eigen::VectorXf::Zero(norm_scale),
                        Eigen::VectorXf::Zero(expert_scale), {.top_k = top_k}, norm_epsilon);
    });
  };
  EXPECT_EQ(complaint(4, 6), "no error");
  EXPECT_EQ(complaint(5, 6), "NormedTopK: norm_scale.size() is 5, expected 4");
  EXPECT_EQ(complaint(4, 7), "NormedTopK: expert_scale.size() is 7, expected 6");
  EXPECT_EQ(complaint(4, 6, -1), "NormedTopK: norm_epsilon is -1.000000, expected 0 or more");
  EXPECT_EQ(complaint(4, 6, 0, 7), "NormedTopK: top_k is 7, expected 1 to 6");
}

TEST(CarriedTopK, EqualsItsNaiveTwin) {
  for (const Index before : {Index(1), Index(8), num_experts}) {  // experts of the layer before
    for_each_size([&](Index d_model, const Matrix<float>& x) {
      const CarriedTopK<float> router(make_weight(num_experts, d_model, 3), make_weight(num_experts, before, 4),
                                      {.top_k = 3, .renormalize = true});
      const auto previous = random_matrix<Matrix<float>>(before, x.cols(), 5);
      const auto routing = route(router, {x, {.previous_logits = span_of(previous)}});
      expect_logits(routing, product(router.weight(), x) + product(router.logits().carry(), previous));
      expect_top_k(routing, x.cols(), router.options());
    });
  }
}

TEST(CarriedTopK, InTheFirstLayerIsLinearTopK) {
  const auto router = CarriedTopKs::make(9);
  const auto x = random_matrix<Matrix<float>>(9, 20, 1);
  const auto first = route(router, x), linear = route(LinearTopK<float>(router.weight(), router.options()), x);
  EXPECT_TRUE(same_bits(as_vector(first.logits), as_vector(linear.logits)));
  EXPECT_EQ(first.expert, linear.expert);
  EXPECT_EQ(first.weight, linear.weight);
}

TEST(CarriedTopK, RefusesWhatDoesNotFitWithTheNumbers) {
  const auto complaint = [](Index rows, Index cols, Index top_k = 1) {
    return error_of(
        [&] { CarriedTopK<float>(Weight<float>::Zero(6, 4), Weight<float>::Zero(rows, cols), {.top_k = top_k}); });
  };
  EXPECT_EQ(complaint(6, 6), "no error");
  EXPECT_EQ(complaint(5, 6), "CarriedTopK: carry.rows() is 5, expected 6");
  EXPECT_EQ(complaint(6, 0), "CarriedTopK: carry.cols() is 0, expected 1 or more");
  EXPECT_EQ(complaint(6, 6, 7), "CarriedTopK: top_k is 7, expected 1 to 6");
  const auto router = CarriedTopKs::make(4);
  const Matrix<float> x = Matrix<float>::Zero(4, 3);
  EXPECT_EQ(error_of([&] { route(router, {x, {.previous_logits = standing_numbers(0, 2)}}); }),
            "CarriedTopK: side.previous_logits.size() is 22, expected 33");

  std::vector<Scratch> scratch;
  const Serial serial;
  Workers workers(serial, scratch);
  Routing<float> routing = route(router, x);
  const Side side{.previous_logits = routing.logits};
  routing.clear();
  EXPECT_EQ(error_of([&] { router.route(Tokens<float>(x, side), routing, workers); }),
            "CarriedTopK: side.previous_logits are those of the routing that is being written");
}

}  // namespace moe::laws
