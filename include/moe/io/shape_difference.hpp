/// @file  In which setting two descriptions of a layer differ.
#pragma once

#include <optional>
#include <sstream>
#include <string>
#include <type_traits>
#include <variant>

#include "moe/core/routing.hpp"
#include "moe/experts/any_activation.hpp"
#include "moe/kernels/scores.hpp"
#include "moe/models/moe_shape.hpp"
#include "moe/routers/sparse_mixer.hpp"
#include "moe/routers/top_k.hpp"

namespace moe::inline MOE_TARGET::io {

/// A setting that differs, and what it is on either side, as one says it.
struct SettingDifference {
  std::string setting;  // "the router's floor (moe_norm_min)"
  std::string of_a, of_b;

  bool operator==(const SettingDifference&) const = default;
};

namespace detail {

inline std::string said(bool flag) { return flag ? "true" : "false"; }
inline std::string said(const std::string& text) { return text; }
inline std::string said(const HiddenActivation& hidden) { return to_string(hidden); }
inline std::string said(Score score) {
  switch (score) {
    case Score::softmax:
      return "softmax";
    case Score::sigmoid:
      return "sigmoid";
    case Score::softmax_of_chosen:
      return "softmax of the chosen";
    case Score::sqrt_softplus:
      return "root of softplus";
  }
  return "another";
}
inline std::string said(BiasOn on) { return on == BiasOn::scores ? "scores" : "logits"; }
inline std::string said(WeightOn on) { return on == WeightOn::output ? "outputs" : "inputs"; }
inline std::string said(RejectedGroups rejected) {
  return rejected == RejectedGroups::never_chosen ? "never chosen" : "ranked at zero";
}
template <class Number>
  requires(std::is_arithmetic_v<Number> && !std::is_same_v<Number, bool>)
std::string said(Number number) {
  std::ostringstream text;
  text.precision(8);
  text << number;
  return text.str();
}

/// With scales as files round them, and without what has no effect.
inline TopKOptions simplified(TopKOptions options, bool has_selection_bias) {
  options.scale = double(float(options.scale));
  if (options.num_groups == 1) options.kept_groups = options.group_top = 1, options.rejected_groups = {};
  if (!options.renormalize) options.norm = 1, options.epsilon = options.floor = 0;
  if (!has_selection_bias) options.bias_on = {}, options.weigh_biased = false;
  // The best of all is among the chosen, and has 1 / experts at least: what float does not see beside that is nothing.
  constexpr double unseen = 1e-12;
  const bool by_logits = options.score == Score::softmax && !has_selection_bias && options.num_groups == 1;
  if (by_logits && options.epsilon <= unseen) options.epsilon = 0;
  if (by_logits && options.floor <= unseen) options.floor = 0;
  return options;
}

/// What means the same is said in one way: softmax, then renormalised, is the softmax of the chosen where logits alone
/// choose.
inline TopKOptions in_one_way(TopKOptions options, bool has_selection_bias) {
  options = simplified(options, has_selection_bias);
  const bool by_logits = options.score == Score::softmax && !has_selection_bias && options.num_groups == 1;
  if (by_logits && options.renormalize && options.norm == 1 && options.epsilon == 0 && options.floor == 0) {
    options.score = Score::softmax_of_chosen;
    options.renormalize = false;
  }
  return options;
}
template <class Of>
MoeShape with_router(MoeShape shape, const Of& of) {
  if (auto* const top_k = std::get_if<TopKOptions>(&shape.router)) *top_k = of(*top_k, shape.selection_bias);
  if (shape.d_ff_shared == 0) shape.hidden_shared = {}, shape.shared_gate = false;
  return shape;
}

inline constexpr const char* score_setting = "the router's score";

/// Remembers the first that differs.
struct FirstDifference {
  std::optional<SettingDifference> found = {};

  template <class T>
  void operator()(const char* setting, const T& a, const T& b) {
    if (!found && !(a == b)) found = {setting, said(a), said(b)};
  }
};

inline void compare(FirstDifference& differs, const SparseMixerOptions& a, const SparseMixerOptions& b) {
  differs("top_k", a.top_k, b.top_k);
  differs("the router's jitter (router_jitter_noise)", a.jitter, b.jitter);
}

inline void compare(FirstDifference& differs, const TopKOptions& a, const TopKOptions& b) {
  differs("top_k", a.top_k, b.top_k);
  differs("whether the router renormalises (norm_topk_prob)", a.renormalize, b.renormalize);
  differs(score_setting, a.score, b.score);
  differs("the router's norm", a.norm, b.norm);
  differs("the router's epsilon", a.epsilon, b.epsilon);
  differs("the router's floor (moe_norm_min)", a.floor, b.floor);
  differs("the router's scale", a.scale, b.scale);
  differs("the number of groups", a.num_groups, b.num_groups);
  differs("the number of kept groups", a.kept_groups, b.kept_groups);
  differs("the number of experts that speak for a group", a.group_top, b.group_top);
  differs("what becomes of rejected groups", a.rejected_groups, b.rejected_groups);
  differs("what the selection bias is added to", a.bias_on, b.bias_on);
  differs("whether biased scores weigh", a.weigh_biased, b.weigh_biased);
  differs("the number of experts that are always chosen", a.always_chosen, b.always_chosen);
  differs("what weights multiply", a.weight_on, b.weight_on);
}

inline void compare(FirstDifference& differs, const MoeShape& a, const MoeShape& b) {
  differs("d_model", a.d_model, b.d_model);
  differs("the width of experts", a.d_ff, b.d_ff);
  differs("the number of experts", a.num_experts, b.num_experts);
  differs("the number of zero experts", a.num_zero_experts, b.num_zero_experts);
  differs("top_k", a.top_k, b.top_k);
  differs("the latent width", a.d_latent, b.d_latent);
  differs("the width of shared experts", a.d_ff_shared, b.d_ff_shared);
  differs("whether experts have biases", a.expert_bias, b.expert_bias);
  differs("whether the router has a bias", a.router_bias, b.router_bias);
  differs("whether there is a selection bias", a.selection_bias, b.selection_bias);
  differs("whether the shared expert has a gate", a.shared_gate, b.shared_gate);
  differs("the activation", a.hidden, b.hidden);
  differs("the activation of shared experts", a.hidden_shared, b.hidden_shared);
  const auto kind = [](const RouterOptions& router) {
    return std::string(std::holds_alternative<TopKOptions>(router) ? "top-k" : "SparseMixer");
  };
  differs("the router", kind(a.router), kind(b.router));
  if (differs.found) return;
  std::visit([&](const auto& its) { compare(differs, its, std::get<std::decay_t<decltype(its)>>(b.router)); },
             a.router);
}

}  // namespace detail

/// The first setting in which they differ, if layers of these two shapes do not compute the same of the same weights.
inline std::optional<SettingDifference> difference(const MoeShape& a, const MoeShape& b) {
  const MoeShape x = detail::with_router(a, detail::in_one_way), y = detail::with_router(b, detail::in_one_way);
  if (x == y) return std::nullopt;
  detail::FirstDifference differs;
  detail::compare(differs, x, y);
  if (differs.found && differs.found->setting == detail::score_setting) {  // then in the words of either
    differs = {};
    detail::compare(differs, detail::with_router(a, detail::simplified), detail::with_router(b, detail::simplified));
  }
  // One that is new, and has no words above yet, is a difference all the same.
  return differs.found ? differs.found : SettingDifference{"a setting", "one thing", "another"};
}

}  // namespace moe::inline MOE_TARGET::io
