#include "laws/router_laws.hpp"

#include "moe/routers/filters/capacity.hpp"
#include "oracle.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "errors.hpp"
#include "expert_factories.hpp"
#include "moe/core/sequences.hpp"
#include "moe/experts/expert_list.hpp"
#include "moe/layers/dense.hpp"
#include "moe/layers/moe_layer.hpp"
#include "naive.hpp"

namespace moe::laws {

template <Priority priority>
struct RoutersWithCapacity {
  static constexpr bool batch = priority == Priority::batch;
  static WithCapacity<LinearTopK<float>> make(Index d_model) {
    return {router_for<float>(d_model, 5, 2),
            {.capacity = capacity_factor(0.75, 2), .priority = priority, .per_sequence = batch, .renormalize = !batch}};
  }
  static SideInputs<float> side(Index, Index count) { return {.sequence_length = count % 2 == 0 ? count / 2 : count}; }
};
using Limited = testing::Types<RoutersWithCapacity<Priority::choice>, RoutersWithCapacity<Priority::position>,
                               RoutersWithCapacity<Priority::probability>, RoutersWithCapacity<Priority::batch>>;
INSTANTIATE_TYPED_TEST_SUITE_P(WithCapacity, RouterLaws, Limited);

struct RoutersWithRoomForAll {
  static WithCapacity<LinearTopK<float>> make(Index d_model) {
    return {router_for<float>(d_model, 5, 2), {.capacity = fixed_capacity(64), .priority = Priority::batch}};
  }
};
INSTANTIATE_TYPED_TEST_SUITE_P(WithCapacity, TokenChoiceLaws, RoutersWithRoomForAll);

namespace {

using Numbers = std::vector<double>;
using Flags = std::vector<bool>;
const double nan = std::numeric_limits<double>::quiet_NaN(), inf = std::numeric_limits<double>::infinity();
const Priority priorities[] = {Priority::choice, Priority::position, Priority::probability, Priority::batch};
constexpr Index plenty = 1000;

/// What to limit.
struct Case {
  Routing<double> routing;
  Index num_tokens, num_experts, sequence_length = 0;

  void limit(const CapacityOptions& options) {
    Scratch scratch;
    limit_capacity(routing, num_tokens, num_experts, sequence_length, options, scratch);
  }
  Flags dropped() const {
    Flags flags;
    for (Index r = 0; r < routing.size(); ++r) flags.push_back(routing.is_dropped(r));
    return flags;
  }
};

/// top_k different experts a token, with equal weights, tokens alike, NaN, and routes that are dropped already.
Case random_case(Index num_tokens, Index num_experts, Index top_k, bool shuffled, unsigned seed) {
  Random random(seed);
  Case c{{}, num_tokens, num_experts};
  auto logits = random.matrix<Matrix<double>>(num_experts, num_tokens, 2);
  for (Index t = 1; t < num_tokens; ++t) {
    if (random.below(4) == 0) logits.col(t) = logits.col(random.below(t));
    if (random.below(12) == 0) logits(random.below(num_experts), t) = nan;
  }
  for (Index t = 0; t < num_tokens; ++t) {
    const Index first = random.below(num_experts);
    for (Index k = 0; k < top_k; ++k) {
      const double weight = random.below(10) == 0 ? nan : double(random.below(8)) / 8;
      c.routing.add(t, (first + k) % num_experts, weight);
    }
  }
  const auto at = [](auto& list, Index i) -> auto& { return list[std::size_t(i)]; };
  for (Index r = 0; r < c.routing.size() && shuffled; ++r) {
    const Index other = random.below(c.routing.size());
    std::swap(at(c.routing.token, r), at(c.routing.token, other));
    std::swap(at(c.routing.expert, r), at(c.routing.expert, other));
    std::swap(at(c.routing.weight, r), at(c.routing.weight, other));
  }
  for (Index r = 0; r < c.routing.size(); ++r) {
    if (random.below(8) == 0) c.routing.drop(r);
  }
  c.routing.logits.assign(logits.data(), logits.data() + logits.size());
  return c;
}

/// The same once more, as slow as it is obvious: while an expert has room, the best of those who wait comes in.
class Queue {
 public:
  Queue(const Case& c, const CapacityOptions& options, Index room) : c_(c), options_(options) {
    dropped = c.dropped();
    weight = c.routing.weight;
    for (Index t = 0; t < c.num_tokens; ++t) confidence_.push_back(confidence(t));
    const Index length = options.per_sequence && c.sequence_length > 0 ? c.sequence_length : plenty;
    for (Index first = 0; first < c.num_tokens; first += length) {
      for (Index e = 0; e < c.num_experts; ++e) admit(e, first, first + length, room);
    }
    if (options.renormalize) renormalize();
  }

  Flags dropped;
  Numbers weight;

 private:
  Index token(std::size_t r) const { return c_.routing.token[r]; }

  void admit(Index expert, Index first_token, Index last_token, Index room) {
    std::vector<std::size_t> waiting;
    for (std::size_t r = 0; r < weight.size(); ++r) {
      const bool here = first_token <= token(r) && token(r) < last_token && c_.routing.expert[r] == expert;
      if (here && !dropped[r]) waiting.push_back(r);
    }
    for (; !waiting.empty(); --room) {
      std::size_t best = 0;
      for (std::size_t i = 1; i < waiting.size(); ++i) {
        if (goes_before(waiting[i], waiting[best])) best = i;
      }
      if (room <= 0) dropped[waiting[best]] = true;
      waiting.erase(waiting.begin() + long(best));
    }
  }

  bool goes_before(std::size_t a, std::size_t b) const {
    const bool by_choice = options_.priority == Priority::choice || options_.priority == Priority::batch;
    if (by_choice && choice(a) != choice(b)) return choice(a) < choice(b);
    const double rank_a = rank(a), rank_b = rank(b);
    if (rank_a != rank_b) return rank_a > rank_b;
    return token(a) != token(b) ? token(a) < token(b) : a < b;
  }

  double rank(std::size_t r) const {
    if (options_.priority == Priority::batch) return confidence_[std::size_t(token(r))];
    if (options_.priority == Priority::probability) return std::isnan(weight[r]) ? -inf : weight[r];
    return 0;
  }

  std::ptrdiff_t choice(std::size_t route) const {
    const auto begin = c_.routing.token.begin();
    return std::count(begin, begin + long(route), token(route));
  }

  double confidence(Index t) const {
    double most = -inf;
    if (c_.routing.logits.empty()) {
      for (std::size_t r = 0; r < weight.size(); ++r) {
        if (token(r) == t && weight[r] > most) most = weight[r];
      }
      return most;
    }
    const auto begin = c_.routing.logits.begin() + t * c_.num_experts;
    const Numbers logits(begin, begin + c_.num_experts);
    if (std::any_of(logits.begin(), logits.end(), [](double l) { return std::isnan(l); })) return -inf;
    const Numbers p = test::naive::softmax(logits);
    return p[test::naive::argmax(p)];
  }

  void renormalize() {
    const Numbers before = weight;
    for (std::size_t r = 0; r < weight.size(); ++r) {
      double sum = 0;
      for (std::size_t other = 0; other < weight.size(); ++other) {
        if (token(other) == token(r) && !dropped[other]) sum += before[other];
      }
      if (sum < options_.floor) sum = options_.floor;
      if (!dropped[r] && sum != 0) weight[r] = before[r] / sum;
    }
  }

  const Case& c_;
  CapacityOptions options_;
  Numbers confidence_;
};

bool same(double a, double b) {
  return (std::isnan(a) && std::isnan(b)) || std::abs(a - b) <= test::tolerance<double>(1);
}

/// Calls f(case, options, room, what) over a grid of all that matters.
template <class F>
void for_each_case(const F& f) {
  unsigned seed = 1;
  for (const Index num_tokens : {0, 1, 7, 33}) {
    for (const Index num_experts : {1, 3, 8}) {
      for (Index top_k = 1; top_k <= std::min<Index>(3, num_experts); ++top_k) {
        for (const bool shuffled : {false, true}) {
          const Case c = random_case(num_tokens, num_experts, top_k, shuffled, ++seed);
          for (const Priority priority : priorities) {
            for (const Index room : {Index(0), Index(1), Index(2), plenty}) {
              const CapacityOptions options{.capacity = fixed_capacity(room), .priority = priority};
              f(c, options, room,
                std::to_string(num_tokens) + " tokens, " + std::to_string(num_experts) + " experts, top " +
                    std::to_string(top_k) + ", room for " + std::to_string(room) + ", priority " +
                    std::to_string(int(priority)) + ", seed " + std::to_string(seed));
            }
          }
        }
      }
    }
  }
}

void expect_queue(Case c, const CapacityOptions& options, Index room, const std::string& what) {
  const Queue expected(c, options, room);
  c.limit(options);
  ASSERT_EQ(c.dropped(), expected.dropped) << what;
  for (std::size_t r = 0; r < expected.weight.size(); ++r) {
    ASSERT_TRUE(same(c.routing.weight[r], expected.weight[r])) << what << ": weight of route " << r;
  }
}

TEST(LimitCapacity, IsAQueueBeforeEachExpert) { for_each_case(expect_queue); }

TEST(LimitCapacity, IsAQueuePerSequenceWhereToldSo) {
  for_each_case([](Case c, CapacityOptions options, Index room, const std::string& what) {
    for (const Index length : {0, 1, 3, 7, 11, 33}) {
      if (length > 0 && c.num_tokens % length != 0) continue;
      c.sequence_length = length;
      options.per_sequence = true;
      expect_queue(c, options, room, what + ", sequences of " + std::to_string(length));
    }
    c.sequence_length = 2;  // not read
    options.per_sequence = false;
    expect_queue(c, options, room, what);
  });
}

TEST(LimitCapacity, RenormalizesWhatIsKept) {
  for_each_case([](const Case& c, CapacityOptions options, Index room, const std::string& what) {
    options.renormalize = true;
    for (const double floor : {0.0, 0.6}) {
      options.floor = floor;
      expect_queue(c, options, room, what + ", floor " + std::to_string(floor));
    }
  });
}

TEST(LimitCapacity, RanksTokensByTheirLargestWeightWhereThereAreNoLogits) {
  for_each_case([](Case c, const CapacityOptions& options, Index room, const std::string& what) {
    c.routing.logits.clear();
    expect_queue(c, options, room, what);
  });
}

TEST(LimitCapacity, FillsEveryExpertBeforeItDropsAndNeverBeyond) {
  for_each_case([](Case c, const CapacityOptions& options, Index room, const std::string& what) {
    const Flags before = c.dropped();
    c.limit(options);
    for (Index e = 0; e < c.num_experts; ++e) {
      Index asked = 0, kept = 0;
      for (Index r = 0; r < c.routing.size(); ++r) {
        if (c.routing.expert[std::size_t(r)] != e) continue;
        if (!before[std::size_t(r)]) ++asked;
        if (!c.routing.is_dropped(r)) ++kept;
      }
      ASSERT_EQ(kept, std::min(asked, room)) << what << ", expert " << e;
    }
  });
}

TEST(LimitCapacity, WithRoomForAllTokensDropsNothing) {
  for_each_case([](Case c, CapacityOptions options, Index, const std::string& what) {
    c.routing.dropped.clear();
    options.capacity = fixed_capacity(c.num_tokens);
    c.limit(options);
    EXPECT_EQ(c.routing.num_dropped(), 0) << what;
    EXPECT_TRUE(c.routing.dropped.empty()) << what;
  });
}

/// Token t goes to expert 0 for weight[t].
Case one_expert(const Numbers& weight) {
  Case c{{}, Index(weight.size()), 1};
  for (std::size_t t = 0; t < weight.size(); ++t) c.routing.add(Index(t), 0, weight[t]);
  return c;
}

TEST(LimitCapacity, LeavesThoseOutThatAreAlwaysChosen) {
  const auto x = random_matrix<Matrix<double>>(6, 20, 3);
  const LinearTopK<double> router(random_matrix<Weight<double>>(5, 6, 4), {.top_k = 2, .always_chosen = 1});
  Index asked_for = 0;
  const CapacityRule four = [&](Index, Index num_experts) {
    asked_for = num_experts;
    return Index(4);
  };
  const auto load = [](const Routing<double>& routing) {
    std::vector<Index> tokens(5);
    for (Index r = 0; r < routing.size(); ++r) {
      if (!routing.is_dropped(r)) ++tokens[std::size_t(routing.expert[std::size_t(r)])];
    }
    return tokens;
  };
  EXPECT_EQ(load(route(WithCapacity(router, {.capacity = four, .unlimited = 1}), x)),
            (std::vector<Index>{4, 4, 4, 4, 20}));
  EXPECT_EQ(asked_for, 4);
  EXPECT_EQ(load(route(WithCapacity(router, {.capacity = four}), x)), std::vector<Index>(5, 4));
  EXPECT_EQ(asked_for, 5);
  EXPECT_EQ(test::error_of([&] { route(WithCapacity(router, {.capacity = four, .unlimited = 6}), x); }),
            "limit_capacity: options.unlimited is 6, expected 0 to 5");
}

TEST(LimitCapacity, GivesTheRoomOfARouteThatWasDroppedToTheNext) {
  for (const Priority priority : priorities) {
    Case c = one_expert({0.5, 0.5, 0.5});
    c.routing.drop(0);
    c.limit({.capacity = fixed_capacity(1), .priority = priority});
    EXPECT_EQ(c.dropped(), (Flags{true, false, true}));
  }
}

TEST(LimitCapacity, RanksANotANumberLastAndLeavesItVisible) {
  for (const Priority priority : {Priority::probability, Priority::batch}) {
    Case c = one_expert({nan, 0.25, nan, -inf, 0.5});
    c.limit({.capacity = fixed_capacity(3), .priority = priority});
    EXPECT_EQ(c.dropped(), (Flags{false, false, true, true, false}));
    EXPECT_TRUE(std::isnan(c.routing.weight[0]));
  }
  Case c{{}, 2, 2};
  c.routing.add(0, 0, nan);
  c.routing.add(0, 1, 0.5);
  c.routing.add(1, 0, 0.5);
  c.limit({.capacity = fixed_capacity(2), .renormalize = true, .floor = 1e-9});
  EXPECT_TRUE(std::isnan(c.routing.weight[0]) && std::isnan(c.routing.weight[1]));
  EXPECT_EQ(c.routing.weight[2], 1);
}

TEST(LimitCapacity, OfWeightsThatAreZeroLeavesZero) {
  Case c = one_expert({0, 0});
  c.limit({.capacity = fixed_capacity(1), .renormalize = true});
  EXPECT_EQ(c.routing.weight, (Numbers{0, 0}));
}

TEST(LimitCapacity, KnowsHowSureATokenIsFromInfiniteLogits) {
  const Numbers logits = {0,    -inf, 0,     // two alike: 1/2
                          -inf, -inf, -inf,  // uniform: 1/3
                          nan,  9,    0,     // last
                          inf,  0,    nan,   // last
                          0,    inf,  0,     // 1
                          inf,  0,    inf};  // two alike: 1/2
  const std::vector<Index> order = {4, 0, 5, 1, 2, 3};
  for (std::size_t room = 0; room <= order.size(); ++room) {
    Case c{{}, 6, 3};
    for (Index t = 0; t < 6; ++t) c.routing.add(t, 2, 1);
    c.routing.logits = logits;
    c.limit({.capacity = fixed_capacity(Index(room)), .priority = Priority::batch});
    for (std::size_t i = 0; i < order.size(); ++i) EXPECT_EQ(c.routing.is_dropped(order[i]), i >= room) << i;
  }
}

TEST(LimitCapacity, AsksItsRuleForOneSequence) {
  Case c = one_expert(Numbers(6, 1));
  c.num_experts = 4;
  c.sequence_length = 3;
  Index tokens = 0, experts = 0;
  CapacityOptions options{.capacity =
                              [&](Index num_tokens, Index num_experts) {
                                tokens = num_tokens;
                                experts = num_experts;
                                return Index(0);  // no room
                              },
                          .per_sequence = true};
  c.limit(options);
  EXPECT_EQ(std::pair(tokens, experts), std::pair(Index(3), Index(4)));
  EXPECT_EQ(c.routing.num_dropped(), 6);
  options.per_sequence = false;
  c.limit(options);
  EXPECT_EQ(std::pair(tokens, experts), std::pair(Index(6), Index(4)));
}

TEST(LimitCapacity, RefusesWhatDoesNotFitWithTheNumbers) {
  const auto complaint = [](Case c, const CapacityOptions& options) {
    return test::error_of([&] { c.limit(options); });
  };
  Case c = one_expert(Numbers(7, 1));
  const CapacityOptions per_sequence{.capacity = fixed_capacity(1), .per_sequence = true};
  EXPECT_EQ(complaint(c, per_sequence), "no error");
  EXPECT_EQ(complaint(c, {}), "limit_capacity: options.capacity is missing");
  EXPECT_EQ(complaint(c, {.capacity = [](Index tokens, Index) { return tokens - 8; }}),
            "limit_capacity: what options.capacity() returned is -1, expected at least 0");
  c.sequence_length = 3;
  EXPECT_EQ(complaint(c, per_sequence), "limit_capacity: 7 tokens are not whole sequences of 3");
  EXPECT_EQ(complaint(c, {.capacity = fixed_capacity(1)}), "no error");
  c.sequence_length = -7;
  EXPECT_EQ(complaint(c, per_sequence), "limit_capacity: 7 tokens are not whole sequences of -7");
  c.sequence_length = 0;
  c.routing.expert[4] = 1;
  EXPECT_EQ(complaint(c, per_sequence), "Routing: route 4 sends token 4 of 7 to expert 1 of 1");
  c.routing.expert[4] = 0;
  c.routing.token[5] = -1;
  EXPECT_EQ(complaint(c, per_sequence), "Routing: route 5 sends token -1 of 7 to expert 0 of 1");
  c.routing.token.pop_back();
  EXPECT_EQ(complaint(c, per_sequence), "Routing: expert.size() is 7, expected 6");
}

TEST(LimitCapacity, AllocatesNothingWhenWarmEvenWhereItDropsMoreThanBefore) {
  const Case c = random_case(33, 8, 3, true, 5);
  CapacityOptions all{.capacity = fixed_capacity(plenty), .renormalize = true}, none = all;
  none.capacity = fixed_capacity(0);
  for (const Priority priority : priorities) {
    all.priority = none.priority = priority;
    Routing<double> routing = c.routing;
    routing.dropped = std::vector<std::uint8_t>();  // without memory
    Scratch scratch;
    for (int warming = 0; warming < 2; ++warming) {
      scratch.reset();
      limit_capacity(routing, 33, 8, 0, all, scratch);
      EXPECT_EQ(routing.num_dropped(), 0);
    }
    const auto warm = [&] {
      scratch.reset();
      limit_capacity(routing, 33, 8, 0, none, scratch);
    };
    EXPECT_EQ(test::allocations_in(warm), 0) << int(priority);
    EXPECT_EQ(routing.num_dropped(), 99);
  }
}

TEST(TokensPerSequence, IsWhatIsSaidOrAllOfThem) {
  EXPECT_EQ(tokens_per_sequence(12, 3, "it"), 3);
  EXPECT_EQ(tokens_per_sequence(12, 12, "it"), 12);
  EXPECT_EQ(tokens_per_sequence(12, 0, "it"), 12);
  EXPECT_EQ(tokens_per_sequence(0, 5, "it"), 5);
  EXPECT_EQ(tokens_per_sequence(0, 0, "it"), 1);
  EXPECT_EQ(test::error_of([] { tokens_per_sequence(12, 24, "it"); }), "it: 12 tokens are not whole sequences of 24");
}

TEST(CapacityRules, AreThoseOfTheirPapers) {
  EXPECT_EQ(capacity_factor(1, 2)(32, 6), 11);  // ⌈10.67⌉
  EXPECT_EQ(capacity_factor(1.25, 1)(16, 4), 5);
  EXPECT_EQ(capacity_factor(1.25, 1)(17, 4), 6);  // ⌈5.3⌉
  EXPECT_EQ(capacity_factor(1, 1, 4)(8, 8), 4);
  EXPECT_EQ(capacity_factor(1, 1, 4)(80, 8), 10);
  EXPECT_EQ(capacity_factor(1, 1)(0, 8), 0);
  EXPECT_EQ(capacity_fraction(0.25)(20, 3), 5);
  EXPECT_EQ(capacity_fraction(0.3)(21, 3), 7);  // ⌈6.3⌉
  EXPECT_EQ(fixed_capacity(3)(1000, 1), 3);
  EXPECT_EQ(fixed_capacity(0)(1000, 1), 0);
}

TEST(CapacityRules, BeyondAllNumbersAreRoomForAll) {
  constexpr Index most = std::numeric_limits<Index>::max();
  EXPECT_EQ(capacity_factor(inf, 1)(16, 4), most);
  EXPECT_EQ(capacity_factor(1e300, 1)(16, 4), most);
  EXPECT_EQ(capacity_factor(1, most)(16, 4), most);
  EXPECT_EQ(capacity_fraction(inf)(16, 4), most);
}

TEST(CapacityRules, RefuseWhatLeavesNoRoomByMistake) {
  EXPECT_EQ(test::error_of([] { capacity_factor(0, 1); }), "capacity_factor: factor is 0.000000, expected more than 0");
  EXPECT_EQ(test::error_of([] { capacity_factor(-1, 1); }),
            "capacity_factor: factor is -1.000000, expected more than 0");
  EXPECT_EQ(test::error_of([] { capacity_factor(nan, 1); }), "capacity_factor: factor is nan, expected more than 0");
  EXPECT_TRUE(test::error_of([] { capacity_factor(1, 0); }).starts_with("capacity_factor: top_k is 0, expected 1 to"));
  EXPECT_EQ(test::error_of([] { capacity_fraction(-1); }),
            "capacity_fraction: fraction is -1.000000, expected more than 0");
  EXPECT_TRUE(test::error_of([] { fixed_capacity(-1); }).starts_with("fixed_capacity: capacity is -1, expected 0 to"));
}

auto layer_with_room_for(Index room, Priority priority, WeightOn weight_on = WeightOn::output) {
  std::vector<Ffn<double>> experts;
  for (unsigned seed = 1; seed <= 4; ++seed) experts.push_back(test::Ffns<double>::make(9, seed));
  return MoeLayer(WithCapacity(router_for<double>(9, 4, 2, weight_on),
                               {.capacity = fixed_capacity(room), .priority = priority, .per_sequence = true}),
                  std::move(experts));
}

TEST(WithCapacity, MakesALayerWhoseDroppedRoutesGiveNothing) {
  const auto x = random_matrix<Matrix<double>>(9, 24, 3);
  for (const WeightOn weight_on : {WeightOn::output, WeightOn::input}) {
    for (const Priority priority : priorities) {
      for (const Index room : {0, 1, 3, 24}) {
        const auto layer = layer_with_room_for(room, priority, weight_on);
        Workspace<double> ws;
        ws.side.sequence_length = 12;
        Matrix<double> y(9, 24);
        layer.forward(x, y, ws);
        EXPECT_EQ(ws.routing.num_dropped() > 0, room < 24);
        EXPECT_EQ(ws.plan.view().num_slots(), 48 - ws.routing.num_dropped());
        EXPECT_TRUE(is_close(y, test::oracle_forward(layer, x, ws.side)));
      }
    }
  }
}

TEST(WithCapacity, LeavesZeroToATokenThatLostAllItsRoutes) {
  const auto x = random_matrix<Matrix<double>>(9, 24, 3);
  const auto layer = layer_with_room_for(2, Priority::choice);
  Workspace<double> ws;
  Matrix<double> y(9, 24);
  layer.forward(x, y, ws);
  Index lost = 0;
  for (Index t = 0; t < 24; ++t) {
    const bool all_dropped = ws.routing.is_dropped(2 * t) && ws.routing.is_dropped(2 * t + 1);
    EXPECT_EQ(y.col(t).isZero(0), all_dropped) << "token " << t;
    if (all_dropped) ++lost;
  }
  EXPECT_GT(lost, 0);
}

TEST(WithCapacity, SaysWhatItsRouterSays) {
  const auto router = WithCapacity(router_for<float>(9, 5, 2), {.capacity = fixed_capacity(2)});
  EXPECT_EQ(router.d_model(), 9);
  EXPECT_EQ(router.num_experts(), 5);
  EXPECT_EQ(router.top_k(), 2);
  const auto x = random_matrix<Matrix<float>>(9, 20, 1);
  const auto limited = route(router, x), free = route(router.router(), x);
  EXPECT_EQ(limited.expert, free.expert);
  EXPECT_EQ(limited.weight, free.weight);
  EXPECT_EQ(limited.num_dropped(), 40 - 5 * 2);
}

TEST(WithCapacity, GivesRoomToEachSequence) {
  const auto router = WithCapacity(router_for<float>(9, 5, 2), {.capacity = fixed_capacity(2), .per_sequence = true});
  const auto x = random_matrix<Matrix<float>>(9, 20, 1);
  const auto together = route(router, {x, {.sequence_length = 10}});
  const auto first = route(router, x.leftCols(10)), second = route(router, x.rightCols(10));
  for (Index r = 0; r < 20; ++r) {
    EXPECT_EQ(together.is_dropped(r), first.is_dropped(r)) << r;
    EXPECT_EQ(together.is_dropped(20 + r), second.is_dropped(r)) << r;
  }
  EXPECT_LT(together.num_dropped(), route(router, x).num_dropped());
}

TEST(WithCapacity, RefusesToHaveNoRule) {
  EXPECT_EQ(test::error_of([] { WithCapacity(router_for<float>(9, 5, 2), {}); }),
            "WithCapacity: options.capacity is missing");
}

}  // namespace
}  // namespace moe::laws
