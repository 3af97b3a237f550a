#include "laws/experts_laws.hpp"

#include <numeric>
#include <set>
#include <stdexcept>
#include <string>
#include <tuple>

#include "distributed/measured_bytes.hpp"
#include "distributed/ranks.hpp"
#include "errors.hpp"
#include "expert_factories.hpp"
#include "moe/distributed/telemetry.hpp"
#include "moe/experts/any_experts.hpp"
#include "moe/layers/any_layer.hpp"
#include "moe/layers/moe_layer.hpp"
#include "moe/layers/shared.hpp"
#include "moe/models/random.hpp"
#include "moe/telemetry/routing_stats.hpp"
#include "quantized_blocks.hpp"

namespace moe::laws {

/// All ranks run the same laws at the same time, on the same tokens.
struct SharedOutBanks {
  static auto make(Index d_model, std::span<const unsigned> seeds) {
    return distributed::shard_experts(test::GatedFfnBanks<float>::make(d_model, seeds), MPI_COMM_WORLD);
  }
};
INSTANTIATE_TYPED_TEST_SUITE_P(ExpertParallel, ExpertsLaws, SharedOutBanks);

}  // namespace moe::laws

namespace moe::distributed {

using laws::router_for;
using test::copied;
using test::dealt;
using test::invariant_forward;
using test::local_group;
using test::my_rank;
using test::num_ranks;
using test::random_matrix;
using test::same_bits;
using test::tokens_of;

template <class Factory>
class ExpertParallelOf : public testing::Test, public test::GroupsOf<Factory> {
 public:
  using typename test::GroupsOf<Factory>::Group;
  using typename test::GroupsOf<Factory>::Scalar;
  static_assert(Experts<ExpertParallel<Group>>);

  static Matrix<Scalar> tokens(Index d_model, Index num_tokens, int rank = my_rank()) {
    return random_matrix<Matrix<Scalar>>(d_model, num_tokens, 100 + unsigned(rank));
  }
};

// AnyExperts<float> are Ffn<float>, GatedFfn<float> and a function in turn.
using Factories = testing::Types<test::GatedFfnBanks<float, GptOssGlu, true>, test::GatedFfnBanks<double>,
                                 test::GatedFfnBanks<bfloat16>, laws::ListOf<test::AnyExperts<float>>>;
TYPED_TEST_SUITE(ExpertParallelOf, Factories);

TYPED_TEST(ExpertParallelOf, AnyPlacementGivesTheBitsOfOneProcess) {
  for (const Index d_model : {1, 16, 17}) {
    for (const Index num_experts : {1, 2, 3, 8, 13}) {
      for (const Index top_k : {Index(1), (num_experts + 1) / 2, num_experts}) {
        const auto router = router_for<typename TestFixture::Scalar>(d_model, num_experts, top_k);
        const MoeLayer whole(router, this->whole(d_model, num_experts));
        const MoeLayer in_blocks(router, this->shared_out(d_model, place_in_blocks(num_experts, num_ranks())));
        const MoeLayer as_dealt(router, this->shared_out(d_model, dealt(num_experts, num_ranks())));
        const MoeLayer with_copies(router, this->shared_out(d_model, copied(num_experts, num_ranks())));
        for (const Index most : {0, 1, 40}) {
          const auto x = this->tokens(d_model, tokens_of(my_rank(), most));
          const auto expected = invariant_forward(whole, x);
          EXPECT_TRUE(same_bits(invariant_forward(in_blocks, x), expected))
              << d_model << " wide, " << top_k << " of " << num_experts << " experts, " << x.cols() << " tokens";
          EXPECT_TRUE(same_bits(invariant_forward(as_dealt, x), expected))
              << d_model << " wide, " << top_k << " of " << num_experts << " experts, " << x.cols() << " tokens";
          EXPECT_TRUE(same_bits(invariant_forward(with_copies, x), expected))
              << d_model << " wide, " << top_k << " of " << num_experts << " experts, " << x.cols() << " tokens";
        }
      }
    }
  }
}

TYPED_TEST(ExpertParallelOf, ChunksAndThreadsAndWeightsOnTheInputChangeNoBit) {
  const Index d_model = 17, num_experts = 7;
  for (const WeightOn weight_on : {WeightOn::output, WeightOn::input}) {
    const auto router = router_for<typename TestFixture::Scalar>(d_model, num_experts, 3, weight_on);
    const MoeLayer whole(router, this->whole(d_model, num_experts));
    for (const int chunks : {1, 2, 5}) {
      const MoeLayer layer(router,
                           this->shared_out(d_model, place_in_blocks(num_experts, num_ranks()), {.chunks = chunks}));
      for (const Index most : {0, 1, 3, 64}) {
        const auto x = this->tokens(d_model, tokens_of(my_rank(), most));
        const auto expected = invariant_forward(whole, x);
        EXPECT_TRUE(same_bits(invariant_forward(layer, x), expected)) << chunks << " chunks, " << x.cols();
        EXPECT_TRUE(same_bits(invariant_forward(layer, x, test::open_mp(2)), expected))
            << chunks << " chunks, " << x.cols();
        EXPECT_TRUE(same_bits(invariant_forward(layer, x, test::Shuffled{3}), expected)) << chunks << " chunks";
      }
    }
  }
}

TYPED_TEST(ExpertParallelOf, AddsWhatAnyRoutingAsksForInTheOrderOfThePlan) {
  using S = typename TestFixture::Scalar;
  const Index d_model = 9, num_experts = 5, num_tokens = tokens_of(my_rank(), 30);
  const auto group = this->whole(d_model, num_experts);
  const auto shared_out = this->shared_out(d_model, dealt(num_experts, num_ranks()), {.chunks = 2});
  const auto x = this->tokens(d_model, num_tokens);
  for (const WeightOn weight_on : {WeightOn::output, WeightOn::input}) {
    Routing<S> routing;  // some tokens never, some several times to one expert
    if (num_tokens > 0) routing = laws::random_routing<S>(num_tokens, num_experts, 3 * num_tokens, 5);
    routing.weight_on = weight_on;
    Matrix<S> y = this->tokens(d_model, num_tokens, 77), expected = y;
    PlanMemory<S> memory;
    const auto plan = plan_dispatch(routing, num_tokens, num_experts, memory);
    std::vector<Scratch> scratch;
    Workers workers(Serial{}, scratch, {.batch_invariant = true});
    group.apply(x, plan, expected, workers);
    shared_out.apply(x, plan, y, workers);
    EXPECT_TRUE(same_bits(y, expected));
  }
}

TYPED_TEST(ExpertParallelOf, HalvedNumbersOnTheWireAreRoundedTokensAndRoundedAnswers) {
  using S = typename TestFixture::Scalar;
  const auto rounded = [](const Matrix<S>& m) { return Matrix<S>(m.template cast<bfloat16>().template cast<S>()); };
  const Index d_model = 17, num_experts = 5, num_tokens = tokens_of(my_rank(), 30);
  const auto group = this->whole(d_model, num_experts);
  const auto shared_out =
      this->shared_out(d_model, dealt(num_experts, num_ranks()), {.chunks = 2, .wire = Wire::bfloat16});
  const auto x = this->tokens(d_model, num_tokens);
  for (const WeightOn weight_on : {WeightOn::output, WeightOn::input}) {
    Routing<S> routing;
    if (num_tokens > 0) routing = laws::random_routing<S>(num_tokens, num_experts, 3 * num_tokens, 5);
    routing.weight_on = weight_on;
    PlanMemory<S> memory, one_memory;
    const auto plan = plan_dispatch(routing, num_tokens, num_experts, memory);
    std::vector<Scratch> scratch;
    Matrix<S> y = Matrix<S>::Zero(d_model, num_tokens), expected = y;
    {
      Workers workers(Serial{}, scratch, {.batch_invariant = true});
      shared_out.apply(x, plan, y, workers);
    }
    for (Index e = 0; e < num_experts; ++e) {
      for (Index s = plan.first(e); s < plan.first(e) + plan.count(e); ++s) {
        const Index t = plan.token[std::size_t(s)];
        const S weight = plan.weight[std::size_t(s)];
        Routing<S> one;  // the answer of this slot alone, not weighted on the output
        one.add(0, e, weight_on == WeightOn::input ? weight : S(1));
        one.weight_on = weight_on;
        Matrix<S> answer = Matrix<S>::Zero(d_model, 1);
        Workers workers(Serial{}, scratch, {.batch_invariant = true});
        group.apply(rounded(x.col(t)), plan_dispatch(one, 1, num_experts, one_memory), answer, workers);
        expected.col(t) += (weight_on == WeightOn::input ? S(1) : weight) * rounded(answer);
      }
    }
    EXPECT_TRUE(test::is_close(y, expected));  // the last sum may be fused or not
  }
}

TYPED_TEST(ExpertParallelOf, SumsOfRanksAreEqualToRounding) {
  using S = typename TestFixture::Scalar;
  const Index d_model = 17, num_experts = 7;
  for (const WeightOn weight_on : {WeightOn::output, WeightOn::input}) {
    const auto router = router_for<S>(d_model, num_experts, 4, weight_on);
    const MoeLayer whole(router, this->whole(d_model, num_experts));
    for (const int chunks : {1, 3}) {
      const MoeLayer layer(router, this->shared_out(d_model, dealt(num_experts, num_ranks()),
                                                    {.chunks = chunks, .answers = Answers::summed}));
      for (const Index most : {0, 1, 40}) {
        const auto x = this->tokens(d_model, tokens_of(my_rank(), most));
        const auto y = invariant_forward(layer, x), expected = invariant_forward(whole, x);
        EXPECT_TRUE(test::is_close(y, expected)) << chunks << " chunks, " << x.cols() << " tokens";
        EXPECT_TRUE(same_bits(invariant_forward(layer, x, test::open_mp(3)), y));
        if (num_ranks() == 1) {
          EXPECT_TRUE(same_bits(y, expected)) << "one sum in one order";
        }
      }
    }
  }
}

TYPED_TEST(ExpertParallelOf, WithoutInvariantNumericsEqualsOneProcessToRounding) {
  const Index d_model = 33, num_experts = 4;
  const auto router = router_for<typename TestFixture::Scalar>(d_model, num_experts, 2);
  const MoeLayer whole(router, this->whole(d_model, num_experts));
  const MoeLayer layer(router, this->shared_out(d_model, place_in_blocks(num_experts, num_ranks())));
  for (const Index most : {1, 16, 100}) {
    const auto x = this->tokens(d_model, tokens_of(my_rank(), most));
    EXPECT_TRUE(test::is_close(layer.forward(x), whole.forward(x))) << x.cols() << " tokens";
  }
}

TYPED_TEST(ExpertParallelOf, RunsOnAnyCommunicator) {
  const int group = my_rank() % 2;  // two that work at the same time, ranks renumbered from the last one on
  MPI_Comm comm = MPI_COMM_NULL;
  MPI_Comm_split(MPI_COMM_WORLD, group, -my_rank(), &comm);
  {
    const Index d_model = 16, num_experts = 6 + group;
    const auto router = router_for<typename TestFixture::Scalar>(d_model, num_experts, 2);
    const MoeLayer whole(router, this->whole(d_model, num_experts));
    const MoeLayer layer(router, this->shared_out(d_model, place_in_blocks(num_experts, num_ranks(comm)), {}, comm));
    const auto x = this->tokens(d_model, 20);
    for (int i = 0; i < 3; ++i) {
      EXPECT_TRUE(same_bits(invariant_forward(layer, x), invariant_forward(whole, x)));
    }
  }
  MPI_Comm_free(&comm);
}

TYPED_TEST(ExpertParallelOf, AWarmForwardAllocatesNothing) {
  if constexpr (!laws::may_allocate<TypeParam>) {
    const Index d_model = 17, num_tokens = tokens_of(my_rank(), 40);
    using S = typename TestFixture::Scalar;
    const MoeLayer layer(router_for<S>(d_model, 6, 2),
                         this->shared_out(d_model, place_in_blocks(6, num_ranks()), {.chunks = 2}));
    const auto x = this->tokens(d_model, num_tokens);
    Matrix<S> y = x;
    Workspace<S> ws;
    for (int i = 0; i < 2; ++i) layer.forward(x, y, ws);
    EXPECT_EQ(test::allocations_in([&] { layer.forward(x, y, ws); }), 0);
  }
}

using Bank = test::GatedFfnBanks<float>;

TEST(ExpertParallel, NeedsNoPlacementForContiguousBlocks) {
  const Index d_model = 16;
  std::vector<Index> held(
      static_cast<std::size_t>(num_ranks()));  // none, one, two, … on rank 1, 2, 3, …; one on rank 0
  std::iota(held.begin(), held.end(), Index(-1));
  held[0] = 1;
  const Index first = std::accumulate(held.begin(), held.begin() + my_rank(), Index(0));
  const Index num_experts = std::accumulate(held.begin(), held.end(), Index(0));
  std::vector<Index> own(static_cast<std::size_t>(held[std::size_t(my_rank())]));
  std::iota(own.begin(), own.end(), first);

  const ExpertParallel group(local_group<Bank>(d_model, own), MPI_COMM_WORLD);
  EXPECT_EQ(group.num_experts(), num_experts);
  EXPECT_EQ(group.d_model(), d_model);
  const auto router = router_for<float>(d_model, num_experts, 1);
  const auto x = random_matrix<Matrix<float>>(d_model, 11, unsigned(my_rank()));
  EXPECT_TRUE(same_bits(invariant_forward(MoeLayer(router, group), x),
                        invariant_forward(MoeLayer(router, Bank::make(d_model, laws::seeds_from(1, num_experts))), x)));
}

TEST(ExpertParallel, GoesWhereAnyGroupGoes) {
  const Index d_model = 8, num_experts = 5;
  const auto router = router_for<float>(d_model, num_experts, 2);
  const auto whole = Bank::make(d_model, laws::seeds_from(1, num_experts));
  const AnyExperts<float> any = shard_experts(whole, MPI_COMM_WORLD);
  const AnyLayer<float> layer = MoeLayer(router, any);
  const auto x = random_matrix<Matrix<float>>(d_model, 11, unsigned(my_rank()));
  EXPECT_TRUE(same_bits(invariant_forward(layer, x), invariant_forward(MoeLayer(router, whole), x)));
}

/// "8 on ranks 1, 2", or however many there are beside rank 0.
std::string others_have(const std::string& value) {
  std::string text = value + (num_ranks() == 2 ? " on rank 1" : " on ranks 1");
  for (int rank = 2; rank < num_ranks(); ++rank) text += ", " + std::to_string(rank);
  return text;
}

/// Token t of a rank to these experts, each with its weight.
Routing<float> routing_of(int rank, Index num_tokens, Index num_experts) {
  if (num_tokens == 0) return {};
  return laws::random_routing<float>(num_tokens, num_experts, 3 * num_tokens, unsigned(rank));
}

TEST(ExpertParallel, SendsAColumnOnceToARankHoweverManyOfItsExpertsAskForIt) {
  const Index d_model = 24, num_experts = 7;
  const auto each = Answers::each, summed = Answers::summed;
  for (const auto& [chunks, wire, come_back] : {std::tuple(1, Wire::exact, each),
                                                {3, Wire::exact, each},
                                                {1, Wire::bfloat16, each},
                                                {1, Wire::exact, summed}}) {
    const auto placement = dealt(num_experts, num_ranks());
    Traffic traffic;
    const ExpertParallel group(local_group<Bank>(d_model, placement.experts_of(my_rank())), placement, MPI_COMM_WORLD,
                               {.chunks = chunks, .wire = wire, .answers = come_back, .traffic = &traffic});
    for (const Index most : {0, 1, 50}) {
      Index columns = 0, answers = 0, routes = 0, load = 0;
      for (int rank = 0; rank < num_ranks(); ++rank) {
        const auto routing = routing_of(rank, tokens_of(rank, most), num_experts);
        std::set<std::pair<Index, int>> to;  // (token, rank) that rank sends
        std::set<Index> asked;               // tokens of that rank that this one answers
        for (std::size_t r = 0; r < routing.token.size(); ++r) {
          const int holder = placement.ranks_of[std::size_t(routing.expert[r])].front();
          if (holder == my_rank()) ++load;
          if (holder == rank) continue;
          to.insert({routing.token[r], holder});
          if (rank == my_rank()) ++routes;
          if (holder == my_rank() && (come_back == each || asked.insert(routing.token[r]).second)) ++answers;
        }
        if (rank == my_rank()) columns = Index(to.size());
      }
      const Index expected = (wire == Wire::exact ? 4 : 2) * d_model * (columns + answers) +
                             16 * routes                        // expert, column, factor, weight
                             + 8 * chunks * (num_ranks() - 1);  // how many columns and routes

      const Index num_tokens = tokens_of(my_rank(), most);
      const auto routing = routing_of(my_rank(), num_tokens, num_experts);
      const auto x = random_matrix<Matrix<float>>(d_model, num_tokens, 1);
      Matrix<float> y = x;
      PlanMemory<float> memory;
      std::vector<Scratch> scratch;
      Workers workers(Serial{}, scratch);
      traffic = {};
      test::measured_bytes = 0;
      group.apply(x, plan_dispatch(routing, num_tokens, num_experts, memory), y, workers);
      EXPECT_EQ(test::measured_bytes, expected) << chunks << " chunks, " << num_tokens << " tokens";
      EXPECT_EQ(traffic.bytes, expected);
      EXPECT_EQ(traffic.columns, columns);
      EXPECT_EQ(traffic.answers, answers);
      EXPECT_EQ(traffic.routes, load);
      EXPECT_EQ(traffic.calls, 1);
      EXPECT_GT(traffic.seconds_in_exchange, 0);
    }
  }
}

/// Codes stay with their rank, tokens travel; and what is counted is where they went, whatever experts are made of.
TEST(ExpertParallelOfCodedExperts, GivesTheBitsOfOneProcessAndCountsAsThoseOfFloats) {
  const Index d_model = 17, num_experts = 5, top_k = 2;
  using Groups = test::GroupsOf<test::QuantizedBanks>;
  const auto router = router_for<float>(d_model, num_experts, top_k);
  const auto coded = Groups::whole(d_model, num_experts);
  const MoeLayer whole(router, coded);
  const MoeLayer of_floats(router, dequantized<float>(coded));
  RoutingStats expected_counts(num_experts);
  for (int rank = 0; rank < num_ranks(); ++rank) {
    for (const Index most : {0, 1, 40}) {
      const auto x = random_matrix<Matrix<float>>(d_model, tokens_of(rank, most), 100 + unsigned(rank));
      Workspace<float> ws;
      Matrix<float> y(d_model, x.cols());
      of_floats.forward(x, y, ws, Serial{});
      expected_counts.add(ws.routing, x.cols());
    }
  }
  for (const auto& placement :
       {place_in_blocks(num_experts, num_ranks()), dealt(num_experts, num_ranks()), copied(num_experts, num_ranks())}) {
    const MoeLayer layer(router, Groups::shared_out(d_model, placement, {.chunks = 2}));
    RoutingStats counts(num_experts);
    for (const Index most : {0, 1, 40}) {
      const auto x = random_matrix<Matrix<float>>(d_model, tokens_of(my_rank(), most), 100 + unsigned(my_rank()));
      Workspace<float> ws;
      ws.numerics.batch_invariant = true;
      Matrix<float> y(d_model, x.cols());
      layer.forward(x, y, ws, test::open_mp(2));
      EXPECT_TRUE(same_bits(y, invariant_forward(whole, x))) << x.cols() << " tokens";
      EXPECT_TRUE(same_bits(y, invariant_forward(of_floats, x))) << x.cols() << " tokens";
      counts.add(ws.routing, x.cols());
    }
    all_reduce(counts, MPI_COMM_WORLD);
    EXPECT_EQ(counts.num_tokens(), expected_counts.num_tokens());
    for (Index e = 0; e < num_experts; ++e) EXPECT_EQ(counts.load(e), expected_counts.load(e)) << e;
  }
}

TEST(Telemetry, OfAllRanksIsTheSumOfEachOnes) {
  const Index num_experts = 7, num_tokens = 20;
  const auto add = [&](RoutingStats& stats, int rank) {
    auto routing = routing_of(rank, num_tokens, num_experts);
    const auto logits = random_matrix<Matrix<float>>(num_experts, num_tokens, 50 + unsigned(rank));
    routing.logits.assign(logits.data(), logits.data() + logits.size());
    stats.add(routing, num_tokens);
  };
  RoutingStats own(num_experts), all(num_experts);
  add(own, my_rank());
  for (int rank = 0; rank < num_ranks(); ++rank) add(all, rank);
  all_reduce(own, MPI_COMM_WORLD);
  EXPECT_EQ(own.num_tokens(), num_ranks() * num_tokens);
  for (Index e = 0; e < num_experts; ++e) EXPECT_EQ(own.load(e), all.load(e));
  EXPECT_EQ(own.pairs(1, 2), all.pairs(1, 2));
  EXPECT_EQ(own.min_margin(), all.min_margin());
  EXPECT_NEAR(own.mean_entropy(), all.mean_entropy(), 1e-12);  // sums of double in another order
  EXPECT_EQ(place_by_load(own, 3), place_by_load(all, 3));

  RoutingStats of_others(my_rank() == 0 ? 3 : 2);
  EXPECT_EQ(test::error_of([&] { all_reduce(of_others, MPI_COMM_WORLD); }),
            num_ranks() == 1
                ? "no error"
                : "all_reduce: ranks disagree on stats.num_experts(): " + others_have("2") + "; 3 on rank 0");

  const auto traffic = traffic_of_ranks({.calls = 1 + my_rank(), .seconds_in_experts = 0.5}, MPI_COMM_WORLD);
  ASSERT_EQ(std::ssize(traffic), num_ranks());
  for (int rank = 0; rank < num_ranks(); ++rank) {
    EXPECT_EQ(traffic[std::size_t(rank)].calls, 1 + rank);
    EXPECT_EQ(traffic[std::size_t(rank)].seconds_in_experts, 0.5);
  }
}

/// Answers x; where told so, throws at the first token that is not zero.
struct Fragile {
  using Scalar = float;
  Index width;
  bool throws;

  Index d_model() const { return width; }
  void forward(const ConstMatrixRef<float>& x, MatrixRef<float> y, Scratch&) const {
    if (throws && x.cwiseAbs().maxCoeff() > 0) throw std::domain_error("a token that is not zero");
    y = x;
  }
};

TEST(ExpertParallel, AnErrorOfOneRanksExpertsIsAnErrorOfAllAfterWhichTheyGoOn) {
  const Index d_model = 4;
  const int last = num_ranks() - 1;
  const ExpertParallel group(ExpertList(std::vector{Fragile{d_model, my_rank() == last}}), MPI_COMM_WORLD,
                             {.chunks = 3});
  const MoeLayer layer(router_for<float>(d_model, num_ranks(), num_ranks()), group);
  const Matrix<float> zeros = Matrix<float>::Zero(d_model, 5), ones = Matrix<float>::Ones(d_model, 5);
  for (int i = 0; i < 3; ++i) {
    std::string message = "no error";
    try {
      layer.forward(ones);
    } catch (const std::domain_error& error) {
      message = my_rank() == last ? error.what() : "an error of another rank";
    } catch (const std::runtime_error& error) {
      message = error.what();
    }
    EXPECT_EQ(message, (my_rank() == last ? "" : "rank " + std::to_string(last) + ": ") + "a token that is not zero");
    EXPECT_TRUE(same_bits(layer.forward(zeros), zeros));
  }
}

/// Answers x, and writes down that it was asked.
struct Witness {
  using Scalar = float;
  Index width;
  char name;
  std::string* asked;

  Index d_model() const { return width; }
  void forward(const ConstMatrixRef<float>& x, MatrixRef<float> y, Scratch&) const {
    asked->push_back(name);
    y = x;
  }
};

TEST(ExpertParallel, TheSharedExpertRunsWhileTokensTravel) {
  const Index d_model = 4;
  std::string asked;
  const ExpertParallel group(ExpertList(std::vector{Witness{d_model, 'e', &asked}}), MPI_COMM_WORLD);
  const WithSharedExpert layer(MoeLayer(router_for<float>(d_model, num_ranks(), num_ranks()), group),
                               ExpertList(std::vector{Witness{d_model, 's', &asked}}));
  layer.forward(Matrix<float>::Ones(d_model, 5));
  EXPECT_EQ(asked, "se");
}

TEST(ExpertParallel, AnErrorOfOneRanksSharedExpertIsAnErrorOfAll) {
  const Index d_model = 4;
  const int last = num_ranks() - 1;
  const ExpertParallel group(ExpertList(std::vector{Fragile{d_model, false}}), MPI_COMM_WORLD, {.chunks = 2});
  const WithSharedExpert layer(MoeLayer(router_for<float>(d_model, num_ranks(), 1), group),
                               ExpertList(std::vector{Fragile{d_model, my_rank() == last}}));
  const auto message = [&](const Matrix<float>& x) -> std::string {
    try {
      layer.forward(x);
    } catch (const std::exception& error) {
      return error.what();
    }
    return "no error";
  };
  EXPECT_EQ(message(Matrix<float>::Ones(d_model, 5)),
            (my_rank() == last ? "" : "rank " + std::to_string(last) + ": ") + "a token that is not zero");
  EXPECT_EQ(message(Matrix<float>::Zero(d_model, 5)), "no error");
}

/// With one rank there is nobody to disagree with.
std::string expected_of(const std::string& what, const std::string& of_first, const std::string& of_others,
                        bool first_is_less) {
  if (num_ranks() == 1) return "no error";
  const std::string first = of_first + " on rank 0", others = others_have(of_others);
  return "ExpertParallel: ranks disagree on " + what + ": " +
         (first_is_less ? first + "; " + others : others + "; " + first);
}

TEST(ExpertParallel, ToldOnEveryRankThatTheyDisagree) {
  const std::vector<Index> own{Index(my_rank())};
  const bool is_first = my_rank() == 0;
  EXPECT_EQ(test::error_of([&] { ExpertParallel(random_bank<float>(1, is_first ? 8 : 4, 3, 1), MPI_COMM_WORLD); }),
            expected_of("d_model", "8", "4", false));
  EXPECT_EQ(
      test::error_of([&] { ExpertParallel(*local_group<Bank>(4, own), MPI_COMM_WORLD, {.chunks = is_first ? 1 : 2}); }),
      expected_of("options.chunks", "1", "2", true));
  EXPECT_EQ(test::error_of([&] {
              ExpertParallel(*local_group<Bank>(4, own), MPI_COMM_WORLD,
                             {.wire = is_first ? Wire::bfloat16 : Wire::exact,
                              .answers = is_first ? Answers::each : Answers::summed});
            }),
            num_ranks() == 1 ? "no error"
                             : expected_of("options.wire", "1", "0", false) +
                                   ", and on options.answers: 0 on rank 0; " + others_have("1"));
  EXPECT_EQ(test::error_of([&] {
              ExpertParallel(*local_group<Bank>(4, own), place_in_blocks(num_ranks() + (is_first ? 1 : 0), num_ranks()),
                             MPI_COMM_WORLD);
            }),
            num_ranks() == 1 ? "ExpertParallel: experts held by rank 0 is 1, expected 2"
                             : expected_of("placement.num_experts()", std::to_string(num_ranks() + 1),
                                           std::to_string(num_ranks()), false));
  EXPECT_EQ(test::error_of([&] {
              if (is_first) ExpertParallel(*local_group<Bank>(4, own), MPI_COMM_WORLD);
              if (!is_first) ExpertParallel(*local_group<test::GatedFfnBanks<double>>(4, own), MPI_COMM_WORLD);
            }),
            expected_of("sizeof(Scalar)", "4", "8", true));
  EXPECT_EQ(test::error_of([&] { ExpertParallel(random_bank<float>(1, 4, is_first ? 5 : 3, 1), MPI_COMM_WORLD); }),
            expected_of("d_ff", "5", "3", false));
  const std::string of_first = typeid(GatedFfnBank<bfloat16>).name(), of_others = typeid(GatedFfnBank<float>).name();
  EXPECT_EQ(test::error_of([&] {
              if (is_first) ExpertParallel(random_bank<bfloat16>(1, 4, 3, 1), MPI_COMM_WORLD);
              if (!is_first) ExpertParallel(random_bank<float>(1, 4, 3, 1), MPI_COMM_WORLD);
            }),
            expected_of("the type of experts", of_first, of_others, of_first < of_others));
  EXPECT_EQ(test::error_of([&] {
              shard_experts(Bank::make(4, laws::seeds_from(1, is_first ? 3 : 2)), place_in_blocks(3, num_ranks()),
                            MPI_COMM_WORLD);
            }),
            num_ranks() == 1
                ? "no error"
                : "shard_experts: ranks disagree on experts.num_experts(): " + others_have("2") + "; 3 on rank 0");
}

TEST(ExpertParallel, ToldOnEveryRankThatTheyMisplacedAnExpert) {
  const std::vector<Index> own{Index(my_rank())};
  Placement placement = place_in_blocks(num_ranks(), num_ranks());
  if (my_rank() == 0) placement.ranks_of.back().front() = num_ranks() == 1 ? 7 : -1;
  const std::string last = std::to_string(num_ranks() - 1);
  EXPECT_EQ(test::error_of([&] { ExpertParallel(*local_group<Bank>(4, own), placement, MPI_COMM_WORLD); }),
            num_ranks() == 1 ? "ExpertParallel: placement.ranks_of[0][0] is 7, expected 0 to 0"
                             : expected_of("placement.ranks_of[" + last + "][0]", "-1", last, true));

  const int last_rank = num_ranks() - 1;
  const std::vector<Index> two{0, 1};
  EXPECT_EQ(test::error_of([&] {
              ExpertParallel(*local_group<Bank>(4, my_rank() == last_rank ? two : own),
                             place_in_blocks(num_ranks(), num_ranks()), MPI_COMM_WORLD);
            }),
            "ExpertParallel: experts held by rank " + last + " is 2, expected 1");
  EXPECT_EQ(test::error_of([&] { ExpertParallel(std::optional<decltype(Bank::make(1, {}))>(), MPI_COMM_WORLD); }),
            "ExpertParallel: no rank holds an expert");
  EXPECT_EQ(test::error_of([&] { ExpertParallel(*local_group<Bank>(4, own), MPI_COMM_WORLD, {.chunks = 0}); }),
            "ExpertParallel: options.chunks is 0, expected 1 to 1024");
}

}  // namespace moe::distributed
