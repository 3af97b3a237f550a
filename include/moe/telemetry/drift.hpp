/// @file  How far the routing of a batch has moved, such as by fine-tuning.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "moe/core/routing.hpp"
#include "moe/core/types.hpp"
#include "moe/telemetry/table.hpp"

namespace moe::inline MOE_TARGET {

/// Two routings of the same tokens, side by side. Dropped routes reached no expert and do not count; a token that goes
/// to an expert twice goes there once, with the sum of its weights. A share of nothing is NaN.
struct RoutingDrift {
  /// Routes to one expert, or to all.
  struct Routes {
    Index before = 0, after = 0;
    Index left = 0, came = 0;                // tokens that go there no longer; that did not go there before
    double weight_moved = 0, weight_of = 0;  // Σ |after − before|, Σ |before| + |after|

    /// 0 if all stay, 1 if all leave and others come.
    double share_changed() const { return double(left + came) / double(before + after); }
    /// The same of weights.
    double weight_changed() const { return weight_moved / weight_of; }
  };

  Index num_tokens = 0;
  Index tokens_changed = 0;  // that go to other experts
  Index first_changed = 0;   // whose largest weight is another expert's (of equal ones the lowest expert's), or is gone
  std::vector<Routes> experts;

  /// Of all experts.
  Routes total() const {
    Routes sum;
    for (const Routes& of : experts) {
      sum.before += of.before;
      sum.after += of.after;
      sum.left += of.left;
      sum.came += of.came;
      sum.weight_moved += of.weight_moved;
      sum.weight_of += of.weight_of;
    }
    return sum;
  }
};

namespace detail {

/// The same routes as matrices (num_experts × n_tokens).
struct RouteMatrix {
  Eigen::Array<bool, Eigen::Dynamic, Eigen::Dynamic> goes;
  Eigen::ArrayXXd weight;  // 0 where none goes

  template <class Scalar>
  RouteMatrix(const Routing<Scalar>& routing, Index num_tokens, Index num_experts) {
    require_routes(routing, num_tokens, num_experts);
    goes.setConstant(num_experts, num_tokens, false);
    weight.setZero(num_experts, num_tokens);
    for (Index r = 0; r < routing.size(); ++r) {
      if (routing.is_dropped(r)) continue;
      const auto its = routing[r];
      goes(its.expert, its.token) = true;
      weight(its.expert, its.token) += double(its.weight);
    }
  }

  /// The expert of largest weight, or −1.
  Index first_choice(Index token) const {
    Index first = -1;
    for (Index e = 0; e < goes.rows(); ++e) {
      if (goes(e, token) && (first < 0 || weight(e, token) > weight(first, token))) first = e;
    }
    return first;
  }
};

}  // namespace detail

/// @throws std::invalid_argument if a route leads nowhere.
template <class Scalar>
RoutingDrift measure_drift(const Routing<Scalar>& before, const Routing<Scalar>& after, Index num_tokens,
                           Index num_experts) {
  const detail::RouteMatrix was(before, num_tokens, num_experts), is(after, num_tokens, num_experts);
  RoutingDrift drift;
  drift.num_tokens = num_tokens;
  drift.tokens_changed = (was.goes != is.goes).colwise().any().count();
  for (Index t = 0; t < num_tokens; ++t) drift.first_changed += was.first_choice(t) != is.first_choice(t);
  for (Index e = 0; e < num_experts; ++e) {
    const auto went = was.goes.row(e), goes = is.goes.row(e);
    drift.experts.push_back({.before = went.count(),
                             .after = goes.count(),
                             .left = (went && !goes).count(),
                             .came = (goes && !went).count(),
                             .weight_moved = (is.weight.row(e) - was.weight.row(e)).abs().sum(),
                             .weight_of = (is.weight.row(e).abs() + was.weight.row(e).abs()).sum()});
  }
  return drift;
}

/// A summary, then a row for each expert: routes before and after, how many left and came, the share that changed, and
/// that of weights.
inline std::string to_table(const RoutingDrift& drift) {
  using detail::percent, detail::right;
  const auto total = drift.total();
  const auto of_tokens = [&](Index count) { return percent(double(count) / double(drift.num_tokens)); };
  std::string text = detail::count_of(drift.num_tokens, "token") + ": " + of_tokens(drift.tokens_changed) +
                     " go to other experts, " + of_tokens(drift.first_changed) + " to another first; changed are " +
                     percent(total.share_changed()) + " of routes, " + percent(total.weight_changed()) +
                     " of weights\n" + "expert  before   after    left    came   changed   weights\n";
  for (std::size_t e = 0; e < drift.experts.size(); ++e) {
    const auto& of = drift.experts[e];
    text += right(std::to_string(e), 6);
    for (const Index count : {of.before, of.after, of.left, of.came}) text += right(std::to_string(count), 8);
    text += right(percent(of.share_changed()), 10) + right(percent(of.weight_changed()), 10) + "\n";
  }
  return text;
}

}  // namespace moe::inline MOE_TARGET
