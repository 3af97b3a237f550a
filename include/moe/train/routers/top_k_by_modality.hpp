/// @file  Gradients of a router of each modality.
#pragma once

#include <cstddef>
#include <span>
#include <type_traits>

#include "moe/core/routing.hpp"
#include "moe/core/scratch.hpp"
#include "moe/core/tokens.hpp"
#include "moe/core/types.hpp"
#include "moe/routers/top_k_by_modality.hpp"
#include "moe/runtime/workers.hpp"
#include "moe/train/routers/linear_logits.hpp"
#include "moe/train/routers/logits_router.hpp"
#include "moe/train/routers/top_k.hpp"

namespace moe::inline MOE_TARGET {

/// As backward() of LinearLogits. Each part has the gradients of the tokens of its modality; experts that these do not
/// see give them none.
template <class Part, class Gradient, class Scalar = typename Part::Scalar>
void backward(const LogitsByModality<Part>& all, const Tokens<Scalar>& tokens, const ConstMatrixRef<Scalar>& logits,
              const ConstMatrixRef<Scalar>& d_logits, MatrixRef<Scalar> d_x, Gradient& gradient, Workers& workers) {
  for (Index m = 0; m < all.num_modalities(); ++m) {
    const auto its = detail::tokens_of(m, tokens.side, tokens.count(), workers.shared());
    if (its.empty()) continue;
    const Index first = all.first_expert(m), count = all[m].num_experts();
    const auto x = detail::gather_columns<Scalar>(tokens.x, its, 0, all.d_model(), workers);
    const auto own = detail::gather_columns<Scalar>(logits, its, first, count, workers),
               d_own = detail::gather_columns<Scalar>(d_logits, its, first, count, workers);
    auto d_some = workers.shared().template matrix<Scalar>(x.rows(), x.cols());
    d_some.setZero();
    backward(all[m], Tokens<Scalar>(x, all.side_of(tokens)), ConstMatrixRef<Scalar>(own), ConstMatrixRef<Scalar>(d_own),
             MatrixRef<Scalar>(d_some), gradient[m], workers);
    for (Index i = 0; i < d_some.cols(); ++i) d_x.col(its[std::size_t(i)]) += d_some.col(i);
  }
}

/// As backward() of TopKChoice, of each token's own, which its experts tell.
template <class Scalar, class Gradient>
void backward(const ChoiceByModality<Scalar>& all, const ConstMatrixRef<Scalar>& logits, const Routing<Scalar>& routing,
              std::span<const std::type_identity_t<Scalar>> d_weight, MatrixRef<Scalar> d_logits, Gradient&,
              Workers& workers) {
  const Index top_k = all.top_k();
  const auto modality = [&](Index t) { return all.modality_of_expert(routing.expert[std::size_t(t * top_k)]); };
  all.for_each_token(logits.cols(), modality, workers,
                     [&](const TopKChoice<Scalar>& its, Index first_expert, Scratch& scratch) {
                       auto* const own = scratch.array<Index>(top_k);
                       return [&, own, first_expert, back = TopKBackward<Scalar>(its, scratch)](Index t) mutable {
                         const auto route = std::size_t(t * top_k);
                         for (Index k = 0; k < top_k; ++k)
                           own[k] = routing.expert[route + std::size_t(k)] - first_expert;
                         back.add(logits.col(t).segment(first_expert, its.num_experts()), own, &d_weight[route],
                                  d_logits.col(t).segment(first_expert, its.num_experts()));
                       };
                     });
}

}  // namespace moe::inline MOE_TARGET
