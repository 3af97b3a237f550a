/// @file  A group of experts made from a list of them.
#pragma once

#include <utility>
#include <vector>

#include "moe/core/check.hpp"
#include "moe/core/concepts.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/dispatch.hpp"
#include "moe/core/types.hpp"
#include "moe/experts/combine.hpp"
#include "moe/runtime/workers.hpp"

namespace moe::inline MOE_TARGET {

/// Gathers each expert's tokens, calls it once, and adds its answers where they belong. One task an expert; every y
/// adds up in the order of the plan, whatever the threads do.
template <class E>
class ExpertList {
  static_assert(is_expert<E>());

 public:
  using Scalar = typename E::Scalar;

  /// @throws std::invalid_argument if there is no expert, or if they differ in d_model.
  ExpertList(std::vector<E> experts) : experts_(std::move(experts)) {
    require(!experts_.empty(), "ExpertList: needs at least one expert");
    for (const E& expert : experts_) require_equal(expert.d_model(), d_model(), "ExpertList: expert.d_model()");
  }

  Index d_model() const { return experts_.front().d_model(); }
  Index num_experts() const { return static_cast<Index>(experts_.size()); }
  const E& operator[](Index expert) const { return experts_[std::size_t(expert)]; }  ///< One expert.
  E& operator[](Index expert) { return experts_[std::size_t(expert)]; }              ///< One expert, to write.

  void apply(const ConstMatrixRef<Scalar>& x, const DispatchPlan<Scalar>& plan, MatrixRef<Scalar> y,
             Workers& workers) const {
    apply(x, plan, y, workers.shared().template matrix<Scalar>(d_model(), plan.num_slots()), workers);
  }

  /// The same, and keeps each slot's answer, not weighted yet.
  /// @param out  (d_model × num_slots)
  void apply(const ConstMatrixRef<Scalar>& x, const DispatchPlan<Scalar>& plan, MatrixRef<Scalar> y,
             MatrixRef<Scalar> out, Workers& workers) const {
    require_group(*this, x, plan, y, "ExpertList");
    auto in = workers.shared().template matrix<Scalar>(d_model(), plan.num_slots());

    workers.for_each(num_experts(), [&](Index e, Scratch& scratch) {
      const Index first = plan.first(e), count = plan.count(e);
      if (count == 0) return;
      require_equal(experts_[std::size_t(e)].d_model(), d_model(), "ExpertList: expert.d_model()");  // or was replaced
      for (Index s = first; s < first + count; ++s) {
        in.col(s) = plan.input_weight(s) * x.col(plan.token[std::size_t(s)]);
      }
      // What an expert does with many tokens is its own affair; with one at a time, no other token has a say.
      const Index at_once = workers.numerics().batch_invariant ? 1 : count;
      for (Index s = first; s < first + count; s += at_once) {
        scratch.reset();
        experts_[std::size_t(e)].forward(in.middleCols(s, at_once), out.middleCols(s, at_once), scratch);
      }
    });

    combine(out, plan, y, workers);
  }

  template <class Visit>
  void visit_parameters(Visit& visit) {
    for (Index e = 0; e < num_experts(); ++e) visit.expert(e, (*this)[e]);
  }

 private:
  std::vector<E> experts_;
};

}  // namespace moe::inline MOE_TARGET
