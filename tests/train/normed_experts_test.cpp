// Experts whose answers are normalised: what they compute, and their gradients.
#include "allocations.hpp"

#include "moe/train/experts/normed_experts.hpp"

#include <cmath>
#include <string>

#include <gtest/gtest.h>

#include "compare.hpp"
#include "errors.hpp"
#include "latent_factories.hpp"
#include "laws/gradient_laws.hpp"
#include "laws/wrapper_laws.hpp"
#include "moe/moe.hpp"
#include "moe/surgery/prune.hpp"
#include "moe/train.hpp"
#include "naive.hpp"
#include "normed_factories.hpp"
#include "random.hpp"
#include "train/factories.hpp"

namespace moe {
namespace {

using laws::expect_true_gradients;
using test::is_close;
using test::random_bank;
using test::random_ffns;
using test::random_latent;
using test::random_matrix;
using test::random_normed;
using test::random_router;
using test::same_bits;

constexpr GainOn both[] = {GainOn::output, GainOn::input};
constexpr WeightOn either[] = {WeightOn::output, WeightOn::input};

auto router_of(Index d_model, unsigned seed, WeightOn weight_on = WeightOn::output) {
  return random_router(4, d_model, {.top_k = 2, .score = Score::sigmoid, .weight_on = weight_on}, seed);
}

TEST(NormedExperts, EqualTheirNaiveTwin) {
  for (const GainOn gain_on : both) {
    for (const WeightOn weight_on : either) {
      for (const Index d_model : {1, 7, 8, 9, 17, 33}) {
        const RmsNormOptions options{.epsilon = 0.1, .offset = 1, .gain_on = gain_on};
        const auto bank = random_bank(4, d_model, 5, 1);
        const MoeLayer layer(router_of(d_model, 2, weight_on), random_normed(bank, 3, options));
        const auto& gain = layer.experts().norm().gain();
        for (const Index tokens : {0, 1, 17, 40}) {
          const auto x = random_matrix<Matrix<double>>(d_model, tokens, 4);
          Workspace<double> ws;
          const auto y = layer.forward(x, ws);
          Matrix<double> expected = Matrix<double>::Zero(d_model, tokens);
          for (Index r = 0; r < ws.routing.size(); ++r) {
            const Index t = ws.routing.token[std::size_t(r)], e = ws.routing.expert[std::size_t(r)];
            const double w = ws.routing.weight[std::size_t(r)];
            const Matrix<double> read = (weight_on == WeightOn::input ? w : 1) * x.col(t);
            Matrix<double> answer =
                test::naive::gated_ffn(bank.w_gate()[e], bank.w_up()[e], bank.w_down()[e], read, test::naive::silu);
            if (gain_on == GainOn::input) answer.array() *= 1 + gain.array();
            answer /= std::sqrt(answer.squaredNorm() / double(d_model) + 0.1);
            if (gain_on == GainOn::output) answer.array() *= 1 + gain.array();
            expected.col(t) += (weight_on == WeightOn::output ? w : 1) * answer;
          }
          EXPECT_TRUE(is_close(y, expected)) << d_model << ", " << tokens;
        }
      }
    }
  }
}

TEST(NormedExperts, CanBeTakenAwayFromAndRefuseANormOfAnotherWidth) {
  const MoeLayer layer(random_router(4, 9, {.top_k = 2, .score = Score::sigmoid}, 5),
                       random_latent<double>(9, random_normed(random_bank(4, 6, 5, 6), 7, {}), 8));
  const auto some = keep_experts(layer, {0, 2, 3});
  const auto x = random_matrix<Matrix<double>>(9, 20, 9);
  EXPECT_TRUE(same_bits(some.forward(x), MoeLayer(some.router(), ExpertSubset(layer.experts(), {0, 2, 3})).forward(x)));
  EXPECT_EQ(test::error_of([] { NormedExperts(random_bank(2, 6, 5, 1), RmsNorm<double>(Vector<double>::Ones(5))); }),
            "NormedExperts: norm.size() is 5, expected 6");
}

TEST(NormedExpertsGradients, AreTrue) {
  for (const GainOn gain_on : both) {
    const RmsNormOptions options{.epsilon = 0.1, .offset = 1, .gain_on = gain_on};
    for (const WeightOn weight_on : either) {
      for (const Index tokens : {0, 1, 9, 40}) {
        expect_true_gradients(
            MoeLayer(router_of(9, 10, weight_on), random_normed(random_bank(4, 9, 5, 11, true), 12, options)), tokens,
            13);
      }
    }
    const auto list = random_normed(ExpertList(random_ffns<Silu>(4, 6, 5, true, 14)), 15, options);
    expect_true_gradients(MoeLayer(router_of(9, 16), random_latent<double>(9, list, 17, true, options)), 9, 18);
    expect_true_gradients(MoeLayer(router_of(6, 16), Frozen(list)), 9, 19);
    expect_true_gradients(MoeLayer(router_of(6, 16), JoinedExperts(random_normed(random_bank(2, 6, 5, 20), 21, options),
                                                                   random_bank(2, 6, 7, 22))),
                          9, 23);
  }
  for (const Index d_model : laws::gradient_sizes) {
    const auto group = random_normed(random_bank(4, d_model, 5, 24), 25, {.epsilon = 0.1, .gain_on = GainOn::input});
    expect_true_gradients(MoeLayer(router_of(d_model, 26), group), 7, 27, 10);
  }
}

TEST(NormedExpertsGradients, HaveTheSameBitsOnAnyNumberOfThreadsAndAllocateNothingOnceWarm) {
  const MoeLayer layer(random_router<float>(4, 40, {.top_k = 2}, 28),
                       random_normed(random_bank<float>(4, 40, 33, 29), 30, {.gain_on = GainOn::input}));
  laws::expect_the_same_bits_for_any_number_of_threads(layer);
  laws::expect_warm_steps_to_allocate_nothing(layer);
}

TEST(NormedExpertsWrappers, PassEverythingOn) {
  const auto bank = with_lora(random_bank(5, 7, 9, 31), {.rank = 3, .dropout = 0.5});
  const auto group = random_latent<double>(12, random_normed(bank, 32, {.epsilon = 0.1}), 33, true, RmsNormOptions{});
  laws::expect_to_pass_everything_on(MoeLayer(random_router(5, 12, {.top_k = 2}, 34), group));
  auto named = MoeLayer(random_router(5, 12, {.top_k = 2}, 34), group);
  std::string norms;
  for (const auto& parameter : parameters(named)) {
    if (parameter.name.find("norm") != std::string::npos) norms += parameter.name + " ";
  }
  EXPECT_EQ(norms, "latent_norm.weight experts.post_expert_norm.weight ");
}

}  // namespace
}  // namespace moe
