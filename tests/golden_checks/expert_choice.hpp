/// @file  Experts that choose their tokens.
#pragma once

#include <cmath>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "golden_checks/common.hpp"
#include "golden_checks/gradients.hpp"
#include "moe/experts/ffn.hpp"
#include "moe/layers/moe_layer.hpp"
#include "moe/routers/expert_choice.hpp"
#include "moe/train.hpp"

namespace moe::golden {

/// Which tokens each expert took, and for how much. Routes [first, first + index.size()) are those of the columns of
/// `index` and `weight` (tokens × experts), expert by expert; `first_token` is token 0 of the reference.
template <class Tokens, class Weights>
void expect_chosen(const Routing<float>& routing, Index first, Index first_token, const Tokens& index,
                   const Weights& weight) {
  ASSERT_GE(routing.size(), first + index.size());
  for (Index e = 0; e < index.cols(); ++e) {
    std::set<Index> got, expected;
    for (Index i = 0; i < index.rows(); ++i) {
      const auto r = std::size_t(first + e * index.rows() + i);
      EXPECT_EQ(routing.expert[r], e);
      got.insert(routing.token[r] - first_token);
      expected.insert(index(i, e));
      // Best first, in the reference as well; where its neighbours differ by less than rounding, weights still agree.
      EXPECT_NEAR(routing.weight[r], weight(i, e), 1e-5 + 1e-5 * std::abs(weight(i, e)));
    }
    EXPECT_EQ(got, expected) << "tokens of expert " << e;
  }
}

inline void check_expert_choice(const fs::path& folder) {
  const Case reference = Case::open(folder);
  const Index num_experts = reference.size("moe_num_experts");
  const double factor = reference.config.number("capacity_factor");
  const auto floor_of_share = [=](Index tokens, Index of) { return Index(factor * double(tokens) / double(of)); };
  const auto layer_of = [&](const std::string& prefix) {
    std::vector<Ffn<float, Gelu>> experts;
    for (Index e = 0; e < num_experts; ++e) {
      const std::string name = prefix + "experts." + std::to_string(e);
      experts.push_back({.w_in = reference.weight(name + ".c_fc.weight"),
                         .w_out = reference.weight(name + ".c_proj.weight"),
                         .b_in = reference.vector(name + ".c_fc.bias"),
                         .b_out = reference.vector(name + ".c_proj.bias")});
    }
    return MoeLayer(ExpertChoice<float>(reference.weight(prefix + "router.weight"), {.capacity = floor_of_share}),
                    std::move(experts));
  };
  const auto layer = layer_of("");

  const Matrix<float> x = reference.columns("input");
  Matrix<float> y(x.rows(), x.cols());
  Workspace<float> ws;
  layer.forward(x, y, ws);

  const auto index = reference.columns<std::int64_t>("topk_index");
  EXPECT_EQ(index.rows(), reference.size("tokens_per_expert"));
  EXPECT_EQ(ws.routing.size(), index.size());
  expect_close(logits_of(ws.routing, num_experts, x.cols()), reference.columns("router_logits"), "router_logits");
  expect_chosen(ws.routing, 0, 0, index, reference.columns("topk_weight"));
  expect_close(y, reference.columns("output"), "output");
  check_gradients_of(layer, layer_of("grad."), {}, reference);
}

inline void check_expert_choice_router(const fs::path& folder) {
  const Case reference = Case::open(folder);
  const Matrix<float> logits = reference.columns("router_logits");
  const Index num_experts = reference.size("num_experts"), top_k = reference.size("num_experts_per_tok");
  const Index num_sequences = reference.shape("router_logits")[0], length = reference.shape("router_logits")[1];
  const auto choose = [&](bool per_sequence) {
    std::vector<Scratch> scratch;
    const Serial serial;
    Workers workers(serial, scratch);
    Routing<float> routing;
    const auto floor_of_share = [=](Index tokens, Index of) { return top_k * tokens / of; };
    let_experts_choose<float>(logits, length, {.capacity = floor_of_share, .per_sequence = per_sequence}, routing,
                              workers);
    return routing;
  };
  const auto index = reference.columns<std::int64_t>("grouped.index");
  const auto grouped = choose(false);
  EXPECT_EQ(grouped.size(), index.size());
  expect_chosen(grouped, 0, 0, index, reference.columns("grouped.weight"));

  const auto index_in = reference.columns<std::int64_t>("per_sequence.index");
  const auto weight_in = reference.columns("per_sequence.weight");
  const auto alone = choose(true);
  EXPECT_EQ(alone.size(), index_in.size());
  for (Index s = 0; s < num_sequences; ++s) {
    expect_chosen(alone, s * num_experts * index_in.rows(), s * length,
                  index_in.middleCols(s * num_experts, num_experts),
                  weight_in.middleCols(s * num_experts, num_experts));
  }
}

}  // namespace moe::golden
