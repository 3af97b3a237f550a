/// @file  A part of a layer that does not learn.
#pragma once

#include <memory>
#include <span>
#include <type_traits>
#include <utility>

#include "moe/core/concepts.hpp"
#include "moe/core/dispatch.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/tokens.hpp"
#include "moe/core/types.hpp"
#include "moe/runtime/workers.hpp"
#include "moe/train/no_gradient.hpp"

namespace moe::inline MOE_TARGET {

/// A router, or a group of experts, as it is: MoeLayer(router, Frozen(bank)). Gradients pass through it, and it gets
/// none itself. Weights may be mapped, and of any type. Copies share it, so that the gradient of a layer takes no
/// memory for it.
template <class T>
class Frozen {
 public:
  using Scalar = typename T::Scalar;

  /// Moves the part in; copies of this share it.
  explicit Frozen(T part) : part_(std::make_shared<T>(std::move(part))) {}

  const T& operator*() const { return *part_; }        ///< The part, to read.
  const T* operator->() const { return part_.get(); }  ///< The part, to read.
  Index d_model() const { return part_->d_model(); }
  Index num_experts() const { return part_->num_experts(); }

  void route(const Tokens<Scalar>& tokens, Routing<Scalar>& routing, Workers& workers) const
    requires Router<T>
  {
    part_->route(tokens, routing, workers);
  }

  void apply(const ConstMatrixRef<Scalar>& x, const DispatchPlan<Scalar>& plan, MatrixRef<Scalar> y,
             Workers& workers) const
    requires Experts<T>
  {
    part_->apply(x, plan, y, workers);
  }

  template <class Visit>
  void visit_parameters(Visit& visit) {
    visit.frozen("", *part_);
  }

 private:
  std::shared_ptr<T> part_;
};

template <Experts G>
auto tape_of(const Frozen<G>& group) {
  return tape_of(*group);
}

/// As the group's own.
template <Experts G, class Tape, class Scalar = typename G::Scalar>
void apply(const Frozen<G>& group, const ConstMatrixRef<Scalar>& x, const DispatchPlan<Scalar>& plan,
           MatrixRef<Scalar> y, Tape& tape, Workers& workers) {
  apply(*group, x, plan, y, tape, workers);
}

/// As the group's own, but for the gradient.
template <Experts G, class Tape, class Scalar = typename G::Scalar>
void backward(const Frozen<G>& group, const ConstMatrixRef<Scalar>& x, const DispatchPlan<Scalar>& plan,
              const ConstMatrixRef<Scalar>& d_y, const Tape& tape, std::span<std::type_identity_t<Scalar>> d_weight,
              MatrixRef<Scalar> d_x, Frozen<G>&, Workers& workers) {
  NoGradient<Scalar> none;
  backward(*group, x, plan, d_y, tape, d_weight, d_x, none, workers);
}

/// As the router's own, but for the gradient.
template <Router R, class Scalar = typename R::Scalar>
void backward(const Frozen<R>& router, const Tokens<Scalar>& tokens, const Routing<Scalar>& routing,
              std::span<const std::type_identity_t<Scalar>> d_weight, MatrixRef<Scalar> d_logits, MatrixRef<Scalar> d_x,
              Frozen<R>&, Workers& workers) {
  NoGradient<Scalar> none;
  backward(*router, tokens, routing, d_weight, d_logits, d_x, none, workers);
}

}  // namespace moe::inline MOE_TARGET
