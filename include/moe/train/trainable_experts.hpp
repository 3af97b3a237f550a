/// @file  A group of experts that learns, of a type known only at run time.
#pragma once

#include <any>
#include <concepts>
#include <memory>
#include <span>
#include <stdexcept>
#include <type_traits>
#include <utility>

#include "moe/core/check.hpp"
#include "moe/core/concepts.hpp"
#include "moe/core/dispatch.hpp"
#include "moe/core/parameters.hpp"
#include "moe/core/types.hpp"
#include "moe/lora/merged.hpp"
#include "moe/runtime/workers.hpp"
#include "moe/train/detail/calls.hpp"
#include "moe/train/detail/copied.hpp"

namespace moe::inline MOE_TARGET {

/// That of the group, once it was applied.
struct TrainableExpertsTape {
  std::any its;
};

/// Any Experts with tape_of(), apply(), backward() and visit_parameters() behind one type. Unlike those of AnyExperts,
/// copies are copies: the gradient is one. What is not to learn is Frozen inside.
template <class Scalar_>
class TrainableExperts {
 public:
  using Scalar = Scalar_;

  template <Experts G>
    requires(!std::same_as<G, TrainableExperts> && std::same_as<typename G::Scalar, Scalar>)
  TrainableExperts(G group) : held_(std::make_unique<Learns<G>>(std::move(group))) {}  ///< Moves the group in.

  Index d_model() const { return held_->d_model(); }
  Index num_experts() const { return held_->num_experts(); }
  void apply(const ConstMatrixRef<Scalar>& x, const DispatchPlan<Scalar>& plan, MatrixRef<Scalar> y,
             Workers& workers) const {
    held_->apply(x, plan, y, workers);
  }

  /// The same, and keeps in `tape` what backward() needs.
  void apply(const ConstMatrixRef<Scalar>& x, const DispatchPlan<Scalar>& plan, MatrixRef<Scalar> y,
             TrainableExpertsTape& tape, Workers& workers) const {
    held_->apply(x, plan, y, tape.its, workers);
  }

  /// As that of the group.
  /// @throws std::invalid_argument unless tape and gradient are of a group of the same type.
  void backward(const ConstMatrixRef<Scalar>& x, const DispatchPlan<Scalar>& plan, const ConstMatrixRef<Scalar>& d_y,
                const TrainableExpertsTape& tape, std::span<Scalar> d_weight, MatrixRef<Scalar> d_x,
                TrainableExperts& gradient, Workers& workers) const {
    held_->backward(x, plan, d_y, tape.its, d_weight, d_x, *gradient.held_, workers);
  }

  /// With their adapters added into weights of their own: they serve, and do not learn.
  TrainableExperts merged() const { return TrainableExperts(held_->merged()); }

  void visit_parameters(ParameterVisitor<Scalar>& visit) { held_->visit(visit); }

 private:
  struct Interface {
    virtual ~Interface() = default;
    virtual std::unique_ptr<Interface> copy() const = 0;
    virtual std::unique_ptr<Interface> merged() const = 0;
    virtual Index d_model() const = 0;
    virtual Index num_experts() const = 0;
    virtual void apply(const ConstMatrixRef<Scalar>& x, const DispatchPlan<Scalar>& plan, MatrixRef<Scalar> y,
                       Workers& workers) const = 0;
    virtual void apply(const ConstMatrixRef<Scalar>& x, const DispatchPlan<Scalar>& plan, MatrixRef<Scalar> y,
                       std::any& tape, Workers& workers) const = 0;
    virtual void backward(const ConstMatrixRef<Scalar>& x, const DispatchPlan<Scalar>& plan,
                          const ConstMatrixRef<Scalar>& d_y, const std::any& tape, std::span<Scalar> d_weight,
                          MatrixRef<Scalar> d_x, Interface& gradient, Workers& workers) const = 0;
    virtual void visit(ParameterVisitor<Scalar>& visit) = 0;
  };

  template <class G>
  struct Serves : Interface {
    explicit Serves(G its_group) : group(std::move(its_group)) {}
    std::unique_ptr<Interface> copy() const override { return std::make_unique<Serves>(group); }
    std::unique_ptr<Interface> merged() const override { return copy(); }
    Index d_model() const override { return group.d_model(); }
    Index num_experts() const override { return group.num_experts(); }
    void apply(const ConstMatrixRef<Scalar>& x, const DispatchPlan<Scalar>& plan, MatrixRef<Scalar> y,
               Workers& workers) const override {
      group.apply(x, plan, y, workers);
    }
    void apply(const ConstMatrixRef<Scalar>&, const DispatchPlan<Scalar>&, MatrixRef<Scalar>, std::any&,
               Workers&) const override {
      throw std::logic_error("apply: merged experts serve, and do not learn");
    }
    void backward(const ConstMatrixRef<Scalar>&, const DispatchPlan<Scalar>&, const ConstMatrixRef<Scalar>&,
                  const std::any&, std::span<Scalar>, MatrixRef<Scalar>, Interface&, Workers&) const override {
      throw std::logic_error("backward: merged experts serve, and do not learn");
    }
    void visit(ParameterVisitor<Scalar>& visit) override { visit.in("", group); }

    G group;
  };

  template <class G>
  struct Learns final : Serves<G> {
    using Tape = decltype(tape_of(std::declval<const G&>()));

    using Serves<G>::Serves;
    using Serves<G>::apply;
    std::unique_ptr<Interface> copy() const override { return std::make_unique<Learns>(this->group); }
    std::unique_ptr<Interface> merged() const override {
      return std::make_unique<Serves<decltype(detail::call_merged(this->group))>>(detail::call_merged(this->group));
    }
    void apply(const ConstMatrixRef<Scalar>& x, const DispatchPlan<Scalar>& plan, MatrixRef<Scalar> y, std::any& tape,
               Workers& workers) const override {
      auto* its = std::any_cast<Tape>(&tape);
      if (its == nullptr) its = &tape.emplace<Tape>();
      detail::call_apply(this->group, x, plan, y, *its, workers);
    }
    void backward(const ConstMatrixRef<Scalar>& x, const DispatchPlan<Scalar>& plan, const ConstMatrixRef<Scalar>& d_y,
                  const std::any& tape, std::span<Scalar> d_weight, MatrixRef<Scalar> d_x, Interface& gradient,
                  Workers& workers) const override {
      const auto* const kept = std::any_cast<Tape>(&tape);
      auto* const its = dynamic_cast<Learns*>(&gradient);
      require(kept != nullptr, "backward: the tape is of a group of another type, or of none");
      require(its != nullptr, "backward: the gradient is of a group of another type");
      detail::call_backward(this->group, x, plan, d_y, *kept, d_weight, d_x, its->group, workers);
    }
  };

  explicit TrainableExperts(std::unique_ptr<Interface> held) : held_(std::move(held)) {}

  detail::Copied<Interface> held_;
};

template <class Scalar>
TrainableExpertsTape tape_of(const TrainableExperts<Scalar>&) {
  return {};
}

/// As the member.
template <class Scalar>
void apply(const TrainableExperts<Scalar>& group, const ConstMatrixRef<Scalar>& x, const DispatchPlan<Scalar>& plan,
           MatrixRef<Scalar> y, TrainableExpertsTape& tape, Workers& workers) {
  group.apply(x, plan, y, tape, workers);
}

/// As the member.
template <class Scalar>
void backward(const TrainableExperts<Scalar>& group, const ConstMatrixRef<Scalar>& x, const DispatchPlan<Scalar>& plan,
              const ConstMatrixRef<Scalar>& d_y, const TrainableExpertsTape& tape,
              std::span<std::type_identity_t<Scalar>> d_weight, MatrixRef<Scalar> d_x,
              TrainableExperts<Scalar>& gradient, Workers& workers) {
  group.backward(x, plan, d_y, tape, d_weight, d_x, gradient, workers);
}

template <class Scalar>
TrainableExperts<Scalar> merged(const TrainableExperts<Scalar>& group) {
  return group.merged();
}

}  // namespace moe::inline MOE_TARGET
