// Gradients of groups of experts that are no bank against central differences in double.
#include "allocations.hpp"

#include "moe/train.hpp"

#include <vector>

#include <gtest/gtest.h>

#include "laws/gradient_laws.hpp"
#include "moe/moe.hpp"
#include "random.hpp"
#include "train/factories.hpp"

namespace moe {
namespace {

using laws::expect_true_gradients;
using test::Random;
using test::random_bank;
using test::random_ffns;
using test::random_matrix;
using test::random_router;
using VectorD = Eigen::VectorXd;

constexpr Index token_counts[] = {0, 1, 9, 40};

TEST(Gradients, OfPlainExpertsWithEveryActivation) {
  const auto check = [](auto act, bool biases) {
    for (const Index tokens : token_counts) {
      expect_true_gradients(
          MoeLayer(random_router(4, 9, {.top_k = 2}, 34), random_ffns<decltype(act)>(4, 9, 70, biases, 35)), tokens, 36,
          20);
    }
  };
  check(Relu{}, true);
  check(ReluSquared{}, false);
  check(Silu{}, true);
  check(Gelu{}, false);
  check(GeluTanh{}, true);
}

TEST(Gradients, OfExpertsThatCostNothing) {
  const auto router = random_router(3, 6, {.top_k = 2}, 37);
  expect_true_gradients(MoeLayer(router, std::vector(3, ZeroExpert<double>{6})), 9, 38);
  expect_true_gradients(MoeLayer(router, std::vector(3, CopyExpert<double>{6})), 9, 38);
  std::vector<ConstantExpert<double>> constants;
  for (unsigned e = 0; e < 3; ++e) {
    constants.push_back({random_matrix<VectorD>(6, 1, 39 + e), random_matrix<Weight<double>>(2, 6, 42 + e)});
  }
  expect_true_gradients(MoeLayer(router, constants), 9, 38);
}

TEST(Gradients, OfGroupsSideBySide) {
  std::vector<ConstantExpert<double>> constants;
  for (unsigned e = 0; e < 2; ++e) {
    constants.push_back({random_matrix<VectorD>(6, 1, 80 + e), random_matrix<Weight<double>>(2, 6, 82 + e)});
  }
  const JoinedExperts experts(random_bank(2, 6, 5, 84), ExpertList(constants), random_bank(1, 6, 9, 85, true),
                              ExpertList(std::vector{CopyExpert<double>{6}}));
  for (const WeightOn weight_on : {WeightOn::output, WeightOn::input}) {
    for (const Index tokens : token_counts) {
      const TopKOptions options{.top_k = 3, .score = Score::sigmoid, .weight_on = weight_on};
      expect_true_gradients(MoeLayer(random_router(6, 6, options, 86), experts), tokens, 87);
    }
  }
}

/// An expert of a user's, which learns: y = a ⊙ x.
struct Scaling {
  using Scalar = double;
  VectorD a;
  Index d_model() const { return a.size(); }
  void forward(const ConstMatrixRef<double>& x, MatrixRef<double> y, Scratch&) const { y = a.asDiagonal() * x; }
};
void backward(const Scaling& expert, const ConstMatrixRef<double>& x, const ConstMatrixRef<double>& d_y,
              MatrixRef<double> d_x, Scaling& gradient, Scratch&) {
  d_x += expert.a.asDiagonal() * d_y;
  gradient.a += x.cwiseProduct(d_y).rowwise().sum();
}
void visit_parameters(Scaling& expert, ParameterVisitor<double>& visit) { visit("a", expert.a); }

TEST(Gradients, OfAListOfExpertsOfAUser) {
  std::vector<Scaling> experts;
  for (unsigned e = 0; e < 4; ++e) experts.push_back({Random(21 + e).matrix<VectorD>(6, 1)});
  for (const WeightOn weight_on : {WeightOn::output, WeightOn::input}) {
    expect_true_gradients(
        MoeLayer(random_router(4, 6, {.top_k = 2, .score = Score::sigmoid, .weight_on = weight_on}, 25), experts), 9,
        26);
  }
}

TEST(Gradients, OfEveryExpertAreAddedToWhatIsThere) {
  for (const Index tokens : token_counts) {
    laws::expect_an_expert_to_add_its_gradients(ZeroExpert<double>{6}, tokens, 98);
    laws::expect_an_expert_to_add_its_gradients(CopyExpert<double>{6}, tokens, 98);
    laws::expect_an_expert_to_add_its_gradients(
        ConstantExpert<double>{random_matrix<VectorD>(6, 1, 99), random_matrix<Weight<double>>(2, 6, 100)}, tokens, 98);
    laws::expect_an_expert_to_add_its_gradients(Ffn<double, Silu>{.w_in = random_matrix<Weight<double>>(11, 6, 101),
                                                                  .w_out = random_matrix<Weight<double>>(6, 11, 102),
                                                                  .b_in = random_matrix<VectorD>(11, 1, 103),
                                                                  .b_out = random_matrix<VectorD>(6, 1, 104)},
                                                tokens, 98);
    laws::expect_an_expert_to_add_its_gradients(Scaling{random_matrix<VectorD>(6, 1, 105)}, tokens, 98);
  }
}

}  // namespace
}  // namespace moe
