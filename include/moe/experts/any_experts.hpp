/// @file  A group of experts whose type is known only at run time.
#pragma once

#include <concepts>
#include <memory>
#include <type_traits>
#include <utility>

#include "moe/core/concepts.hpp"
#include "moe/core/detail/erased_call.hpp"
#include "moe/core/dispatch.hpp"
#include "moe/core/types.hpp"

namespace moe::inline MOE_TARGET {

/// Any Experts of this Scalar behind one type. (AnyExpert is one expert of any type.) Copies share the group.
template <class Scalar_>
class AnyExperts {
 public:
  using Scalar = Scalar_;

  /// Moves the group in; copies of this share it.
  template <Experts G>
    requires(!std::same_as<G, AnyExperts> && std::same_as<typename G::Scalar, Scalar>)
  AnyExperts(G group) : AnyExperts(std::make_shared<G>(std::move(group))) {}

  /// One that others may hold as well.
  template <class G>
    requires(Experts<std::remove_const_t<G>> && std::same_as<typename G::Scalar, Scalar>)
  explicit AnyExperts(std::shared_ptr<G> group)
      : d_model_(group->d_model()),
        num_experts_(group->num_experts()),
        apply_(std::move(group), [](const G& its, const ConstMatrixRef<Scalar>& x, const DispatchPlan<Scalar>& plan,
                                    MatrixRef<Scalar> y, Workers& workers) { its.apply(x, plan, y, workers); }) {}

  Index d_model() const { return d_model_; }
  Index num_experts() const { return num_experts_; }
  void apply(const ConstMatrixRef<Scalar>& x, const DispatchPlan<Scalar>& plan, MatrixRef<Scalar> y,
             Workers& workers) const {
    apply_(x, plan, y, workers);
  }

 private:
  Index d_model_, num_experts_;
  detail::ErasedCall<const ConstMatrixRef<Scalar>&, const DispatchPlan<Scalar>&, MatrixRef<Scalar>, Workers&> apply_;
};

}  // namespace moe::inline MOE_TARGET
