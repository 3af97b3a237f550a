#include "allocations.hpp"

#include "moe/losses/bias_update.hpp"
#include "moe/losses/importance.hpp"
#include "moe/losses/load_balancing.hpp"
#include "moe/losses/smooth_load.hpp"
#include "moe/losses/variation.hpp"
#include "moe/losses/z_loss.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "compare.hpp"
#include "errors.hpp"
#include "moe/routers/top_k.hpp"
#include "moe/runtime/executors/serial.hpp"
#include "moe/runtime/workers.hpp"
#include "random.hpp"

namespace {

using namespace moe;
using namespace moe::test;

using Mask = std::vector<std::uint8_t>;

constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr float not_a_number = std::numeric_limits<float>::quiet_NaN();
constexpr float float_infinity = std::numeric_limits<float>::infinity();

const std::vector<Index> token_counts = {0, 1, 7, 33};
const std::vector<Index> expert_counts = {1, 2, 8, 17};

/// Losses are sums in double, whatever the logits are.
testing::AssertionResult is_near(double actual, double expected) {
  return is_close(Eigen::MatrixXd::Constant(1, 1, actual), Eigen::MatrixXd::Constant(1, 1, expected));
}

Routing<float> route(const Matrix<float>& logits, const TopKOptions& options, const Eigen::VectorXf& bias = {}) {
  std::vector<Scratch> scratch;
  const Serial serial;
  Workers workers(serial, scratch);
  Routing<float> routing;
  make_logits(logits.rows(), logits.cols(), routing) = logits;
  TopKChoice<float>(logits.rows(), options, bias).route(logits, routing, workers);
  return routing;
}

/// A batch of tokens that were sent somewhere.
struct Batch {
  Matrix<float> logits;
  Routing<float> routing;

  Index num_experts() const { return logits.rows(); }
  Index num_tokens() const { return logits.cols(); }

  static Batch make(Matrix<float> logits, Index top_k) {
    auto routing = route(logits, {.top_k = top_k});
    return {std::move(logits), std::move(routing)};
  }
  static Batch random(Index num_experts, Index num_tokens, Index top_k, unsigned seed) {
    return make(random_matrix<Matrix<float>>(num_experts, num_tokens, seed, 3), top_k);
  }

  /// About one route in three is dropped.
  void drop_some(unsigned seed) {
    Random random(seed);
    for (Index r = 0; r < routing.size(); ++r) {
      if (random.below(3) == 0) routing.drop(r);
    }
  }
  void drop_all() {
    for (Index r = 0; r < routing.size(); ++r) routing.drop(r);
  }

  ExpertShares shares(const LoadBalancingOptions& options = {}) const {
    return measure_shares(routing, num_tokens(), num_experts(), options);
  }
  double loss(const LoadBalancingOptions& options = {}) const { return load_balancing_loss(shares(options)); }
};

Mask random_mask(Index num_tokens, unsigned seed) {
  Random random(seed);
  Mask mask(static_cast<std::size_t>(num_tokens));
  for (auto& counts : mask) counts = random.below(4) != 0;
  return mask;
}

namespace naive {

/// The probabilities of one token.
std::vector<double> probabilities(const Matrix<float>& logits, Index t, Score score) {
  std::vector<double> p;
  for (Index e = 0; e < logits.rows(); ++e) {
    const auto l = double(logits(e, t));
    if (score == Score::sigmoid) {
      p.push_back(1 / (1 + std::exp(-l)));
    } else if (score == Score::sqrt_softplus) {
      p.push_back(std::sqrt(std::log(1 + std::exp(l))));
    } else {
      p.push_back(std::exp(l));
    }
  }
  const double sum = std::accumulate(p.begin(), p.end(), 0.0);
  for (double& one : p) one /= sum;
  return p;
}

/// E · Σ f_e · P_e of tokens [first, last), for top_k routes a token, side by side.
double balance_of_sequence(const Batch& batch, Index top_k, Index first, Index last,
                           const LoadBalancingOptions& options, bool& any_token) {
  const Index counted = options.choices == 0 ? top_k : std::min(top_k, options.choices);
  std::vector<double> f(std::size_t(batch.num_experts())), p(f.size());
  double tokens = 0;
  for (Index t = first; t < last; ++t) {
    if (!options.mask.empty() && options.mask[std::size_t(t)] == 0) continue;
    ++tokens;
    const auto of_token = probabilities(batch.logits, t, options.score);
    for (std::size_t e = 0; e < p.size(); ++e) p[e] += of_token[e];
    for (Index k = 0; k < counted; ++k) {
      const auto r = std::size_t(t * top_k + k);
      const bool dropped = !batch.routing.dropped.empty() && batch.routing.dropped[r] == 1;
      if (options.count_dropped || !dropped) f[std::size_t(batch.routing.expert[r])] += 1;
    }
  }
  any_token = tokens > 0;
  double sum = 0;
  for (std::size_t e = 0; e < p.size() && any_token; ++e) {
    sum += f[e] / (options.divide_by_k ? tokens * double(counted) : tokens) * (p[e] / tokens);
  }
  return sum * double(batch.num_experts());
}

double balance(const Batch& batch, Index top_k, const LoadBalancingOptions& options) {
  const Index length = options.sequence_length == 0 ? batch.num_tokens() : options.sequence_length;
  double sum = 0;
  Index sequences = 0;
  for (Index first = 0; first < batch.num_tokens(); first += length) {
    bool any_token = false;
    sum += balance_of_sequence(batch, top_k, first, first + length, options, any_token);
    if (any_token) ++sequences;
  }
  return sequences == 0 ? 0 : sum / double(sequences);
}

double z(const Matrix<float>& logits, const Mask& mask) {
  double sum = 0, tokens = 0;
  for (Index t = 0; t < logits.cols(); ++t) {
    if (!mask.empty() && mask[std::size_t(t)] == 0) continue;
    double exponentials = 0;
    for (Index e = 0; e < logits.rows(); ++e) exponentials += std::exp(double(logits(e, t)));
    sum += std::pow(std::log(exponentials), 2);
    tokens += 1;
  }
  return tokens == 0 ? 0 : sum / tokens;
}

double variation(const std::vector<double>& values, bool sample, double epsilon) {
  const auto n = double(values.size());
  double mean = 0, variance = 0;
  for (const double v : values) mean += v / n;
  for (const double v : values) variance += (v - mean) * (v - mean) / (sample ? n - 1 : n);
  return variance / (mean * mean + epsilon);
}

double normal_cdf(double x) { return 0.5 * (1 + std::erf(x / std::sqrt(2.0))); }

/// What expert e has to beat: the top_k-th largest of the others, or of all.
double threshold(const Matrix<float>& ranked, Index t, Index e, Index top_k, bool of_others) {
  std::vector<double> rivals;
  for (Index i = 0; i < ranked.rows(); ++i) {
    if (i != e || !of_others) rivals.push_back(double(ranked(i, t)));
  }
  if (top_k > Index(rivals.size())) return -infinity;
  std::sort(rivals.begin(), rivals.end(), std::greater<>());
  return rivals[std::size_t(top_k - 1)];
}

Eigen::VectorXd smooth_load(const Matrix<float>& clean, const Matrix<float>& noisy, const Matrix<float>& stddev,
                            Index top_k, bool of_others, const Mask& mask) {
  Eigen::VectorXd load = Eigen::VectorXd::Zero(clean.rows());
  for (Index t = 0; t < clean.cols(); ++t) {
    if (!mask.empty() && mask[std::size_t(t)] == 0) continue;
    for (Index e = 0; e < clean.rows(); ++e) {
      const double above = double(clean(e, t)) - threshold(noisy, t, e, top_k, of_others);
      load(e) += normal_cdf(above / double(stddev(e, t)));
    }
  }
  return load;
}

}  // namespace naive

/// All that the options can say of a batch of so many tokens.
std::vector<LoadBalancingOptions> all_options(Index num_tokens, const Mask& mask) {
  std::vector<LoadBalancingOptions> all;
  for (const Score score : {Score::softmax, Score::softmax_of_chosen, Score::sigmoid, Score::sqrt_softplus}) {
    for (const Index choices : {0, 1, 2}) {
      for (const bool divide_by_k : {true, false}) {
        for (const bool count_dropped : {true, false}) {
          for (const Index length : {Index(0), Index(1), Index(11), num_tokens}) {
            if (length > 0 && num_tokens % length != 0) continue;
            for (const TokenMask counting : {TokenMask(), TokenMask(mask)}) {
              all.push_back({score, choices, divide_by_k, count_dropped, length, counting});
            }
          }
        }
      }
    }
  }
  return all;
}

TEST(LoadBalancing, IsTheSumOfFractionsTimesProbabilities) {
  for (const Index num_experts : expert_counts) {
    for (const Index num_tokens : token_counts) {
      for (const Index top_k : {Index(1), std::min<Index>(3, num_experts), num_experts}) {
        auto batch = Batch::random(num_experts, num_tokens, top_k, 1);
        batch.drop_some(2);
        const Mask mask = random_mask(num_tokens, 3);
        for (const auto& options : all_options(num_tokens, mask)) {
          ASSERT_TRUE(is_near(batch.loss(options), naive::balance(batch, top_k, options)))
              << num_experts << " experts, " << num_tokens << " tokens, top " << top_k << ", choices "
              << options.choices << ", sequences of " << options.sequence_length;
        }
      }
    }
  }
}

TEST(LoadBalancing, TakesLogitsInDouble) {
  const auto batch = Batch::random(8, 33, 2, 1);
  Routing<double> routing;
  routing.token = batch.routing.token;
  routing.expert = batch.routing.expert;
  routing.weight.assign(batch.routing.weight.begin(), batch.routing.weight.end());
  routing.logits.assign(batch.routing.logits.begin(), batch.routing.logits.end());
  EXPECT_EQ(load_balancing_loss(measure_shares(routing, 33, 8)), batch.loss());
}

TEST(LoadBalancing, EvenProbabilitiesGiveOneWhereverTokensGo) {
  auto batch = Batch::random(8, 33, 3, 5);
  std::fill(batch.routing.logits.begin(), batch.routing.logits.end(), 0.5f);
  for (const Score score : {Score::softmax, Score::sigmoid, Score::sqrt_softplus}) {
    EXPECT_TRUE(is_near(batch.loss({.score = score}), 1));
    EXPECT_TRUE(is_near(batch.loss({.score = score, .divide_by_k = false}), 3));
    EXPECT_TRUE(is_near(batch.loss({.score = score, .choices = 1, .sequence_length = 11}), 1));
  }
}

TEST(LoadBalancing, EvenRoutesGiveOneWhateverTheProbabilities) {
  EXPECT_TRUE(is_near(Batch::random(8, 33, 8, 5).loss(), 1));  // each token to each expert
  auto batch = Batch::random(8, 16, 1, 6);
  for (Index t = 0; t < 16; ++t) batch.routing.expert[std::size_t(t)] = t % 8;
  EXPECT_TRUE(is_near(batch.loss(), 1));
}

TEST(LoadBalancing, OneExpertThatTakesAllCostsTheNumberOfExperts) {
  Matrix<float> logits = Matrix<float>::Zero(8, 20);
  logits.row(5).setConstant(100);
  EXPECT_TRUE(is_near(Batch::make(logits, 1).loss(), 8));
}

TEST(LoadBalancing, NumberingExpertsOtherwiseChangesNothing) {
  const std::vector<Index> number = {3, 7, 0, 6, 1, 5, 2, 4};
  auto batch = Batch::random(8, 33, 3, 7), other = batch;
  batch.drop_some(8);
  other.drop_some(8);
  for (Index e = 0; e < 8; ++e) other.logits.row(number[std::size_t(e)]) = batch.logits.row(e);
  make_logits(8, 33, other.routing) = other.logits;
  for (Index& e : other.routing.expert) e = number[std::size_t(e)];
  const Mask mask = random_mask(33, 9);
  for (const auto& options : all_options(33, mask)) EXPECT_TRUE(is_near(other.loss(options), batch.loss(options)));
}

TEST(LoadBalancing, SharesOfPartsAddUpToThoseOfTheWhole) {
  const Mask mask = random_mask(33, 3);
  const auto logits = random_matrix<Matrix<float>>(8, 33, 4, 3);
  for (const bool divide_by_k : {true, false}) {
    for (const auto& [score, choices] : {std::pair(Score::softmax, 1), std::pair(Score::sigmoid, 0)}) {
      ExpertShares sum;  // of nothing
      for (const auto& [first, count] : {std::pair<Index, Index>(0, 12), {12, 0}, {12, 21}}) {
        const TokenMask part = TokenMask(mask).subspan(std::size_t(first), std::size_t(count));
        sum += Batch::make(logits.middleCols(first, count), 2)
                   .shares({.score = score, .choices = choices, .divide_by_k = divide_by_k, .mask = part});
      }
      const auto whole =
          Batch::make(logits, 2).shares({.score = score, .choices = choices, .divide_by_k = divide_by_k, .mask = mask});
      EXPECT_EQ(sum.tokens(0), whole.tokens(0));
      EXPECT_EQ(sum.out_of(0), whole.out_of(0));
      EXPECT_TRUE((sum.routes == whole.routes).all());
      EXPECT_TRUE(is_close(sum.probability, whole.probability));
      EXPECT_TRUE(is_near(load_balancing_loss(sum), load_balancing_loss(whole)));
    }
  }
}

TEST(LoadBalancing, SharesOfOtherSizesDoNotAddUp) {
  auto shares = Batch::random(8, 6, 2, 1).shares();
  EXPECT_EQ(error_of([&] { shares += Batch::random(7, 6, 2, 1).shares(); }),
            "ExpertShares: other.num_experts() is 7, expected 8");
  EXPECT_EQ(error_of([&] { shares += Batch::random(8, 6, 2, 1).shares({.sequence_length = 3}); }),
            "ExpertShares: other.num_sequences() is 2, expected 1");
}

TEST(LoadBalancing, SlopeIsTheDerivativeOfTheLoss) {
  const Mask mask = random_mask(33, 3);
  const auto shares = Batch::random(8, 33, 2, 11).shares({.sequence_length = 11, .mask = mask});
  for (Index s = 0; s < 3; ++s) {
    for (Index e = 0; e < 8; ++e) {
      auto more = shares;
      more.probability(e, s) += 1;  // the loss is linear in it
      EXPECT_TRUE(is_near(load_balancing_loss(more) - load_balancing_loss(shares),
                          load_balancing_slope(shares, s) * shares.routes(e, s)));
    }
  }
}

TEST(LoadBalancing, WhatIsMaskedCouldAsWellBeAbsent) {
  const auto logits = random_matrix<Matrix<float>>(8, 20, 12, 3);
  Matrix<float> padded = Matrix<float>::Constant(8, 30, not_a_number);
  padded.leftCols(20) = logits;
  Mask mask(30, 1);
  std::fill(mask.begin() + 20, mask.end(), std::uint8_t(0));
  const auto alone = Batch::make(logits, 2), with_padding = Batch::make(padded, 2);
  EXPECT_EQ(with_padding.loss({.mask = mask}), alone.loss());
  EXPECT_EQ(with_padding.loss({.sequence_length = 10, .mask = mask}), alone.loss({.sequence_length = 10}));
  EXPECT_EQ(z_loss(padded, mask), z_loss(logits));
}

TEST(LoadBalancing, IsZeroWhereNothingCounts) {
  EXPECT_EQ(Batch::random(8, 0, 2, 1).loss(), 0);
  EXPECT_EQ(Batch::random(8, 0, 2, 1).loss({.sequence_length = 5}), 0);
  auto batch = Batch::random(8, 7, 2, 1);
  EXPECT_EQ(batch.loss({.mask = Mask(7, 0)}), 0);
  EXPECT_EQ(batch.loss({.sequence_length = 7, .mask = Mask(7, 0)}), 0);
  batch.drop_all();
  EXPECT_EQ(batch.loss({.count_dropped = false}), 0);
  EXPECT_GT(batch.loss(), 0);
  for (auto* list : {&batch.routing.token, &batch.routing.expert}) list->clear();
  batch.routing.weight.clear();
  batch.routing.dropped.clear();
  EXPECT_EQ(batch.loss(), 0);
}

TEST(LoadBalancing, OneExpertIsBalanced) {
  for (const Score score : {Score::softmax, Score::sigmoid, Score::sqrt_softplus}) {
    EXPECT_TRUE(is_near(Batch::random(1, 7, 1, 1).loss({.score = score}), 1));
  }
}

TEST(LoadBalancing, NotANumberShows) {
  auto batch = Batch::random(8, 7, 2, 1);
  batch.routing.logits[11] = not_a_number;
  for (const Score score : {Score::softmax, Score::sigmoid, Score::sqrt_softplus}) {
    EXPECT_TRUE(std::isnan(batch.loss({.score = score})));
  }
  batch.drop_all();
  EXPECT_TRUE(std::isnan(batch.loss({.count_dropped = false})));
}

TEST(LoadBalancing, InfiniteLogitsAreLimits) {
  auto logits = random_matrix<Matrix<float>>(8, 7, 1, 3);
  logits.row(2).setConstant(-float_infinity);
  logits.col(3).setConstant(-float_infinity);
  logits(6, 5) = float_infinity;
  const auto batch = Batch::make(logits, 2);
  Matrix<float> finite = logits.cwiseMax(-1000.0f).cwiseMin(1000.0f);  // whose exponentials are 0 in double
  auto limit = Batch{finite, batch.routing};
  make_logits(8, 7, limit.routing) = finite;
  for (const Score score : {Score::softmax, Score::sigmoid}) {
    const auto with_limits = [&](const Batch& of) {
      return of.loss({.score = score, .mask = Mask{1, 1, 1, 0, 1, 1, 1}});
    };
    EXPECT_TRUE(std::isfinite(batch.loss({.score = score})));
    EXPECT_TRUE(is_near(with_limits(batch), with_limits(limit)));
  }
  EXPECT_TRUE(is_near(batch.loss(), limit.loss()));  // all −∞ share alike
}

TEST(LoadBalancing, RefusesWhatDoesNotFit) {
  auto batch = Batch::random(8, 6, 2, 1);
  EXPECT_EQ(error_of([&] { batch.loss({.sequence_length = 4}); }),
            "load_balancing: 6 tokens are not whole sequences of 4");
  EXPECT_EQ(error_of([&] { batch.loss({.mask = Mask(5, 1)}); }), "load_balancing: mask.size() is 5, expected 6");
  EXPECT_NE(error_of([&] { batch.loss({.sequence_length = -1}); }), "no error");
  EXPECT_NE(error_of([&] { batch.loss({.choices = -1}); }), "no error");
  EXPECT_EQ(error_of([&] { measure_shares(Routing<float>(), 0, 0); }), "load_balancing: needs at least one expert");
  batch.routing.logits.pop_back();
  EXPECT_EQ(error_of([&] { batch.loss(); }), "load_balancing: routing.logits.size() is 47, expected 48");
  batch.routing.expert[3] = 8;
  EXPECT_EQ(error_of([&] { batch.loss(); }), "Routing: route 3 sends token 1 of 6 to expert 8 of 8");
}

TEST(ZLoss, IsTheMeanSquareOfLogSumExp) {
  for (const Index num_experts : expert_counts) {
    for (const Index num_tokens : token_counts) {
      const auto logits = random_matrix<Matrix<float>>(num_experts, num_tokens, 21, 5);
      const Mask mask = random_mask(num_tokens, 22);
      EXPECT_TRUE(is_near(z_loss(logits), naive::z(logits, {})));
      EXPECT_TRUE(is_near(z_loss(logits, mask), naive::z(logits, mask)));
      EXPECT_TRUE(is_near(z_loss(logits.cast<double>().eval()), naive::z(logits, {})));
    }
  }
}

TEST(ZLoss, ShiftingAllLogitsByCAndByMinusCAddsTwiceCSquared) {
  const Matrix<double> logits = random_matrix<Matrix<double>>(8, 33, 23, 5);
  for (const double c : {0.25, 3.0, 40.0}) {
    const double up = z_loss((logits.array() + c).matrix()), down = z_loss((logits.array() - c).matrix());
    EXPECT_TRUE(is_near((up + down) / 2, z_loss(logits) + c * c));
  }
}

TEST(ZLoss, DoesNotOverflow) {
  for (const float large : {1e4f, -1e4f}) {
    EXPECT_TRUE(is_near(z_loss(Matrix<float>::Constant(8, 3, large)), std::pow(double(large) + std::log(8.0), 2)));
  }
}

TEST(ZLoss, IsDefinedForAllLogits) {
  const Matrix<float> logits = random_matrix<Matrix<float>>(8, 3, 24);
  EXPECT_EQ(z_loss(Matrix<float>(8, 0)), 0);
  EXPECT_EQ(z_loss(logits, Mask(3, 0)), 0);
  Matrix<float> poisoned = logits;
  poisoned.col(1).tail(7).setConstant(-float_infinity);
  Matrix<float> rest = logits.col(1).head(1);
  EXPECT_TRUE(is_near(z_loss(poisoned, Mask{0, 1, 0}), z_loss(rest)));
  for (const float poison : {float_infinity, -float_infinity}) {
    poisoned.col(1).setConstant(poison);
    EXPECT_EQ(z_loss(poisoned), infinity);
  }
  poisoned(4, 1) = not_a_number;
  EXPECT_TRUE(std::isnan(z_loss(poisoned)));
  EXPECT_TRUE(is_near(z_loss(poisoned, Mask{1, 0, 1}), z_loss(logits, Mask{1, 0, 1})));
  EXPECT_EQ(error_of([&] { z_loss(logits, Mask(2, 1)); }), "z_loss: mask.size() is 2, expected 3");
}

TEST(SquaredVariation, IsVarianceOverSquaredMean) {
  for (const Index n : {2, 8, 17}) {
    const auto values = random_matrix<Eigen::VectorXd>(n, 1, 31, 2);
    const std::vector<double> list(values.begin(), values.end());
    for (const bool sample : {true, false}) {
      for (const double epsilon : {0.0, 1e-10, 0.5}) {
        EXPECT_TRUE(is_near(squared_variation(values, {.sample = sample, .epsilon = epsilon}),
                            naive::variation(list, sample, epsilon)));
      }
    }
  }
  EXPECT_EQ(squared_variation(Eigen::Array2d(1, 3), {.sample = false, .epsilon = 0}), 0.25);
  EXPECT_EQ(squared_variation(Eigen::Array2i(1, 3), {.sample = true, .epsilon = 0}), 0.5);
}

TEST(SquaredVariation, DoesNotDependOnScale) {
  const auto values = random_matrix<Eigen::ArrayXd>(17, 1, 32);
  EXPECT_EQ(squared_variation(8 * values, {.epsilon = 0}), squared_variation(values, {.epsilon = 0}));
}

TEST(SquaredVariation, IsZeroWhereNothingVaries) {
  for (const double epsilon : {0.0, 1e-10}) {
    EXPECT_EQ(squared_variation(Eigen::ArrayXd::Constant(8, 3.25), {.epsilon = epsilon}), 0);
    EXPECT_EQ(squared_variation(Eigen::ArrayXd::Zero(8), {.epsilon = epsilon}), 0);
    EXPECT_EQ(squared_variation(Eigen::ArrayXd::Constant(1, 3.25), {.epsilon = epsilon}), 0);
    EXPECT_EQ(squared_variation(Eigen::ArrayXd(0), {.epsilon = epsilon}), 0);
  }
}

TEST(SquaredVariation, NotANumberShows) {
  for (const Index n : {1, 8}) {
    Eigen::ArrayXd values = Eigen::ArrayXd::Ones(n);
    values(n - 1) = double(not_a_number);
    EXPECT_TRUE(std::isnan(squared_variation(values)));
  }
}

TEST(Importance, IsTheSumOfTheWeightsThatAreApplied) {
  for (const Index num_experts : expert_counts) {
    for (const Index num_tokens : token_counts) {
      auto batch = Batch::random(num_experts, num_tokens, std::min<Index>(2, num_experts), 41);
      batch.drop_some(42);
      const Mask mask = random_mask(num_tokens, 43);
      Eigen::VectorXd expected = Eigen::VectorXd::Zero(num_experts), of_counted = expected;
      for (std::size_t r = 0; r < batch.routing.weight.size(); ++r) {
        if (!batch.routing.dropped.empty() && batch.routing.dropped[r] == 1) continue;
        const auto weight = double(batch.routing.weight[r]);
        expected(batch.routing.expert[r]) += weight;
        if (mask[std::size_t(batch.routing.token[r])] == 1) of_counted(batch.routing.expert[r]) += weight;
      }
      Eigen::ArrayXd importance;
      measure_importance(batch.routing, num_tokens, num_experts, importance);
      EXPECT_TRUE(is_close(importance.matrix(), expected));
      measure_importance(batch.routing, num_tokens, num_experts, importance, mask);
      EXPECT_TRUE(is_close(importance.matrix(), of_counted));
    }
  }
}

TEST(Importance, IsZeroWhereNothingIsAppliedAndNotANumberShows) {
  auto batch = Batch::random(8, 7, 2, 41);
  batch.routing.weight[4] = not_a_number;
  Eigen::ArrayXd importance;
  measure_importance(batch.routing, 7, 8, importance);
  EXPECT_TRUE(std::isnan(importance(batch.routing.expert[4])));
  EXPECT_EQ(importance.isNaN().count(), 1);
  measure_importance(batch.routing, 7, 8, importance, Mask(7, 0));
  EXPECT_TRUE((importance == 0).all());
  batch.drop_all();
  measure_importance(batch.routing, 7, 8, importance);
  EXPECT_TRUE((importance == 0).all());
  EXPECT_EQ(error_of([&] { measure_importance(batch.routing, 7, 8, importance, Mask(6, 1)); }),
            "measure_importance: mask.size() is 6, expected 7");
  EXPECT_NE(error_of([&] { measure_importance(batch.routing, 6, 8, importance); }), "no error");
}

/// Logits, the noise in them, and the same added up.
struct Noisy {
  Matrix<float> clean, stddev, noisy;

  Noisy(Index num_experts, Index num_tokens, unsigned seed) {
    Random random(seed);
    clean = random.matrix<Matrix<float>>(num_experts, num_tokens, 2);
    stddev = random.matrix<Matrix<float>>(num_experts, num_tokens).cwiseAbs().array() + 0.1f;
    noisy = clean + stddev.cwiseProduct(random.matrix<Matrix<float>>(num_experts, num_tokens, 2));
  }

  Eigen::VectorXd load(const SmoothLoadOptions& options) const {
    Eigen::ArrayXd load;
    Scratch scratch;
    measure_smooth_load<float>({.clean = clean, .noisy = noisy, .ranked = noisy, .stddev = stddev}, options, load,
                               scratch);
    return load;
  }
};

TEST(SmoothLoad, IsTheProbabilityOfBeatingTheBestOthers) {
  for (const Index num_experts : expert_counts) {
    for (const Index num_tokens : token_counts) {
      const Noisy batch(num_experts, num_tokens, 51);
      const Mask mask = random_mask(num_tokens, 52);
      for (Index top_k = 1; top_k <= num_experts; ++top_k) {
        for (const bool of_others : {true, false}) {
          const LoadThreshold threshold = of_others ? LoadThreshold::of_others : LoadThreshold::of_all;
          const auto expected = [&](const Mask& counting) {
            return naive::smooth_load(batch.clean, batch.noisy, batch.stddev, top_k, of_others, counting);
          };
          EXPECT_TRUE(is_close(batch.load({.top_k = top_k, .threshold = threshold}), expected({})));
          EXPECT_TRUE(is_close(batch.load({.top_k = top_k, .threshold = threshold, .mask = mask}), expected(mask)));
        }
      }
    }
  }
}

/// Standard normal, by Box and Muller.
double normal(Random& random) {
  const double u = (random() + 1) / 2 + 0x1p-33, angle = std::acos(-1.0) * random();
  return std::sqrt(-2 * std::log(u)) * std::cos(angle);
}

TEST(SmoothLoad, IsHowOftenAnExpertIsChosenIfItsNoiseIsDrawnAgain) {
  const int draws = 10000;
  const Noisy batch(5, 1, 53);
  const Eigen::VectorXd load = batch.load({.top_k = 2});
  Random random(54);
  for (Index e = 0; e < 5; ++e) {
    int chosen = 0;
    for (int i = 0; i < draws; ++i) {
      Matrix<float> logits = batch.noisy;
      logits(e) = batch.clean(e) + batch.stddev(e) * float(normal(random));
      const auto experts = route(logits, {.top_k = 2}).expert;
      chosen += int(std::count(experts.begin(), experts.end(), e));
    }
    EXPECT_NEAR(chosen / double(draws), load(e), 4 * 0.5 / std::sqrt(double(draws)));  // four standard errors
  }
}

TEST(SmoothLoad, OfLittleNoiseIsTheNumberOfTokens) {
  Noisy batch(8, 33, 55);
  batch.stddev.setConstant(1e-30f);
  batch.noisy = batch.clean;
  Eigen::VectorXd routes = Eigen::VectorXd::Zero(8);
  for (const Index e : route(batch.clean, {.top_k = 3}).expert) ++routes(e);
  EXPECT_EQ(batch.load({.top_k = 3}), routes);
  batch.stddev.setZero();
  EXPECT_EQ(batch.load({.top_k = 3}), routes);
}

TEST(SmoothLoad, IsDefinedForAllLogits) {
  EXPECT_EQ(Noisy(8, 0, 1).load({}), Eigen::VectorXd::Zero(8));
  EXPECT_EQ(Noisy(8, 7, 1).load({.mask = Mask(7, 0)}), Eigen::VectorXd::Zero(8));
  EXPECT_EQ(Noisy(1, 7, 1).load({}), Eigen::VectorXd::Constant(1, 7));

  Noisy equal(4, 3, 1);
  equal.noisy = equal.clean = Matrix<float>::Ones(4, 3);
  EXPECT_EQ(equal.load({.top_k = 2}), Eigen::VectorXd::Constant(4, 1.5));
  equal.stddev.setZero();
  EXPECT_EQ(equal.load({.top_k = 2}), Eigen::VectorXd::Constant(4, 1.5));
  equal.noisy = equal.clean = Matrix<float>::Constant(4, 3, -float_infinity);
  EXPECT_EQ(equal.load({.top_k = 2}), Eigen::VectorXd::Constant(4, 1.5));
  EXPECT_EQ(equal.load({.top_k = 4}), Eigen::VectorXd::Constant(4, 3));

  Noisy never(4, 3, 1);
  never.noisy.row(2).setConstant(-float_infinity);
  never.clean.row(2).setConstant(-float_infinity);
  EXPECT_EQ(never.load({.top_k = 2})(2), 0);
  EXPECT_TRUE(never.load({.top_k = 3}).allFinite());
}

TEST(SmoothLoad, NotANumberShowsWhereItIsCompared) {
  for (const auto part : {&Noisy::clean, &Noisy::noisy, &Noisy::stddev}) {
    Noisy batch(4, 3, 1);
    (batch.*part)(2, 1) = not_a_number;
    const Eigen::VectorXd load = batch.load({.top_k = 2});
    EXPECT_TRUE(std::isnan(load(2)));
    EXPECT_EQ(load.array().isNaN().count(), 1);
    (batch.*part).col(1).setConstant(not_a_number);
    EXPECT_TRUE(batch.load({.top_k = 2}).array().isNaN().all());
  }
}

TEST(SmoothLoad, RefusesWhatDoesNotFit) {
  const Noisy batch(4, 3, 1);
  EXPECT_EQ(error_of([&] { batch.load({.top_k = 5}); }), "smooth_load: top_k is 5, expected 1 to 4");
  EXPECT_EQ(error_of([&] { batch.load({.top_k = 0}); }), "smooth_load: top_k is 0, expected 1 to 4");
  EXPECT_EQ(error_of([&] { batch.load({.mask = Mask(2, 1)}); }), "smooth_load: mask.size() is 2, expected 3");
  for (const auto part : {&Noisy::noisy, &Noisy::stddev}) {
    Noisy other = batch;
    (other.*part).resize(3, 3);
    EXPECT_NE(error_of([&] { other.load({}); }), "no error");
    (other.*part).resize(4, 2);
    EXPECT_NE(error_of([&] { other.load({}); }), "no error");
  }
}

TEST(Losses, AllocateNothingWhenWarm) {
  auto batch = Batch::random(17, 33, 2, 61);
  batch.drop_some(62);
  const Noisy noise(17, 33, 63);
  const NoisyChoice<float> choice = {
      .clean = noise.clean, .noisy = noise.noisy, .ranked = noise.noisy, .stddev = noise.stddev};
  const Mask mask = random_mask(33, 64);
  Scratch scratch;
  ExpertShares shares, sum;
  Eigen::ArrayXd importance, load;
  const std::vector<Index> routes(17, 2);
  Eigen::VectorXf bias = Eigen::VectorXf::Zero(17);
  double total = 0;
  const auto once = [&] {
    scratch.reset();
    measure_shares(batch.routing, 33, 17, {.choices = 1, .sequence_length = 11, .mask = mask}, shares, scratch);
    sum += shares;
    measure_importance(batch.routing, 33, 17, importance, mask);
    measure_smooth_load(choice, {.top_k = 2, .mask = mask}, load, scratch);
    total += load_balancing_loss(sum) + z_loss(batch.logits, mask);
    total += squared_variation(importance) + squared_variation(load);
    update_bias(routes, bias);
  };
  for (int warming = 0; warming < 2; ++warming) once();
  EXPECT_EQ(allocations_in(once), 0);
  EXPECT_TRUE(std::isfinite(total));
}

Eigen::VectorXd updated(const std::vector<Index>& load, const BiasUpdateOptions& options) {
  Eigen::VectorXd bias = Eigen::VectorXd::LinSpaced(Index(load.size()), 1, 2);
  const Eigen::VectorXd before = bias;
  update_bias(load, bias, options);
  return bias - before;
}

TEST(BiasUpdate, StepsTowardsTheMean) {
  EXPECT_TRUE(is_close(updated({0, 5, 10, 5}, {}), Eigen::Vector4d(1e-3, 0, -1e-3, 0)));
  EXPECT_TRUE(is_close(updated({3, 3, 4}, {.rate = 0.5}), Eigen::Vector3d(0.5, 0.5, -0.5)));
  EXPECT_TRUE(is_close(updated({0, 5, 10, 5}, {.rate = 0.25, .step = BiasStep::proportional}),
                       Eigen::Vector4d(1.25, 0, -1.25, 0)));
  EXPECT_TRUE(is_close(updated({1, 2}, {.rate = 1, .step = BiasStep::proportional}), Eigen::Vector2d(0.5, -0.5)));
}

TEST(BiasUpdate, LeavesWhatIsBalanced) {
  for (const BiasStep step : {BiasStep::sign, BiasStep::proportional}) {
    EXPECT_EQ(updated({0, 0, 0}, {.step = step}), Eigen::VectorXd::Zero(3));  // a batch without tokens
    EXPECT_EQ(updated({7, 7, 7}, {.step = step}), Eigen::VectorXd::Zero(3));
    EXPECT_EQ(updated({7}, {.step = step}), Eigen::VectorXd::Zero(1));
    EXPECT_EQ(updated({}, {.step = step}), Eigen::VectorXd::Zero(0));
  }
}

TEST(BiasUpdate, RefusesALoadOfOtherSize) {
  Eigen::VectorXf bias = Eigen::VectorXf::Zero(3);
  const std::vector<Index> load = {1, 2};
  EXPECT_EQ(error_of([&] { update_bias(load, bias); }), "update_bias: load.size() is 2, expected 3");
}

TEST(BiasUpdate, BalancesASkewedRouter) {
  const Index num_experts = 8, num_tokens = 512, top_k = 2;
  const double mean = double(num_tokens * top_k) / double(num_experts);
  auto logits = random_matrix<Matrix<float>>(num_experts, num_tokens, 71, 2);
  logits.colwise() += Eigen::VectorXf::LinSpaced(num_experts, -1, 1);
  for (const auto& options : {BiasUpdateOptions{}, {.rate = 1e-4, .step = BiasStep::proportional}}) {
    Eigen::VectorXf bias = Eigen::VectorXf::Zero(num_experts);
    std::vector<Index> load;
    double before = 0;
    for (int step = 0; step < 600; ++step) {
      load.assign(std::size_t(num_experts), 0);
      for (const Index e : route(logits, {.top_k = top_k, .score = Score::sigmoid}, bias).expert) {
        ++load[std::size_t(e)];
      }
      if (step == 0) before = double(*std::max_element(load.begin(), load.end()));
      update_bias(load, bias, options);
    }
    EXPECT_GT(before, 1.5 * mean);
    EXPECT_LT(double(*std::max_element(load.begin(), load.end())), 1.05 * mean);
    EXPECT_GT(double(*std::min_element(load.begin(), load.end())), 0.95 * mean);
  }
}

}  // namespace
