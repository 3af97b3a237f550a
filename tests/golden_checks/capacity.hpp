/// @file  Routers whose experts have limited room.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "golden_checks/common.hpp"
#include "golden_checks/gradients.hpp"
#include "moe/experts/activation.hpp"
#include "moe/experts/ffn.hpp"
#include "moe/experts/function_expert.hpp"
#include "moe/io/json.hpp"
#include "moe/layers/moe_layer.hpp"
#include "moe/routers/filters/capacity.hpp"
#include "moe/routers/linear_top_k.hpp"
#include "moe/routers/top_k.hpp"
#include "moe/runtime/executors/serial.hpp"
#include "moe/train.hpp"

namespace moe::golden {

/// The routes of a choice from logits (num_experts × n_tokens).
inline Routing<float> route_by(const TopKChoice<float>& choice, const Matrix<float>& logits) {
  std::vector<Scratch> scratch;
  const Serial serial;
  Workers workers(serial, scratch);
  Routing<float> routing;
  choice.route(logits, routing, workers);
  return routing;
}

/// The routes that are kept are those of the tensors prefix + "routing_map" and prefix + "probs" [T, E].
inline void expect_same_map(const Routing<float>& routing, const Case& reference, const std::string& prefix) {
  const auto expected = reference.columns<std::int64_t>(prefix + "routing_map");
  Matrix<std::int64_t> map = Matrix<std::int64_t>::Zero(expected.rows(), expected.cols());
  for (Index r = 0; r < routing.size(); ++r) {
    if (!routing.is_dropped(r)) map(routing.expert[std::size_t(r)], routing.token[std::size_t(r)]) += 1;
  }
  EXPECT_EQ(map, expected) << prefix << "routing_map";
  expect_close(weights_of(routing, map.rows(), map.cols()), reference.columns(prefix + "probs"), prefix + "probs");
}

inline void check_megatron_token_drop(const fs::path& folder) {
  const Case reference = Case::open(folder);
  const Matrix<float> logits = reference.columns("router_logits");
  const Index num_experts = logits.rows(), num_tokens = logits.cols(), k = reference.size("num_experts_per_tok");

  auto routing = route_by({num_experts, {.top_k = k, .score = Score::softmax_of_chosen}}, logits);
  expect_same_map(routing, reference, "");

  const auto capacity = capacity_factor(reference.config.number("moe_expert_capacity_factor"), k);
  EXPECT_EQ(capacity(num_tokens, num_experts), reference.size("expert_capacity"));
  Scratch scratch;
  limit_capacity(routing, num_tokens, num_experts, 0, {.capacity = capacity, .priority = Priority::probability},
                 scratch);
  expect_same_map(routing, reference, "drop_by_probs.");
}

/// The options of one entry of `_variants`. A setting that is not known here fails.
inline TopKOptions megatron_options(const io::Config& variant, const nlohmann::json& settings, Index top_k) {
  for (const auto& [key, value] : settings.items()) {
    const bool known = key == "score_function" || key == "use_pre_softmax" || key == "scaling_factor" ||
                       key == "num_groups" || key == "group_topk" || key == "uses_expert_bias";
    EXPECT_TRUE(known) << variant.file() << ": " << key << " is not known";
  }
  TopKOptions options{.top_k = top_k, .scale = variant.number("scaling_factor", 1)};
  const std::string score = variant.text("score_function", "softmax");
  if (score == "softmax") {
    options.score = variant.flag("use_pre_softmax", false) ? Score::softmax : Score::softmax_of_chosen;
  } else {
    EXPECT_TRUE(score == "sigmoid" || score == "sqrtsoftplus") << variant.file() << ": score_function is " << score;
    options.score = score == "sigmoid" ? Score::sigmoid : Score::sqrt_softplus;
    options.renormalize = top_k > 1;
    options.epsilon = 1e-20;
  }
  options.num_groups = variant.integer("num_groups", 1);
  if (options.num_groups > 1) {
    options.kept_groups = variant.integer("group_topk");
    options.group_top = top_k / options.kept_groups;
  }
  return options;
}

inline void check_megatron_router(const fs::path& folder) {
  const Case reference = Case::open(folder);
  const Matrix<float> logits = reference.columns("router_logits");
  const auto config = io::read_json(folder / "config.json");
  const auto& variants = config.at("_variants");
  ASSERT_FALSE(variants.empty());
  for (const auto& [name, settings] : variants.items()) {
    const io::Config variant(settings, (folder / "config.json").string() + ", variant " + name);
    const auto options = megatron_options(variant, settings, reference.size("num_experts_per_tok"));
    const bool biased = variant.flag("uses_expert_bias", false);
    const TopKChoice<float> choice(logits.rows(), options,
                                   biased ? reference.vector("expert_bias") : Eigen::VectorXf());
    expect_same_routes(route_by(choice, logits), logits.rows(), reference, name + ".topk_index", name + ".topk_weight");
  }
}

/// The weight of each kept route at its place in the queue of its expert, (capacity × E · T) as the tensor
/// `combine_tensor` [B, S, E, capacity]: first choices in order of tokens, then second ones.
inline Matrix<float> places_in_queues(const Routing<float>& routing, Index num_tokens, Index num_experts,
                                      Index sequence_length, Index capacity) {
  const Index top_k = routing.size() / num_tokens;
  Matrix<float> places = Matrix<float>::Zero(capacity, num_experts * num_tokens);
  for (Index first = 0; first < num_tokens; first += sequence_length) {
    std::vector<Index> queued(std::size_t(num_experts), 0);
    for (Index k = 0; k < top_k; ++k) {
      for (Index t = first; t < first + sequence_length; ++t) {
        const auto r = std::size_t(t * top_k + k);
        if (routing.is_dropped(Index(r))) continue;
        const Index e = routing.expert[r], place = queued[std::size_t(e)]++;
        EXPECT_LT(place, capacity) << "token " << t << ", expert " << e;
        if (place < capacity) places(place, t * num_experts + e) = routing.weight[r];
      }
    }
  }
  return places;
}

/// What top2_capacity and st_moe have in common.
template <Expert E>
auto layer_with_capacity(const Case& reference, Weight<float> gate, const TopKOptions& options,
                         std::vector<E> experts) {
  const Index length = reference.size("_sequence_length"), num_experts = gate.rows();
  const double factor = reference.config.number("capacity_factor");
  const Index minimum = reference.size("min_expert_capacity"), room = reference.size("expert_capacity");
  const CapacityRule rule = [=](Index num_tokens, Index of_experts) {
    const auto share = Index(std::floor(double(num_tokens) * factor / double(of_experts)));
    return std::max(std::min(num_tokens, share), minimum);
  };
  EXPECT_EQ(rule(length, num_experts), room);

  WithCapacity router(LinearTopK<float>(std::move(gate), options),
                      {.capacity = rule, .priority = Priority::choice, .per_sequence = true});
  return MoeLayer(std::move(router), std::move(experts));
}

template <class Layer>
void check_with_capacity(const Case& reference, const Layer& layer) {
  const Index length = reference.size("_sequence_length"), num_experts = layer.num_experts();
  const Index room = reference.size("expert_capacity");
  const Matrix<float> x = reference.columns("input");
  Matrix<float> y(x.rows(), x.cols());
  Workspace<float> ws;
  ws.side.sequence_length = length;
  layer.forward(x, y, ws);

  expect_close(logits_of(ws.routing, num_experts, x.cols()), reference.columns("router_logits"), "router_logits");
  expect_same_routes(ws.routing, num_experts, reference);
  expect_close(places_in_queues(ws.routing, x.cols(), num_experts, length, room), reference.columns("combine_tensor"),
               "combine_tensor");
  expect_close(y, reference.columns("output"), "output");
}

inline void check_top2_capacity(const fs::path& folder) {
  const Case reference = Case::open(folder);
  ASSERT_EQ(reference.config.text("activation"), "relu");
  ASSERT_EQ(reference.config.text("second_policy"), "all");
  const auto shape = reference.shape("experts.w1");  // [E, H, I]
  const Index num_experts = shape[0], d_model = shape[1], d_ff = shape[2];
  const auto layer_of = [&](const std::string& prefix) {
    const Matrix<float> w1 = reference.columns(prefix + "experts.w1"), w2 = reference.columns(prefix + "experts.w2");
    std::vector<Ffn<float, Relu>> experts;
    for (Index e = 0; e < num_experts; ++e) {
      experts.push_back({.w_in = w1.middleCols(e * d_model, d_model), .w_out = w2.middleCols(e * d_ff, d_ff)});
    }
    return layer_with_capacity(reference, reference.turned_weight(prefix + "gate.w_gating"),
                               {.top_k = reference.size("num_experts_per_tok"),
                                .renormalize = true,
                                .epsilon = reference.config.number("gate_eps")},
                               std::move(experts));
  };
  check_with_capacity(reference, layer_of(""));
  check_gradients_of(layer_of(""), layer_of("grad."), {.sequence_length = reference.size("_sequence_length")},
                     reference);
}

inline void check_st_moe(const fs::path& folder) {
  const Case reference = Case::open(folder);
  ASSERT_EQ(reference.config.text("activation"), "geglu");
  ASSERT_EQ(reference.config.number("threshold"), 0) << "keeps every second choice";
  const auto expert = [&](Index e) {
    const std::string prefix = "experts.experts." + std::to_string(e) + ".net.";
    const Weight<float> in = reference.weight(prefix + "0.weight"), out = reference.weight(prefix + "2.weight");
    const Eigen::VectorXf b_in = reference.vector(prefix + "0.bias"), b_out = reference.vector(prefix + "2.bias");
    const Eigen::VectorXf factor = reference.vector(prefix + "1.mult_bias");
    return expert_from<float>(out.rows(), [=](const auto& x, auto y) {
      const Matrix<float> both = product(in, x).colwise() + b_in;
      const auto d_ff = factor.size();
      Matrix<float> hidden = Gelu{}(both.bottomRows(d_ff).array()) * both.topRows(d_ff).array();
      hidden.array().colwise() *= factor.array();
      y = product(out, hidden).colwise() + b_out;
    });
  };
  std::vector<decltype(expert(0))> experts;
  for (Index e = 0; e < reference.size("num_experts"); ++e) experts.push_back(expert(e));
  check_with_capacity(reference, layer_with_capacity(reference, reference.weight("gate.to_gates.weight"),
                                                     {.top_k = reference.size("gating_top_n"),
                                                      .renormalize = true,
                                                      .floor = reference.config.number("gate_eps")},
                                                     std::move(experts)));
}

}  // namespace moe::golden
