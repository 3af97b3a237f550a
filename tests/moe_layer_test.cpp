#include "laws/layer_laws.hpp"

#include "moe/kernels/rms_norm.hpp"
#include "moe/layers/affine_output.hpp"
#include "moe/layers/any_layer.hpp"
#include "moe/layers/dense.hpp"
#include "moe/layers/moe_layer.hpp"
#include "moe/layers/normed_output.hpp"
#include "moe/layers/shared.hpp"
#include "moe/models/dense_equivalents.hpp"
#include "oracle.hpp"

#include <stdexcept>
#include <string>
#include <vector>

#include "expert_factories.hpp"
#include "laws/common.hpp"
#include "naive.hpp"

namespace moe::laws {

namespace naive = test::naive;
using test::error_of;
using test::naive::exact;
using test::naive::MatrixD;

template <class W, class Act = SwiGlu>
auto bank_of(Index d_model, Index num_experts, unsigned first_seed = 1) {
  return test::GatedFfnBanks<W, Act>::make(d_model, seeds_from(first_seed, num_experts));
}

struct MoeLayers {
  static auto make(Index d_model) { return MoeLayer(router_for<float>(d_model, 5, 2), bank_of<float>(d_model, 5)); }
};
struct DenseLayers {
  static auto make(Index d_model) { return DenseLayer(bank_of<float>(d_model, 1)); }
};
struct SharedLayers {
  static auto make(Index d_model) { return WithSharedExpert(MoeLayers::make(d_model), bank_of<float>(d_model, 1, 50)); }
};
struct GatedSharedLayers {
  static auto make(Index d_model) {
    return WithSharedExpert(MoeLayers::make(d_model), bank_of<float>(d_model, 1, 50),
                            random_matrix<Eigen::RowVectorXf>(1, d_model, 8));
  }
};
struct TwiceSharedLayers {
  static auto make(Index d_model) {
    return WithSharedExpert(GatedSharedLayers::make(d_model),
                            ExpertList(std::vector{test::Ffns<float>::make(d_model, 60)}));
  }
};
struct AnyLayers {
  static AnyLayer<double> make(Index d_model) {
    return MoeLayer(router_for<double>(d_model, 4, 3, WeightOn::input), bank_of<double>(d_model, 4));
  }
};
struct NormedLayers {
  static auto make(Index d_model) {
    return NormedOutput(SharedLayers::make(d_model),
                        RmsNorm<float>(random_matrix<Eigen::VectorXf>(d_model, 1, 9), {.epsilon = 0.1, .offset = 1}));
  }
};
using Layers =
    testing::Types<MoeLayers, DenseLayers, SharedLayers, GatedSharedLayers, TwiceSharedLayers, NormedLayers, AnyLayers>;
INSTANTIATE_TYPED_TEST_SUITE_P(Library, LayerLaws, Layers);

TEST(Layers, ReturnYInTheCallersWorkspaceOrInOneOfTheirOwn) {
  expect_forward_to_return_y(MoeLayers::make(9));
  expect_forward_to_return_y(DenseLayers::make(9));
  expect_forward_to_return_y(SharedLayers::make(9));
  expect_forward_to_return_y(AnyLayers::make(9));
  expect_forward_to_return_y(NormedLayers::make(9));
  expect_forward_to_return_y(AffineOutput(MoeLayers::make(9), 0.5F, Eigen::VectorXf(Eigen::VectorXf::Ones(9))));
}

template <class W, class Act>
MatrixD naive_answer(const GatedFfnBank<W, Act>& bank, Index expert, const MatrixD& x, naive::Function act) {
  return naive::gated_ffn(exact(bank.w_gate()[expert]), exact(bank.w_up()[expert]), exact(bank.w_down()[expert]), x,
                          act);
}

/// A whole layer in double, from the weights alone.
template <class S, class W, class Act>
MatrixD naive_layer(const LinearTopK<S>& router, const GatedFfnBank<W, Act>& bank, const MatrixD& x,
                    naive::Function act) {
  std::vector<naive::Expert> experts;
  for (Index e = 0; e < bank.num_experts(); ++e) {
    experts.push_back([&bank, e, act](const MatrixD& tokens) { return naive_answer(bank, e, tokens, act); });
  }
  return naive::moe(naive::product(exact(router.weight()), x), router.options(), {}, experts, x);
}

template <class W, class Act>
void expect_naive_twin(naive::Function act) {
  using S = ActivationScalar<W>;
  for (const Index d_model : {1, 8, 17, 40}) {
    for (const WeightOn weight_on : {WeightOn::output, WeightOn::input}) {
      const auto router = router_for<S>(d_model, 6, 2, weight_on);
      const auto bank = bank_of<W, Act>(d_model, 6);
      const MoeLayer layer(router, bank);
      for (const Index num_tokens : token_counts) {
        const auto x = random_matrix<Matrix<S>>(d_model, num_tokens, 9);
        EXPECT_TRUE(is_close(layer.forward(x), naive_layer(router, bank, exact(x), act)))
            << d_model << " wide, " << num_tokens << " tokens";
      }
    }
  }
}

TEST(MoeLayer, OfGatedFfnsEqualsItsNaiveTwin) {
  expect_naive_twin<double, SwiGlu>(naive::silu);
  expect_naive_twin<float, SwiGlu>(naive::silu);
  expect_naive_twin<double, GeGlu>(naive::gelu);
  expect_naive_twin<double, GeGluTanh>(naive::gelu_tanh);
  expect_naive_twin<double, ReGlu>(naive::relu);
}

template <class W, class Act>
void expect_ffn_twin(naive::Function act) {
  using S = ActivationScalar<W>;
  for (const Index d_model : sizes) {
    for (const unsigned seed : {1U, 2U}) {  // with biases, without
      const auto ffn = test::Ffns<W, Act>::make(d_model, seed);
      EXPECT_EQ(ffn.b_in.size() > 0, seed == 1);
      for (const Index num_tokens : token_counts) {
        const auto x = random_matrix<Matrix<S>>(d_model, num_tokens, 9);
        Matrix<S> y(d_model, num_tokens);
        Scratch scratch;
        ffn.forward(x, y, scratch);
        const auto expected =
            naive::ffn(exact(ffn.w_in), exact(ffn.b_in), exact(ffn.w_out), exact(ffn.b_out), exact(x), act);
        EXPECT_TRUE(is_close(y, expected)) << d_model << " wide, " << num_tokens << " tokens, seed " << seed;
      }
    }
  }
}

TEST(Ffn, EqualsItsNaiveTwin) {
  expect_ffn_twin<double, Relu>(naive::relu);
  expect_ffn_twin<float, Gelu>(naive::gelu);
  expect_ffn_twin<double, GeluTanh>(naive::gelu_tanh);
  expect_ffn_twin<float, Silu>(naive::silu);
}

TEST(Activation, EqualsItsFormulaFarFromZeroToo) {
  Eigen::ArrayXd x(2001);
  for (Index i = 0; i < x.size(); ++i) x(i) = double(i - 1000) / 20;  // −50 … 50
  const auto expect_formula = [&](const auto& act, naive::Function formula) {
    EXPECT_TRUE(is_close(act(x).matrix().eval(), x.unaryExpr(formula).matrix().eval()));
    EXPECT_TRUE(is_close(act(x.cast<float>()).matrix().eval(), x.unaryExpr(formula).matrix().eval()));
  };
  expect_formula(Relu{}, naive::relu);
  expect_formula(Silu{}, naive::silu);
  expect_formula(Gelu{}, naive::gelu);
  expect_formula(GeluTanh{}, naive::gelu_tanh);
}

TEST(Activation, OfAGatedFfnMultipliesTheActivatedGateByUp) {
  const Eigen::Array3d gate(-1, 0.5, 2), up(3, -4, 5);
  const Eigen::Array3d hidden = SwiGlu{}(gate, up);
  for (Index i = 0; i < 3; ++i) EXPECT_DOUBLE_EQ(hidden(i), naive::silu(gate(i)) * up(i));
}

TEST(MoeLayer, ItsWorkspaceTellsHowMuchItHolds) {
  const auto layer = SharedLayers::make(67);
  Workspace<float> ws;
  EXPECT_EQ(ws.bytes(), 0U);
  const auto held_after = [&](Index num_tokens) {
    for (int warming = 0; warming < 2; ++warming) layer.forward(random_matrix<Matrix<float>>(67, num_tokens, 1), ws);
    return ws.bytes();
  };
  const std::size_t of_few = held_after(3), of_many = held_after(300);
  EXPECT_LT(of_few, of_many);
  EXPECT_GE(of_many, 300 * 67 * sizeof(float) * 3) << "what three experts of each token read";
  EXPECT_EQ(held_after(300), of_many);
  EXPECT_EQ(held_after(7), of_many) << "a smaller batch neither frees nor takes";
}

TEST(MoeLayer, WeightsOnTheInputAreNotWeightsOnTheOutput) {
  const Index d_model = 8;
  const TopKOptions llama4{.score = Score::sigmoid, .weight_on = WeightOn::input};
  TopKOptions on_output = llama4;
  on_output.weight_on = WeightOn::output;
  const auto weight = random_matrix<Weight<double>>(4, d_model, 1);
  const auto bank = bank_of<double>(d_model, 4);
  const MoeLayer one(LinearTopK<double>(weight, llama4), bank), other(LinearTopK<double>(weight, on_output), bank);
  for (const Index num_tokens : {1, 40}) {
    const auto x = random_matrix<Matrix<double>>(d_model, num_tokens, 2);
    EXPECT_TRUE(is_close(one.forward(x), naive_layer(one.router(), bank, x, naive::silu)));
    EXPECT_FALSE(is_close(one.forward(x), other.forward(x)));
  }
}

TEST(MoeLayer, TellsWhereItsTokensWent) {
  const auto layer = MoeLayers::make(8);
  const auto x = random_matrix<Matrix<float>>(8, 7, 1);
  Workspace<float> ws;
  Matrix<float> y(8, 7);
  layer.forward(x, y, ws);
  layer.forward(x, y, ws);  // not twice
  EXPECT_EQ(ws.routing.size(), 14);
  EXPECT_EQ(Index(ws.routing.logits.size()), 7 * 5);
  EXPECT_EQ(ws.plan.view().num_experts(), 5);
  EXPECT_EQ(ws.plan.view().num_slots(), 14);
  EXPECT_TRUE(same_bits(y, layer.forward(x)));
}

TEST(MoeLayer, RefusesARouterThatDoesNotFitItsExperts) {
  EXPECT_EQ(error_of([] { MoeLayer(router_for<float>(8, 5, 2), bank_of<float>(8, 4)); }),
            "MoeLayer: experts.num_experts() is 4, expected 5");
  EXPECT_EQ(error_of([] { MoeLayer(router_for<float>(8, 5, 2), bank_of<float>(9, 5)); }),
            "MoeLayer: experts.d_model() is 9, expected 8");
  EXPECT_EQ(error_of([] {
              MoeLayer(router_for<float>(8, 2, 1),
                       std::vector{test::Ffns<float>::make(8, 1), test::Ffns<float>::make(9, 1)});
            }),
            "ExpertList: expert.d_model() is 9, expected 8");
  EXPECT_EQ(error_of([] { ExpertList<Ffn<float>>({}); }), "ExpertList: needs at least one expert");
}

TEST(MoeLayer, ItsPartsMustFitAlsoWhereOneWasReplaced) {
  const auto error_after = [](auto layer, const auto& replace) {
    replace(layer);
    return error_of([&] { layer.forward(Matrix<float>::Ones(8, 3)); });
  };
  const MoeLayer layer(router_for<float>(8, 5, 2), bank_of<float>(8, 5));
  EXPECT_EQ(error_after(layer, [](auto& its) { its.experts() = bank_of<float>(8, 2); }),
            "MoeLayer: experts.num_experts() is 2, expected 5");
  EXPECT_EQ(error_after(layer, [](auto& its) { its.experts() = bank_of<float>(32, 5); }),
            "MoeLayer: experts.d_model() is 32, expected 8");
  EXPECT_EQ(error_after(layer, [](auto& its) { its.router() = router_for<float>(8, 64, 2); }),
            "MoeLayer: experts.num_experts() is 5, expected 64");
  EXPECT_EQ(error_after(layer, [](auto& its) { its.router().logits() = router_for<float>(8, 64, 2).logits(); }),
            "LogitsRouter: logits.num_experts(), against that of the choice, is 64, expected 5");
  EXPECT_EQ(error_after(MoeLayer(router_for<float>(8, 2, 2), ExpertList(std::vector{test::Ffns<float>::make(8, 60),
                                                                                    test::Ffns<float>::make(8, 61)})),
                        [](auto& its) { its.experts()[1] = test::Ffns<float>::make(9, 60); }),
            "ExpertList: expert.d_model() is 9, expected 8");
  EXPECT_EQ(error_after(DenseLayer(bank_of<float>(8, 1)), [](auto& its) { its.expert() = bank_of<float>(8, 2); }),
            "FfnBank: plan.num_experts() is 1, expected 2");
  const WithSharedExpert shared(layer, bank_of<float>(8, 1), random_matrix<Eigen::RowVectorXf>(1, 8, 8));
  EXPECT_EQ(error_after(shared, [](auto& its) { its.shared() = bank_of<float>(9, 1); }),
            "FfnBank: x.rows() is 8, expected 9");
  EXPECT_EQ(error_after(NormedOutput(layer, RmsNorm<float>(Vector<float>::Ones(8))),
                        [](auto& its) { its.norm() = RmsNorm<float>(Vector<float>::Ones(9)); }),
            "RmsNorm: x.rows() is 8, expected 9");
}

/// Sends every token where it is told.
struct Lost {
  using Scalar = float;
  Index to_token, to_expert;

  Index d_model() const { return 4; }
  Index num_experts() const { return 3; }
  void route(const ConstMatrixRef<float>&, Routing<float>& routing, Workers&) const {
    routing.add(to_token, to_expert, 1);
  }
};

TEST(MoeLayer, RefusesARouteToNowhere) {
  const auto complaint = [](Index token, Index expert) {
    const MoeLayer layer(Lost{token, expert}, bank_of<float>(4, 3));
    return error_of([&] { layer.forward(Matrix<float>::Zero(4, 2)); });
  };
  EXPECT_EQ(complaint(1, 2), "no error");
  EXPECT_EQ(complaint(2, 2), "Routing: route 0 sends token 2 of 2 to expert 2 of 3");
  EXPECT_EQ(complaint(1, 3), "Routing: route 0 sends token 1 of 2 to expert 3 of 3");
  EXPECT_EQ(complaint(-1, 0), "Routing: route 0 sends token -1 of 2 to expert 0 of 3");
  EXPECT_EQ(complaint(0, -1), "Routing: route 0 sends token 0 of 2 to expert -1 of 3");
}

TEST(WithSharedExpert, AddsTheSharedExpertToTheLayer) {
  for (const Index d_model : {8, 17}) {
    const auto layer = MoeLayers::make(d_model);
    const auto shared = bank_of<float>(d_model, 1, 50);
    const auto gate = random_matrix<Eigen::RowVectorXf>(1, d_model, 8);
    for (const Index num_tokens : token_counts) {
      const auto x = random_matrix<Matrix<float>>(d_model, num_tokens, 2);
      const MatrixD sparse = naive_layer(layer.router(), layer.experts(), exact(x), naive::silu);
      const MatrixD of_shared = naive_answer(shared, 0, exact(x), naive::silu);
      EXPECT_TRUE(is_close(WithSharedExpert(layer, shared).forward(x), sparse + of_shared)) << num_tokens << " tokens";

      MatrixD gated = sparse;
      const MatrixD logit = naive::product(exact(gate), exact(x));
      for (Index t = 0; t < num_tokens; ++t) gated.col(t) += of_shared.col(t) / (1 + std::exp(-logit(0, t)));
      EXPECT_TRUE(is_close(WithSharedExpert(layer, shared, gate).forward(x), gated)) << num_tokens << " tokens";
    }
  }
}

TEST(WithSharedExpert, TakesOneThatIsNotGated) {
  for (const Index d_model : {8, 17}) {
    const unsigned seed = 51;
    const auto expert = test::Ffns<float, Gelu>::make(d_model, seed);
    const auto shared = test::FfnBanks<float, Gelu, true>::make(d_model, std::span(&seed, 1));
    const MoeLayer layer(router_for<float>(d_model, 5, 2),
                         test::FfnBanks<float, Relu, true>::make(d_model, seeds_from(1, 5)));
    for (const Index num_tokens : token_counts) {
      const auto x = random_matrix<Matrix<float>>(d_model, num_tokens, 2);
      const MatrixD answer = naive::ffn(exact(expert.w_in), exact(expert.b_in), exact(expert.w_out),
                                        exact(expert.b_out), exact(x), naive::gelu);
      EXPECT_TRUE(is_close(DenseLayer(shared).forward(x), answer)) << num_tokens << " tokens";
      const MatrixD sparse = exact(layer.forward(x));
      EXPECT_TRUE(is_close(WithSharedExpert(layer, shared).forward(x), sparse + answer)) << num_tokens << " tokens";
    }
  }
}

/// Experts that wait for others, as those on other ranks do.
struct Waiting {
  using Scalar = float;
  GatedFfnBank<float> bank;
  bool fails = false;

  Index d_model() const { return bank.d_model(); }
  Index num_experts() const { return bank.num_experts(); }
  void apply(const ConstMatrixRef<float>& x, const DispatchPlan<float>& plan, MatrixRef<float> y,
             Workers& workers) const {
    for (int i = 0; i < 2; ++i) workers.work_meanwhile();  // done once
    if (fails) throw std::invalid_argument("lost");
    bank.apply(x, plan, y, workers);
  }
};

TEST(WithSharedExpert, GivesTheSameWhereItIsRunWhileExpertsWait) {
  const Index d_model = 17;
  const auto layer = MoeLayers::make(d_model);
  const auto shared = bank_of<float>(d_model, 1, 50), second = bank_of<float>(d_model, 1, 51);
  const MoeLayer waiting(layer.router(), Waiting{layer.experts()}),
      failing(layer.router(), Waiting{layer.experts(), true});
  Workspace<float> ws;
  const auto forward = [&](const auto& any_layer, const Matrix<float>& x, bool batch_invariant) {
    Matrix<float> y(d_model, x.cols());
    ws.numerics.batch_invariant = batch_invariant;
    any_layer.forward(x, y, ws);
    EXPECT_EQ(ws.meanwhile, nullptr);
    return y;
  };
  for (const auto& gate : {Eigen::RowVectorXf(), random_matrix<Eigen::RowVectorXf>(1, d_model, 8)}) {
    for (const Index num_tokens : token_counts) {
      const auto x = random_matrix<Matrix<float>>(d_model, num_tokens, 2);
      const WithSharedExpert once(layer, shared, gate);
      const WithSharedExpert once_waiting(waiting, shared, gate);
      const WithSharedExpert twice(once, second, gate);
      const WithSharedExpert twice_waiting(once_waiting, second, gate);
      EXPECT_TRUE(same_bits(forward(once_waiting, x, true), forward(once, x, true))) << num_tokens << " tokens";
      EXPECT_TRUE(same_bits(forward(twice_waiting, x, true), forward(twice, x, true))) << num_tokens << " tokens";
      EXPECT_TRUE(is_close(forward(twice_waiting, x, false), forward(twice, x, false))) << num_tokens << " tokens";
      EXPECT_EQ(error_of([&] { forward(WithSharedExpert(failing, shared, gate), x, true); }), "lost");
      EXPECT_TRUE(same_bits(forward(waiting, x, true), forward(layer, x, true)))
          << "nothing is left of a shared expert that was lost";
    }
  }
}

TEST(WithSharedExpert, KeepsTheRoutingOfTheSparseLayer) {
  const auto layer = MoeLayers::make(8);
  const auto x = random_matrix<Matrix<float>>(8, 7, 1);
  Workspace<float> ws, alone;
  Matrix<float> y(8, 7);
  WithSharedExpert(layer, bank_of<float>(8, 1)).forward(x, y, ws);
  layer.forward(x, y, alone);
  EXPECT_EQ(ws.routing.expert, alone.routing.expert);
  EXPECT_EQ(ws.plan.token, alone.plan.token);
}

TEST(WithSharedExpert, RefusesWhatDoesNotFitWithBothNumbers) {
  const auto layer = MoeLayers::make(8);
  EXPECT_EQ(error_of([&] { WithSharedExpert(layer, bank_of<float>(8, 2)); }),
            "WithSharedExpert: shared.num_experts() is 2, expected 1");
  EXPECT_EQ(error_of([&] { WithSharedExpert(layer, bank_of<float>(9, 1)); }),
            "WithSharedExpert: shared.d_model() is 9, expected 8");
  EXPECT_EQ(error_of([&] { WithSharedExpert(layer, bank_of<float>(8, 1), Eigen::RowVectorXf::Zero(7)); }),
            "WithSharedExpert: gate.size() is 7, expected 8");
}

TEST(Dense, OfEqualActiveSizeIsTopKExpertsWideAndOfEqualTotalSizeAll) {
  const Index d_model = 9, d_ff = test::hidden_size(d_model);
  const MoeLayer layer(router_for<float>(d_model, 5, 2), bank_of<float>(d_model, 5));
  const auto active = dense_of_equal_active_size(layer), total = dense_of_equal_total_size(layer);
  EXPECT_EQ(active.expert().d_ff(), 2 * d_ff);
  EXPECT_EQ(total.expert().d_ff(), 5 * d_ff);
  EXPECT_EQ(total.d_model(), d_model);
}

TEST(Dense, OfTheFirstExpertsIsTheirSum) {
  const Index d_model = 9;
  const MoeLayer owned(router_for<float>(d_model, 5, 2), bank_of<float>(d_model, 5));
  const MoeLayer mapped(owned.router(), test::MappedGatedFfnBanks<float>::make(d_model, seeds_from(1, 5)));
  for (const Index num_tokens : token_counts) {
    const auto x = random_matrix<Matrix<float>>(d_model, num_tokens, 2);
    MatrixD sum = MatrixD::Zero(d_model, num_tokens);
    for (Index count = 1; count <= 5; ++count) {
      sum += naive_answer(owned.experts(), count - 1, exact(x), naive::silu);
      EXPECT_TRUE(is_close(concatenate(owned.experts(), count).forward(x), sum)) << count << ", " << num_tokens;
      EXPECT_TRUE(is_close(concatenate(mapped.experts(), count).forward(x), sum)) << count << ", " << num_tokens;
    }
    EXPECT_TRUE(is_close(dense_of_equal_total_size(owned).forward(x), sum)) << num_tokens << " tokens";
  }
}

TEST(Dense, RefusesWhatDoesNotFitWithTheNumbers) {
  const auto bank = bank_of<float>(4, 3);
  EXPECT_EQ(error_of([&] { concatenate(bank, 4); }), "concatenate: count is 4, expected 1 to 3");
  EXPECT_EQ(error_of([&] { concatenate(bank, 0); }), "concatenate: count is 0, expected 1 to 3");
  EXPECT_EQ(error_of([&] { DenseLayer{bank}; }), "DenseLayer: expert.num_experts() is 3, expected 1");
}

TEST(Oracle, IsTheNaiveTwinToo) {
  const Index d_model = 7;
  const auto router = router_for<double>(d_model, 4, 2);
  const auto bank = bank_of<double>(d_model, 4);
  const MoeLayer layer(router, bank);
  for (const Index num_tokens : token_counts) {
    const auto x = random_matrix<Matrix<double>>(d_model, num_tokens, 2);
    EXPECT_TRUE(is_close(test::oracle_forward(layer, x), naive_layer(router, bank, x, naive::silu))) << num_tokens;
  }
}

TEST(GatedFfnBank, RefusesWeightsThatDoNotFitWithBothNumbers) {
  const auto complaint = [](WeightStack<float> gate, WeightStack<float> up, WeightStack<float> down) {
    return error_of([&] { GatedFfnBank<float>(gate, up, down); });
  };
  const WeightStack<float> in(2, 6, 4), out(2, 4, 6);
  EXPECT_EQ(complaint(in, in, out), "no error");
  EXPECT_EQ(complaint({0, 6, 4}, {0, 6, 4}, {0, 4, 6}), "GatedFfnBank: needs at least one expert");
  EXPECT_EQ(complaint(in, {3, 6, 4}, out), "GatedFfnBank: w_up.num_experts() is 3, expected 2");
  EXPECT_EQ(complaint(in, in, {1, 4, 6}), "GatedFfnBank: w_down.num_experts() is 1, expected 2");
  EXPECT_EQ(complaint(in, {2, 5, 4}, out), "GatedFfnBank: w_up.rows() is 5, expected 6");
  EXPECT_EQ(complaint(in, {2, 6, 3}, out), "GatedFfnBank: w_up.cols() is 3, expected 4");
  EXPECT_EQ(complaint(in, in, {2, 5, 6}), "GatedFfnBank: w_down.rows() is 5, expected 4");
  EXPECT_EQ(complaint(in, in, {2, 4, 7}), "GatedFfnBank: w_down.cols() is 7, expected 6");
  const std::vector<float> memory(100);
  const WeightStack<float> apart({memory.data(), memory.data()}, 6, 4, 5, nullptr);
  EXPECT_EQ(complaint(in, apart, out), "GatedFfnBank: w_up.row_stride() is 5, expected 4");
  EXPECT_EQ(complaint(apart, apart, out), "no error");
}

TEST(Experts, RefuseWeightsThatDoNotFitWithBothNumbers) {
  using Vector = Eigen::VectorXf;
  const Matrix<float> x = Matrix<float>::Zero(4, 2);
  const auto complaint = [&](const auto& expert) {
    return error_of([&] {
      Matrix<float> y(4, 2);
      Scratch scratch;
      expert.forward(x, y, scratch);
    });
  };
  const auto zeros = [](Index rows, Index cols) { return Weight<float>(Weight<float>::Zero(rows, cols)); };
  using Gated = GatedFfn<float>;
  EXPECT_EQ(complaint(Gated{zeros(6, 4), zeros(6, 4), zeros(4, 6)}), "no error");
  EXPECT_EQ(complaint(Gated{zeros(5, 4), zeros(6, 4), zeros(4, 6)}), "GatedFfn: w_gate.rows() is 5, expected 6");
  EXPECT_EQ(complaint(Gated{zeros(6, 3), zeros(6, 4), zeros(4, 6)}), "GatedFfn: w_gate.cols() is 3, expected 4");
  EXPECT_EQ(complaint(Gated{zeros(6, 4), zeros(7, 4), zeros(4, 6)}), "GatedFfn: w_up.rows() is 7, expected 6");
  EXPECT_EQ(complaint(Gated{zeros(6, 4), zeros(6, 5), zeros(4, 6)}), "GatedFfn: w_up.cols() is 5, expected 4");
  using Plain = Ffn<float>;
  EXPECT_EQ(complaint(Plain{zeros(6, 4), zeros(4, 6), Vector::Zero(6), Vector::Zero(4)}), "no error");
  EXPECT_EQ(complaint(Plain{zeros(5, 4), zeros(4, 6)}), "Ffn: w_in.rows() is 5, expected 6");
  EXPECT_EQ(complaint(Plain{zeros(6, 5), zeros(4, 6)}), "Ffn: w_in.cols() is 5, expected 4");
  EXPECT_EQ(complaint(Plain{zeros(6, 4), zeros(4, 6), Vector::Zero(4)}), "Ffn: b_in.size() is 4, expected 6");
  EXPECT_EQ(complaint(Plain{zeros(6, 4), zeros(4, 6), {}, Vector::Zero(6)}), "Ffn: b_out.size() is 6, expected 4");
}

}  // namespace moe::laws
