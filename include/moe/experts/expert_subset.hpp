/// @file  Some of a group's experts as a group.
#pragma once

#include <utility>
#include <vector>

#include "moe/core/check.hpp"
#include "moe/core/concepts.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/dispatch.hpp"
#include "moe/core/types.hpp"
#include "moe/runtime/workers.hpp"

namespace moe::inline MOE_TARGET {

/// The experts of `group` that are named, numbered from 0; none of the others is called. Of weights in a mapped file,
/// only those of the named experts are ever read.
template <class G>
class ExpertSubset {
  static_assert(is_group_of_experts<G>());

 public:
  using Scalar = typename G::Scalar;

  /// @param experts  of the group, in ascending order; may be none
  /// @throws std::invalid_argument unless they are that.
  ExpertSubset(G group, std::vector<Index> experts) : group_(std::move(group)), experts_(std::move(experts)) {
    require_ascending(experts_, group_.num_experts(), "ExpertSubset: experts");
  }

  Index d_model() const { return group_.d_model(); }
  Index d_ff() const
    requires requires(const G& group) { group.d_ff(); }
  {
    return group_.d_ff();
  }
  Index num_experts() const { return static_cast<Index>(experts_.size()); }
  const G& group() const { return group_; }
  const std::vector<Index>& experts() const { return experts_; }

  void apply(const ConstMatrixRef<Scalar>& x, const DispatchPlan<Scalar>& plan, MatrixRef<Scalar> y,
             Workers& workers) const {
    const Index all = group_.num_experts();
    auto* const offset = workers.shared().template array<Index>(all + 1);
    Index next = 0;  // of those named
    for (Index e = 0; e <= all; ++e) {
      offset[e] = plan.offset[std::size_t(next)];
      if (next < num_experts() && experts_[std::size_t(next)] == e) ++next;
    }
    DispatchPlan<Scalar> of_all = plan;
    of_all.offset = {offset, std::size_t(all) + 1};
    group_.apply(x, of_all, y, workers);
  }

  template <class Visit>
  void visit_parameters(Visit& visit) {
    visit.only(experts_, group_);
  }

 private:
  G group_;
  std::vector<Index> experts_;
};

}  // namespace moe::inline MOE_TARGET
