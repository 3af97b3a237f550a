// Layers of banks that learn on many ranks, and gradients that ranks have in common.
#include "allocations.hpp"  // before Eigen

#include "moe/train/distributed/expert_parallel.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "compare.hpp"
#include "distributed/learn.hpp"
#include "distributed/measured_bytes.hpp"
#include "distributed/ranks.hpp"
#include "errors.hpp"
#include "expert_factories.hpp"
#include "laws/common.hpp"
#include "moe/distributed/balance.hpp"
#include "moe/losses/importance.hpp"
#include "moe/moe.hpp"
#include "moe/train.hpp"
#include "moe/train/distributed/gradient_reducer.hpp"
#include "pools.hpp"

namespace moe::distributed {

using laws::router_for;
using test::Batch;
using test::copied;
using test::dealt;
using test::expect_same_bits;
using test::learn;
using test::local_group;
using test::my_rank;
using test::named;
using test::num_ranks;
using test::random_matrix;
using test::rank_by_rank;
using test::same_bits;
using Bank = test::GatedFfnBanks<float>;

TEST(Train, GradientsAreSlopesOfTheSumOverAllRanks) {
  const Index d_model = 5, num_experts = 4;
  for (const WeightOn weight_on : {WeightOn::output, WeightOn::input}) {
    const Placement placement = copied(num_experts, num_ranks());
    using Banks = test::GatedFfnBanks<double>;
    MoeLayer layer(
        router_for<double>(d_model, num_experts, 2, weight_on),
        ExpertParallel(local_group<Banks>(d_model, placement.experts_of(my_rank())), placement, MPI_COMM_WORLD));
    const Batch<double> x(d_model, 8, 70), d_y(d_model, 8, 71);
    Matrix<double> own = x.own();
    auto learnt = learn(layer, own, d_y.own());
    GradientReducer gradients(parameters(learnt.gradient), MPI_COMM_WORLD);
    gradients.sum();
    const auto loss = [&] {
      auto tape = tape_of(layer);
      Matrix<double> y = own;
      forward(layer, own, y, tape);
      double sum[] = {y.cwiseProduct(d_y.own()).sum()};
      Scratch scratch;
      sum_in_order(sum, gradients.communicator(), scratch);
      return sum[0];
    };
    /// @param number  to move on this rank, if it is here
    const auto expect_slope = [&](double* number, double slope, const std::string& name) {
      constexpr double h = 1e-5;
      const auto loss_at = [&](double shift) {
        if (number) *number += shift;
        const double value = loss();
        if (number) *number -= shift;
        return value;
      };
      const double expected = (loss_at(h) - loss_at(-h)) / (2 * h);
      if (number) {
        EXPECT_NEAR(slope, expected, 1e-7 * (1 + std::abs(expected))) << name;
      }
    };
    const MoeLayer whole(layer.router(), Banks::make(d_model, laws::seeds_from(1, num_experts)));
    auto model = whole;
    const auto mine = parameters(layer);
    for (const auto& parameter : parameters(model)) {  // on all ranks the same, whoever has it
      const auto its = std::ranges::find(mine, parameter.name, &Parameter<double>::name);
      const bool is_here = its != mine.end();
      const auto* slopes = is_here ? gradients.parameters()[std::size_t(its - mine.begin())].data : nullptr;
      for (Index i = 0; i < parameter.size(); i += 7) {
        expect_slope(is_here ? its->data + i : nullptr, is_here ? slopes[i] : 0, parameter.name);
      }
    }
    for (int rank = 0; rank < num_ranks(); ++rank) {
      for (Index i = 0; i < x.of(rank).size(); i += 3) {
        const bool is_here = rank == my_rank();
        expect_slope(is_here ? own.data() + i : nullptr, is_here ? learnt.d_x.data()[i] : 0, "x");
      }
    }
  }
}

TEST(Train, ASharedExpertLearnsBesideThem) {
  const Index d_model = 16, num_experts = 6;
  const auto router = router_for<float>(d_model, num_experts, 2);
  const auto shared = Bank::make(d_model, laws::seeds_from(50, 1));
  const Eigen::RowVectorXf gate = random_matrix<Matrix<float>>(1, d_model, 3);
  const Placement placement = dealt(num_experts, num_ranks());
  const WithSharedExpert whole(MoeLayer(router, Bank::make(d_model, laws::seeds_from(1, num_experts))), shared, gate);
  const WithSharedExpert layer(
      MoeLayer(router,
               ExpertParallel(local_group<Bank>(d_model, placement.experts_of(my_rank())), placement, MPI_COMM_WORLD)),
      shared, gate);
  const Batch<float> x(d_model, 20, 81), d_y(d_model, 20, 82);
  auto expected = learn(whole, x.all, d_y.all);
  auto got = learn(layer, x.own(), d_y.own());
  const Index first = x.first[std::size_t(my_rank())];
  EXPECT_TRUE(same_bits(got.y, expected.y.middleCols(first, x.own().cols())));
  EXPECT_TRUE(same_bits(got.d_x, expected.d_x.middleCols(first, x.own().cols())));
  GradientReducer(parameters(got.gradient), MPI_COMM_WORLD).sum();
  expect_same_bits<float>(named(got.gradient), named(expected.gradient), "experts.", "experts");
  expect_same_bits<float>(named(got.gradient), rank_by_rank(whole, x, d_y), "shared_expert", "the shared expert");
  expect_same_bits<float>(named(got.gradient), rank_by_rank(whole, x, d_y), "gate.", "the router");
}

TEST(Train, GradientsPassThroughFrozenExperts) {
  const Index d_model = 16, num_experts = 6;
  const auto router = router_for<float>(d_model, num_experts, 2);
  const Placement placement = dealt(num_experts, num_ranks());
  const MoeLayer whole(router, Frozen(Bank::make(d_model, laws::seeds_from(1, num_experts))));
  const MoeLayer layer(router, Frozen(ExpertParallel(local_group<Bank>(d_model, placement.experts_of(my_rank())),
                                                     placement, MPI_COMM_WORLD)));
  const Batch<float> x(d_model, 20, 83), d_y(d_model, 20, 84);
  auto expected = learn(whole, x.all, d_y.all);
  auto got = learn(layer, x.own(), d_y.own());
  EXPECT_TRUE(same_bits(got.d_x, expected.d_x.middleCols(x.first[std::size_t(my_rank())], x.own().cols())));
  EXPECT_EQ(parameters(got.gradient).size(), 1u);  // the router's
}

/// Answers x; where told so, throws on the way back from the first gradient that is not zero.
struct Fragile {
  using Scalar = float;
  Index width;
  bool throws;

  Index d_model() const { return width; }
  void forward(const ConstMatrixRef<float>& x, MatrixRef<float> y, Scratch&) const { y = x; }
};
void visit_parameters(Fragile&, ParameterVisitor<float>&) {}
void backward(const Fragile& expert, const ConstMatrixRef<float>&, const ConstMatrixRef<float>& d_y,
              MatrixRef<float> d_x, Fragile&, Scratch&) {
  if (expert.throws && d_y.cwiseAbs().maxCoeff() > 0) throw std::domain_error("a gradient that is not zero");
  d_x += d_y;
}

TEST(Train, AnErrorOfOneRanksBackwardPassIsAnErrorOfAllAfterWhichTheyGoOn) {
  const Index d_model = 4;
  const int last = num_ranks() - 1;
  const MoeLayer layer(router_for<float>(d_model, num_ranks(), num_ranks()),
                       ExpertParallel(ExpertList(std::vector{Fragile{d_model, my_rank() == last}}), MPI_COMM_WORLD));
  const Matrix<float> zeros = Matrix<float>::Zero(d_model, 5), ones = Matrix<float>::Ones(d_model, 5);
  for (int i = 0; i < 3; ++i) {
    std::string message = "no error";
    try {
      learn(layer, ones, ones);
    } catch (const std::domain_error& error) {
      message = my_rank() == last ? error.what() : "an error of another rank";
    } catch (const std::runtime_error& error) {
      message = error.what();
    }
    EXPECT_EQ(message,
              (my_rank() == last ? "" : "rank " + std::to_string(last) + ": ") + "a gradient that is not zero");
    EXPECT_TRUE(same_bits(learn(layer, ones, zeros).d_x, zeros));
  }
}

TEST(Train, NeedsAForwardPass) {
  const ExpertParallel group(*local_group<Bank>(4, {0}), MPI_COMM_WORLD);
  auto gradient = zeros_like(group);
  const auto tape = tape_of(group);
  Matrix<float> none(4, 0);
  PlanMemory<float> memory;
  const auto plan = plan_dispatch(Routing<float>{}, 0, group.num_experts(), memory);
  std::vector<Scratch> scratch;
  Workers workers(Serial{}, scratch);
  EXPECT_EQ(test::error_of([&] { backward(group, none, plan, none, tape, {}, none, gradient, workers); }),
            "backward: there was no forward() on this tape");
}

TEST(Train, NoRankMayWeighInputsWhereAnotherWeighsOutputs) {
  const Index d_model = 4;
  const WeightOn weight_on = my_rank() == 0 ? WeightOn::input : WeightOn::output;
  const ExpertParallel group(*local_group<Bank>(d_model, {0}), MPI_COMM_WORLD);
  const MoeLayer layer(router_for<float>(d_model, num_ranks(), num_ranks(), weight_on), group);
  const Matrix<float> ones = Matrix<float>::Ones(d_model, 1);
  std::string message = "no error";
  try {
    layer.forward(ones);
  } catch (const std::exception& error) {
    message = error.what();
  }
  EXPECT_EQ(num_ranks() == 1 ? message == "no error"
                             : message.ends_with("ExpertParallel: routes to one rank with weights on the input is 1, "
                                                 "expected " +
                                                 std::to_string(num_ranks())),
            true)
      << message;
}

TEST(Train, GradientsTravelAsTokensAndAnswersDo) {
  const Index d_model = 24, num_experts = 7;
  for (const Answers answers : {Answers::each, Answers::summed}) {
    const Placement placement = dealt(num_experts, num_ranks());
    Traffic traffic;
    const MoeLayer layer(router_for<float>(d_model, num_experts, 3),
                         ExpertParallel(local_group<Bank>(d_model, placement.experts_of(my_rank())), placement,
                                        MPI_COMM_WORLD, {.answers = answers, .traffic = &traffic}));
    const Batch<float> x(d_model, 50, 90), d_y(d_model, 50, 91);
    auto tape = tape_of(layer);
    auto gradient = zeros_like(layer);
    Matrix<float> y = x.own(), d_x = x.own();
    test::measured_bytes = 0;
    forward(layer, x.own(), y, tape);
    EXPECT_EQ(traffic.bytes, test::measured_bytes);
    const Traffic there = traffic;
    backward(layer, x.own(), d_y.own(), tape, d_x, gradient);
    EXPECT_EQ(traffic.bytes, test::measured_bytes);
    EXPECT_EQ(traffic.columns, 2 * there.columns);
    EXPECT_EQ(traffic.answers, 2 * there.answers);
    EXPECT_EQ(traffic.calls, 2);
    Index routes = 0;  // of other ranks, to this one
    const auto& in = tape.experts.itinerary->in;
    for (int rank = 0; rank < num_ranks(); ++rank) routes += rank == my_rank() ? 0 : in(rank, 0).slots;
    EXPECT_EQ(traffic.bytes - there.bytes, 4 * d_model * (there.columns + there.answers) + 4 * routes);
  }
}

/// One of that name and size, filled with this number.
struct Filled {
  std::string name;
  Weight<float> values;
  Parameter<float> parameter() { return {name, values.data(), values.rows(), values.cols()}; }
};
Filled filled(const std::string& name, Index rows, Index cols, float with) {
  return {name, Weight<float>::Constant(rows, cols, with)};
}

TEST(GradientReducer, SumsOverThoseRanksThatHaveThem) {
  // 1, 2, … : rank r has "all" and, where r is even, "even"; "own r" is its own; "last" the last rank's and the
  // first's.
  for (const Index size : {0, 1, 2, 7, 64, 1001}) {
    const auto value = [](int rank) { return float(rank + 1); };
    const bool at_an_end = my_rank() == 0 || my_rank() == num_ranks() - 1;
    auto all = filled("all", 1, size, value(my_rank())), even = filled("even", size, 3, value(my_rank()));
    auto own = filled("own " + std::to_string(my_rank()), 1, size, value(my_rank()));
    auto last = filled("last", size, 1, value(my_rank()));
    std::vector<Parameter<float>> here{own.parameter(), all.parameter()};
    if (my_rank() % 2 == 0) here.push_back(even.parameter());
    if (at_an_end) here.insert(here.begin(), last.parameter());
    for (const Index workers : {1, 3}) {
      for (Filled* const each : {&all, &even, &own, &last}) each->values.setConstant(value(my_rank()));
      GradientReducer gradients(here, MPI_COMM_WORLD);
      gradients.sum(test::Shuffled{workers});
      float of_all = 0, of_even = 0;
      for (int rank = 0; rank < num_ranks(); ++rank) {
        of_all += value(rank);
        if (rank % 2 == 0) of_even += value(rank);
      }
      const float of_ends = num_ranks() == 1 ? 1 : value(0) + value(num_ranks() - 1);
      EXPECT_TRUE((all.values.array() == of_all).all());
      EXPECT_TRUE((own.values.array() == value(my_rank())).all());
      EXPECT_TRUE((even.values.array() == (my_rank() % 2 == 0 ? of_even : value(my_rank()))).all());
      EXPECT_TRUE((last.values.array() == (at_an_end ? of_ends : value(my_rank()))).all());

      // Each counts once: n numbers of each of "all", "last" and every "own r", 3n of "even".
      double squares = double(of_all) * of_all + 3 * double(of_even) * of_even + double(of_ends) * of_ends;
      for (int rank = 0; rank < num_ranks(); ++rank) squares += double(value(rank)) * value(rank);
      const double norm = std::sqrt(double(size) * squares);
      EXPECT_NEAR(gradients.clip(1e9), norm, 1e-12 * norm);
      EXPECT_TRUE((all.values.array() == of_all).all());
      if (size == 0) continue;
      EXPECT_NEAR(gradients.clip(norm / 2), norm, 1e-12 * norm);
      EXPECT_NEAR(gradients.clip(norm), norm / 2, 1e-6 * norm);
    }
  }
}

TEST(GradientReducer, AddsInTheOrderOfTheRanks) {
  const Index size = 1000;
  const auto of = [&](int rank) { return random_matrix<Weight<float>>(1, size, unsigned(rank)); };
  Filled gradient{"w", of(my_rank())};
  Weight<float> expected = of(0);
  for (int rank = 1; rank < num_ranks(); ++rank) expected += of(rank);
  GradientReducer(std::vector{gradient.parameter()}, MPI_COMM_WORLD).sum();
  EXPECT_TRUE(same_bits(gradient.values, expected));
}

TEST(GradientReducer, TellsEveryRankThatTheyDisagree) {
  auto w = filled("w", my_rank() == 0 ? 2 : 3, 4, 0), again = filled("w", 2, 4, 0);
  std::string others = num_ranks() == 2 ? "3 on rank 1" : "3 on ranks 1";
  for (int rank = 2; rank < num_ranks(); ++rank) others += ", " + std::to_string(rank);
  EXPECT_EQ(test::error_of([&] { GradientReducer(std::vector{w.parameter()}, MPI_COMM_WORLD); }),
            num_ranks() == 1 ? "no error" : "GradientReducer: ranks disagree on rows of w: 2 on rank 0; " + others);

  std::vector<Parameter<float>> twice{again.parameter()};
  if (my_rank() == num_ranks() - 1) twice.push_back(again.parameter());
  EXPECT_EQ(test::error_of([&] { GradientReducer(twice, MPI_COMM_WORLD); }),
            "GradientReducer: rank " + std::to_string(num_ranks() - 1) + " has two of w");
  GradientReducer gradients(std::vector{again.parameter()}, MPI_COMM_WORLD);
  EXPECT_EQ(test::error_of([&] { gradients.clip(0); }), "clip_gradients: max_norm is 0.000000, expected more than 0");
}

TEST(GradientReducer, TellsAllRanksOfWhatIsNotFinite) {
  auto w = filled("own " + std::to_string(my_rank()), 2, 3, 1);
  if (my_rank() == num_ranks() - 1) w.values(1, 1) = std::numeric_limits<float>::quiet_NaN();
  GradientReducer gradients(std::vector{w.parameter()}, MPI_COMM_WORLD);
  EXPECT_TRUE(std::isnan(gradients.clip(1)));
}

TEST(Balance, OfTheGlobalBatchIsThatOfOneProcess) {
  const Index d_model = 8, num_experts = 6;
  const auto router = router_for<float>(d_model, num_experts, 2);
  const Communicator comm(MPI_COMM_WORLD, std::chrono::minutes(1));
  for (const Index most : {1, 40}) {
    const Batch<float> x(d_model, most, 95);
    for (const LoadBalancingOptions& options :
         {LoadBalancingOptions{}, LoadBalancingOptions{.score = Score::sigmoid, .choices = 1, .divide_by_k = false}}) {
      const auto route = [&](const Matrix<float>& tokens) {
        Workspace<float> ws;
        Workers workers(Serial{}, ws.scratch, {.batch_invariant = true});
        router.route(tokens, ws.routing, workers);
        return ws.routing;
      };
      const auto all = route(x.all), own = route(x.own());
      const Index tokens = x.own().cols(), first = x.first[std::size_t(my_rank())];
      const ExpertShares expected = measure_shares(all, x.all.cols(), num_experts, options);
      Scratch scratch;
      ExpertShares merged = measure_shares(own, tokens, num_experts, options);
      all_reduce(merged, comm, scratch);
      EXPECT_TRUE(same_bits(merged.routes, expected.routes));
      EXPECT_TRUE(same_bits(merged.tokens, expected.tokens));
      EXPECT_TRUE(same_bits(merged.out_of, expected.out_of));
      EXPECT_NEAR(load_balancing_loss(merged), load_balancing_loss(expected), 1e-14);  // sums in another order

      Matrix<float> d_all = Matrix<float>::Zero(num_experts, x.all.cols()),
                    d_own = Matrix<float>::Zero(num_experts, tokens);
      add_load_balancing_gradient<float>(all, options, expected, 0.01, d_all);
      add_load_balancing_gradient<float>(own, options, merged, 0.01, d_own);
      EXPECT_TRUE(same_bits(d_own, d_all.middleCols(first, tokens)));

      Eigen::ArrayXd importance, of_all;
      measure_importance(own, tokens, num_experts, importance);
      measure_importance(all, x.all.cols(), num_experts, of_all);
      all_reduce(importance, comm, scratch);
      EXPECT_LE((importance - of_all).abs().maxCoeff(), 1e-14 * (1 + of_all.maxCoeff()));
    }
  }
  ExpertShares of_sequences;
  of_sequences.set_zero(num_experts, 2);
  Scratch scratch;
  EXPECT_EQ(test::error_of([&] { all_reduce(of_sequences, comm, scratch); }),
            "all_reduce: shares.num_sequences() is 2, expected 1");
}

}  // namespace moe::distributed
