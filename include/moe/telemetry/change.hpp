/// @file  What changes when a layer is made smaller: outputs, and choices of experts.
#pragma once

#include <cstddef>
#include <vector>

#include "moe/core/check.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/types.hpp"

namespace moe::inline MOE_TARGET {

/// How far outputs y are from those of the original, y₀, on the same tokens.
struct OutputChange {
  double relative = 0;     // ‖y − y₀‖ / ‖y₀‖; both are NaN if a number of y or y₀ is
  double worst_token = 0;  // the largest ‖y − y₀‖ / ‖y₀‖ of a token
};

/// @param was, is  (d_model × n_tokens) the original's outputs, and those that are asked about
template <class Scalar>
OutputChange change_of(const Matrix<Scalar>& was, const Matrix<Scalar>& is) {
  require_equal(is.cols(), was.cols(), "change_of: is.cols()");
  require_equal(is.rows(), was.rows(), "change_of: is.rows()");
  if (was.cols() == 0) return {};
  const Matrix<double> wide = was.template cast<double>();
  const Eigen::ArrayXd off = (is.template cast<double>() - wide).colwise().norm(), norm = wide.colwise().norm();
  const auto ratio = [](double change, double of) { return change == 0 ? 0 : change / of; };
  return {ratio(off.matrix().norm(), norm.matrix().norm()),
          off.binaryExpr(norm, ratio).template maxCoeff<Eigen::PropagateNaN>()};
}

/// Of two routings of the same tokens.
struct ChoiceChange {
  Index tokens = 0, changed_tokens = 0;  // tokens of which a choice changed
  Index routes = 0, changed_routes = 0;  // routes of the first whose token and expert the second has no route of
};

/// How many choices of experts differ, of two routings of the same tokens.
template <class Scalar>
ChoiceChange changed_choices(const Routing<Scalar>& before, const Routing<Scalar>& after, Index num_tokens,
                             Index num_experts) {
  const auto chosen = [&](const Routing<Scalar>& routing) {
    std::vector<bool> is(std::size_t(num_tokens * num_experts));
    for (const auto& route : routing) is[std::size_t(route.token * num_experts + route.expert)] = true;
    return is;
  };
  require_routes(before, num_tokens, num_experts);
  require_routes(after, num_tokens, num_experts);
  const std::vector<bool> was = chosen(before), is = chosen(after);
  ChoiceChange change{.tokens = num_tokens};
  for (Index t = 0; t < num_tokens; ++t) {
    bool differs = false;
    for (std::size_t i = std::size_t(t * num_experts); i < std::size_t((t + 1) * num_experts); ++i) {
      differs = differs || was[i] != is[i];
      change.routes += was[i] ? 1 : 0;
      change.changed_routes += was[i] && !is[i] ? 1 : 0;
    }
    change.changed_tokens += differs ? 1 : 0;
  }
  return change;
}

}  // namespace moe::inline MOE_TARGET
