#include "laws/router_laws.hpp"

#include "moe/routers/linear_top_k.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <string>
#include <vector>

#include "errors.hpp"
#include "naive.hpp"

namespace moe::laws {

/// The published families, by what they are called in the field; 16 experts where there are groups, else 11.
enum class Family {
  olmoe,
  mixtral,
  granite,
  dbrx,
  ernie,
  deepseek_v2,
  deepseek_v3,
  deepseek_v4,
  kimi_k2,
  lfm2,
  llama4,
  biased
};

constexpr TopKOptions options_of(Family family) {
  switch (family) {
    case Family::olmoe:
      return {.top_k = 8};
    case Family::mixtral:
      return {.top_k = 2, .renormalize = true};
    case Family::granite:
      return {.top_k = 8, .score = Score::softmax_of_chosen};
    case Family::dbrx:
      return {.top_k = 4, .renormalize = true, .norm = 3};
    case Family::ernie:
      return {.top_k = 3, .renormalize = true, .floor = 0.5};
    case Family::deepseek_v2:
      return {.top_k = 3, .scale = 16, .num_groups = 8, .kept_groups = 3};
    case Family::deepseek_v3:
      return {.top_k = 4,
              .score = Score::sigmoid,
              .renormalize = true,
              .epsilon = 1e-20,
              .scale = 2.5,
              .num_groups = 4,
              .kept_groups = 2,
              .group_top = 2};
    case Family::deepseek_v4:
      return {.top_k = 6, .score = Score::sqrt_softplus, .renormalize = true, .epsilon = 1e-20, .scale = 1.5};
    case Family::kimi_k2:
      return {.top_k = 8, .score = Score::sigmoid, .renormalize = true, .epsilon = 1e-20, .scale = 2.827};
    case Family::lfm2:
      return {.top_k = 4, .score = Score::sigmoid, .renormalize = true, .epsilon = 1e-6};
    case Family::llama4:
      return {.score = Score::sigmoid, .weight_on = WeightOn::input};
    case Family::biased:
      return {.top_k = 3, .score = Score::softmax_of_chosen};
  }
  return {};
}

constexpr bool has_selection_bias(Family family) {
  return family == Family::ernie || family == Family::deepseek_v3 || family == Family::deepseek_v4 ||
         family == Family::kimi_k2 || family == Family::lfm2;
}

template <class Scalar>
LinearTopK<Scalar> make_router(Family family, Index d_model, unsigned seed = 3) {
  using Vector = typename LinearTopK<Scalar>::Vector;
  Random random(seed);
  const TopKOptions options = options_of(family);
  const Index num_experts = options.num_groups > 1 ? 16 : 11;
  auto weight = random.matrix<Weight<Scalar>>(num_experts, d_model, 3 / std::sqrt(double(d_model)));
  Vector bias = family == Family::biased ? random.matrix<Vector>(num_experts, 1) : Vector();
  Vector selection_bias = has_selection_bias(family) ? random.matrix<Vector>(num_experts, 1, 0.3) : Vector();
  return {std::move(weight), options, std::move(bias), std::move(selection_bias)};
}

template <Family family, class Scalar>
struct LinearTopKs {
  static LinearTopK<Scalar> make(Index d_model) { return make_router<Scalar>(family, d_model); }
};

using AllFamilies = testing::Types<LinearTopKs<Family::olmoe, float>, LinearTopKs<Family::mixtral, float>,
                                   LinearTopKs<Family::granite, double>, LinearTopKs<Family::deepseek_v2, float>,
                                   LinearTopKs<Family::deepseek_v3, double>, LinearTopKs<Family::kimi_k2, float>,
                                   LinearTopKs<Family::llama4, float>, LinearTopKs<Family::biased, float>>;
INSTANTIATE_TYPED_TEST_SUITE_P(LinearTopK, RouterLaws, AllFamilies);
INSTANTIATE_TYPED_TEST_SUITE_P(LinearTopK, TokenChoiceLaws, AllFamilies);

using Numbers = std::vector<double>;
const double nan = std::numeric_limits<double>::quiet_NaN(), inf = std::numeric_limits<double>::infinity();

/// A router whose logits are its input.
template <class Scalar = double>
LinearTopK<Scalar> router_of_logits(Index num_experts, const TopKOptions& options, const Numbers& selection_bias = {}) {
  typename LinearTopK<Scalar>::Vector bias(Index(selection_bias.size()));
  for (Index e = 0; e < bias.size(); ++e) bias(e) = Scalar(selection_bias[std::size_t(e)]);
  return {Weight<Scalar>::Identity(num_experts, num_experts), options, {}, bias};
}

/// What a token with these logits is routed to. Logits may be infinite: they are added as the bias of a router that
/// sees nothing.
template <class Scalar = double>
Routing<Scalar> choose(const Numbers& logits, const TopKOptions& options, const Numbers& selection_bias = {}) {
  using Vector = typename LinearTopK<Scalar>::Vector;
  const auto vector = [](const Numbers& numbers) {
    Vector v(Index(numbers.size()));
    for (Index e = 0; e < v.size(); ++e) v(e) = Scalar(numbers[std::size_t(e)]);
    return v;
  };
  const LinearTopK<Scalar> router(Weight<Scalar>::Zero(Index(logits.size()), 1), options, vector(logits),
                                  vector(selection_bias));
  return route(router, Matrix<Scalar>::Zero(1, 1));
}

using Experts = std::vector<Index>;

template <class Scalar>
void expect_naive_twin(Family family, Index d_model, Index num_tokens) {
  const auto router = make_router<Scalar>(family, d_model);
  const auto x = random_matrix<Matrix<Scalar>>(d_model, num_tokens, 4);
  const auto routing = route(router, x);
  const Index num_experts = router.num_experts(), top_k = router.top_k();
  ASSERT_EQ(routing.size(), top_k * num_tokens);
  EXPECT_EQ(routing.weight_on, router.options().weight_on);

  Eigen::MatrixXd expected_logits = test::naive::product(test::naive::exact(router.weight()), test::naive::exact(x));
  if (router.bias().size() > 0) expected_logits.colwise() += router.bias().template cast<double>();
  ASSERT_EQ(Index(routing.logits.size()), num_experts * num_tokens);
  const Eigen::Map<const Matrix<Scalar>> logits(routing.logits.data(), num_experts, num_tokens);
  EXPECT_TRUE(is_close(logits, expected_logits));

  const Numbers bias(router.selection_bias().begin(), router.selection_bias().end());
  for (Index t = 0; t < num_tokens; ++t) {
    const Numbers of_token(logits.col(t).begin(), logits.col(t).end());
    const auto expected = test::naive::choose(of_token, router.options(), bias);
    for (Index k = 0; k < top_k; ++k) {
      const auto r = std::size_t(t * top_k + k);
      EXPECT_EQ(routing.token[r], t);
      EXPECT_EQ(routing.expert[r], expected[std::size_t(k)].expert) << "token " << t << ", choice " << k;
      EXPECT_NEAR(double(routing.weight[r]), expected[std::size_t(k)].weight,
                  test::tolerance<Scalar>(router.options().scale));
    }
  }
}

TEST(LinearTopK, EqualsItsNaiveTwinInEveryFamily) {
  for (const Family family :
       {Family::olmoe, Family::mixtral, Family::granite, Family::dbrx, Family::ernie, Family::deepseek_v2,
        Family::deepseek_v3, Family::deepseek_v4, Family::kimi_k2, Family::lfm2, Family::llama4, Family::biased}) {
    SCOPED_TRACE("family " + std::to_string(int(family)));
    for (const Index d_model : {1, 8, 17, 40}) {
      for (const Index num_tokens : token_counts) {
        expect_naive_twin<float>(family, d_model, num_tokens);
        expect_naive_twin<double>(family, d_model, num_tokens);
      }
    }
  }
}

TEST(LinearTopK, EqualsItsNaiveTwinInEveryCombinationOfOptions) {
  const Index num_experts = 12;
  Random random(5);
  const Numbers no_bias, bias = {0.1, -0.3, 0.2, 0, 0.4, -0.1, 0.3, -0.2, 0, 0.1, -0.4, 0.2};
  for (const Score score : {Score::softmax, Score::softmax_of_chosen, Score::sigmoid, Score::sqrt_softplus}) {
    for (const Index group_top : {1, 2, 3}) {
      for (const auto& [groups, kept] : {std::pair<Index, Index>{1, 1}, {3, 1}, {3, 2}, {4, 3}, {12, 5}}) {
        for (const Index top_k : {Index(1), Index(2), kept * (num_experts / groups)}) {
          for (const bool renormalize : {false, true}) {
            for (const bool biased : {false, true}) {
              if (top_k > kept * (num_experts / groups) || group_top > num_experts / groups) continue;
              const TopKOptions options{.top_k = top_k,
                                        .score = score,
                                        .renormalize = renormalize,
                                        .epsilon = 0.01,
                                        .scale = 1.5,
                                        .num_groups = groups,
                                        .kept_groups = kept,
                                        .group_top = group_top};
              const Numbers& selection_bias = biased ? bias : no_bias;
              const auto logits = random.matrix<Matrix<double>>(num_experts, 5, 4);
              const auto routing = route(router_of_logits(num_experts, options, selection_bias), logits);
              for (Index t = 0; t < 5; ++t) {
                const Numbers of_token(logits.col(t).begin(), logits.col(t).end());
                const auto expected = test::naive::choose(of_token, options, selection_bias);
                for (Index k = 0; k < top_k; ++k) {
                  const auto r = std::size_t(t * top_k + k);
                  EXPECT_EQ(routing.expert[r], expected[std::size_t(k)].expert)
                      << "score " << int(score) << ", group_top " << group_top << ", " << kept << " of " << groups
                      << " groups, top " << top_k;
                  EXPECT_NEAR(routing.weight[r], expected[std::size_t(k)].weight, test::tolerance<double>(1.5));
                }
              }
            }
          }
        }
      }
    }
  }
}

TEST(LinearTopK, SoftmaxThenTopKRenormalisedIsTopKThenSoftmax) {
  const auto x = random_matrix<Matrix<float>>(9, 64, 1, 3);
  const auto weight = random_matrix<Weight<float>>(12, 9, 2);
  for (const Index top_k : {1, 2, 5, 12}) {
    const LinearTopK<float> then_top_k(weight, {.top_k = top_k, .renormalize = true});
    const LinearTopK<float> then_softmax(weight, {.top_k = top_k, .score = Score::softmax_of_chosen});
    const auto one = route(then_top_k, x), other = route(then_softmax, x);
    EXPECT_EQ(one.expert, other.expert);
    EXPECT_TRUE(is_close(as_vector(one.weight), as_vector(other.weight)));
  }
}

TEST(LinearTopK, RoutesOfATokenStandSideBySideBestFirst) {
  const auto routing = route(router_of_logits(5, {.top_k = 3}), Matrix<double>{{1, 0}, {5, 0}, {3, 2}, {4, 3}, {2, 9}});
  EXPECT_EQ(routing.token, (Experts{0, 0, 0, 1, 1, 1}));
  EXPECT_EQ(routing.expert, (Experts{1, 3, 2, 4, 3, 2}));
  EXPECT_EQ(routing.weight_on, WeightOn::output);
}

TEST(LinearTopK, OfTiesTheLowerIndexWins) {
  const Numbers equal(12, 0.5);
  for (const Score score : {Score::softmax, Score::softmax_of_chosen, Score::sigmoid}) {
    EXPECT_EQ(choose(equal, {.top_k = 4, .score = score}).expert, (Experts{0, 1, 2, 3}));
    EXPECT_EQ(choose(equal, {.top_k = 12, .score = score}).expert, (Experts{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}));
    for (const Index group_top : {1, 2}) {
      const TopKOptions grouped{.top_k = 5, .score = score, .num_groups = 4, .kept_groups = 2, .group_top = group_top};
      EXPECT_EQ(choose(equal, grouped).expert, (Experts{0, 1, 2, 3, 4}));
      // The better group comes later; inside of it and between the two kept, the lower index still wins.
      Numbers later = equal;
      later[7] = 0.75;
      EXPECT_EQ(choose(later, grouped).expert, (Experts{7, 0, 1, 2, 6}));
    }
  }
  EXPECT_EQ(choose({1, 3, 2, 3, 1}, {.top_k = 4}).expert, (Experts{1, 3, 2, 0}));
}

TEST(LinearTopK, SaturatedScoresStillRankByTheirLogits) {
  EXPECT_EQ(choose({800, 900, 850, 950}, {.top_k = 3, .score = Score::sigmoid}).expert, (Experts{3, 1, 2}));
  EXPECT_EQ(choose({-800, -900, -850, 0}, {.top_k = 3}).expert, (Experts{3, 0, 2}));
}

TEST(LinearTopK, ARejectedGroupIsNeverChosenEvenWhenAllKeptScoresAreNegative) {
  // score + bias: −0.4, −0.5 in the kept group, −0.9 … in the others. A mask of 0 would win over all of these.
  const Numbers bias = {-1.4, -1.5, -0.9, -1.0, -1.6, -1.7};
  const Numbers logits(6, 0);
  for (const Index group_top : {1, 2}) {
    for (const Score score : {Score::sigmoid, Score::softmax}) {
      const TopKOptions options{.top_k = 2, .score = score, .num_groups = 3, .group_top = group_top};
      EXPECT_EQ(choose(logits, options, bias).expert, (Experts{2, 3}));
    }
  }
}

TEST(LinearTopK, TheSelectionBiasChoosesButDoesNotWeigh) {
  const Numbers logits = {2, 1, 0, -1}, bias = {-10, 0, 0, 1e6};
  const auto routing = choose(logits, {.top_k = 2, .score = Score::sigmoid}, bias);
  EXPECT_EQ(routing.expert, (Experts{3, 1}));
  // The score itself, not (score + bias) − bias, which 1e6 would leave with ten digits.
  EXPECT_DOUBLE_EQ(routing.weight[0], 1 / (1 + std::exp(1.0)));
  EXPECT_DOUBLE_EQ(routing.weight[1], 1 / (1 + std::exp(-1.0)));
}

TEST(LinearTopK, TheBiasIsPartOfTheLogits) {
  const LinearTopK<double> router(Weight<double>::Identity(2, 2), {}, Eigen::Vector2d(0, 3));
  const auto routing = route(router, Eigen::Vector2d(1, 0));
  EXPECT_EQ(routing.logits, (Numbers{1, 3}));
  EXPECT_EQ(routing.expert, Experts{1});
  EXPECT_DOUBLE_EQ(routing.weight[0], 1 / (1 + std::exp(-2.0)));
}

TEST(LinearTopK, WeightsThatUnderflowToZeroStayZero) {
  // Of 4 to 37 experts, the first or the last: the vectorised exponential sees some of them, the scalar one others.
  for (const std::size_t num_experts : {4U, 16U, 21U, 37U}) {
    Numbers logits(num_experts, -2000), first(num_experts, 0), last(num_experts, 0);
    logits[num_experts / 2] = 0;  // the one expert with a score is not chosen
    first[0] = first[1] = 1, last[num_experts - 1] = last[num_experts - 2] = 1;
    first[num_experts / 2] = last[num_experts / 2] = -1;
    for (const Numbers& bias : {first, last}) {
      if (num_experts == 4 && bias == last) continue;  // half of 4 is among the last two
      for (const bool renormalize : {false, true}) {
        const TopKOptions options{.top_k = 2, .renormalize = renormalize};
        EXPECT_EQ(choose<double>(logits, options, bias).weight, Numbers(2, 0.0)) << num_experts << " experts";
        EXPECT_EQ(choose<float>(logits, options, bias).weight, std::vector<float>(2, 0.0F))
            << num_experts << " experts";
      }
    }
    const TopKOptions sigmoid{.top_k = 3, .score = Score::sigmoid, .renormalize = true};
    EXPECT_EQ(choose<double>(Numbers(num_experts, -2000), sigmoid).weight, Numbers(3, 0.0));
    EXPECT_EQ(choose<float>(Numbers(num_experts, -2000), sigmoid).weight, std::vector<float>(3, 0.0F));
  }
}

TEST(LinearTopK, AnInfiniteLogitTakesAllOfASoftmax) {
  for (const std::size_t num_experts : {5U, 16U, 21U, 32U}) {
    for (std::size_t at = 0; at < num_experts; ++at) {
      Numbers logits(num_experts, 1.5);
      logits[at] = inf;
      for (const Score score : {Score::softmax, Score::softmax_of_chosen}) {
        for (const bool renormalize : {false, true}) {
          const auto routing = choose(logits, {.top_k = 2, .score = score, .renormalize = renormalize});
          EXPECT_EQ(routing.expert, (Experts{Index(at), at == 0 ? 1 : 0}));
          EXPECT_EQ(routing.weight, (Numbers{1, 0}));
        }
      }
      EXPECT_EQ(choose(logits, {.score = Score::sigmoid}).weight, Numbers{1});
    }
    Numbers two(num_experts, 0);
    two[1] = two[num_experts - 1] = inf;
    EXPECT_EQ(choose(two, {.top_k = 2}).weight, (Numbers{0.5, 0.5}));
  }
}

TEST(LinearTopK, AMinusInfiniteLogitTakesNothing) {
  for (const std::size_t num_experts : {5U, 16U, 21U, 32U}) {
    for (std::size_t at = 0; at < num_experts; ++at) {
      Numbers logits(num_experts, 1.5);
      logits[at] = -inf;
      const Index all = Index(num_experts);
      for (const Score score : {Score::softmax, Score::softmax_of_chosen, Score::sigmoid}) {
        for (const bool renormalize : {false, true}) {
          const TopKOptions options{.top_k = all, .score = score, .renormalize = renormalize};
          const auto routing = choose<float>(logits, options);
          EXPECT_EQ(routing.expert.back(), Index(at));  // last of all
          EXPECT_EQ(routing.weight.back(), 0.0F) << at << " of " << num_experts << ", score " << int(score);
          EXPECT_EQ(choose<double>(logits, options).weight.back(), 0.0) << at << " of " << num_experts;
        }
      }
    }
    const auto uniform = choose(Numbers(num_experts, -inf), {.top_k = 2});
    EXPECT_EQ(uniform.expert, (Experts{0, 1}));
    EXPECT_EQ(uniform.weight, Numbers(2, 1 / double(num_experts)));
  }
}

TEST(LinearTopK, ANotANumberRanksLast) {
  for (const Score score : {Score::softmax, Score::softmax_of_chosen, Score::sigmoid}) {
    EXPECT_EQ(choose({nan, 1, 2, nan, 3}, {.top_k = 3, .score = score}).expert, (Experts{4, 2, 1}));
    EXPECT_EQ(choose({nan, 1, nan, 0}, {.top_k = 4, .score = score}).expert, (Experts{1, 3, 0, 2}));
    EXPECT_EQ(choose(Numbers(4, nan), {.top_k = 3, .score = score}).expert, (Experts{0, 1, 2}));
  }
  EXPECT_EQ(choose({nan, nan, 0, 1, 2, nan}, {.top_k = 2, .num_groups = 3, .kept_groups = 1}).expert, (Experts{4, 5}));
}

TEST(LinearTopK, ANotANumberShowsInTheWeightsWhereTheFormulaSaysSo) {
  for (const bool renormalize : {false, true}) {
    for (const double weight : choose({1, nan, 2}, {.top_k = 2, .renormalize = renormalize}).weight) {
      EXPECT_TRUE(std::isnan(weight));  // softmax over all
    }
  }
  const auto sigmoid = choose({1, nan, 2}, {.top_k = 3, .score = Score::sigmoid});
  EXPECT_DOUBLE_EQ(sigmoid.weight[0], 1 / (1 + std::exp(-2.0)));
  EXPECT_TRUE(std::isnan(sigmoid.weight[2]));
  const auto of_chosen = choose({1, nan, 2}, {.top_k = 2, .score = Score::softmax_of_chosen});
  EXPECT_DOUBLE_EQ(of_chosen.weight[0], 1 / (1 + std::exp(-1.0)));
}

TEST(LinearTopK, NoCombinationOfSpecialLogitsLeadsOutOfRange) {
  const std::array<double, 5> specials = {nan, inf, -inf, 0, 1000};
  const Index num_experts = 4;
  const TopKOptions plain{.top_k = 3}, of_chosen{.top_k = 3, .score = Score::softmax_of_chosen, .renormalize = true},
      grouped{
          .top_k = 3, .score = Score::sigmoid, .renormalize = true, .num_groups = 2, .kept_groups = 2, .group_top = 2},
      one_group{.top_k = 2, .score = Score::softmax_of_chosen, .num_groups = 2, .group_top = 2};
  for (int code = 0; code < 625; ++code) {
    Numbers logits;
    for (int e = 0, rest = code; e < 4; ++e, rest /= 5) logits.push_back(specials[std::size_t(rest % 5)]);
    for (const TopKOptions& options : {plain, of_chosen, grouped, one_group}) {
      for (const Numbers& bias : {Numbers{}, Numbers{0.1, -0.1, 0.2, 0}}) {
        const auto routing = choose<float>(logits, options, bias);
        ASSERT_EQ(routing.size(), options.top_k);
        Experts sorted = routing.expert;
        std::sort(sorted.begin(), sorted.end());
        EXPECT_TRUE(std::adjacent_find(sorted.begin(), sorted.end()) == sorted.end()) << "combination " << code;
        EXPECT_GE(sorted.front(), 0);
        EXPECT_LT(sorted.back(), num_experts);
        const bool healthy = std::none_of(logits.begin(), logits.end(), [](double l) { return std::isnan(l); });
        EXPECT_TRUE(!healthy || as_vector(routing.weight).allFinite()) << "combination " << code;
      }
    }
  }
}

TEST(LinearTopK, AllExpertsOneExpertOneTokenAndNoToken) {
  const auto x = random_matrix<Matrix<double>>(6, 7, 1);
  const auto all = route(router_of_logits(6, {.top_k = 6}), x);
  EXPECT_TRUE(is_close(weights_of(all, 6, 7).colwise().sum().eval(), Eigen::RowVectorXd::Ones(7).eval()));

  const LinearTopK<double> single(random_matrix<Weight<double>>(1, 6, 2), {});
  const auto one = route(single, x);
  EXPECT_EQ(one.expert, Experts(7, 0));
  EXPECT_EQ(one.weight, Numbers(7, 1));

  EXPECT_EQ(route(router_of_logits(6, {.top_k = 2}), x.leftCols(1)).token, (Experts{0, 0}));

  const auto none = route(router_of_logits(6, {.top_k = 2}), x.leftCols(0));
  EXPECT_EQ(none.size(), 0);
  EXPECT_TRUE(none.expert.empty() && none.weight.empty() && none.logits.empty());
}

TEST(LinearTopK, RefusesWhatDoesNotFitWithTheNumbers) {
  const auto complaint = [](const TopKOptions& options, Index num_experts = 6, const Eigen::VectorXf& bias = {},
                            const Eigen::VectorXf& selection_bias = {}) {
    return test::error_of(
        [&] { LinearTopK<float>(Weight<float>::Zero(num_experts, 4), options, bias, selection_bias); });
  };
  EXPECT_EQ(complaint({}), "no error");
  EXPECT_EQ(complaint({}, 0), "LinearTopK: needs at least one expert");
  EXPECT_EQ(complaint({.top_k = 7}), "LinearTopK: top_k is 7, expected 1 to 6");
  EXPECT_EQ(complaint({.top_k = 0}), "LinearTopK: top_k is 0, expected 1 to 6");
  EXPECT_EQ(complaint({.num_groups = 4}), "LinearTopK: num_groups 4 does not divide num_experts 6");
  EXPECT_EQ(complaint({.num_groups = 7}), "LinearTopK: num_groups is 7, expected 1 to 6");
  EXPECT_EQ(complaint({.num_groups = 0}), "LinearTopK: num_groups is 0, expected 1 to 6");
  EXPECT_EQ(complaint({.num_groups = 3, .kept_groups = 4}), "LinearTopK: kept_groups is 4, expected 1 to 3");
  EXPECT_EQ(complaint({.num_groups = 3, .kept_groups = 0}), "LinearTopK: kept_groups is 0, expected 1 to 3");
  EXPECT_EQ(complaint({.top_k = 5, .num_groups = 3, .kept_groups = 2}), "LinearTopK: top_k is 5, expected 1 to 4");
  EXPECT_EQ(complaint({.num_groups = 3, .group_top = 3}), "LinearTopK: group_top is 3, expected 1 to 2");
  EXPECT_EQ(complaint({.norm = 0}), "LinearTopK: norm is 0.000000, expected more than 0");
  EXPECT_EQ(complaint({}, 6, Eigen::VectorXf::Zero(5)), "LinearTopK: bias.size() is 5, expected 6");
  EXPECT_EQ(complaint({}, 6, {}, Eigen::VectorXf::Zero(7)), "LinearTopK: selection_bias.size() is 7, expected 6");
}

}  // namespace moe::laws
