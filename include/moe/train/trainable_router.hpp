/// @file  A router that learns, of a type known only at run time.
#pragma once

#include <concepts>
#include <memory>
#include <span>
#include <stdexcept>
#include <type_traits>
#include <utility>

#include "moe/core/check.hpp"
#include "moe/core/concepts.hpp"
#include "moe/core/parameters.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/tokens.hpp"
#include "moe/core/types.hpp"
#include "moe/lora/merged.hpp"
#include "moe/runtime/workers.hpp"
#include "moe/train/detail/calls.hpp"
#include "moe/train/detail/copied.hpp"
#include "moe/train/freeze.hpp"

namespace moe::inline MOE_TARGET {

/// Any Router with a backward() and visit_parameters() behind one type. Unlike those of an AnyRouter, copies are
/// copies: the gradient is one. What is not to learn is Frozen inside.
template <class Scalar_>
class TrainableRouter {
 public:
  using Scalar = Scalar_;

  template <Router R>
    requires(!std::same_as<R, TrainableRouter> && std::same_as<typename R::Scalar, Scalar>)
  TrainableRouter(R router) : held_(std::make_unique<Learns<R>>(std::move(router))) {}  ///< Moves the router in.

  Index d_model() const { return held_->d_model(); }
  Index num_experts() const { return held_->num_experts(); }
  void route(const Tokens<Scalar>& tokens, Routing<Scalar>& routing, Workers& workers) const {
    held_->route(tokens, routing, workers);
  }

  /// As that of the router.
  /// @throws std::invalid_argument unless the gradient is of a router of the same type.
  void backward(const Tokens<Scalar>& tokens, const Routing<Scalar>& routing, std::span<const Scalar> d_weight,
                MatrixRef<Scalar> d_logits, MatrixRef<Scalar> d_x, TrainableRouter& gradient, Workers& workers) const {
    held_->backward(tokens, routing, d_weight, d_logits, d_x, *gradient.held_, workers);
  }

  /// With its adapters added into weights of its own: it serves, and does not learn.
  TrainableRouter merged() const { return TrainableRouter(held_->merged()); }

  /// Whether y gives it no gradient: router_note().
  bool weighs_by_a_constant() const { return held_->weighs_by_a_constant(); }

  void visit_parameters(ParameterVisitor<Scalar>& visit) { held_->visit(visit); }

 private:
  struct Interface {
    virtual ~Interface() = default;
    virtual std::unique_ptr<Interface> copy() const = 0;
    virtual std::unique_ptr<Interface> merged() const = 0;
    virtual Index d_model() const = 0;
    virtual Index num_experts() const = 0;
    virtual bool weighs_by_a_constant() const = 0;
    virtual void route(const Tokens<Scalar>& tokens, Routing<Scalar>& routing, Workers& workers) const = 0;
    virtual void backward(const Tokens<Scalar>& tokens, const Routing<Scalar>& routing,
                          std::span<const Scalar> d_weight, MatrixRef<Scalar> d_logits, MatrixRef<Scalar> d_x,
                          Interface& gradient, Workers& workers) const = 0;
    virtual void visit(ParameterVisitor<Scalar>& visit) = 0;
  };

  template <class R>
  struct Serves : Interface {
    explicit Serves(R its_router) : router(std::move(its_router)) {}
    std::unique_ptr<Interface> copy() const override { return std::make_unique<Serves>(router); }
    std::unique_ptr<Interface> merged() const override { return copy(); }
    Index d_model() const override { return router.d_model(); }
    Index num_experts() const override { return router.num_experts(); }
    bool weighs_by_a_constant() const override { return detail::weighs_by_a_constant(router); }
    void route(const Tokens<Scalar>& tokens, Routing<Scalar>& routing, Workers& workers) const override {
      router.route(tokens, routing, workers);
    }
    void backward(const Tokens<Scalar>&, const Routing<Scalar>&, std::span<const Scalar>, MatrixRef<Scalar>,
                  MatrixRef<Scalar>, Interface&, Workers&) const override {
      throw std::logic_error("backward: a merged router serves, and does not learn");
    }
    void visit(ParameterVisitor<Scalar>& visit) override { visit.in("", router); }

    R router;
  };

  template <class R>
  struct Learns final : Serves<R> {
    using Serves<R>::Serves;
    std::unique_ptr<Interface> copy() const override { return std::make_unique<Learns>(this->router); }
    std::unique_ptr<Interface> merged() const override {
      return std::make_unique<Serves<decltype(detail::call_merged(this->router))>>(detail::call_merged(this->router));
    }
    void backward(const Tokens<Scalar>& tokens, const Routing<Scalar>& routing, std::span<const Scalar> d_weight,
                  MatrixRef<Scalar> d_logits, MatrixRef<Scalar> d_x, Interface& gradient,
                  Workers& workers) const override {
      auto* const its = dynamic_cast<Learns*>(&gradient);
      require(its != nullptr, "backward: the gradient is of a router of another type");
      detail::call_backward(this->router, tokens, routing, d_weight, d_logits, d_x, its->router, workers);
    }
  };

  explicit TrainableRouter(std::unique_ptr<Interface> held) : held_(std::move(held)) {}

  detail::Copied<Interface> held_;
};

/// As the member.
template <class Scalar>
void backward(const TrainableRouter<Scalar>& router, const Tokens<Scalar>& tokens, const Routing<Scalar>& routing,
              std::span<const std::type_identity_t<Scalar>> d_weight, MatrixRef<Scalar> d_logits, MatrixRef<Scalar> d_x,
              TrainableRouter<Scalar>& gradient, Workers& workers) {
  router.backward(tokens, routing, d_weight, d_logits, d_x, gradient, workers);
}

template <class Scalar>
TrainableRouter<Scalar> merged(const TrainableRouter<Scalar>& router) {
  return router.merged();
}

}  // namespace moe::inline MOE_TARGET
