/// @file  What the laws do not say of experts: which formula each one computes.
#include "laws/common.hpp"

#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "allocations.hpp"
#include "errors.hpp"
#include "expert_factories.hpp"
#include "moe/experts/any_experts.hpp"
#include "moe/experts/joined_experts.hpp"
#include "moe/experts/zero_compute.hpp"
#include "moe/kernels/rms_norm.hpp"
#include "moe/layers/affine_output.hpp"
#include "moe/layers/dense.hpp"
#include "moe/layers/normed_output.hpp"
#include "moe/models/dense_equivalents.hpp"
#include "moe/models/make_layer.hpp"
#include "moe/runtime/executors/openmp.hpp"
#include "naive.hpp"
#include "oracle.hpp"
#include "pools.hpp"

namespace moe::laws {

using test::error_of;
using Array = Eigen::ArrayXd;

// ---- activations ----------------------------------------------------------------------------------------------------

double sigmoid_of(double x) { return 1 / (1 + std::exp(-x)); }
double silu_of(double x) { return x * sigmoid_of(x); }

/// Numbers on both sides of every limit, in pairs.
struct Pairs {
  Array gate, up;
};
Pairs pairs() {
  std::vector<double> gate, up;
  for (const double g :
       {-1e4, -30.0, -10.5, -10.0, -7.5, -7.0, -1.0, -0.1, 0.0, 0.1, 1.0, 6.9, 7.0, 7.1, 9.9, 10.0, 10.1, 40.0}) {
    for (const double u : {-50.0, -10.1, -10.0, -7.1, -7.0, -1.0, 0.0, 0.5, 6.9, 7.0, 7.1, 10.0, 10.1, 50.0}) {
      gate.push_back(g);
      up.push_back(u);
    }
  }
  return {Eigen::Map<Array>(gate.data(), Index(gate.size())), Eigen::Map<Array>(up.data(), Index(up.size()))};
}

template <class Act>
void expect_gated(const Act& act, const std::function<double(double, double)>& formula, const std::string& what) {
  const auto [gate, up] = pairs();
  const Array exact = act(gate, up);
  const Eigen::ArrayXf rounded = act(gate.cast<float>().eval(), up.cast<float>().eval());
  for (Index i = 0; i < gate.size(); ++i) {
    const double expected = formula(gate(i), up(i));
    EXPECT_NEAR(exact(i), expected, 1e-13 * (1 + std::abs(expected))) << what << " of " << gate(i) << ", " << up(i);
    EXPECT_NEAR(rounded(i), expected, 1e-5 * (1 + std::abs(expected))) << what << " of " << gate(i) << ", " << up(i);
  }
}

TEST(Activations, AreTheirFormulas) {
  const auto erf_gelu = [](double x) { return x / 2 * (1 + std::erf(x / std::sqrt(2.0))); };
  const auto tanh_gelu = [](double x) {
    return x / 2 * (1 + std::tanh(std::sqrt(2 / EIGEN_PI) * (x + 0.044715 * x * x * x)));
  };
  expect_gated(SwiGlu{}, [](double g, double u) { return silu_of(g) * u; }, "SwiGlu");
  expect_gated(GeGlu{}, [&](double g, double u) { return erf_gelu(g) * u; }, "GeGlu");
  expect_gated(GeGluTanh{}, [&](double g, double u) { return tanh_gelu(g) * u; }, "GeGluTanh");
  expect_gated(ReGlu{}, [](double g, double u) { return std::max(g, 0.0) * u; }, "ReGlu");
  expect_gated(Glu<ReluSquared>{}, [](double g, double u) { return std::pow(std::max(g, 0.0), 2) * u; }, "ReluSquared");
  expect_gated(
      GptOssGlu{.limit = 7, .alpha = 1.5F},
      [](double g, double u) {
        const double gate = std::min(g, 7.0), up = std::max(-7.0, std::min(u, 7.0));
        return (up + 1) * gate * sigmoid_of(1.5 * gate);
      },
      "GptOssGlu");
  expect_gated(
      ClampedInputGlu<Silu>{.limit = 10},
      [](double g, double u) { return silu_of(std::min(g, 10.0)) * std::max(-10.0, std::min(u, 10.0)); },
      "ClampedInputGlu");
  expect_gated(
      ClampedOutputGlu<Silu>{.limit = 7},
      [](double g, double u) { return std::min(silu_of(g), 7.0) * std::max(-7.0, std::min(u, 7.0)); },
      "ClampedOutputGlu");
  const auto capped = [](double x, double cap) { return cap == 0 ? x : cap * std::tanh(x / cap); };
  for (const float gate_cap : {0.0F, 4.0F}) {
    for (const float up_cap : {0.0F, 0.5F, 25.0F}) {
      expect_gated(
          SoftcappedSwiGlu{gate_cap, up_cap},
          [&](double g, double u) { return capped(g, double(gate_cap)) * sigmoid_of(g) * capped(u, double(up_cap)); },
          "SoftcappedSwiGlu of caps " + std::to_string(gate_cap) + ", " + std::to_string(up_cap));
    }
  }
}

TEST(Activations, ClampingBeforeAndAfterDiffer) {
  const Eigen::Array<double, 1, 1> gate(7.001), up(1);
  EXPECT_LT(ClampedInputGlu<Silu>{.limit = 7}(gate, up)(0), 6.995);  // silu(7)
  EXPECT_GT(ClampedOutputGlu<Silu>{.limit = 7}(gate, up)(0), 6.994);
  const Eigen::Array<double, 1, 1> far(20);
  EXPECT_EQ(ClampedOutputGlu<Silu>{.limit = 7}(far, up)(0), 7);
  EXPECT_LT(ClampedInputGlu<Silu>{.limit = 7}(far, up)(0), 6.9937);
}

TEST(Activations, ShowANotANumber) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const Index n : {1, 15, 16, 33}) {
    const Eigen::ArrayXf good = Eigen::ArrayXf::Constant(n, 2), bad = Eigen::ArrayXf::Constant(n, nan);
    const auto expect_nan = [&](const auto& act) {
      EXPECT_TRUE(Eigen::ArrayXf(act(bad, good)).isNaN().all()) << n;
      EXPECT_TRUE(Eigen::ArrayXf(act(good, bad)).isNaN().all()) << n;
    };
    expect_nan(SwiGlu{});
    expect_nan(ReGlu{});
    expect_nan(Glu<ReluSquared>{});
    expect_nan(GptOssGlu{});
    expect_nan(ClampedInputGlu<Silu>{});
    expect_nan(ClampedOutputGlu<Silu>{});
    expect_nan(SoftcappedSwiGlu{});
    expect_nan(SoftcappedSwiGlu{0, 0});
  }
}

// ---- memory ---------------------------------------------------------------------------------------------------------

template <class Expert>
void expect_no_more_for_fewer_tokens(const Expert& expert) {
  using S = typename Expert::Scalar;
  const auto x = random_matrix<Matrix<S>>(expert.d_model(), 96, 5);
  Matrix<S> y = x;
  for (Index most = 1; most <= x.cols(); ++most) {
    Scratch scratch;
    const auto forward = [&](Index n) {
      scratch.reset();
      expert.forward(x.leftCols(n), y.leftCols(n), scratch);
    };
    for (int warming = 0; warming < 2; ++warming) forward(most);
    for (Index n = 0; n <= most; ++n) {
      EXPECT_EQ(test::allocations_in([&] { forward(n); }), 0) << n << " tokens after " << most;
    }
  }
}

TEST(Ffns, TakeNoMoreMemoryForFewerTokens) {
  expect_no_more_for_fewer_tokens(test::Ffns<float>::make(33, 1));
  expect_no_more_for_fewer_tokens(test::GatedFfns<float>::make(33, 1));
  expect_no_more_for_fewer_tokens(test::GatedFfns<bfloat16>::make(33, 1));
}

template <class W>
void expect_no_more_of_banks(Products products) {
  const MoeLayer layer(router_for<float>(33, 3, 2), test::GatedFfnBanks<W>::make(33, seeds_from(1, 3)));
  const auto x = random_matrix<Matrix<float>>(33, 96, 5);
  Matrix<float> y = x;
  for (Index most = 1; most <= x.cols(); most += 5) {
    Workspace<float> ws;
    ws.numerics.products = products;
    const auto forward = [&](Index n) { layer.forward(x.leftCols(n), y.leftCols(n), ws); };
    for (int warming = 0; warming < 2; ++warming) forward(most);
    for (Index n = 0; n <= most; ++n) {
      EXPECT_EQ(test::allocations_in([&] { forward(n); }), 0) << n << " tokens after " << most;
    }
  }
}

TEST(Banks, TakeNoMoreMemoryForFewerTokens) {
  for (const Products products : {Products::exact, Products::fast}) {
    expect_no_more_of_banks<float>(products);
    expect_no_more_of_banks<bfloat16>(products);
  }
}

// ---- biases ---------------------------------------------------------------------------------------------------------

TEST(GatedFfn, AddsItsBiases) {
  for (const Index d_model : sizes) {
    const auto expert = test::GatedFfns<float, SwiGlu, true>::make(d_model, 3);
    using D = test::naive::MatrixD;
    const D gate = test::naive::exact(expert.w_gate), up = test::naive::exact(expert.w_up),
            down = test::naive::exact(expert.w_down);
    for (const Index num_tokens : token_counts) {
      const auto x = random_matrix<Matrix<float>>(d_model, num_tokens, 4);
      Matrix<float> y(d_model, num_tokens);
      Scratch scratch;
      expert.forward(x, y, scratch);
      D g = test::naive::product(gate, test::naive::exact(x)), u = test::naive::product(up, test::naive::exact(x));
      for (Index t = 0; t < num_tokens; ++t) {
        for (Index i = 0; i < g.rows(); ++i) {
          g(i, t) = silu_of(g(i, t) + double(expert.b_gate(i))) * (u(i, t) + double(expert.b_up(i)));
        }
      }
      D expected = test::naive::product(down, g);
      expected.colwise() += expert.b_down.cast<double>();
      EXPECT_TRUE(is_close(y, expected)) << d_model << " wide, " << num_tokens << " tokens";
    }
  }
}

TEST(GatedFfn, RefusesBiasesThatDoNotFit) {
  const auto complaint = [](auto change) {
    auto expert = test::GatedFfns<float, SwiGlu, true>::make(5, 1);  // d_ff 9
    change(expert);
    const Matrix<float> x = Matrix<float>::Zero(5, 2);
    Matrix<float> y(5, 2);
    Scratch scratch;
    return error_of([&] { expert.forward(x, y, scratch); });
  };
  EXPECT_EQ(complaint([](auto&) {}), "no error");
  EXPECT_EQ(complaint([](auto& e) { e.b_gate.resize(5); }), "GatedFfn: b_gate.size() is 5, expected 9");
  EXPECT_EQ(complaint([](auto& e) { e.b_up.resize(8); }), "GatedFfn: b_up.size() is 8, expected 9");
  EXPECT_EQ(complaint([](auto& e) { e.b_down.resize(9); }), "GatedFfn: b_down.size() is 9, expected 5");
}

TEST(GatedFfnBank, RefusesBiasesThatDoNotFit) {
  const auto complaint = [](Index gate_rows, Index gate_cols, Index up_rows, Index down_rows) {
    const WeightStack<float> in(3, 9, 5), out(3, 5, 9);
    return error_of([&] {
      GatedFfnBank<float>(
          in, in, out, SwiGlu{},
          {Matrix<float>(gate_rows, gate_cols), Matrix<float>(up_rows, 3), Matrix<float>(down_rows, 3)});
    });
  };
  EXPECT_EQ(complaint(9, 3, 9, 5), "no error");
  EXPECT_EQ(complaint(8, 3, 9, 5), "GatedFfnBank: biases.gate.rows() is 8, expected 9");
  EXPECT_EQ(complaint(9, 2, 9, 5), "GatedFfnBank: biases.gate.cols() is 2, expected 3");
  EXPECT_EQ(complaint(9, 3, 5, 5), "GatedFfnBank: biases.up.rows() is 5, expected 9");
  EXPECT_EQ(complaint(9, 3, 9, 9), "GatedFfnBank: biases.down.rows() is 9, expected 5");
}

TEST(DenseEquivalents, KeepTheBiases) {
  const auto seeds = seeds_from(1, 3);
  const auto check = [&](const auto& bank, const auto& make_expert) {
    const Index d_model = bank.d_model();
    const auto x = random_matrix<Matrix<double>>(d_model, 7, 1);
    Matrix<double> sum = Matrix<double>::Zero(d_model, 7);
    for (Index e = 0; e < 2; ++e) {
      const auto one = make_expert(d_model, seeds[std::size_t(e)]);
      Matrix<double> y(d_model, 7);
      Scratch scratch;
      one.forward(x, y, scratch);
      sum += y;
    }
    EXPECT_TRUE(is_close(concatenate(bank, 2).forward(x), sum));
  };
  for (const Index d_model : {5, 16}) {
    check(test::GatedFfnBanks<double, SwiGlu, true>::make(d_model, seeds), test::GatedFfns<double, SwiGlu, true>::make);
    check(test::FfnBanks<double, Gelu, true>::make(d_model, seeds), test::Ffns<double, Gelu>::make);
  }
}

// ---- experts that cost next to nothing ------------------------------------------------------------------------------

TEST(ZeroCompute, IsZeroACopyAndAMixWithAConstant) {
  const Index d_model = 7, num_tokens = 5;
  const auto x = random_matrix<Matrix<double>>(d_model, num_tokens, 1);
  Matrix<double> y = x;
  Scratch scratch;
  ZeroExpert<double>{d_model}.forward(x, y, scratch);
  EXPECT_EQ(y, Matrix<double>::Zero(d_model, num_tokens));
  CopyExpert<double>{d_model}.forward(x, y, scratch);
  EXPECT_EQ(y, x);

  const ConstantExpert<double> constant{.v = random_matrix<Eigen::VectorXd>(d_model, 1, 2),
                                        .w_mix = random_matrix<Weight<double>>(2, d_model, 3)};
  constant.forward(x, y, scratch);
  for (Index t = 0; t < num_tokens; ++t) {
    double a = 0, b = 0;
    for (Index i = 0; i < d_model; ++i) {
      a += constant.w_mix(0, i) * x(i, t);
      b += constant.w_mix(1, i) * x(i, t);
    }
    const double share = std::exp(a) / (std::exp(a) + std::exp(b));
    for (Index i = 0; i < d_model; ++i) EXPECT_NEAR(y(i, t), share * x(i, t) + (1 - share) * constant.v(i), 1e-14);
  }
  const ConstantExpert<double> unfit{.v = Eigen::VectorXd(7), .w_mix = Weight<double>(3, 7)};
  EXPECT_EQ(error_of([&] { unfit.forward(x, y, scratch); }), "ConstantExpert: w_mix.rows() is 3, expected 2");
}

static_assert(Expert<ZeroExpert<float>> && Expert<CopyExpert<double>> && Expert<ConstantExpert<float>>);
static_assert(Experts<JoinedExperts<GatedFfnBank<float>, ExpertList<CopyExpert<float>>>>);
static_assert(Experts<AnyExperts<float>> && Router<AnyRouter<double>>);

// ---- several groups as one ------------------------------------------------------------------------------------------

TEST(JoinedExperts, AreTheExpertsOfTheirGroupsToTheBit) {
  const auto seeds = seeds_from(1, 6);
  const std::span<const unsigned> all(seeds);
  for (const Index d_model : {1, 9, 33}) {
    const auto whole = test::GatedFfnBanks<float>::make(d_model, seeds);
    const JoinedExperts joined(test::GatedFfnBanks<float>::make(d_model, all.subspan(0, 1)),
                               AnyExperts<float>(test::GatedFfnBanks<float>::make(d_model, all.subspan(1, 3))),
                               test::GatedFfnBanks<float>::make(d_model, all.subspan(4, 2)));
    ASSERT_EQ(joined.num_experts(), 6);
    for (const Index num_tokens : token_counts) {
      const auto x = random_matrix<Matrix<float>>(d_model, num_tokens, 2);
      for (const WeightOn weight_on : {WeightOn::output, WeightOn::input}) {
        const MoeLayer one(router_for<float>(d_model, 6, 3, weight_on), whole);
        const MoeLayer other(router_for<float>(d_model, 6, 3, weight_on), joined);
        const auto expected = one.forward(x);
        EXPECT_TRUE(same_bits(other.forward(x), expected)) << d_model << " wide, " << num_tokens << " tokens";
        EXPECT_TRUE(same_bits(other.forward(x, test::Shuffled{3}), expected));
      }
    }
  }
}

/// Two widths of bank, a list of different types, copies: nothing but d_model in common.
auto mixed_layer(Index d_model) {
  const std::vector<AnyExpert<float>> list = {test::Ffns<float>::make(d_model, 3), ZeroExpert<float>{d_model},
                                              ConstantExpert<float>{random_matrix<Eigen::VectorXf>(d_model, 1, 4),
                                                                    random_matrix<Weight<float>>(2, d_model, 5)}};
  return MoeLayer(router_for<float>(d_model, 9, 4),
                  JoinedExperts(random_bank<float>(2, d_model, 8, 1), random_bank<bfloat16, GeGlu>(2, d_model, 21, 2),
                                ExpertList(list), ExpertList(std::vector(2, CopyExpert<float>{d_model}))));
}

TEST(JoinedExperts, OfDifferentTypesAndWidthsEqualTheOracle) {
  for (const Index d_model : {1, 16, 17}) {
    const auto layer = mixed_layer(d_model);
    for (const Index num_tokens : {0, 1, 7, 64}) {
      const auto x = random_matrix<Matrix<float>>(d_model, num_tokens, 2);
      EXPECT_TRUE(is_close(layer.forward(x), test::oracle_forward(layer, x)))
          << d_model << ", " << num_tokens << " tokens";
    }
  }
}

TEST(JoinedExperts, AllocateNothingOnceWarm) {
  const auto layer = mixed_layer(17);
  const auto x = random_matrix<Matrix<float>>(17, 64, 2);
  Matrix<float> y(17, 64);
  for (const Index workers : {1, 2}) {
    Workspace<float> ws;
    OpenMp executor = test::open_mp(workers);
    for (int warming = 0; warming < 2; ++warming) layer.forward(x, y, ws, executor);
    EXPECT_EQ(test::allocations_in([&] { layer.forward(x, y, ws, executor); }), 0) << workers << " workers";
  }
}

TEST(JoinedExperts, RefuseGroupsOfAnotherWidth) {
  EXPECT_EQ(error_of([] { JoinedExperts(random_bank<float>(3, 8, 4, 1), random_bank<float>(2, 7, 4, 1)); }),
            "JoinedExperts: d_model of the group from expert 3 on is 7, expected 8");
}

TEST(ExpertList, HoldsExpertsOfDifferentWidth) {
  const Index d_model = 9;
  std::vector<GatedFfn<float>> experts;
  for (const Index d_ff : {1, 8, 30}) {
    const auto seed = std::uint64_t(d_ff);
    experts.push_back({random_weight<float>(d_ff, d_model, seed), random_weight<float>(d_ff, d_model, seed + 50),
                       random_weight<float>(d_model, d_ff, seed + 99)});
  }
  const MoeLayer layer(router_for<float>(d_model, 3, 2), experts);
  const auto x = random_matrix<Matrix<float>>(d_model, 40, 2);
  EXPECT_TRUE(is_close(layer.forward(x), test::oracle_forward(layer, x)));
}

// ---- Llama 4's input weight -----------------------------------------------------------------------------------------

TEST(WeightOnInput, DiffersFromAWeightOnTheOutput) {
  const Index d_model = 9;
  const auto bank = random_bank<float>(3, d_model, 8, 1);
  const auto x = random_matrix<Matrix<float>>(d_model, 5, 2);
  const MoeLayer input(router_for<float>(d_model, 3, 2, WeightOn::input), bank);
  const MoeLayer output(router_for<float>(d_model, 3, 2, WeightOn::output), bank);
  const Matrix<float> one = input.forward(x), other = output.forward(x);
  for (Index t = 0; t < 5; ++t) {  // SwiGLU is not linear: silu(w·g)·w·u is not w·silu(g)·u
    EXPECT_GT((one.col(t) - other.col(t)).norm(), 0.05F * other.col(t).norm()) << "token " << t;
  }
}

// ---- a layer scaled and shifted -------------------------------------------------------------------------------------

TEST(AffineOutput, ScalesThenShiftsTheLayersOutput) {
  const Index d_model = 9;
  const MoeLayer layer(router_for<float>(d_model, 3, 2), random_bank<float>(3, d_model, 8, 1));
  const auto bias = random_matrix<Eigen::VectorXf>(d_model, 1, 3);
  for (const Index num_tokens : token_counts) {
    const auto x = random_matrix<Matrix<float>>(d_model, num_tokens, 2);
    const Matrix<float> plain = layer.forward(x);
    EXPECT_TRUE(same_bits(AffineOutput(layer, 1).forward(x), plain));
    Matrix<float> expected = 0.75F * plain;
    EXPECT_TRUE(is_close(AffineOutput(layer, 0.75F).forward(x), expected));
    expected.colwise() += bias;
    EXPECT_TRUE(is_close(AffineOutput(layer, 0.75F, bias).forward(x, test::open_mp(2)), expected));
  }
  EXPECT_EQ(error_of([&] { AffineOutput(layer, 1, bias.head(8)); }), "AffineOutput: bias.size() is 8, expected 9");
}

TEST(NormedOutput, NormalisesTheLayersOutput) {
  const MoeLayer layer(router_for<float>(9, 3, 2), random_bank<float>(3, 9, 8, 1));
  const RmsNorm<float> norm(random_matrix<Eigen::VectorXf>(9, 1, 3), {.epsilon = 0.1});
  for (const Index num_tokens : token_counts) {
    const auto x = random_matrix<Matrix<float>>(9, num_tokens, 2);
    Matrix<float> expected = layer.forward(x);
    for (Index t = 0; t < num_tokens; ++t) {
      expected.col(t) *= 1 / std::sqrt(expected.col(t).squaredNorm() / 9 + 0.1F);
      expected.col(t).array() *= norm.gain().array();
    }
    EXPECT_TRUE(is_close(NormedOutput(layer, norm).forward(x, test::open_mp(2)), expected));
  }
  EXPECT_EQ(error_of([&] { NormedOutput(layer, RmsNorm<float>(Eigen::VectorXf::Ones(8))); }),
            "NormedOutput: norm.size() is 8, expected 9");
}

// ---- ready layers ---------------------------------------------------------------------------------------------------

TEST(MakeLayer, GivesEveryPresetALayerThatRuns) {
  const auto expect_runs = [](std::string_view name, const MoeShape& shape) {
    const double scale = 24.0 / double(shape.d_model);
    const auto layer = make_layer(name, {.scale = scale, .seed = 3});
    EXPECT_EQ(layer.d_model(), 24) << name;
    const auto x = random_tokens<float>(24, 7, 1);
    Matrix<float> y(24, 7);
    Workspace<float> ws;
    layer.forward(x, y, ws);
    EXPECT_TRUE(y.allFinite()) << name;
    EXPECT_GT(y.norm(), 0) << name;
    EXPECT_EQ(ws.routing.size(), 7 * shape.top_k) << name;
    EXPECT_EQ(ws.plan.view().num_experts(), shape.num_experts + shape.num_zero_experts) << name;
    EXPECT_EQ(ws.routing.weight_on == WeightOn::input, name.starts_with("llama4")) << name;
    EXPECT_EQ(ws.shared_plan.view().num_slots() == 7, shape.d_ff_shared > 0) << name;
    EXPECT_TRUE(same_bits(make_layer(name, {.scale = scale, .seed = 3}).forward(x), y)) << name;
    EXPECT_FALSE(same_bits(make_layer(name, {.scale = scale, .seed = 4}).forward(x), y)) << name;
  };
  for (const Preset& preset : presets()) expect_runs(preset.name, preset.moe);
  for (const LayerPreset& preset : layer_presets()) expect_runs(preset.name, preset.moe);
}

TEST(MakeLayer, KnowsPlainExpertsToo) {
  const MoeShape nllb{.d_model = 8,
                      .d_ff = 12,
                      .num_experts = 4,
                      .top_k = 2,
                      .expert_bias = true,
                      .hidden = AnyActivation(Relu{}),
                      .router = TopKOptions{.top_k = 2, .renormalize = true}};
  const auto layer = make_layer<bfloat16>(nllb);
  EXPECT_TRUE(layer.forward(random_tokens<float>(8, 5, 1)).allFinite());

  // relu(2x)² = 4·relu(x)², of the shared expert, too
  const MoeShape squared{.d_model = 8,
                         .d_ff = 12,
                         .num_experts = 1,
                         .top_k = 1,
                         .d_ff_shared = 16,
                         .hidden = AnyActivation(ReluSquared{}),
                         .hidden_shared = AnyActivation(ReluSquared{})};
  EXPECT_EQ(count_params(squared).total, 8 + 2 * 8 * 16 + 2 * 8 * 12);
  const auto layer_of_squares = make_layer<float>(squared);
  const auto x = random_tokens<float>(8, 5, 1);
  const Matrix<float> twice = 2 * x;
  const Matrix<float> y = layer_of_squares.forward(x);
  EXPECT_GT(y.norm(), 0);
  EXPECT_TRUE(is_close(layer_of_squares.forward(twice), (4 * y).eval()));
}

TEST(MakeLayer, RefusesANameOrAScaleThatIsNone) {
  EXPECT_TRUE(error_of([] { make_layer("gpt-5"); }).starts_with("no shape is called \"gpt-5\"; there are"));
  EXPECT_EQ(error_of([] { make_layer(MoeShape{.d_model = 4, .d_ff = 4, .num_experts = 4, .top_k = 2}); }),
            "make_layer: shape.router's top_k is 1, expected 2");
  EXPECT_EQ(error_of([] { make_layer("mixtral-small", {.scale = 0}); }),
            "scaled: scale is 0.000000, expected more than 0");
  const double nan = std::numeric_limits<double>::quiet_NaN(), infinity = std::numeric_limits<double>::infinity();
  EXPECT_EQ(error_of([&] { make_layer("olmoe-1b-7b", {.scale = nan}); }), "scaled: scale is nan, expected more than 0");
  EXPECT_EQ(error_of([] { make_layer("olmoe-1b-7b", {.scale = 1e16}); }),
            "scaled: scale is 10000000000000000.000000, expected at most 1048575.999512 where a width is 2048");
  EXPECT_EQ(error_of([&] { make_layer("olmoe-1b-7b", {.scale = infinity}); }),
            "scaled: scale is inf, expected at most 1048575.999512 where a width is 2048");
  EXPECT_EQ(scaled(layer_shape("olmoe-1b-7b"), 1048575.999).d_model, 2147483646);
}

TEST(Random, WeightsOfANegativeSizeAreRefusedByItsName) {
  EXPECT_EQ(error_of([] { random_bank<float>(-1, 4, 8, 1); }), "WeightStack: num_experts is -1, expected at least 0");
  EXPECT_EQ(error_of([] { random_bank<float>(2, -4, 8, 1); }), "WeightStack: cols is -4, expected at least 0");
  EXPECT_EQ(error_of([] { random_weight<float>(-1, 8, 1); }), "random_weight: rows is -1, expected at least 0");
  EXPECT_EQ(error_of([] { random_tokens<float>(4, -8, 1); }), "random_tokens: cols is -8, expected at least 0");
}

}  // namespace moe::laws
