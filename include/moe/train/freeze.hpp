/// @file  Which parameters learn, chosen by name.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "moe/core/check.hpp"
#include "moe/core/parameters.hpp"
#include "moe/core/types.hpp"
#include "moe/routers/top_k.hpp"

namespace moe::inline MOE_TARGET {

/// Whether a name is what a pattern says, where each * stands for any text, or none.
inline bool fits_pattern(std::string_view name, std::string_view pattern) {
  if (pattern.empty()) return name.empty();
  if (pattern.front() != '*') {
    return !name.empty() && name.front() == pattern.front() && fits_pattern(name.substr(1), pattern.substr(1));
  }
  for (std::size_t skipped = 0; skipped <= name.size(); ++skipped) {
    if (fits_pattern(name.substr(skipped), pattern.substr(1))) return true;
  }
  return false;
}

/// The parameters whose names fit a pattern: {"experts.3.*", "*.down_proj.weight", "gate.*"}. Their order stays, so
/// that those of a layer and those of its gradient still go together.
/// @throws std::invalid_argument naming a pattern that fits none: what is meant to learn must not be frozen silently.
template <class Scalar>
std::vector<Parameter<Scalar>> matching(const std::vector<Parameter<Scalar>>& parameters,
                                        const std::vector<std::string>& patterns) {
  std::vector<Parameter<Scalar>> found;
  std::vector<bool> of_use(patterns.size(), false);
  for (const auto& parameter : parameters) {
    bool fits = false;
    for (std::size_t i = 0; i < patterns.size(); ++i) {
      if (!fits_pattern(parameter.name, patterns[i])) continue;
      fits = true;
      of_use[i] = true;
    }
    if (fits) found.push_back(parameter);
  }
  for (std::size_t i = 0; i < patterns.size(); ++i) {
    require(of_use[i],
            "matching: no parameter of " + std::to_string(parameters.size()) + " fits \"" + patterns[i] + "\"");
  }
  return found;
}

namespace detail {

template <class P>
std::string report_line(const char* what, const P& parameter) {
  return std::string(what) + "  " + parameter.name + " [" + std::to_string(parameter.rows) + ", " +
         std::to_string(parameter.cols) + "]\n";
}

/// Is a token's weight the same number whatever the logits are? One expert's, divided by itself.
inline bool weighs_by_a_constant(const TopKOptions& options) {
  constexpr double small = 1e-3;  // beside the weight of one who was chosen
  const bool divided = options.renormalize && options.epsilon < small && options.floor < small;
  return options.top_k + options.always_chosen == 1 && (divided || options.score == Score::softmax_of_chosen);
}

template <class R>
bool weighs_by_a_constant(const R& router) {
  if constexpr (requires { router.weighs_by_a_constant(); }) {
    return router.weighs_by_a_constant();
  } else if constexpr (requires { router.choice().options(); }) {
    if constexpr (requires { router.weight().size(); }) {
      if (router.weight().size() == 0) return false;  // a TokenHash that has nothing to learn
    }
    return weighs_by_a_constant(router.choice().options());
  } else if constexpr (requires { router.router(); }) {
    if constexpr (requires { router.top_k() == 1 && router.options().renormalize; }) {  // WithCapacity
      if (router.top_k() == 1 && router.options().renormalize) return true;
    }
    return weighs_by_a_constant(router.router());
  } else {
    return false;
  }
}

/// What is to be said of a layer whose router y gives no gradient.
template <class L>
std::string router_note(const L& layer) {
  if constexpr (requires { layer.router(); }) {
    if (!weighs_by_a_constant(layer.router())) return "";
    return "note: the router sends each token to one expert, whose weight is divided by itself: y gives it no "
           "gradient, "
           "only losses on logits do\n";
  } else if constexpr (requires { layer.layer(); }) {
    return router_note(layer.layer());
  } else {
    return "";
  }
}

}  // namespace detail

/// A line for each parameter, whether it learns, and a last one with the totals.
/// @param learning  some of `all`, such as matching(all, …)
/// @param frozen    what can never learn: frozen_parameters(layer)
template <class Scalar>
std::string training_report(const std::vector<Parameter<Scalar>>& all, const std::vector<Parameter<Scalar>>& learning,
                            const std::vector<AnyParameter>& frozen = {}) {
  std::string report;
  std::size_t next = 0;
  for (const auto& parameter : all) {
    const bool learns = next < learning.size() && learning[next].data == parameter.data;
    next += learns;
    report += detail::report_line(learns ? "learns" : "frozen", parameter);
  }
  Index numbers = count_numbers(all);
  for (const auto& parameter : frozen) {
    report += detail::report_line("frozen", parameter);
    numbers += parameter.size();
  }
  return report + std::to_string(learning.size()) + " of " + std::to_string(all.size() + frozen.size()) +
         " parameters learn, " + std::to_string(count_numbers(learning)) + " of " + std::to_string(numbers) +
         " numbers\n";
}

/// The same for all of a layer, whose learning parameters fit one of these patterns; and a note, if its router is one
/// that learns nothing from y.
/// @throws std::invalid_argument as matching().
template <class Layer>
  requires requires(Layer& layer, ParameterVisitor<typename Layer::Scalar>& visit) { visit_parameters(layer, visit); }
std::string training_report(Layer& layer, const std::vector<std::string>& learning = {"*"}) {
  const auto all = parameters(layer);
  return training_report(all, matching(all, learning), frozen_parameters(layer)) + detail::router_note(layer);
}

}  // namespace moe::inline MOE_TARGET
