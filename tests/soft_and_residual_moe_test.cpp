#include "laws/layer_laws.hpp"

#include "moe/layers/residual_moe.hpp"
#include "moe/layers/soft_moe.hpp"

#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "errors.hpp"
#include "expert_factories.hpp"
#include "moe/layers/dense.hpp"
#include "moe/layers/moe_layer.hpp"
#include "moe/layers/shared.hpp"
#include "naive.hpp"

namespace moe::laws {

namespace naive = test::naive;
using test::error_of;
using test::naive::exact;
using test::naive::MatrixD;
using test::naive::VectorD;

template <class S>
std::vector<Ffn<S>> ffns(Index d_model, unsigned count, unsigned first_seed = 1) {
  std::vector<Ffn<S>> experts;
  for (unsigned e = 0; e < count; ++e) experts.push_back(test::Ffns<S>::make(d_model, first_seed + e));
  return experts;
}

constexpr SoftMoeOptions paper{.scale = 3}, pytorch{.norm = SoftMoeNorm::rms, .average_normalized = true};

template <class S>
auto soft_moe(Index d_model, const SoftMoeOptions& options, Index num_experts = 3, Index slots_per_expert = 2,
              bool with_gains = true) {
  using Vector = Eigen::Matrix<S, Eigen::Dynamic, 1>;
  Random random(4);
  auto slots = random.matrix<Weight<S>>(num_experts * slots_per_expert, d_model);
  Vector token_gain, slot_gain;
  if (with_gains) token_gain = random.matrix<Vector>(d_model, 1), slot_gain = random.matrix<Vector>(d_model, 1);
  return SoftMoe(std::move(slots), ffns<S>(d_model, unsigned(num_experts)), options, token_gain, slot_gain);
}

/// Each token a sequence of its own.
template <class L>
struct TokenByToken {
  using Scalar = typename L::Scalar;
  L layer;

  Index d_model() const { return layer.d_model(); }
  void forward(const ConstMatrixRef<Scalar>& x, MatrixRef<Scalar> y, Workspace<Scalar>& ws,
               ExecutorRef executor) const {
    ws.side.sequence_length = 1;
    layer.forward(x, y, ws, executor);
  }
};

struct SoftMoes {
  static constexpr bool tokens_see_each_other = true;
  static auto make(Index d_model) { return soft_moe<float>(d_model, pytorch); }
};
struct SoftMoesOfBanks {
  static constexpr bool tokens_see_each_other = true;
  static auto make(Index d_model) {
    return SoftMoe(random_matrix<Weight<float>>(20, d_model, 4),
                   test::GatedFfnBanks<float>::make(d_model, seeds_from(1, 5)), paper);
  }
};
struct SoftMoesOfSingleTokens {
  static auto make(Index d_model) {
    return TokenByToken<decltype(soft_moe<float>(d_model, paper))>{soft_moe<float>(d_model, paper)};
  }
};

auto sparse_layer(Index d_model) { return MoeLayer(router_for<float>(d_model, 5, 2), ffns<float>(d_model, 5)); }

auto residual_moe(Index d_model, Eigen::VectorXf bias = {}) {
  return ResidualMoe(sparse_layer(d_model), test::GatedFfnBanks<float>::make(d_model, seeds_from(50, 1)),
                     random_matrix<Weight<float>>(2, d_model, 6), std::move(bias));
}
struct ResidualMoes {
  static auto make(Index d_model) { return residual_moe(d_model, Eigen::Vector2f(0.5F, -0.25F)); }
};
struct ResidualMoesOfSharedLayers {
  static auto make(Index d_model) {
    const auto shared = test::GatedFfnBanks<float>::make(d_model, seeds_from(60, 1));
    return ResidualMoe(WithSharedExpert(sparse_layer(d_model), shared), shared,
                       random_matrix<Weight<float>>(2, d_model, 6));
  }
};

using Layers =
    testing::Types<SoftMoes, SoftMoesOfBanks, SoftMoesOfSingleTokens, ResidualMoes, ResidualMoesOfSharedLayers>;
INSTANTIATE_TYPED_TEST_SUITE_P(SoftAndResidual, LayerLaws, Layers);

TEST(SoftAndResidual, ReturnYInTheCallersWorkspaceOrInOneOfTheirOwn) {
  expect_forward_to_return_y(SoftMoes::make(9));
  expect_forward_to_return_y(ResidualMoes::make(9));
}

namespace {

template <class E>
MatrixD naive_ffn(const E& expert, const MatrixD& x) {
  return naive::ffn(exact(expert.w_in), exact(expert.b_in), exact(expert.w_out), exact(expert.b_out), x, naive::relu);
}

MatrixD naive_normalized(const MatrixD& columns, const MatrixD& gain, const SoftMoeOptions& options) {
  MatrixD out = columns;
  for (Index c = 0; c < columns.cols(); ++c) {
    double squares = 0;
    for (Index r = 0; r < columns.rows(); ++r) squares += columns(r, c) * columns(r, c);
    const double length = options.norm == SoftMoeNorm::rms ? std::sqrt(double(columns.rows())) : 1;
    for (Index r = 0; r < columns.rows() && squares > 0; ++r) {
      out(r, c) = columns(r, c) / std::sqrt(squares) * length * (gain.size() > 0 ? gain(r) : 1);
    }
  }
  return out;
}

/// One sequence, from the definition.
template <class L>
MatrixD naive_soft_moe(const L& layer, const MatrixD& x) {
  const MatrixD tokens = naive_normalized(x, exact(layer.token_gain()), layer.options());
  const MatrixD slots = naive_normalized(exact(layer.slots()).transpose(), exact(layer.slot_gain()), layer.options());
  const MatrixD logits = layer.options().scale * naive::product(slots.transpose(), tokens);
  const MatrixD& averaged = layer.options().average_normalized ? tokens : x;
  MatrixD answers(x.rows(), slots.cols()), y = MatrixD::Zero(x.rows(), x.cols());
  for (Index s = 0; s < slots.cols() && x.cols() > 0; ++s) {
    const auto dispatch = naive::softmax({logits.row(s).begin(), logits.row(s).end()});
    VectorD in = VectorD::Zero(x.rows());
    for (Index t = 0; t < x.cols(); ++t) in += dispatch[std::size_t(t)] * averaged.col(t);
    answers.col(s) = naive_ffn(layer.experts()[s / layer.slots_per_expert()], in);
  }
  for (Index t = 0; t < x.cols(); ++t) {
    const auto combine = naive::softmax({logits.col(t).begin(), logits.col(t).end()});
    for (Index s = 0; s < slots.cols(); ++s) y.col(t) += combine[std::size_t(s)] * answers.col(s);
  }
  return y;
}

template <class L, class S = typename L::Scalar>
Matrix<S> answer(const L& layer, const Matrix<S>& x, Index sequence_length, ExecutorRef executor = Serial{}) {
  Matrix<S> y(x.rows(), x.cols());
  Workspace<S> ws;
  ws.side.sequence_length = sequence_length;
  layer.forward(x, y, ws, executor);
  return y;
}

TEST(SoftMoe, EqualsItsNaiveTwin) {
  for (const Index d_model : {1, 8, 17, 40}) {
    for (const auto& [num_experts, slots_per_expert] : {std::pair{1, 1}, {1, 3}, {3, 1}, {4, 5}, {9, 2}}) {
      for (const auto& options : {paper, pytorch, SoftMoeOptions{.average_normalized = true}}) {
        for (const bool with_gains : {false, true}) {
          const auto layer = soft_moe<double>(d_model, options, num_experts, slots_per_expert, with_gains);
          for (const Index num_tokens : {0, 1, 2, 15, 17, 40}) {
            const auto x = random_matrix<Matrix<double>>(d_model, num_tokens, 2);
            EXPECT_TRUE(is_close(layer.forward(x), naive_soft_moe(layer, x)))
                << d_model << " wide, " << num_tokens << " tokens, " << num_experts << " · " << slots_per_expert;
          }
        }
      }
    }
  }
}

TEST(SoftMoe, InFloatEqualsItsNaiveTwinToo) {
  const auto layer = soft_moe<float>(33, pytorch);
  for (const Index num_tokens : {1, 20, 40}) {
    const auto x = random_matrix<Matrix<float>>(33, num_tokens, 2);
    EXPECT_TRUE(is_close(layer.forward(x), naive_soft_moe(layer, exact(x)))) << num_tokens << " tokens";
  }
}

TEST(SoftMoe, SequencesDoNotSeeEachOther) {
  for (const auto& options : {paper, pytorch}) {
    const auto layer = soft_moe<double>(9, options);
    const auto x = random_matrix<Matrix<double>>(9, 80, 2);
    for (const Index length : {1, 2, 5, 16, 40, 80}) {
      Matrix<double> one_by_one(9, 80);
      for (Index first = 0; first < 80; first += length) {
        one_by_one.middleCols(first, length) = naive_soft_moe(layer, x.middleCols(first, length));
      }
      EXPECT_TRUE(is_close(answer(layer, x, length), one_by_one)) << "sequences of " << length;
    }
    EXPECT_FALSE(is_close(answer(layer, x, 40), answer(layer, x, 80)));
  }
}

TEST(SoftMoe, NoExecutorChangesABitOfManySequences) {
  const auto layer = soft_moe<float>(17, pytorch, 3, 7);
  const auto x = random_matrix<Matrix<float>>(17, 120, 2);
  for (const Index length : {1, 8, 40, 60}) {
    const auto serial = answer(layer, x, length);
    for (const Index workers : {2, 3, 5, 8}) {
      EXPECT_TRUE(same_bits(answer(layer, x, length, test::Shuffled{workers}), serial)) << length;
      EXPECT_TRUE(same_bits(answer(layer, x, length, test::open_mp(workers)), serial)) << length;
    }
  }
}

TEST(SoftMoe, OfOneSlotIsItsExpertAtTheMeanOfTheTokens) {
  const auto experts = ffns<double>(9, 1);
  const SoftMoe layer(Weight<double>::Zero(1, 9).eval(), experts);  // a slot of zeros prefers no token
  const auto x = random_matrix<Matrix<double>>(9, 7, 2);
  const MatrixD expected = naive_ffn(experts[0], x.rowwise().mean()).replicate(1, 7);
  EXPECT_TRUE(is_close(layer.forward(x), expected));
}

TEST(SoftMoe, OfASharpScaleIsAHardChoice) {
  const Index d_model = 4;
  std::vector<Ffn<double>> experts = ffns<double>(d_model, 4);
  const SoftMoe layer(Weight<double>::Identity(4, d_model).eval(), experts, {.scale = 1e4});
  const Matrix<double> x = 0.5 * Matrix<double>::Identity(d_model, 4);  // token t and slot t look the same way
  const auto y = layer.forward(x);
  for (Index t = 0; t < 4; ++t) EXPECT_TRUE(is_close(y.col(t), naive_ffn(experts[std::size_t(t)], x.col(t)))) << t;
}

TEST(SoftMoe, DoesNotSeeTheOrderOfTheTokens) {
  const auto layer = soft_moe<double>(9, paper);
  const auto x = random_matrix<Matrix<double>>(9, 17, 2);
  const Matrix<double> reversed = x.rowwise().reverse();
  EXPECT_TRUE(is_close(layer.forward(reversed), layer.forward(x).rowwise().reverse().eval()));
}

TEST(SoftMoe, ComparesDirectionsAlone) {
  for (const double factor : {1e-300, 1e-3, 1e300}) {  // whose squares are no double
    const auto x = random_matrix<Matrix<double>>(9, 7, 2);
    const auto layer = soft_moe<double>(9, pytorch);
    EXPECT_TRUE(is_close(layer.forward(factor * x), layer.forward(x))) << factor;
  }
}

TEST(SoftMoe, IsDefinedForTokensAndSlotsOfZeros) {
  for (const auto& options : {paper, pytorch}) {
    for (const Index zeros : {1, 7}) {
      auto layer = soft_moe<double>(9, options);
      Weight<double> slots = layer.slots();
      slots.row(1).setZero();
      const SoftMoe with_zeros(slots, layer.experts(), options, layer.token_gain(), layer.slot_gain());
      auto x = random_matrix<Matrix<double>>(9, 7, 2);
      x.leftCols(zeros).setZero();
      EXPECT_TRUE(is_close(with_zeros.forward(x), naive_soft_moe(with_zeros, x)));
    }
  }
}

TEST(SoftMoe, ANotANumberStaysInItsSequence) {
  const auto layer = soft_moe<float>(9, paper);
  const auto x = random_matrix<Matrix<float>>(9, 20, 2);
  const auto healthy = answer(layer, x, 5);
  for (const float poison : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    Matrix<float> poisoned = x;
    poisoned(3, 7) = poison;
    const auto sick = answer(layer, poisoned, 5);
    EXPECT_TRUE(same_bits(sick.leftCols(5), healthy.leftCols(5)));
    EXPECT_TRUE(same_bits(sick.rightCols(10), healthy.rightCols(10)));
    EXPECT_TRUE(sick.middleCols(5, 5).array().isNaN().all());
  }
}

TEST(SoftMoe, SharesOutWholeTokensAndWholeSlots) {
  const Index num_slots = 6, length = 5, num_sequences = 3;
  const auto logits = random_matrix<Matrix<double>>(num_slots, length * num_sequences, 2, 4);
  std::vector<Scratch> scratch;
  const Serial serial;
  Workers workers(serial, scratch);
  Matrix<double> dispatch(length, num_sequences * num_slots), combine(num_slots, logits.cols());
  soft_dispatch<double>(logits, dispatch, workers);
  soft_combine<double>(logits, combine, workers);
  for (Index t = 0; t < logits.cols(); ++t) {
    const auto expected = naive::softmax({logits.col(t).begin(), logits.col(t).end()});
    for (Index s = 0; s < num_slots; ++s) EXPECT_NEAR(combine(s, t), expected[std::size_t(s)], 1e-15);
  }
  for (Index b = 0; b < num_sequences; ++b) {
    for (Index s = 0; s < num_slots; ++s) {
      const auto row = logits.row(s).segment(b * length, length);
      const auto expected = naive::softmax({row.begin(), row.end()});
      for (Index t = 0; t < length; ++t) {
        EXPECT_NEAR(dispatch(t, b * num_slots + s), expected[std::size_t(t)], 1e-15) << b << ", slot " << s;
      }
    }
  }
}

TEST(SoftMoe, PlansTheSlotsOfAllSequencesExpertByExpert) {
  PlanMemory<float> memory;
  const auto plan = plan_slots(2, 2, 3, memory);
  EXPECT_EQ(memory.offset, (std::vector<Index>{0, 4, 8, 12}));
  EXPECT_EQ(memory.token, (std::vector<Index>{0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11}));
  EXPECT_EQ(memory.weight, std::vector<float>(12, 1));
  EXPECT_EQ(plan.num_experts(), 3);
  EXPECT_EQ(plan.num_slots(), 12);
  EXPECT_EQ(plan_slots(0, 2, 3, memory).num_slots(), 0);
}

TEST(SoftMoe, TellsItsLogitsAndNoRoutes) {
  const auto layer = soft_moe<double>(9, paper);
  const auto x = random_matrix<Matrix<double>>(9, 7, 2);
  Matrix<double> y(9, 7);
  Workspace<double> ws;
  ws.routing.add(5, 5, 5);  // of a call before
  layer.forward(x, y, ws);
  EXPECT_EQ(ws.routing.size(), 0);
  ASSERT_EQ(Index(ws.routing.logits.size()), layer.num_slots() * 7);
  const MatrixD tokens = naive_normalized(x, layer.token_gain(), paper);
  const MatrixD slots = naive_normalized(layer.slots().transpose(), layer.slot_gain(), paper);
  EXPECT_TRUE(is_close(logits_of(ws.routing, 6, 7), 3 * naive::product(slots.transpose(), tokens)));
  EXPECT_EQ(ws.plan.view().num_slots(), layer.num_slots());
}

TEST(SoftMoe, RefusesWhatDoesNotFitWithTheNumbers) {
  using Vector = Eigen::VectorXf;
  const auto complaint = [](Index num_slots, Index d_model, const Vector& token_gain = {},
                            const Vector& slot_gain = {}) {
    return error_of(
        [&] { SoftMoe(Weight<float>::Ones(num_slots, d_model).eval(), ffns<float>(8, 3), {}, token_gain, slot_gain); });
  };
  EXPECT_EQ(complaint(6, 8), "no error");
  EXPECT_EQ(complaint(6, 7), "SoftMoe: slots.cols() is 7, expected 8");
  EXPECT_EQ(complaint(7, 8), "SoftMoe: slots.rows() is 7, expected a multiple of num_experts 3");
  EXPECT_EQ(complaint(0, 8), "SoftMoe: slots.rows() is 0, expected a multiple of num_experts 3");
  EXPECT_EQ(complaint(6, 8, Vector::Ones(6)), "SoftMoe: token_gain.size() is 6, expected 8");
  EXPECT_EQ(complaint(6, 8, {}, Vector::Ones(9)), "SoftMoe: slot_gain.size() is 9, expected 8");

  const auto layer = soft_moe<float>(8, paper);
  const auto x = random_matrix<Matrix<float>>(8, 7, 2);
  EXPECT_EQ(error_of([&] { answer(layer, x, 3); }), "SoftMoe: 7 tokens are not whole sequences of 3");
  EXPECT_EQ(error_of([&] { answer(layer, x, 14); }), "SoftMoe: 7 tokens are not whole sequences of 14");
  EXPECT_EQ(error_of([&] { answer(layer, x, 7); }), "no error");
}

TEST(ResidualMoe, BlendsTheLayerWithTheSharedExpert) {
  for (const Index d_model : {8, 17}) {
    for (const Eigen::VectorXf& bias : {Eigen::VectorXf(), Eigen::VectorXf(Eigen::Vector2f(0.5F, -1))}) {
      const auto layer = residual_moe(d_model, bias);
      for (const Index num_tokens : token_counts) {
        const auto x = random_matrix<Matrix<float>>(d_model, num_tokens, 2);
        MatrixD expected = exact(layer.layer().forward(x));
        const auto& bank = layer.shared();
        const MatrixD shared = naive::gated_ffn(exact(bank.w_gate()[0]), exact(bank.w_up()[0]), exact(bank.w_down()[0]),
                                                exact(x), naive::silu);
        const MatrixD logits = naive::product(exact(layer.weight()), exact(x));
        for (Index t = 0; t < num_tokens; ++t) {
          const double b0 = bias.size() > 0 ? double(bias(0)) : 0, b1 = bias.size() > 0 ? double(bias(1)) : 0;
          const double e0 = std::exp(logits(0, t) + b0), e1 = std::exp(logits(1, t) + b1);
          expected.col(t) = e0 / (e0 + e1) * expected.col(t) + e1 / (e0 + e1) * shared.col(t);
        }
        EXPECT_TRUE(is_close(layer.forward(x), expected)) << d_model << " wide, " << num_tokens << " tokens";
      }
    }
  }
}

TEST(ResidualMoe, AtItsEndsIsTheLayerOrTheSharedExpert) {
  const auto x = random_matrix<Matrix<float>>(8, 20, 2);
  const auto at = [&](float layer, float shared) { return residual_moe(8, Eigen::Vector2f(layer, shared)); };
  const DenseLayer shared(at(0, 0).shared());
  const float inf = std::numeric_limits<float>::infinity();
  for (const float much : {1000.0F, inf}) {
    EXPECT_TRUE(same_bits(at(much, 0).forward(x), sparse_layer(8).forward(x)));
    EXPECT_TRUE(same_bits(at(0, -much).forward(x), sparse_layer(8).forward(x)));
    EXPECT_TRUE(is_close(at(0, much).forward(x), shared.forward(x)));
  }
  const Matrix<float> mean = (sparse_layer(8).forward(x) + shared.forward(x)) / 2;
  EXPECT_TRUE(is_close(at(inf, inf).forward(x), mean));
  EXPECT_TRUE(is_close(at(-inf, -inf).forward(x), mean));
}

TEST(ResidualMoe, ANotANumberStaysWithItsToken) {
  const auto layer = residual_moe(8);
  auto x = random_matrix<Matrix<float>>(8, 20, 2);
  const auto healthy = layer.forward(x);
  x(3, 7) = std::numeric_limits<float>::quiet_NaN();
  const auto sick = layer.forward(x);
  EXPECT_TRUE(same_bits(sick.leftCols(7), healthy.leftCols(7)));
  EXPECT_TRUE(sick.col(7).array().isNaN().all());
  EXPECT_TRUE(same_bits(sick.rightCols(12), healthy.rightCols(12)));
}

TEST(ResidualMoe, KeepsTheRoutingOfTheSparseLayerAndTellsTheCoefficients) {
  const auto layer = residual_moe(8);
  const auto x = random_matrix<Matrix<float>>(8, 7, 1);
  Workspace<float> ws, alone;
  Matrix<float> y(8, 7);
  layer.forward(x, y, ws);
  layer.layer().forward(x, y, alone);
  EXPECT_EQ(ws.routing.expert, alone.routing.expert);
  EXPECT_EQ(ws.plan.token, alone.plan.token);
  const MatrixD logits = naive::product(exact(layer.weight()), exact(x));
  for (Index t = 0; t < 7; ++t) {
    EXPECT_NEAR(ws.shared_plan.weight[std::size_t(t)], 1 / (1 + std::exp(logits(0, t) - logits(1, t))),
                test::tolerance<float>(1));
  }
}

TEST(ResidualMoe, RefusesWhatDoesNotFitWithBothNumbers) {
  const auto complaint = [](Index shared_experts, Index shared_width, Index rows, Index cols, Index bias = 0) {
    return error_of([&] {
      ResidualMoe(sparse_layer(8), test::GatedFfnBanks<float>::make(shared_width, seeds_from(1, shared_experts)),
                  Weight<float>::Ones(rows, cols).eval(), Eigen::VectorXf::Ones(bias).eval());
    });
  };
  EXPECT_EQ(complaint(1, 8, 2, 8), "no error");
  EXPECT_EQ(complaint(1, 8, 2, 8, 2), "no error");
  EXPECT_EQ(complaint(2, 8, 2, 8), "ResidualMoe: shared.num_experts() is 2, expected 1");
  EXPECT_EQ(complaint(1, 9, 2, 8), "ResidualMoe: shared.d_model() is 9, expected 8");
  EXPECT_EQ(complaint(1, 8, 3, 8), "ResidualMoe: weight.rows() is 3, expected 2");
  EXPECT_EQ(complaint(1, 8, 2, 7), "ResidualMoe: weight.cols() is 7, expected 8");
  EXPECT_EQ(complaint(1, 8, 2, 8, 1), "ResidualMoe: bias.size() is 1, expected 2");
}

}  // namespace
}  // namespace moe::laws
