#include "laws/router_laws.hpp"

#include "moe/routers/linear_top_k.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <iterator>
#include <limits>
#include <string>
#include <utility>
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
  kolibri1,
  a_x_k2,
  kimi_linear_of_biased_scores,
  inkling,
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
    case Family::kolibri1:
      return {.top_k = 6, .score = Score::sigmoid, .bias_on = BiasOn::logits};
    case Family::a_x_k2:
      return {.top_k = 6,
              .score = Score::sigmoid,
              .renormalize = true,
              .epsilon = 1e-20,
              .scale = 2.5,
              .num_groups = 4,
              .kept_groups = 2,
              .group_top = 2,
              .rejected_groups = RejectedGroups::ranked_at_zero};
    case Family::kimi_linear_of_biased_scores:
      return {.top_k = 4, .score = Score::sigmoid, .scale = 2.446, .weigh_biased = true};
    case Family::inkling:
      return {.top_k = 6, .score = Score::sigmoid, .renormalize = true, .scale = 8, .always_chosen = 2};
    case Family::biased:
      return {.top_k = 3, .score = Score::softmax_of_chosen};
  }
  return {};
}

constexpr bool has_selection_bias(Family family) {
  return family == Family::ernie || family == Family::deepseek_v3 || family == Family::deepseek_v4 ||
         family == Family::kimi_k2 || family == Family::lfm2 || family == Family::kolibri1 ||
         family == Family::a_x_k2 || family == Family::kimi_linear_of_biased_scores || family == Family::inkling;
}

template <class Scalar>
LinearTopK<Scalar> make_router(Family family, Index d_model, unsigned seed = 3) {
  using Vector = typename LinearTopK<Scalar>::Vector;
  Random random(seed);
  const TopKOptions options = options_of(family);
  const Index num_experts = options.num_groups > 1 ? 16 : 11;
  auto weight = random.matrix<Weight<Scalar>>(num_experts, d_model, 3 / std::sqrt(double(d_model)));
  Vector bias = family == Family::biased ? random.matrix<Vector>(num_experts, 1) : Vector();
  Vector selection_bias;
  if (has_selection_bias(family)) selection_bias = random.matrix<Vector>(num_experts - options.always_chosen, 1, 0.3);
  if (family == Family::a_x_k2) selection_bias.array() -= Scalar(1);  // so that some rank below 0
  return {std::move(weight), options, std::move(bias), std::move(selection_bias)};
}

template <Family family, class Scalar>
struct LinearTopKs {
  static LinearTopK<Scalar> make(Index d_model) { return make_router<Scalar>(family, d_model); }
};

using AllFamilies =
    testing::Types<LinearTopKs<Family::olmoe, float>, LinearTopKs<Family::mixtral, float>,
                   LinearTopKs<Family::granite, double>, LinearTopKs<Family::deepseek_v2, float>,
                   LinearTopKs<Family::deepseek_v3, double>, LinearTopKs<Family::kimi_k2, float>,
                   LinearTopKs<Family::llama4, float>, LinearTopKs<Family::kolibri1, float>,
                   LinearTopKs<Family::a_x_k2, float>, LinearTopKs<Family::inkling, float>,
                   LinearTopKs<Family::kimi_linear_of_biased_scores, double>, LinearTopKs<Family::biased, float>>;
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
        Family::deepseek_v3, Family::deepseek_v4, Family::kimi_k2, Family::lfm2, Family::llama4, Family::kolibri1,
        Family::a_x_k2, Family::kimi_linear_of_biased_scores, Family::inkling, Family::biased}) {
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

/// The options that change what ranks and what weighs, with each other and with groups; among 12 experts to choose
/// from.
TEST(LinearTopK, EqualsItsNaiveTwinWhateverRanksAndWeighs) {
  Random random(6);
  const Numbers no_bias, bias = {0.1, -0.9, 0.2, -2, 0.4, -0.7, 0.3, -0.8, -1, 0.1, -0.4, -1.2};
  std::size_t rejected_but_chosen = 0, negative = 0;
  for (const Score score : {Score::softmax, Score::softmax_of_chosen, Score::sigmoid, Score::sqrt_softplus}) {
    for (const auto& [groups, kept, group_top] : {std::array<Index, 3>{1, 1, 1}, {3, 1, 2}, {4, 2, 1}, {12, 5, 2}}) {
      for (const RejectedGroups rejected : {RejectedGroups::never_chosen, RejectedGroups::ranked_at_zero}) {
        for (const auto& [bias_on, weigh_biased] :
             {std::pair{BiasOn::scores, false}, {BiasOn::scores, true}, {BiasOn::logits, false}}) {
          for (const Index always_chosen : {0, 1, 3}) {
            for (const bool renormalize : {false, true}) {
              const TopKOptions options{.top_k = kept == 5 ? 5 : 3,
                                        .score = score,
                                        .renormalize = renormalize,
                                        .epsilon = 0.01,
                                        .scale = 1.5,
                                        .num_groups = groups,
                                        .kept_groups = kept,
                                        .group_top = group_top,
                                        .rejected_groups = rejected,
                                        .bias_on = bias_on,
                                        .weigh_biased = weigh_biased,
                                        .always_chosen = always_chosen};
              const auto logits = random.matrix<Matrix<double>>(12 + always_chosen, 9, 3);
              for (const Numbers& selection_bias : {no_bias, bias}) {
                const auto router = router_of_logits(12 + always_chosen, options, selection_bias);
                ASSERT_EQ(router.top_k(), options.top_k + always_chosen);
                const auto routing = route(router, logits);
                ASSERT_EQ(routing.size(), router.top_k() * 9);
                for (Index t = 0; t < 9; ++t) {
                  const Numbers of_token(logits.col(t).begin(), logits.col(t).end());
                  TopKOptions strict = options;
                  strict.rejected_groups = RejectedGroups::never_chosen;
                  const auto expected = test::naive::choose(of_token, options, selection_bias),
                             otherwise = test::naive::choose(of_token, strict, selection_bias);
                  double largest = 1;
                  for (const auto& choice : expected) largest = std::max(largest, std::abs(choice.weight));
                  for (Index k = 0; k < router.top_k(); ++k) {
                    const auto r = std::size_t(t * router.top_k() + k);
                    const auto& [expert, weight] = expected[std::size_t(k)];
                    EXPECT_EQ(routing.expert[r], expert)
                        << "score " << int(score) << ", " << kept << " of " << groups << " groups, rejected "
                        << int(rejected) << ", bias on " << int(bias_on) << ", always " << always_chosen;
                    EXPECT_NEAR(routing.weight[r], weight, test::tolerance<double>(largest * largest));
                    rejected_but_chosen += expert != otherwise[std::size_t(k)].expert;
                    negative += weight < 0;
                  }
                }
              }
            }
          }
        }
      }
    }
  }
  EXPECT_GT(rejected_but_chosen, 100U);
  EXPECT_GT(negative, 100U);
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

TEST(LinearTopK, AnExpertOfARejectedGroupThatRanksAtZeroWinsOverNegativeScores) {
  // score + bias as before; the last group is rejected, and its experts rank at 0.
  const Numbers bias = {-1.4, -1.5, -0.9, -1.0, -1.6, -1.7};
  TopKOptions options{.top_k = 3,
                      .score = Score::sigmoid,
                      .num_groups = 3,
                      .kept_groups = 2,
                      .group_top = 2,
                      .rejected_groups = RejectedGroups::ranked_at_zero};
  const auto routing = choose(Numbers(6, 0), options, bias);
  EXPECT_EQ(routing.expert, (Experts{4, 5, 2}));
  EXPECT_EQ(routing.weight, Numbers(3, 0.5));  // their own scores, not 0
  options.top_k = 2;
  options.kept_groups = 1;
  EXPECT_EQ(choose(Numbers(6, 0), options, {-1.4, -1.5, 0, -0.25, -1.6, -1.7}).expert, (Experts{2, 3}));
}

std::vector<Index> selected(const std::vector<float>& ranks, Index k) {
  std::vector<detail::RankedItem<float>> all;
  for (std::size_t i = 0; i < ranks.size(); ++i) all.push_back({ranks[i], Index(i)});
  detail::select_as_torch(all.data(), k, Index(all.size()));
  std::vector<Index> front;
  for (Index i = 0; i < k; ++i) front.push_back(all[std::size_t(i)].item);
  return front;
}

TEST(SelectAsTorch, TakesTheEqualsThatTorchTook) {
  // What torch.topk of torch 2.13 gave an A.X K2 block of four groups on a CPU.
  EXPECT_EQ(selected({-0.108F, -0.163F, 0, 0, 0, 0, -0.251F, 0.091F}, 2), (Experts{7, 4}));
  EXPECT_EQ(selected({0, 0, -0.013F, -0.011F, 0, 0, 0.165F, -0.222F}, 2), (Experts{6, 4}));
  EXPECT_EQ(selected({0, 0, -0.004F, -0.099F, -0.125F, 0.09F, 0, 0}, 2), (Experts{5, 6}));
  EXPECT_EQ(selected({0.247F, -0.303F, 0.121F, -0.325F, 0, 0, 0, 0}, 2), (Experts{0, 2}));
}

#ifdef __GLIBCXX__
using Items = std::vector<detail::RankedItem<float>>;

Experts numbers_of(const Items& items, Index count) {
  Experts numbers;
  for (Index i = 0; i < count; ++i) numbers.push_back(items[std::size_t(i)].item);
  return numbers;
}

void expect_as_libstdcxx(const Items& items, Index k) {
  const auto before = [](const auto& a, const auto& b) { return a.rank > b.rank; };
  const Index n = std::ssize(items);
  Items ours = items, theirs = items;
  detail::SelectAsLibstdcxx<float>::nth_element(ours.data(), k, n);
  std::nth_element(theirs.begin(), theirs.begin() + (k - 1), theirs.end(), before);
  EXPECT_EQ(numbers_of(ours, n), numbers_of(theirs, n)) << k << " of " << n;
  ours = theirs = items;
  detail::SelectAsLibstdcxx<float>::heap_select(ours.data(), k, n);
  std::partial_sort(theirs.begin(), theirs.begin() + k, theirs.end(), before);
  auto front = numbers_of(ours, k), their_front = numbers_of(theirs, k);
  std::sort(front.begin(), front.end());
  std::sort(their_front.begin(), their_front.end());
  EXPECT_EQ(front, their_front) << k << " of " << n;
}

TEST(SelectAsTorch, LeavesEverythingWhereLibstdcxxDoes) {
  Random random(7);
  for (const Index n : {1, 2, 3, 4, 5, 8, 16, 33, 64, 100, 128, 257, 400}) {
    for (const Index kinds : {1, 2, 5, 1000}) {  // how many different numbers there are
      for (Index k = 1; k <= n; k += 1 + k / 4) {
        Items items;
        for (Index i = 0; i < n; ++i) items.push_back({float(random.below(kinds)), i});
        expect_as_libstdcxx(items, k);
      }
    }
  }
}

/// Musser's numbers, of which the median of three is among the worst, so that the steps run out.
TEST(SelectAsTorch, LeavesEverythingWhereLibstdcxxDoesOfTheWorstNumbers) {
  for (const Index half : {8, 50, 200}) {
    Items items;
    for (Index i = 1; i <= half; ++i) items.push_back({-float(i % 2 == 1 ? i : half + i - 1), i - 1});
    for (Index i = 1; i <= half; ++i) items.push_back({-float(2 * i), half + i - 1});
    for (const Index k : {Index(1), half / 2, half, 2 * half}) expect_as_libstdcxx(items, k);
  }
}
#endif

TEST(LinearTopK, AGroupOfFewerExpertsThanCountHasTheSumOfThem) {
  const TopKOptions options{.top_k = 2, .score = Score::sigmoid, .num_groups = 4, .kept_groups = 2, .group_top = 2};
  EXPECT_EQ(choose({1, 3, 2, 0}, options).expert, (Experts{1, 2}));
}

TEST(LinearTopK, ABiasOnLogitsChoosesByThemThoughScoresAreSaturated) {
  const TopKOptions options{.top_k = 2, .score = Score::sigmoid, .bias_on = BiasOn::logits};
  const auto routing = choose({800, 900, 850, 0}, options, {0, -100, 0, 801});
  EXPECT_EQ(routing.expert, (Experts{2, 3}));
  EXPECT_EQ(routing.weight, (Numbers{1, 0.5}));
}

TEST(LinearTopK, ExpertsThatAreAlwaysChosenShareTheWeightsOfAToken) {
  const TopKOptions options{.top_k = 1, .score = Score::sigmoid, .renormalize = true, .scale = 2, .always_chosen = 2};
  const auto routing = choose({0, 1, -50, -inf}, options, {0.3, 0});
  EXPECT_EQ(routing.expert, (Experts{0, 2, 3}));  // the bias chooses 0, and the last two are there whatever they score
  EXPECT_NEAR(routing.weight[0], 2, 1e-12);
  EXPECT_EQ(routing.weight[2], 0);
  const auto alike = choose(Numbers(4, 0.7), options);
  for (const double weight : alike.weight) EXPECT_DOUBLE_EQ(weight, 2.0 / 3);
  const auto sick = choose({0, 1, 2, nan}, options);
  EXPECT_EQ(sick.expert, (Experts{1, 2, 3}));
  for (const double weight : sick.weight) EXPECT_TRUE(std::isnan(weight));
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
  EXPECT_EQ(complaint({.num_groups = 3, .group_top = 3}), "no error");
  EXPECT_EQ(complaint({.num_groups = 3, .group_top = 0}), "LinearTopK: group_top is 0, expected 1 or more");
  const auto at_zero = RejectedGroups::ranked_at_zero;
  EXPECT_EQ(complaint({.top_k = 6, .num_groups = 3, .rejected_groups = at_zero}), "no error");
  EXPECT_EQ(complaint({.top_k = 7, .num_groups = 3, .rejected_groups = at_zero}),
            "LinearTopK: top_k is 7, expected 1 to 6");
  EXPECT_EQ(complaint({.top_k = 5, .always_chosen = 1}), "no error");
  EXPECT_EQ(complaint({.top_k = 6, .always_chosen = 1}), "LinearTopK: top_k is 6, expected 1 to 5");
  EXPECT_EQ(complaint({.always_chosen = 6}), "LinearTopK: always_chosen is 6, expected 0 to 5");
  EXPECT_EQ(complaint({.always_chosen = -1}), "LinearTopK: always_chosen is -1, expected 0 to 5");
  EXPECT_EQ(complaint({.num_groups = 3, .always_chosen = 1}),
            "LinearTopK: num_groups 3 does not divide num_experts - always_chosen 5");
  EXPECT_EQ(complaint({.always_chosen = 2}, 6, {}, Eigen::VectorXf::Zero(6)),
            "LinearTopK: selection_bias.size() is 6, expected 4");
  EXPECT_EQ(complaint({.bias_on = BiasOn::logits, .weigh_biased = true}),
            "LinearTopK: weigh_biased goes with BiasOn::scores; for weights of biased logits, add the bias to the "
            "logits");
  EXPECT_EQ(complaint({.renormalize = true, .norm = 3, .weigh_biased = true}),
            "LinearTopK: norm is 3.000000, expected 1 or 2 beside weigh_biased");
  EXPECT_EQ(complaint({.scale = nan}), "LinearTopK: scale is nan, expected -3.40282e+38 to 3.40282e+38");
  EXPECT_EQ(complaint({.scale = inf}), "LinearTopK: scale is inf, expected -3.40282e+38 to 3.40282e+38");
  EXPECT_EQ(complaint({.scale = -1}), "no error");
  EXPECT_EQ(complaint({.epsilon = -1}), "LinearTopK: epsilon is -1, expected 0 to 3.40282e+38");
  EXPECT_EQ(complaint({.epsilon = nan}), "LinearTopK: epsilon is nan, expected 0 to 3.40282e+38");
  EXPECT_EQ(complaint({.floor = inf}), "LinearTopK: floor is inf, expected 0 to 3.40282e+38");
  EXPECT_EQ(complaint({.norm = 0}), "LinearTopK: norm is 0.000000, expected more than 0");
  EXPECT_EQ(complaint({}, 6, Eigen::VectorXf::Zero(5)), "LinearTopK: bias.size() is 5, expected 6");
  EXPECT_EQ(complaint({}, 6, {}, Eigen::VectorXf::Zero(7)), "LinearTopK: selection_bias.size() is 7, expected 6");
}

}  // namespace moe::laws
