/// @file  A layer without the experts that it can do without.
#pragma once

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "moe/core/check.hpp"
#include "moe/core/types.hpp"
#include "moe/core/weight_stack.hpp"
#include "moe/experts/gated_ffn_bank.hpp"
#include "moe/layers/moe_layer.hpp"
#include "moe/routers/linear_top_k.hpp"

namespace moe::inline MOE_TARGET {

/// The experts with the largest loads, in order of their numbers; of equal loads the lower number.
/// @param load  (num_experts) how many tokens went to each
/// @throws std::invalid_argument unless 1 ≤ count ≤ load.size().
inline std::vector<Index> most_used(const std::vector<Index>& load, Index count) {
  require_between(1, count, std::ssize(load), "most_used: count");
  std::vector<Index> experts(load.size());
  std::iota(experts.begin(), experts.end(), Index(0));
  std::stable_sort(experts.begin(), experts.end(),
                   [&](Index a, Index b) { return load[std::size_t(a)] > load[std::size_t(b)]; });
  experts.resize(std::size_t(count));
  std::sort(experts.begin(), experts.end());
  return experts;
}

/// The layer with these experts alone, and their rows of the router: keep_experts(layer, most_used(load, 6)). Tokens
/// choose among those that are left; what a softmax over all experts gave to the others is theirs, too. So where nobody
/// used the others, Score::sigmoid, sqrt_softplus and softmax_of_chosen give the same bits as before; a softmax over
/// all, renormalised, the same but for rounding.
///
/// Lu et al. 2024, "Not All Experts are Equal", arXiv:2402.14800.
/// @param kept  numbers of experts, ascending
/// @throws std::invalid_argument if one is not there or out of order, fewer than top_k are kept, or experts are
/// grouped.
template <class Scalar, class W, class Act>
auto keep_experts(const MoeLayer<LinearTopK<Scalar>, GatedFfnBank<W, Act>>& layer, const std::vector<Index>& kept) {
  const auto& router = layer.router();
  const auto& bank = layer.experts();
  require_between(router.top_k(), std::ssize(kept), layer.num_experts(), "keep_experts: kept.size()");
  require_equal(router.options().num_groups, 1, "keep_experts: num_groups of the router");
  for (std::size_t i = 0; i < kept.size(); ++i) {
    require_between(i == 0 ? 0 : kept[i - 1] + 1, kept[i], layer.num_experts() - 1,
                    "keep_experts: kept[" + std::to_string(i) + "]");
  }
  const auto of = [&](const auto& vector) {
    using Vector = typename LinearTopK<Scalar>::Vector;
    return vector.size() > 0 ? Vector(vector(kept)) : Vector();
  };
  const auto columns = [&](const Matrix<Scalar>& bias) {
    return bias.size() > 0 ? Matrix<Scalar>(bias(every, kept)) : Matrix<Scalar>();
  };
  const auto stack = [&](const WeightStack<W>& all) {
    WeightStack<W> some(std::ssize(kept), all.rows(), all.cols());
    for (std::size_t i = 0; i < kept.size(); ++i) some.owned(Index(i)) = all[kept[i]];
    return some;
  };
  return MoeLayer(
      LinearTopK<Scalar>(router.weight()(kept, every), router.options(), of(router.bias()),
                         of(router.selection_bias())),
      GatedFfnBank<W, Act>(stack(bank.w_gate()), stack(bank.w_up()), stack(bank.w_down()), bank.activation(),
                           {columns(bank.biases().gate), columns(bank.biases().up), columns(bank.biases().down)}));
}

}  // namespace moe::inline MOE_TARGET
