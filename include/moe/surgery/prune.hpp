/// @file  A layer without the experts that it can do without.
#pragma once

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <numeric>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "moe/core/check.hpp"
#include "moe/core/types.hpp"
#include "moe/core/weight_stack.hpp"
#include "moe/experts/ffn_bank.hpp"
#include "moe/experts/latent_experts.hpp"
#include "moe/experts/normed_experts.hpp"
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

/// These experts of a group alone, with weights of their own; coded ones stay where they lie.
/// @param kept  numbers of experts, ascending
/// @throws std::invalid_argument if one is not there or out of order.
template <class W, class Act>
FfnBank<W, Act> keep_experts(const FfnBank<W, Act>& bank, const std::vector<Index>& kept) {
  require_ascending(kept, bank.num_experts(), "keep_experts: kept");
  const auto columns = [&](const auto& bias) {
    using Bias = std::remove_cvref_t<decltype(bias)>;
    return bias.size() > 0 ? Bias(bias(every, kept)) : Bias();
  };
  const auto stack = [&](const WeightStack<W>& all) {
    if constexpr (std::is_same_v<W, Quantized>) {
      return all.num_experts() > 0 ? all.only(kept) : all;
    } else {
      WeightStack<W> some(std::ssize(kept), all.rows(), all.cols());
      for (std::size_t i = 0; i < kept.size(); ++i) some.owned(Index(i)) = all[kept[i]];
      return some;
    }
  };
  const auto& its = bank.biases();
  return FfnBank<W, Act>::of(stack(bank.w_gate()), stack(bank.w_up()), stack(bank.w_down()), bank.activation(),
                             {columns(its.gate), columns(its.up), columns(its.down)});
}

/// The group within with these experts alone, between the same projections.
template <class G, class In, class Out>
auto keep_experts(const LatentExperts<G, In, Out>& group, const std::vector<Index>& kept) {
  return LatentExperts(group.in(), keep_experts(group.experts(), kept), group.out(), group.norm(), group.names(),
                       group.norm_of_answers());
}

/// The group within with these experts alone, under the same norm.
template <class G>
auto keep_experts(const NormedExperts<G>& group, const std::vector<Index>& kept) {
  return NormedExperts(keep_experts(group.experts(), kept), group.norm(), group.name());
}

/// The layer with these experts alone, and their rows of the router: keep_experts(layer, most_used(load, 6)). Tokens
/// choose among those that are left; what a softmax over all experts gave to the others is theirs, too. So where nobody
/// used the others, Score::sigmoid, sqrt_softplus and softmax_of_chosen give the same bits as before; a softmax over
/// all, renormalised, the same but for rounding.
///
/// Lu et al. 2024, "Not All Experts are Equal", arXiv:2402.14800.
/// @param layer  of a bank, also between projections, also with a norm behind
/// @param kept   numbers of experts, ascending
/// @throws std::invalid_argument if one is not there or out of order, fewer than top_k are kept, one that is always
/// chosen is not, or experts are grouped.
template <class Scalar, class G>
  requires requires(const G& group, const std::vector<Index>& kept) { keep_experts(group, kept); }
auto keep_experts(const MoeLayer<LinearTopK<Scalar>, G>& layer, const std::vector<Index>& kept) {
  const auto& router = layer.router();
  require_between(router.top_k(), std::ssize(kept), layer.num_experts(), "keep_experts: kept.size()");
  require_equal(router.options().num_groups, 1, "keep_experts: num_groups of the router");
  for (std::size_t i = 0; i < kept.size(); ++i) {
    require_between(i == 0 ? 0 : kept[i - 1] + 1, kept[i], layer.num_experts() - 1,
                    "keep_experts: kept[" + std::to_string(i) + "]");
  }
  const Index always = router.options().always_chosen, selected = std::ssize(kept) - always;
  if (always > 0) {
    require_equal(kept[std::size_t(selected)], layer.num_experts() - always,
                  "keep_experts: the first of the last " + std::to_string(always) + " kept, which are always chosen,");
  }
  const auto of = [&](const auto& vector) {  // of all experts, or of those that are not always chosen
    using Vector = typename LinearTopK<Scalar>::Vector;
    const std::vector<Index> its(kept.begin(), kept.end() - (vector.size() < layer.num_experts() ? always : 0));
    return vector.size() > 0 ? Vector(vector(its)) : Vector();
  };
  return MoeLayer(LinearTopK<Scalar>(router.weight()(kept, every), router.options(), of(router.bias()),
                                     of(router.selection_bias())),
                  keep_experts(layer.experts(), kept));
}

}  // namespace moe::inline MOE_TARGET
