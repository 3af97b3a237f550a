// Every layer's gradients against central differences in double.
#include "allocations.hpp"

#include "moe/train.hpp"

#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "compare.hpp"
#include "errors.hpp"
#include "laws/gradient_laws.hpp"
#include "moe/moe.hpp"
#include "pools.hpp"
#include "random.hpp"

namespace moe {
namespace {

using laws::expect_true_gradients;
using laws::gradients_of;
using test::Random;
using test::random_matrix;
using test::same_bits;
using VectorD = Eigen::VectorXd;

template <class Scalar = double, class Act = SwiGlu>
GatedFfnBank<Scalar, Act> random_bank(Index experts, Index d_model, Index d_ff, unsigned seed, bool biases = false,
                                      double scale = 1, Act act = {}) {
  Random random(seed);
  WeightStack<Scalar> gate(experts, d_ff, d_model), up(experts, d_ff, d_model), down(experts, d_model, d_ff);
  for (Index e = 0; e < experts; ++e) {
    gate.owned(e) = random.matrix<Weight<Scalar>>(d_ff, d_model, scale);
    up.owned(e) = random.matrix<Weight<Scalar>>(d_ff, d_model, scale);
    down.owned(e) = random.matrix<Weight<Scalar>>(d_model, d_ff, scale);
  }
  GatedFfnBiases<Scalar> its;
  if (biases) {
    its = {random.matrix<Matrix<Scalar>>(d_ff, experts), random.matrix<Matrix<Scalar>>(d_ff, experts),
           random.matrix<Matrix<Scalar>>(d_model, experts)};
  }
  return {std::move(gate), std::move(up), std::move(down), act, std::move(its)};
}

template <class Scalar = double>
LinearTopK<Scalar> random_router(Index experts, Index d_model, const TopKOptions& options, unsigned seed,
                                 bool bias = false, bool selection_bias = false) {
  using Vector = typename LinearTopK<Scalar>::Vector;
  Random random(seed);
  auto weight = random.matrix<Weight<Scalar>>(experts, d_model);
  auto its_bias = bias ? Vector(random.matrix<Vector>(experts, 1)) : Vector();
  auto its_selection_bias = selection_bias ? Vector(random.matrix<Vector>(experts, 1, 0.1)) : Vector();
  return {std::move(weight), options, std::move(its_bias), std::move(its_selection_bias)};
}

constexpr Index token_counts[] = {0, 1, 9, 40};

TEST(Gradients, OfABankWithARouterThatRenormalises) {
  for (const Index tokens : token_counts) {
    expect_true_gradients(
        MoeLayer(random_router(5, 13, {.top_k = 2, .renormalize = true}, 1), random_bank(5, 13, 19, 2)), tokens, 3);
  }
}

TEST(Gradients, OfABankAtEveryWidth) {
  for (const Index d_model : laws::gradient_sizes) {
    for (const Index d_ff : {Index(1), d_model, 2 * d_model + 1}) {
      expect_true_gradients(MoeLayer(random_router(3, d_model, {.top_k = 2}, 4), random_bank(3, d_model, d_ff, 5)), 7,
                            6, 10);
    }
  }
}

TEST(Gradients, OfEveryGatedActivationWithBiases) {
  const auto check = [](auto act) {
    expect_true_gradients(MoeLayer(random_router(4, 9, {.top_k = 3, .score = Score::softmax_of_chosen}, 7, true),
                                   random_bank<double>(4, 9, 70, 8, true, 1, act)),
                          12, 9);
  };
  check(SwiGlu{});
  check(GeGlu{});
  check(GeGluTanh{});
  check(ReGlu{});
  check(Glu<ReluSquared>{});
  check(GptOssGlu{.limit = 1});
  check(ClampedInputGlu<Silu>{.limit = 1});
  check(ClampedOutputGlu<Silu>{.limit = 0.5});
}

TEST(Gradients, OfEveryRuleForWeights) {
  const auto check = [](const TopKOptions& options, bool selection_bias = false) {
    expect_true_gradients(
        MoeLayer(random_router(8, 10, options, 11, true, selection_bias), random_bank(8, 10, 6, 12, true)), 10, 13);
  };
  for (const WeightOn weight_on : {WeightOn::output, WeightOn::input}) {
    for (const bool renormalize : {false, true}) {
      for (const Score score : {Score::softmax, Score::softmax_of_chosen, Score::sigmoid, Score::sqrt_softplus}) {
        check({.top_k = 1, .score = score, .renormalize = renormalize, .weight_on = weight_on});
        check({.top_k = 3, .score = score, .renormalize = renormalize, .scale = 2.5, .weight_on = weight_on});
      }
    }
  }
  check({.top_k = 3, .renormalize = true, .norm = 2});
  check({.top_k = 3, .renormalize = true, .norm = 3, .epsilon = 0.1});
  check({.top_k = 3, .renormalize = true, .floor = 10});
  check({.top_k = 3,
         .score = Score::sigmoid,
         .renormalize = true,
         .epsilon = 1e-20,
         .scale = 2.5,
         .num_groups = 4,
         .kept_groups = 2,
         .group_top = 2},
        true);
}

TEST(Gradients, OfASharedExpertWithAndWithoutAGate) {
  const MoeLayer sparse(random_router(4, 11, {.top_k = 2}, 14), random_bank(4, 11, 8, 15));
  expect_true_gradients(WithSharedExpert(sparse, random_bank(1, 11, 17, 16)), 9, 17);
  const Eigen::RowVectorXd gate = Random(18).matrix<Eigen::RowVectorXd>(1, 11);
  expect_true_gradients(WithSharedExpert(sparse, random_bank(1, 11, 17, 16), gate), 9, 17);
}

TEST(Gradients, OfADenseLayer) { expect_true_gradients(DenseLayer(random_bank(1, 11, 23, 19, true)), 9, 20); }

template <class Act>
std::vector<Ffn<double, Act>> random_ffns(Index experts, Index d_model, Index d_ff, bool biases, unsigned seed) {
  Random random(seed);
  std::vector<Ffn<double, Act>> all;
  for (Index e = 0; e < experts; ++e) {
    auto w_in = random.matrix<Weight<double>>(d_ff, d_model), w_out = random.matrix<Weight<double>>(d_model, d_ff);
    all.push_back({.w_in = std::move(w_in), .w_out = std::move(w_out)});
    if (!biases) continue;
    all.back().b_in = random.matrix<VectorD>(d_ff, 1);
    all.back().b_out = random.matrix<VectorD>(d_model, 1);
  }
  return all;
}

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

TEST(Gradients, OfRoutersWithLimitedRoom) {
  for (const bool renormalize : {false, true}) {
    for (const double floor : {0.0, 0.3}) {
      const CapacityOptions options{.capacity = fixed_capacity(3), .renormalize = renormalize, .floor = floor};
      const MoeLayer layer(WithCapacity(random_router(4, 6, {.top_k = 2}, 45), options), random_bank(4, 6, 5, 46));
      expect_true_gradients(layer, 9, 47);
    }
  }
}

TEST(Gradients, OfExpertsThatChoose) {
  expect_true_gradients(
      MoeLayer(ExpertChoice<double>(random_matrix<Weight<double>>(4, 6, 48)), random_bank(4, 6, 5, 49)), 12, 50);
}

TEST(Gradients, OfABalancedChoice) {
  for (const Index top_k : {1, 2}) {
    expect_true_gradients(
        MoeLayer(Sinkhorn<double>(random_matrix<Weight<double>>(4, 6, 51), {.top_k = top_k}), random_bank(4, 6, 5, 52)),
        12, 53);
  }
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

template <class Scalar>
auto random_soft_moe(Index d_model, Index experts, Index slots_per_expert, const SoftMoeOptions& options, bool gains,
                     unsigned seed) {
  using Vector = Eigen::Matrix<Scalar, Eigen::Dynamic, 1>;
  Random random(seed);
  auto slots = random.matrix<Weight<Scalar>>(experts * slots_per_expert, d_model);
  auto token_gain = random.matrix<Vector>(gains ? d_model : 0, 1), slot_gain = token_gain;
  slot_gain *= 2;
  return SoftMoe(std::move(slots), random_bank<Scalar>(experts, d_model, 5, seed + 1), options, std::move(token_gain),
                 std::move(slot_gain));
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

template <class Layer, class Scalar = typename Layer::Scalar>
auto residual_moe_of(const Layer& layer, unsigned seed) {
  return ResidualMoe(layer, random_bank<Scalar>(1, layer.d_model(), 33, seed),
                     random_matrix<Weight<Scalar>>(2, layer.d_model(), seed + 1));
}

auto joined_experts(Index d_model, unsigned seed) {
  return JoinedExperts(random_bank<float>(3, d_model, 33, seed), ExpertList(std::vector{CopyExpert<float>{d_model}}),
                       random_bank<float>(2, d_model, 5, seed + 1));
}

TEST(Tape, ForwardWithATapeIsForwardToTheLastBit) {
  const auto check = [](const auto& layer) {
    using Scalar = typename std::decay_t<decltype(layer)>::Scalar;
    for (const Index tokens : {0, 1, 9, 70, 200}) {
      const auto x = random_matrix<Matrix<Scalar>>(layer.d_model(), tokens, 61);
      Matrix<Scalar> y(layer.d_model(), tokens);
      auto tape = tape_of(layer);
      forward(layer, x, y, tape);
      EXPECT_TRUE(same_bits(y, layer.forward(x))) << tokens;
    }
  };
  const MoeLayer bank(random_router<float>(4, 17, {.top_k = 2}, 62), random_bank<float>(4, 17, 101, 63, true));
  check(bank);
  check(MoeLayer(random_router(4, 17, {.top_k = 2}, 64), random_ffns<Relu>(4, 17, 21, true, 65)));
  check(WithSharedExpert(bank, random_bank<float>(1, 17, 33, 66), random_matrix<Eigen::RowVectorXf>(1, 17, 67)));
  check(DenseLayer(random_bank<float>(1, 17, 33, 68)));
  check(random_soft_moe<float>(17, 3, 2, {.average_normalized = true}, true, 80));
  check(residual_moe_of(bank, 81));
  check(AffineOutput(bank, 0.8f, random_matrix<Eigen::VectorXf>(17, 1, 83)));
  check(MoeLayer(random_router<float>(6, 17, {.top_k = 2}, 84), joined_experts(17, 85)));
}

TEST(Gradients, AWarmStepAllocatesNothing) {
  laws::expect_warm_steps_to_allocate_nothing(MoeLayer(
      random_router<float>(6, 40, {.top_k = 2, .renormalize = true}, 54), random_bank<float>(6, 40, 50, 55, true)));
  laws::expect_warm_steps_to_allocate_nothing(random_soft_moe<float>(40, 6, 2, {}, true, 54), {.sequence_length = 10});
  const MoeLayer joined(random_router<float>(6, 40, {.top_k = 2}, 55), joined_experts(40, 56));
  laws::expect_warm_steps_to_allocate_nothing(joined);
  laws::expect_warm_steps_to_allocate_nothing(residual_moe_of(joined, 57));
  laws::expect_warm_steps_to_allocate_nothing(AffineOutput(joined, 0.5f, Eigen::VectorXf::Ones(40)));
  laws::expect_warm_steps_to_allocate_nothing(DenseLayer(random_bank<float>(1, 40, 50, 58)));
}

TEST(Backward, RefusesWhatDoesNotFit) {
  const MoeLayer layer(random_router(4, 6, {.top_k = 1}, 58), random_bank(4, 6, 5, 59));
  auto gradient = zeros_like(layer);
  auto tape = tape_of(layer);
  const auto x = random_matrix<Matrix<double>>(6, 9, 60);
  Matrix<double> y(6, 9), d_x = Matrix<double>::Zero(6, 9), narrow(6, 8), flat(5, 9);
  forward(layer, x, y, tape);
  const auto error = [&](const Matrix<double>& of_x, const Matrix<double>& of_d_y, Matrix<double>& of_d_x) {
    return test::error_of([&] { backward(layer, of_x, of_d_y, tape, of_d_x, gradient); });
  };
  EXPECT_EQ(error(x, y, flat), "backward: d_x beside x: y.rows() is 5, expected 6");
  EXPECT_EQ(error(x, narrow, d_x), "backward: d_x beside d_y: y.cols() is 9, expected 8");
  EXPECT_EQ(error(narrow, narrow, narrow), "backward: d_x beside x: y overlaps x");
  Matrix<double> other(6, 8);
  EXPECT_EQ(error(narrow, narrow, other), "backward: x.cols(), against that of forward(), is 8, expected 9");
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
  twice(random_soft_moe<double>(6, 2, 1, {}, true, 61));
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

TEST(Gradients, ExpertsWithoutTokensGetNone) {
  auto router = random_router(4, 6, {.top_k = 1}, 27, true);
  router.bias() << 0, 100, 0, 0;
  const MoeLayer layer(router, random_bank(4, 6, 5, 28));
  const auto x = Random(29).matrix<Matrix<double>>(6, 9);
  auto gradients = gradients_of(layer, x, x);
  for (const auto& parameter : parameters(gradients.of_parameters)) {
    if (!parameter.name.starts_with("experts.")) continue;
    EXPECT_EQ(parameter.array().isZero(0), !parameter.name.starts_with("experts.1.")) << parameter.name;
  }
}

TEST(Gradients, AreTheSameBitsForAnyNumberOfThreads) {
  laws::expect_the_same_bits_for_any_number_of_threads(
      MoeLayer(random_router<float>(6, 70, {.top_k = 2, .renormalize = true}, 30),
               random_bank<float>(6, 70, 90, 31, true, 0.1)));
  for (const Index length : {0, 5}) {
    laws::expect_the_same_bits_for_any_number_of_threads(random_soft_moe<float>(70, 6, 2, {}, true, 34),
                                                         {.sequence_length = length});
  }
  const MoeLayer joined(random_router<float>(6, 70, {.top_k = 2}, 35), joined_experts(70, 36));
  laws::expect_the_same_bits_for_any_number_of_threads(joined);
  laws::expect_the_same_bits_for_any_number_of_threads(residual_moe_of(joined, 37));
}

}  // namespace
}  // namespace moe
