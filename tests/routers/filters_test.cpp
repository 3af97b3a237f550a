#include "laws/router_laws.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "errors.hpp"
#include "expert_factories.hpp"
#include "moe/core/random_number.hpp"
#include "moe/layers/moe_layer.hpp"
#include "moe/lora/router.hpp"
#include "moe/routers/filters/capacity.hpp"
#include "moe/routers/filters/replay.hpp"
#include "moe/routers/filters/second_expert.hpp"
#include "moe/routers/linear_top_k.hpp"
#include "moe/routers/token_hash.hpp"
#include "moe/routers/top_p.hpp"
#include "random.hpp"

namespace moe::laws {

using Experts = std::vector<Index>;
using Numbers = std::vector<float>;
using Kept = std::vector<bool>;
using Side = SideInputs<float>;
using test::error_of;

const float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();

struct ThresholdSeconds {
  static WithSecondExpert<LinearTopK<float>> make(Index d_model) {
    return {router_for<float>(d_model, 11, 2), {.keep = KeepSecond::above_threshold, .threshold = 0.3}};
  }
};

/// Its random numbers are drawn for the place in the batch, so no law of token choice holds.
struct RandomSeconds {
  static WithSecondExpert<LinearTopK<float>> make(Index d_model) { return {router_for<float>(d_model, 11, 2), {}}; }
  static Side side(Index, Index) { return {.seed = 6}; }
};

/// Routes that have nothing to do with x. They live on.
const Routing<float>* standing_routes(Index first, Index count) {
  static const auto made = [] {
    std::array<std::array<Routing<float>, 65>, 65> all;
    for (Index f = 0; f < 65; ++f) {
      for (Index c = 0; f + c < 65; ++c) {
        for (Index t = 0; t < c; ++t) {
          auto& routing = all[std::size_t(f)][std::size_t(c)];
          routing.add(t, (f + t) % 11, 0.75F);
          routing.add(t, (f + t + 3) % 11, (f + t) % 2 == 1 ? 0.25F : 0.5F);
        }
      }
    }
    return all;
  }();
  return &made[std::size_t(first)][std::size_t(count)];
}

struct Replays {
  static Replay<LinearTopK<float>> make(Index d_model) {
    return Replay<LinearTopK<float>>(router_for<float>(d_model, 11, 2));
  }
  static Side side(Index first, Index count) { return {.recorded = standing_routes(first, count)}; }
};

struct ReplaysOfNothing {
  static auto make(Index d_model) { return Replays::make(d_model); }
};

using OfTokens = testing::Types<ThresholdSeconds, Replays, ReplaysOfNothing>;
INSTANTIATE_TYPED_TEST_SUITE_P(Filters, RouterLaws, OfTokens);
INSTANTIATE_TYPED_TEST_SUITE_P(Filters, TokenChoiceLaws, OfTokens);
INSTANTIATE_TYPED_TEST_SUITE_P(FiltersByPlaceInTheBatch, RouterLaws, RandomSeconds);

/// A token for each number, which is the weight of its second expert; the first one has the rest.
Routing<float> two_experts_each(const Numbers& second) {
  Routing<float> routing;
  for (std::size_t t = 0; t < second.size(); ++t) {
    routing.add(Index(t), Index(t % 4), 1 - second[t]);
    routing.add(Index(t), Index(t % 4 + 1), second[t]);
  }
  return routing;
}

void filter(Routing<float>& routing, Index num_tokens, const SecondExpertOptions& options,
            std::optional<std::uint64_t> seed = {}) {
  Scratch scratch;
  drop_second_experts(routing, num_tokens, 5, seed, options, scratch);
}

/// Which tokens keep their second expert. The first one must be there.
Kept seconds_kept(const Numbers& second, const SecondExpertOptions& options, std::optional<std::uint64_t> seed = {}) {
  auto routing = two_experts_each(second);
  const auto before = routing;
  filter(routing, Index(second.size()), options, seed);
  EXPECT_EQ(routing.token, before.token);
  EXPECT_EQ(routing.expert, before.expert);
  EXPECT_TRUE(same_bits(as_vector(routing.weight), as_vector(before.weight)));
  Kept kept;
  for (std::size_t t = 0; t < second.size(); ++t) {
    EXPECT_FALSE(routing.is_dropped(Index(2 * t))) << "first expert of token " << t;
    kept.push_back(!routing.is_dropped(Index(2 * t + 1)));
  }
  return kept;
}

TEST(SecondExpert, IsKeptAlwaysNeverOrAboveAThreshold) {
  const Numbers second = {0, 0.1F, 0.25F, 0.3F, 0.5F, nan, inf};
  EXPECT_EQ(seconds_kept(second, {.keep = KeepSecond::always}), Kept(7, true));
  EXPECT_EQ(seconds_kept(second, {.keep = KeepSecond::never}), Kept(7, false));
  EXPECT_EQ(seconds_kept(second, {.keep = KeepSecond::above_threshold, .threshold = 0.25}),
            (Kept{false, false, false, true, true, true, true}));
  EXPECT_EQ(seconds_kept(second, {.keep = KeepSecond::above_threshold, .threshold = 0}),
            (Kept{false, true, true, true, true, true, true}));
}

TEST(SecondExpert, IsKeptAtRandomIfTwiceItsWeightExceedsAUniformNumberAsInGShard) {
  Random random(3);
  Numbers second;
  for (int t = 0; t < 1000; ++t) second.push_back(float(0.25 + 0.25 * random()));
  for (const std::uint64_t seed : {1U, 2U}) {
    const Kept kept = seconds_kept(second, {}, seed);
    for (std::size_t t = 0; t < second.size(); ++t) {
      const double u = uniform_number(seed, t * 5 + t % 4 + 1);
      EXPECT_EQ(kept[t], 2 * double(second[t]) > u) << "token " << t;
    }
  }
  EXPECT_NE(seconds_kept(second, {}, 1), seconds_kept(second, {}, 2));
  EXPECT_EQ(seconds_kept(second, {}, 1), seconds_kept(second, {}, 1));
}

TEST(SecondExpert, IsKeptAtRandomWithTheProbabilityThatTheThresholdSays) {
  const std::size_t n = 20'000;
  for (const double threshold : {0.2, 0.5}) {
    for (const float w : {0.F, 0.05F, 0.15F, 0.2F, 0.3F, 0.5F}) {
      const Kept kept = seconds_kept(Numbers(n, w), {.threshold = threshold}, 4);
      const double p = std::min(1.0, double(w) / threshold), deviation = std::sqrt(p * (1 - p) / double(n));
      const double share = double(std::count(kept.begin(), kept.end(), true)) / double(n);
      EXPECT_NEAR(share, p, 5 * deviation + 1e-7) << "weight " << w << ", threshold " << threshold;  // float's 0.2
    }
  }
}

TEST(SecondExpert, ItsRandomNumberBelongsToTokenAndExpertNotToThePlaceInTheRouting) {
  Random random(3);
  Numbers second;
  for (int t = 0; t < 100; ++t) second.push_back(float(0.25 + 0.25 * random()));
  const Kept kept = seconds_kept(second, {}, 9);
  Routing<float> backwards;
  for (Index t = 99; t >= 0; --t) {
    backwards.add(t, t % 4, 1 - second[std::size_t(t)]);
    backwards.add(t, t % 4 + 1, second[std::size_t(t)]);
  }
  filter(backwards, 100, {}, 9);
  for (Index t = 0; t < 100; ++t) EXPECT_EQ(!backwards.is_dropped(2 * (99 - t) + 1), kept[std::size_t(t)]);
}

TEST(SecondExpert, ThirdAndLaterOnesAreTreatedAsSecondsAndTokensMayHaveAnyNumber) {
  Routing<float> routing;  // token 1 has no route, token 2 has one, and routes are not side by side
  for (const auto& [token, expert, weight] :
       {std::tuple{0, 3, 0.4F}, {2, 1, 0.01F}, {0, 2, 0.3F}, {3, 0, 0.9F}, {0, 1, 0.2F}, {0, 4, 0.1F}, {3, 4, 0.1F}}) {
    routing.add(token, expert, weight);
  }
  filter(routing, 4, {.keep = KeepSecond::above_threshold, .threshold = 0.15});
  EXPECT_EQ(routing.dropped, (std::vector<std::uint8_t>{0, 0, 0, 0, 0, 1, 1}));
}

TEST(SecondExpert, WhatWasDroppedBeforeStaysDropped) {
  auto routing = two_experts_each({0.5F, 0.1F, 0.5F});
  routing.drop(0);
  routing.drop(5);
  filter(routing, 3, {.keep = KeepSecond::above_threshold, .threshold = 0.2});
  EXPECT_EQ(routing.dropped, (std::vector<std::uint8_t>{1, 0, 0, 1, 0, 1}));
}

TEST(SecondExpert, NoRoutesAreNoTrouble) {
  Routing<float> routing;
  filter(routing, 0, {.keep = KeepSecond::never});
  filter(routing, 3, {}, 1);
  EXPECT_EQ(routing.size(), 0);
}

TEST(SecondExpert, ADroppedOneTakesNoRoomOfItsExpert) {
  // Both tokens want expert 1 second; it has room for one. The first token's share is too small to be kept.
  const LinearTopK<float> router(Weight<float>::Identity(3, 3), {.top_k = 2, .renormalize = true});
  const WithCapacity limited(
      WithSecondExpert<LinearTopK<float>>(router, {.keep = KeepSecond::above_threshold, .threshold = 0.2}),
      {.capacity = fixed_capacity(1)});
  const auto routing = route(limited, Matrix<float>{{9, 0}, {1, 1}, {0, 1.5F}});
  EXPECT_EQ(routing.expert, (Experts{0, 1, 2, 1}));
  EXPECT_EQ(routing.dropped, (std::vector<std::uint8_t>{0, 1, 0, 0}));
}

TEST(SecondExpert, RefusesWhatDoesNotFitWithTheNumbers) {
  const auto complaint = [](const SecondExpertOptions& options) {
    return error_of([&] { WithSecondExpert<LinearTopK<float>>(router_for<float>(4, 6, 2), options); });
  };
  EXPECT_EQ(complaint({}), "no error");
  EXPECT_EQ(complaint({.threshold = -1}), "WithSecondExpert: threshold is -1.000000, expected 0 or more");
  EXPECT_EQ(complaint({.threshold = double(nan)}), "WithSecondExpert: threshold is nan, expected 0 or more");
  EXPECT_EQ(error_of([] { seconds_kept({0.5F}, {.threshold = -1}, 1); }),
            "drop_second_experts: threshold is -1.000000, expected 0 or more");
  EXPECT_EQ(error_of([] { seconds_kept({0.5F}, {}); }),
            "drop_second_experts: side.seed is missing, and KeepSecond::at_random needs one");
  EXPECT_EQ(error_of([] { seconds_kept({0.5F}, {.keep = KeepSecond::never}); }), "no error");
  auto lost = two_experts_each({0.5F});
  EXPECT_EQ(error_of([&] { filter(lost, 0, {}, 1); }), "Routing: route 0 sends token 0 of 0 to expert 0 of 5");
}

using Layer = MoeLayer<Replay<WithSecondExpert<LinearTopK<float>>>, GatedFfnBank<float>>;

Layer replaying_layer(WeightOn weight_on) {
  return {Replay(WithSecondExpert<LinearTopK<float>>(router_for<float>(9, 6, 2, weight_on), {})),
          test::GatedFfnBanks<float>::make(9, seeds_from(1, 6))};
}

TEST(Replay, OfWhatALayerRecordedGivesTheSameOutputToTheLastBit) {
  const auto x = random_matrix<Matrix<float>>(9, 33, 1);
  for (const WeightOn weight_on : {WeightOn::output, WeightOn::input}) {
    const Layer layer = replaying_layer(weight_on);
    Workspace<float> recording, replaying;
    Matrix<float> expected(9, 33), y(9, 33);
    recording.side.seed = 5;
    layer.forward(x, expected, recording);
    EXPECT_GT(recording.routing.num_dropped(), 0);

    replaying.side.recorded = &recording.routing;  // and no seed: nothing is chosen
    layer.forward(x, y, replaying);
    EXPECT_TRUE(same_bits(y, expected));
    EXPECT_EQ(replaying.routing.token, recording.routing.token);
    EXPECT_EQ(replaying.routing.expert, recording.routing.expert);
    EXPECT_EQ(replaying.routing.weight, recording.routing.weight);
    EXPECT_EQ(replaying.routing.dropped, recording.routing.dropped);
    EXPECT_EQ(replaying.routing.logits, recording.routing.logits);
    EXPECT_EQ(replaying.routing.weight_on, weight_on);
  }
}

TEST(Replay, TakesRoutesAsTheyAreWhateverTheTokens) {
  const auto routing = route(Replays::make(9), {Matrix<float>::Constant(9, 3, nan), Replays::side(1, 3)});
  EXPECT_EQ(routing.token, (Experts{0, 0, 1, 1, 2, 2}));
  EXPECT_EQ(routing.expert, (Experts{1, 4, 2, 5, 3, 6}));
  EXPECT_EQ(routing.weight, (Numbers{0.75F, 0.25F, 0.75F, 0.5F, 0.75F, 0.25F}));
}

TEST(Replay, OfNothingRoutesAsItsRouterDoes) {
  const auto router = Replays::make(9);
  const auto x = random_matrix<Matrix<float>>(9, 20, 1);
  const auto got = route(router, x), expected = route(router.router(), x);
  EXPECT_EQ(got.expert, expected.expert);
  EXPECT_EQ(got.weight, expected.weight);
  EXPECT_EQ(got.logits, expected.logits);
  EXPECT_EQ(router.top_k(), 2);
}

std::string complaint_of(const auto& router, const Routing<float>& recorded, Index tokens, Index recorded_tokens = 0) {
  return error_of([&] {
    route(router,
          {Matrix<float>::Zero(router.d_model(), tokens), {.recorded = &recorded, .recorded_tokens = recorded_tokens}});
  });
}

TEST(Replay, RefusesRoutesThatLeadNowhere) {
  const auto router = Replays::make(4);
  Routing<float> recorded = *standing_routes(0, 3);
  EXPECT_EQ(complaint_of(router, recorded, 3), "no error");
  recorded.token[1] = 3;
  EXPECT_EQ(complaint_of(router, recorded, 3), "Routing: route 1 sends token 3 of 3 to expert 3 of 11");
  recorded.token[1] = 2;
  recorded.expert[1] = 11;
  EXPECT_EQ(complaint_of(router, recorded, 3), "Routing: route 1 sends token 2 of 3 to expert 11 of 11");
  recorded.expert.pop_back();
  EXPECT_EQ(complaint_of(router, recorded, 3), "Routing: expert.size() is 5, expected 6");
}

TEST(Replay, RefusesARecordingOfFewerTokensOrHalfOfOne) {
  const auto router = Replays::make(4);
  EXPECT_EQ(complaint_of(router, {}, 0), "no error");
  EXPECT_EQ(complaint_of(router, {}, 3), "Replay: side.recorded has 0 routes, expected 6: 2 of each of 3 tokens");
  EXPECT_EQ(complaint_of(router, *standing_routes(0, 10), 12),
            "Replay: side.recorded has 20 routes, expected 24: 2 of each of 12 tokens");
  Routing<float> half = *standing_routes(0, 12);
  half.resize(12);
  EXPECT_EQ(complaint_of(router, half, 12), "Replay: side.recorded has 12 routes, expected 24: 2 of each of 12 tokens");
  EXPECT_EQ(complaint_of(router, *standing_routes(0, 10), 10, 12), "Replay: side.recorded_tokens is 12, expected 10");

  // Where a token may have any number of routes, its logits tell, or the caller.
  const Replay varying(TopP<float>(test::random_matrix<Weight<float>>(5, 4, 1), {.top_p = 0.6}));
  const auto x = test::random_matrix<Matrix<float>>(4, 10, 2);
  auto recorded = route(varying, x);
  EXPECT_EQ(complaint_of(varying, recorded, 10), "no error");
  EXPECT_EQ(complaint_of(varying, recorded, 12), "Replay: side.recorded->logits.size() is 50, expected 60");
  recorded.logits.clear();  // as in a file
  EXPECT_EQ(complaint_of(varying, recorded, 12), "no error");
  EXPECT_EQ(complaint_of(varying, recorded, 12, 10), "Replay: side.recorded_tokens is 10, expected 12");
}

TEST(Replay, WithWeightsAnewAsksTheRouterForThoseOfTheRecordedExperts) {
  const auto check = [](const auto& base) {
    const Replay router(base, {.weights = ReplayedWeights::anew});
    const auto x = test::random_matrix<Matrix<float>>(9, 12, 3);
    const auto own = route(router, x), chosen_before = route(router.router(), x);
    EXPECT_EQ(own.weight, chosen_before.weight);
    const Routing<float> again = route(router, {x, {.recorded = &own}});  // of the same router: all is the same
    EXPECT_EQ(again.expert, own.expert);
    EXPECT_EQ(again.weight, own.weight);
    EXPECT_EQ(again.logits, own.logits);

    Routing<float> recorded = *standing_routes(0, 12);
    recorded.drop(3);
    const auto got = route(router, {x, {.recorded = &recorded}});
    EXPECT_EQ(got.token, recorded.token);
    EXPECT_EQ(got.expert, recorded.expert);
    EXPECT_EQ(got.logits, own.logits);
    EXPECT_TRUE(got.is_dropped(3));
    EXPECT_EQ(got.num_dropped(), 1);
    for (std::size_t t = 0; t < 12; ++t) {  // softmax, renormalised: e^(l₀ − l₁) to 1
      const float* const logits = got.logits.data() + 11 * t;
      const float odds = std::exp(logits[got.expert[2 * t]] - logits[got.expert[2 * t + 1]]);
      EXPECT_NEAR(got.weight[2 * t], odds / (1 + odds), 1e-6F);
      EXPECT_NEAR(got.weight[2 * t + 1], 1 / (1 + odds), 1e-6F);
    }
  };
  const LinearTopK<float> linear(test::random_matrix<Weight<float>>(11, 9, 1), {.top_k = 2, .renormalize = true});
  check(linear);
  LoraRouter<float> lora = with_lora(linear, {.rank = 2});
  lora.logits().adapter().b.setConstant(0.3F);
  check(lora);
}

TEST(Replay, WithWeightsAnewRefusesWhatItsRouterWouldNotWrite) {
  const Replay router(router_for<float>(4, 11, 2), {.weights = ReplayedWeights::anew});
  Routing<float> recorded = *standing_routes(0, 3);
  recorded.expert[3] = recorded.expert[2];
  EXPECT_EQ(complaint_of(router, recorded, 3),
            "Replay: recorded route 3 sends token 1 to expert 1, expected token 1 to one that it is not sent to yet");
  recorded = *standing_routes(0, 3);
  std::swap(recorded.token[1], recorded.token[2]);
  EXPECT_EQ(complaint_of(router, recorded, 3),
            "Replay: recorded route 1 sends token 1 to expert 3, expected token 0 to one that it is not sent to yet");
  const std::string told = error_of([] {
    Replay(WithSecondExpert<LinearTopK<float>>(router_for<float>(9, 6, 2), {}), {.weights = ReplayedWeights::anew});
  });
  EXPECT_NE(told.find("put filters around Replay"), told.npos) << told;
  const Replay equal(TokenHash<float>(4, 11, random_hash_table(5, 11, 2, 1)), {.weights = ReplayedWeights::anew});
  const std::vector<Index> ids{0, 1, 2};
  recorded = *standing_routes(0, 3);
  EXPECT_EQ(error_of([&] { route(equal, {Matrix<float>::Zero(4, 3), {.token_ids = ids, .recorded = &recorded}}); }),
            "Replay: the number of logits is 0, expected 33");
}

TEST(Replay, RefusesTheRoutingThatItWrites) {
  Workspace<float> ws;
  ws.side.recorded = &ws.routing;
  Matrix<float> y(9, 2);
  EXPECT_EQ(error_of([&] { replaying_layer(WeightOn::output).forward(Matrix<float>::Zero(9, 2), y, ws); }),
            "Replay: side.recorded is the routing that is being written");
}

}  // namespace moe::laws
