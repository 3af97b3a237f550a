/// @file  Several experts become one.
#pragma once

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "moe/core/check.hpp"
#include "moe/core/quantized.hpp"
#include "moe/core/types.hpp"
#include "moe/core/weight_stack.hpp"
#include "moe/experts/ffn_bank.hpp"
#include "moe/layers/moe_layer.hpp"
#include "moe/routers/filters/merged_experts.hpp"

namespace moe::inline MOE_TARGET {

namespace detail {

/// The number of each expert once those of a group are one, which stands where the first of them stood.
inline std::vector<Index> merged_numbers(Index num_experts, const std::vector<std::vector<Index>>& groups) {
  std::vector<Index> leader(std::size_t(num_experts), -1);
  for (const auto& group : groups) {
    require(!group.empty(), "merge_experts: a group is empty");
    for (const Index e : group) {
      require_between(0, e, num_experts - 1, "merge_experts: expert");
      require(leader[std::size_t(e)] < 0, "merge_experts: expert " + std::to_string(e) + " is in a group twice");
      leader[std::size_t(e)] = *std::min_element(group.begin(), group.end());
    }
  }
  std::vector<Index> number(leader.size());
  Index next = 0;
  for (std::size_t e = 0; e < number.size(); ++e) {
    const bool leads = leader[e] < 0 || leader[e] == Index(e);
    number[e] = leads ? next++ : number[std::size_t(leader[e])];
  }
  return number;
}

}  // namespace detail

/// The layer with one expert for each group: the mean of its members, weighted by their load, or plain where none has
/// any. Experts in no group stay as they are. Tokens are routed as before, to what an expert has become part of, so
/// that merging experts that compute the same changes nothing but rounding.
///
/// Weights by frequency: Li et al. 2024, "Merge, Then Compress" (MC-SMoE), arXiv:2310.01334, here without their
/// search for permutations of hidden units: members should be alike, such as copies made by upcycle(); Chen et al.
/// 2024, "Retraining-Free Merging of Sparse MoE via Hierarchical Clustering" (HC-SMoE), arXiv:2410.08589.
/// @param groups  numbers of experts
/// @param load    (num_experts) how many tokens went to each, on data that matters
/// @throws std::invalid_argument if an expert is not there or in two groups, a group is empty, or a load is missing or
/// negative.
template <class R, class Scalar, class Act>
auto merge_experts(const MoeLayer<R, FfnBank<Scalar, Act>>& layer, const std::vector<std::vector<Index>>& groups,
                   const std::vector<Index>& load) {
  static_assert(are_written_in_place<Scalar>());
  const auto& bank = layer.experts();
  const Index num_experts = bank.num_experts(), d = bank.d_model(), ff = bank.d_ff();
  require_equal(std::ssize(load), num_experts, "merge_experts: load.size()");
  for (const Index tokens : load) require_between(0, tokens, std::numeric_limits<Index>::max(), "merge_experts: load");
  auto number = detail::merged_numbers(num_experts, groups);
  const Index n = *std::max_element(number.begin(), number.end()) + 1;

  Eigen::ArrayXd loads = Eigen::ArrayXd::Zero(n), members = loads;
  for (std::size_t e = 0; e < number.size(); ++e) {
    loads(number[e]) += double(load[e]);
    members(number[e]) += 1;
  }
  const auto& its = bank.biases();
  const auto none = [&](const Matrix<Scalar>& bias) {
    return Matrix<Scalar>(Matrix<Scalar>::Zero(bias.rows(), bias.size() > 0 ? n : 0));
  };
  constexpr bool is_gated = FfnBank<Scalar, Act>::is_gated;
  auto merged = FfnBank<Scalar, Act>::of(WeightStack<Scalar>(is_gated ? n : 0, ff, d), WeightStack<Scalar>(n, ff, d),
                                         WeightStack<Scalar>(n, d, ff), bank.activation(),
                                         {none(its.gate), none(its.up), none(its.down)});
  for (Index e = 0; e < num_experts; ++e) {
    const Index into = number[std::size_t(e)];
    const auto share = Scalar(loads(into) > 0 ? double(load[std::size_t(e)]) / loads(into) : 1 / members(into));
    auto to = merged[into];
    to.w_gate += share * bank.w_gate()[e];
    to.w_up += share * bank.w_up()[e];
    to.w_down += share * bank.w_down()[e];
    if (its.gate.size() > 0) to.b_gate += share * its.gate.col(e);
    if (its.up.size() > 0) to.b_up += share * its.up.col(e);
    if (its.down.size() > 0) to.b_down += share * its.down.col(e);
  }
  return MoeLayer(WithMergedExperts<R>(layer.router(), std::move(number)), std::move(merged));
}

}  // namespace moe::inline MOE_TARGET
