// Experts between two projections against the formula in double.
#include "moe/experts/latent_experts.hpp"

#include <cmath>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "compare.hpp"
#include "errors.hpp"
#include "latent_factories.hpp"
#include "moe/core/parameters.hpp"
#include "moe/moe.hpp"
#include "moe/surgery/prune.hpp"
#include "naive.hpp"
#include "random.hpp"

namespace moe {
namespace {

using test::is_close;
using test::random_latent;
using test::random_matrix;
using test::random_projection;
using test::same_bits;
namespace naive = test::naive;
using naive::MatrixD;

constexpr unsigned seeds[] = {11, 12, 13, 14};
constexpr TopKOptions top_2{.top_k = 2, .score = Score::sigmoid};

auto bank_of(Index width) { return test::GatedFfnBanks<float, SwiGlu, true>::make(width, seeds); }

LinearTopK<float> router_of(Index d_model, WeightOn weight_on = WeightOn::output) {
  auto options = top_2;
  options.weight_on = weight_on;
  return {random_matrix<Weight<float>>(4, d_model, 1), options};
}

/// W·x + b
template <class W>
MatrixD projected(const Projection<W>& projection, const MatrixD& x) {
  MatrixD y = naive::product(naive::exact(projection.weight()), x);
  if (projection.bias().size() > 0) y.colwise() += naive::exact(projection.bias()).col(0);
  return y;
}

/// Itself, where there is no norm.
void apply_norm(const std::optional<RmsNorm<float>>& norm, MatrixD& u) {
  for (Index t = 0; norm && t < u.cols(); ++t) {
    const auto& options = norm->options();
    u.col(t) /= std::sqrt(u.col(t).squaredNorm() / double(u.rows()) + options.epsilon);
    for (Index i = 0; i < u.rows(); ++i) u(i, t) *= options.offset + double(norm->gain()(i));
  }
}

/// The formula, expert after expert, token after token, by the routes that the layer took.
template <class Layer>
MatrixD naive_latent(const Layer& layer, const Matrix<float>& x, const Routing<float>& routing) {
  const auto& group = layer.experts();
  MatrixD u = projected(group.in(), naive::exact(x));
  apply_norm(group.norm(), u);
  MatrixD v = MatrixD::Zero(u.rows(), u.cols());
  for (Index r = 0; r < routing.size(); ++r) {
    if (routing.is_dropped(r)) continue;
    const Index t = routing.token[std::size_t(r)], e = routing.expert[std::size_t(r)];
    const double w = routing.weight[std::size_t(r)];
    const bool on_input = routing.weight_on == WeightOn::input;
    const auto& bank = group.experts();
    const MatrixD read = (on_input ? w : 1) * u.col(t);
    const MatrixD gate = naive::product(naive::exact(bank.w_gate()[e]), read) + naive::exact(bank.biases().gate.col(e));
    const MatrixD up = naive::product(naive::exact(bank.w_up()[e]), read) + naive::exact(bank.biases().up.col(e));
    MatrixD hidden(gate.rows(), 1);
    for (Index i = 0; i < gate.rows(); ++i) hidden(i) = naive::silu(gate(i)) * up(i);
    v.col(t) += (on_input ? 1 : w) *
                (naive::product(naive::exact(bank.w_down()[e]), hidden) + naive::exact(bank.biases().down.col(e)));
  }
  apply_norm(group.norm_of_answers(), v);
  return projected(group.out(), v);
}

TEST(LatentExperts, EqualTheirNaiveTwin) {
  const auto check = [](const auto& layer, const char* what) {
    for (const Index tokens : {0, 1, 7, 17, 40}) {
      const auto x = random_matrix<Matrix<float>>(layer.d_model(), tokens, 2);
      Workspace<float> ws;
      const auto y = layer.forward(x, ws);
      EXPECT_TRUE(is_close(y, naive_latent(layer, x, ws.routing))) << what << tokens << " tokens";
    }
  };
  for (const Index d_model : {1, 7, 15, 16, 17, 33}) {
    for (const Index latent : {1, 8, 15, 16, 17}) {
      for (const bool biases : {false, true}) {
        check(MoeLayer(router_of(d_model), random_latent<float>(d_model, bank_of(latent), 3, biases)), "plain, ");
        check(MoeLayer(router_of(d_model), random_latent<bfloat16>(d_model, bank_of(latent), 3, biases,
                                                                   RmsNormOptions{.epsilon = 0.1, .offset = 1})),
              "bfloat16, norm, ");
        check(MoeLayer(router_of(d_model, WeightOn::input),
                       random_latent<float16>(d_model, bank_of(latent), 3, biases, RmsNormOptions{.epsilon = 0.1})),
              "float16, weights on the input, norm, ");
        check(MoeLayer(router_of(d_model),
                       random_latent<float>(d_model, bank_of(latent), 3, biases, {}, RmsNormOptions{.epsilon = 0.1})),
              "norm of answers, ");
        check(MoeLayer(router_of(d_model, WeightOn::input),
                       random_latent<bfloat16>(d_model, bank_of(latent), 3, biases, RmsNormOptions{.epsilon = 0.1},
                                               RmsNormOptions{.epsilon = 0.1, .offset = 1})),
              "weights on the input, both norms, ");
      }
    }
  }
}

TEST(LatentExperts, TheBiasOfTheOutputIsAddedOnceToEveryTokenWhoeverIsRouted) {
  const MoeLayer layer(WithCapacity(router_of(9), {.capacity = fixed_capacity(2)}),
                       random_latent<float>(9, bank_of(6), 3, true));
  const auto x = random_matrix<Matrix<float>>(9, 30, 2);
  Workspace<float> ws;
  const auto y = layer.forward(x, ws);
  std::vector<bool> is_routed(30, false);
  for (Index r = 0; r < ws.routing.size(); ++r) {
    if (!ws.routing.is_dropped(r)) is_routed[std::size_t(ws.routing.token[std::size_t(r)])] = true;
  }
  Index alone = 0;
  for (Index t = 0; t < 30; ++t) {
    if (is_routed[std::size_t(t)]) continue;
    ++alone;
    EXPECT_TRUE(same_bits(y.col(t).eval(), layer.experts().out().bias())) << t;
  }
  EXPECT_GE(alone, 22);
  EXPECT_TRUE(is_close(y, naive_latent(layer, x, ws.routing)));
}

TEST(LatentExperts, StandBesideASharedExpertOfFullWidthAndBehindAnyType) {
  const auto group = random_latent<float>(16, bank_of(9), 3, true, RmsNormOptions{});
  const auto shared = test::GatedFfnBanks<float>::make(16, std::span(seeds).first(1));
  const auto x = random_matrix<Matrix<float>>(16, 20, 2);
  const Matrix<float> y = MoeLayer(router_of(16), group).forward(x) + DenseLayer(shared).forward(x);
  EXPECT_TRUE(is_close(WithSharedExpert(MoeLayer(router_of(16), group), shared).forward(x), y));
  EXPECT_TRUE(same_bits(MoeLayer(router_of(16), AnyExperts<float>(group)).forward(x),
                        MoeLayer(router_of(16), group).forward(x)));
}

TEST(LatentExperts, ExpertsCanBeTakenAwayAndJoinedToOthers) {
  const Index kept[] = {0, 2, 3};
  const auto x = random_matrix<Matrix<float>>(9, 20, 2);
  const auto group = random_latent<float>(9, bank_of(6), 3);
  const unsigned of_kept[] = {11, 13, 14};
  const LinearTopK<float> router(router_of(9).weight()(kept, every), top_2);
  const MoeLayer fewer(router, random_latent<float>(9, test::GatedFfnBanks<float, SwiGlu, true>::make(6, of_kept), 3));
  EXPECT_TRUE(same_bits(MoeLayer(router, ExpertSubset(group, {0, 2, 3})).forward(x), fewer.forward(x)));
  EXPECT_TRUE(same_bits(keep_experts(MoeLayer(router_of(9), group), {0, 2, 3}).forward(x), fewer.forward(x)));

  const JoinedExperts joined(random_latent<float>(9, ExpertSubset(bank_of(6), {0, 1}), 3),
                             random_latent<float>(9, ExpertSubset(bank_of(6), {2, 3}), 3));
  EXPECT_TRUE(is_close(MoeLayer(router_of(9), joined).forward(x), MoeLayer(router_of(9), group).forward(x)));
}

TEST(LatentExperts, ProjectionsAreUsedWhereTheyLie) {
  const auto in = random_projection<bfloat16>(6, 9, 3), out = random_projection<bfloat16>(9, 6, 4);
  const auto lying = [](const Projection<bfloat16>& projection, std::vector<bfloat16>& memory) {
    const Index rows = projection.out(), cols = projection.in(), stride = cols + 3;
    memory.assign(std::size_t(rows * stride), bfloat16(1e4F));
    Eigen::Map<Weight<bfloat16>, 0, Eigen::OuterStride<>>(memory.data(), rows, cols, {stride}) = projection.weight();
    return Projection<bfloat16>(WeightStack<bfloat16>({memory.data()}, rows, cols, stride));
  };
  std::vector<bfloat16> in_memory, out_memory;
  const LatentExperts mapped(lying(in, in_memory), bank_of(6), lying(out, out_memory));
  EXPECT_EQ(mapped.in().weight().data(), in_memory.data());
  EXPECT_EQ(mapped.out().weight().data(), out_memory.data());
  for (const Index tokens : {1, 30}) {
    const auto x = random_matrix<Matrix<float>>(9, tokens, 2);
    EXPECT_TRUE(same_bits(MoeLayer(router_of(9), mapped).forward(x),
                          MoeLayer(router_of(9), LatentExperts(in, bank_of(6), out)).forward(x)));
  }
}

TEST(LatentExperts, MayRoundWhereTheCallerPermitsIt) {
  const MoeLayer layer(router_of(67), random_latent<bfloat16>(67, bank_of(33), 3, true));
  for (const Index tokens : {1, 40}) {
    const auto x = random_matrix<Matrix<float>>(67, tokens, 2);
    Workspace<float> ws;
    ws.numerics.products = Products::fast;
    const auto exact = layer.forward(x), fast = layer.forward(x, ws);
    EXPECT_LT((fast - exact).norm(), 8e-3F * exact.norm());  // as of a bank: docs/architecture.md
    if (kernels::has_fast<bfloat16> && kernels::pairs_pay()) {
      EXPECT_FALSE(same_bits(fast, exact));
    }
  }
}

TEST(LatentExperts, AreNamedBesideTheExperts) {
  const auto names = [](auto layer) {
    std::string all;
    for (const auto& parameter : all_parameters(layer)) {
      if (!parameter.name.ends_with("proj.weight") || parameter.name.find("latent") != std::string::npos ||
          parameter.name.find("routed") != std::string::npos) {
        all += parameter.name + " ";
      }
    }
    return all;
  };
  auto group = random_latent<float>(9, test::GatedFfnBanks<float>::make(6, seeds), 3, true, RmsNormOptions{});
  const std::string own =
      "fc1_latent_proj.weight fc1_latent_proj.bias latent_norm.weight fc2_latent_proj.weight fc2_latent_proj.bias ";
  EXPECT_EQ(names(group), own);
  EXPECT_EQ(names(MoeLayer(router_of(9), group)), "gate.weight " + own);
  const LatentExperts kimi(group.in(), group.experts(), group.out(), group.norm(),
                           {"routed_expert_down_proj", "routed_expert_norm", "routed_expert_up_proj"});
  EXPECT_EQ(names(MoeLayer(router_of(9), kimi)),
            "gate.weight routed_expert_down_proj.weight routed_expert_down_proj.bias routed_expert_norm.weight "
            "routed_expert_up_proj.weight routed_expert_up_proj.bias ");
}

TEST(LatentExperts, RefuseWhatDoesNotFitWithTheNumbers) {
  const auto complaint = [](Index in_out, Index in_in, Index out_out, Index out_in, Index norm) {
    std::optional<RmsNorm<float>> its_norm;
    if (norm > 0) its_norm.emplace(Vector<float>::Ones(norm));
    return test::error_of([&] {
      LatentExperts(random_projection<float>(in_out, in_in, 1), bank_of(6),
                    random_projection<float>(out_out, out_in, 1), its_norm);
    });
  };
  EXPECT_EQ(complaint(6, 9, 9, 6, 6), "no error");
  EXPECT_EQ(complaint(5, 9, 9, 6, 0), "LatentExperts: experts.d_model(), beside in.out(), is 6, expected 5");
  EXPECT_EQ(complaint(6, 9, 9, 7, 0), "LatentExperts: out.in(), beside in.out(), is 7, expected 6");
  EXPECT_EQ(complaint(6, 9, 8, 6, 0), "LatentExperts: out.out(), beside in.in(), is 8, expected 9");
  EXPECT_EQ(complaint(6, 9, 9, 6, 9), "LatentExperts: norm.size(), beside in.out(), is 9, expected 6");
  EXPECT_EQ(test::error_of([] { Projection<float>(Weight<float>::Zero(3, 4), Vector<float>::Zero(4)); }),
            "Projection: bias.size() is 4, expected 3");
  EXPECT_EQ(test::error_of([] { Projection<float>(WeightStack<float>(2, 3, 4)); }),
            "Projection: weight.num_experts(), of matrices, is 2, expected 1");
}

}  // namespace
}  // namespace moe
