/// @file  Experts whose answers are normalised before they are weighted.
#pragma once

#include <algorithm>
#include <numeric>
#include <string>
#include <utility>

#include "moe/core/check.hpp"
#include "moe/core/concepts.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/dispatch.hpp"
#include "moe/core/types.hpp"
#include "moe/experts/combine.hpp"
#include "moe/kernels/rms_norm.hpp"
#include "moe/runtime/workers.hpp"

namespace moe::inline MOE_TARGET {

/// y.col(t) += weight · norm(expert(x.col(t))), one norm for all experts. Muse Spark's post_expert_norm, with
/// {.offset = 1, .gain_on = GainOn::input}.
template <class G>
class NormedExperts {
  static_assert(is_group_of_experts<G>());

 public:
  using Scalar = typename G::Scalar;

  /// @param norm  of d_model numbers
  /// @param name  of the norm in a checkpoint, beside the numbers of the experts
  /// @throws std::invalid_argument if d_model differs.
  NormedExperts(G experts, RmsNorm<Scalar> norm, std::string name = "post_expert_norm")
      : experts_(std::move(experts)), norm_(std::move(norm)), name_(std::move(name)) {
    require_equal(norm_.size(), experts_.d_model(), "NormedExperts: norm.size()");
  }

  Index d_model() const { return experts_.d_model(); }
  Index d_ff() const
    requires requires(const G& group) { group.d_ff(); }
  {
    return experts_.d_ff();
  }
  Index num_experts() const { return experts_.num_experts(); }
  const G& experts() const { return experts_; }
  const RmsNorm<Scalar>& norm() const { return norm_; }
  const std::string& name() const { return name_; }
  G& experts() { return experts_; }
  RmsNorm<Scalar>& norm() { return norm_; }

  void apply(const ConstMatrixRef<Scalar>& x, const DispatchPlan<Scalar>& plan, MatrixRef<Scalar> y,
             Workers& workers) const {
    auto in = workers.shared().template matrix<Scalar>(d_model(), plan.num_slots());
    auto answers = workers.shared().template matrix<Scalar>(d_model(), plan.num_slots());
    run(x, plan, y, in, answers, answers, workers,
        [&](const auto& slots) { experts_.apply(in, slots, answers, workers); });
  }

  /// The same, and keeps what it computes between, (d_model × num_slots) each.
  /// @param in       what each slot reads: a column of x
  /// @param answers  what each slot's expert answers
  /// @param normed   may be the same memory
  /// @param apply    apply(plan) adds the answers to those columns of `in` to `answers`
  template <class Apply>
  void run(const ConstMatrixRef<Scalar>& x, const DispatchPlan<Scalar>& plan, MatrixRef<Scalar> y, MatrixRef<Scalar> in,
           MatrixRef<Scalar> answers, MatrixRef<Scalar> normed, Workers& workers, const Apply& apply) const {
    workers.for_each_band(plan.num_slots(), 16, [&](Index first, Index last, Scratch&) {
      for (Index s = first; s < last; ++s) {
        in.col(s) = x.col(plan.token[std::size_t(s)]);
        answers.col(s).setZero();
      }
    });
    apply(by_slot(plan, workers.shared()));
    norm_.apply(answers, normed, workers);
    combine(normed, plan, y, workers);
  }

  /// The plan of tokens that are the slots of `plan`, where a weight of an answer is 1, and route s fills slot s.
  static DispatchPlan<Scalar> by_slot(const DispatchPlan<Scalar>& plan, Scratch& scratch) {
    const Index slots = plan.num_slots();
    auto* const number = scratch.array<Index>(slots);
    auto* const one = scratch.array<Scalar>(slots);
    std::iota(number, number + slots, Index(0));
    std::fill_n(one, slots, Scalar(1));
    DispatchPlan<Scalar> its = plan;
    its.token = its.route = {number, std::size_t(slots)};
    if (plan.weight_on == WeightOn::output) its.weight = {one, std::size_t(slots)};
    return its;
  }

  template <class Visit>
  void visit_parameters(Visit& visit) {
    visit.in("", experts_);
    visit.in(name_, norm_);
  }

 private:
  G experts_;
  RmsNorm<Scalar> norm_;
  std::string name_;
};

}  // namespace moe::inline MOE_TARGET
