// Gradients of what stands around a sparse layer, or in its place, against central differences in double.
#include "allocations.hpp"

#include "moe/train.hpp"

#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "compare.hpp"
#include "errors.hpp"
#include "laws/gradient_laws.hpp"
#include "moe/moe.hpp"
#include "random.hpp"
#include "train/factories.hpp"

namespace moe {
namespace {

using laws::expect_true_gradients;
using laws::gradients_of;
using test::Random;
using test::random_bank;
using test::random_ffns;
using test::random_matrix;
using test::random_router;
using test::random_soft_moe;
using test::same_bits;
using VectorD = Eigen::VectorXd;

constexpr Index token_counts[] = {0, 1, 9, 40};

TEST(Gradients, OfASharedExpertWithAndWithoutAGate) {
  const MoeLayer sparse(random_router(4, 11, {.top_k = 2}, 14), random_bank(4, 11, 8, 15));
  expect_true_gradients(WithSharedExpert(sparse, random_bank(1, 11, 17, 16)), 9, 17);
  const Eigen::RowVectorXd gate = Random(18).matrix<Eigen::RowVectorXd>(1, 11);
  expect_true_gradients(WithSharedExpert(sparse, random_bank(1, 11, 17, 16), gate), 9, 17);
}

TEST(Gradients, OfASharedExpertThatIsNotGated) {
  const auto bank = [](Index experts, Index d_ff) {
    return random_bank<double>(experts, 11, d_ff, 15, true, 1, ReluSquared{});
  };
  const MoeLayer sparse(random_router(4, 11, {.top_k = 2}, 14), bank(4, 8));
  const Eigen::RowVectorXd gate = Random(18).matrix<Eigen::RowVectorXd>(1, 11);
  expect_true_gradients(WithSharedExpert(sparse, bank(1, 17)), 9, 17);
  expect_true_gradients(WithSharedExpert(sparse, bank(1, 17), gate), 9, 17);
  expect_true_gradients(DenseLayer(bank(1, 23)), 9, 20);
}

TEST(Gradients, OfADenseLayer) { expect_true_gradients(DenseLayer(random_bank(1, 11, 23, 19, true)), 9, 20); }

TEST(Gradients, OfALayerBlendedWithASharedExpert) {
  const MoeLayer sparse(random_router(4, 11, {.top_k = 2}, 88), random_bank(4, 11, 8, 89));
  for (const Index bias : {0, 2}) {
    const ResidualMoe layer(sparse, random_bank(1, 11, 17, 90), random_matrix<Weight<double>>(2, 11, 91),
                            random_matrix<VectorD>(bias, 1, 92));
    for (const Index tokens : token_counts) expect_true_gradients(layer, tokens, 93);
  }
}

TEST(Gradients, OfAnOutputThatIsScaledAndShifted) {
  const MoeLayer sparse(random_router(4, 11, {.top_k = 2}, 94), random_bank(4, 11, 8, 95));
  for (const Index bias : {0, 11}) {
    for (const double scale : {1.0, 0.8}) {
      for (const Index tokens : token_counts) {
        expect_true_gradients(AffineOutput(sparse, scale, random_matrix<VectorD>(bias, 1, 96)), tokens, 97);
      }
    }
  }
}

TEST(Gradients, OfAnOutputThatIsNormalised) {
  const MoeLayer sparse(random_router(4, 11, {.top_k = 2}, 101), random_bank(4, 11, 8, 102));
  for (const GainOn gain_on : {GainOn::output, GainOn::input}) {
    const RmsNorm<double> norm(random_matrix<VectorD>(11, 1, 103), {.epsilon = 0.1, .offset = 1, .gain_on = gain_on});
    for (const Index tokens : token_counts) expect_true_gradients(NormedOutput(sparse, norm), tokens, 104);
    expect_true_gradients(NormedOutput(WithSharedExpert(sparse, random_bank(1, 11, 17, 105)), norm), 9, 106);
  }
}

TEST(Gradients, OfSoftMoe) {
  for (const bool gains : {false, true}) {
    for (const bool average_normalized : {false, true}) {
      for (const SoftMoeNorm norm : {SoftMoeNorm::unit, SoftMoeNorm::rms}) {
        const SoftMoeOptions options{.norm = norm, .scale = 1.5, .average_normalized = average_normalized};
        const auto layer = random_soft_moe<double>(9, 3, 2, options, gains, 69);
        for (const Index tokens : {0, 1, 12, 40}) {
          expect_true_gradients(layer, tokens, 70, 20);
          if (tokens % 4 == 0) expect_true_gradients(layer, tokens, 71, 20, {.sequence_length = 4});
        }
      }
    }
  }
  for (const Index d_model : laws::gradient_sizes) {
    expect_true_gradients(random_soft_moe<double>(d_model, 2, 1, {}, true, 72), 7, 73, 10);
  }
  const SoftMoe of_a_list(random_matrix<Weight<double>>(4, 6, 74), random_ffns<Silu>(2, 6, 5, true, 75), {.scale = 0});
  expect_true_gradients(of_a_list, 9, 76);
}

TEST(Gradients, OfATokenAndASlotOfZerosAreZeroThroughTheirDirections) {
  auto layer = random_soft_moe<double>(6, 2, 1, {.average_normalized = true}, true, 77);
  layer.slots().row(1).setZero();
  auto x = random_matrix<Matrix<double>>(6, 5, 78);
  x.col(3).setZero();
  const auto gradients = gradients_of(layer, x, random_matrix<Matrix<double>>(6, 5, 79));
  EXPECT_TRUE(gradients.of_x.col(3).isZero(0));
  EXPECT_TRUE(gradients.of_parameters.slots().row(1).isZero(0));
  EXPECT_FALSE(gradients.of_parameters.slots().row(0).isZero());
}

TEST(Parameters, HaveTheNamesOfCheckpoints) {
  const auto names = [](auto layer) {
    std::vector<std::string> all;
    for (const auto& parameter : parameters(layer)) all.push_back(parameter.name);
    return all;
  };
  using Names = std::vector<std::string>;
  const MoeLayer sparse(random_router(1, 6, {}, 98), random_bank(1, 6, 5, 99));
  const Names of_sparse{"gate.weight", "experts.0.gate_proj.weight", "experts.0.up_proj.weight",
                        "experts.0.down_proj.weight"};
  const auto and_of = [&](const Names& more) {
    Names all = of_sparse;
    all.insert(all.end(), more.begin(), more.end());
    return all;
  };
  EXPECT_EQ(names(sparse), of_sparse);
  EXPECT_EQ(names(DenseLayer(random_bank(1, 6, 5, 1))),
            (Names{"gate_proj.weight", "up_proj.weight", "down_proj.weight"}));
  EXPECT_EQ(names(WithSharedExpert(sparse, random_bank(1, 6, 5, 1), Eigen::RowVectorXd::Ones(6))),
            and_of({"shared_expert.gate_proj.weight", "shared_expert.up_proj.weight", "shared_expert.down_proj.weight",
                    "shared_expert_gate.weight"}));
  EXPECT_EQ(names(ResidualMoe(sparse, ExpertList(random_ffns<Relu>(1, 6, 5, false, 1)), Weight<double>::Ones(2, 6),
                              VectorD::Ones(2))),
            and_of({"mlp.wi.weight", "mlp.wo.weight", "coefficient.weight", "coefficient.bias"}));
  EXPECT_EQ(names(AffineOutput(sparse, 1.0, VectorD::Ones(6))), and_of({"bias"}));
  EXPECT_EQ(names(NormedOutput(sparse, RmsNorm<double>(VectorD::Ones(6)))), and_of({"post_mlp_layernorm.weight"}));
  const JoinedExperts joined(random_bank(1, 6, 5, 1), ExpertList(std::vector{CopyExpert<double>{6}}),
                             ExpertList(random_ffns<Relu>(2, 6, 5, false, 1)));
  EXPECT_EQ(names(MoeLayer(random_router(4, 6, {}, 1), joined)),
            and_of({"experts.2.wi.weight", "experts.2.wo.weight", "experts.3.wi.weight", "experts.3.wo.weight"}));
  EXPECT_EQ(names(MoeLayer(random_router(6, 6, {}, 1),
                           JoinedExperts(random_bank(1, 6, 5, 1),
                                         JoinedExperts(ExpertList(std::vector{CopyExpert<double>{6}}), joined))))
                .back(),
            "experts.5.wo.weight");
}

TEST(Backward, GoesWithOneForward) {
  const auto twice = [](const auto& layer) {
    auto gradient = zeros_like(layer);
    auto tape = tape_of(layer);
    const auto x = random_matrix<Matrix<double>>(6, 9, 60);
    Matrix<double> y(6, 9), d_x = Matrix<double>::Zero(6, 9);
    for (int step = 0; step < 2; ++step) {
      forward(layer, x, y, tape);
      backward(layer, x, y, tape, d_x, gradient);
    }
    const Matrix<double> before = d_x;
    EXPECT_EQ(test::error_of([&] { backward(layer, x, y, tape, d_x, gradient); }),
              "backward: was called twice on this tape, expected a forward() between");
    EXPECT_TRUE(same_bits(d_x, before));
  };
  const MoeLayer sparse(random_router(4, 6, {.top_k = 1}, 58), random_bank(4, 6, 5, 59));
  twice(sparse);
  twice(WithSharedExpert(sparse, random_bank(1, 6, 5, 60)));
  twice(AffineOutput(sparse, 0.5, VectorD()));
  twice(NormedOutput(sparse, RmsNorm<double>(VectorD::Ones(6))));
  twice(random_soft_moe<double>(6, 2, 1, {}, true, 61));
}

/// What backward() says where the gradient, or else the tape, is of another layer of the same type.
template <class L>
std::vector<std::string> errors_of_others(const L& layer, const L& other) {
  const Index tokens = 9;
  std::vector<std::string> errors;
  const auto try_one = [&](auto& gradient, auto& tape) {
    const auto x = random_matrix<Matrix<double>>(layer.d_model(), tokens, 62);
    Matrix<double> d_x = Matrix<double>::Zero(layer.d_model(), tokens);
    errors.push_back(test::error_of([&] { backward(layer, x, x, tape, d_x, gradient); }));
    EXPECT_TRUE(errors.back().starts_with("backward: ")) << errors.back();
  };
  const auto went_forward = [&](const L& its) {
    auto tape = tape_of(its);
    const auto x = random_matrix<Matrix<double>>(its.d_model(), tokens, 63);
    Matrix<double> y(its.d_model(), tokens);
    forward(its, x, y, tape);
    return tape;
  };
  auto own = went_forward(layer), of_other = went_forward(other);
  auto gradient = zeros_like(layer), other_gradient = zeros_like(other);
  try_one(other_gradient, own);
  try_one(gradient, of_other);
  return errors;
}

TEST(Backward, RefusesTheGradientAndTheTapeOfALayerOfAnotherShape) {
  const auto sparse = [](Index experts, Index d_model, Index d_ff) {
    return MoeLayer(random_router(experts, d_model, {.top_k = 1}, 58), random_bank(experts, d_model, d_ff, 59));
  };
  EXPECT_EQ(errors_of_others(sparse(4, 6, 5), sparse(2, 6, 5)),
            (std::vector<std::string>{"backward: gradient.num_experts() is 2, expected 4",
                                      "backward: layer.num_experts(), against that of forward(), is 4, expected 2"}));
  errors_of_others(sparse(2, 6, 5), sparse(4, 6, 5));
  errors_of_others(sparse(4, 6, 50), sparse(4, 6, 5));
  errors_of_others(sparse(4, 6, 5), sparse(4, 7, 5));
  errors_of_others(DenseLayer(random_bank(1, 6, 50, 1)), DenseLayer(random_bank(1, 6, 5, 1)));
  errors_of_others(DenseLayer(random_bank(1, 6, 5, 1)), DenseLayer(random_bank(1, 7, 5, 1)));
  errors_of_others(WithSharedExpert(sparse(4, 6, 5), random_bank(1, 6, 50, 1)),
                   WithSharedExpert(sparse(4, 6, 5), random_bank(1, 6, 5, 1)));
  errors_of_others(ResidualMoe(sparse(4, 6, 5), random_bank(1, 6, 50, 1), Weight<double>::Ones(2, 6)),
                   ResidualMoe(sparse(4, 6, 5), random_bank(1, 6, 5, 1), Weight<double>::Ones(2, 6)));
  errors_of_others(NormedOutput(sparse(4, 6, 5), RmsNorm<double>(VectorD::Ones(6))),
                   NormedOutput(sparse(4, 7, 5), RmsNorm<double>(VectorD::Ones(7))));
  errors_of_others(AffineOutput(sparse(4, 6, 5), 1.0, VectorD::Ones(6)),
                   AffineOutput(sparse(4, 7, 5), 1.0, VectorD::Ones(7)));
  errors_of_others(random_soft_moe<double>(6, 2, 2, {}, true, 61), random_soft_moe<double>(6, 2, 1, {}, true, 61));
  errors_of_others(random_soft_moe<double>(6, 2, 1, {}, true, 61), random_soft_moe<double>(7, 2, 1, {}, true, 61));
}

TEST(Backward, RefusesTheGradientOfALayerThatLacksAParameter) {
  const auto refused = [](const auto& layer, const auto& other, const std::string& expected) {
    const auto x = random_matrix<Matrix<double>>(6, 9, 62);
    Matrix<double> y(6, 9), d_x = Matrix<double>::Zero(6, 9);
    auto tape = tape_of(layer);
    forward(layer, x, y, tape);
    auto gradient = zeros_like(other);
    EXPECT_EQ(test::error_of([&] { backward(layer, x, y, tape, d_x, gradient); }),
              "backward: the gradient of " + expected);
  };
  const MoeLayer sparse(random_router(4, 6, {.top_k = 1}, 58), random_bank(4, 6, 5, 59));
  refused(MoeLayer(random_router(4, 6, {}, 58), random_bank(4, 6, 5, 59, true)), sparse,
          "biases.gate is 0 × 0, expected 5 × 4");
  refused(MoeLayer(random_router(4, 6, {}, 58), ExpertList(random_ffns<Relu>(4, 6, 50, false, 1))),
          MoeLayer(random_router(4, 6, {}, 58), ExpertList(random_ffns<Relu>(4, 6, 5, false, 1))),
          "w_out is 6 × 5, expected 6 × 50");
  const auto shared = random_bank(1, 6, 5, 60);
  refused(WithSharedExpert(sparse, shared, Eigen::RowVectorXd::Ones(6)), WithSharedExpert(sparse, shared),
          "gate is 1 × 0, expected 1 × 6");
  refused(ResidualMoe(sparse, shared, Weight<double>::Ones(2, 6), VectorD::Ones(2)),
          ResidualMoe(sparse, shared, Weight<double>::Ones(2, 6)), "bias is 0 × 1, expected 2 × 1");
  refused(AffineOutput(sparse, 1.0, VectorD::Ones(6)), AffineOutput(sparse, 1.0, VectorD()),
          "bias is 0 × 1, expected 6 × 1");
}

}  // namespace
}  // namespace moe
