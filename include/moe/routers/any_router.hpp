/// @file  A router whose type is known only at run time.
#pragma once

#include <concepts>
#include <memory>
#include <utility>

#include "moe/core/concepts.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/tokens.hpp"
#include "moe/core/types.hpp"

namespace moe::inline MOE_TARGET {

/// Any Router of this Scalar behind one type. Copies share the router.
template <class Scalar_>
class AnyRouter {
 public:
  using Scalar = Scalar_;

  /// Moves the router in; copies of this share it.
  template <Router R>
    requires(!std::same_as<R, AnyRouter> && std::same_as<typename R::Scalar, Scalar>)
  AnyRouter(R router) : held_(std::make_shared<Held<R>>(std::move(router))) {}

  Index d_model() const { return held_->d_model(); }
  Index num_experts() const { return held_->num_experts(); }
  void route(const Tokens<Scalar>& tokens, Routing<Scalar>& routing, Workers& workers) const {
    held_->route(tokens, routing, workers);
  }

 private:
  struct Interface {
    virtual ~Interface() = default;
    virtual Index d_model() const = 0;
    virtual Index num_experts() const = 0;
    virtual void route(const Tokens<Scalar>& tokens, Routing<Scalar>& routing, Workers& workers) const = 0;
  };

  template <class R>
  struct Held final : Interface {
    explicit Held(R its_router) : router(std::move(its_router)) {}
    Index d_model() const override { return router.d_model(); }
    Index num_experts() const override { return router.num_experts(); }
    void route(const Tokens<Scalar>& tokens, Routing<Scalar>& routing, Workers& workers) const override {
      router.route(tokens, routing, workers);
    }
    R router;
  };

  std::shared_ptr<const Interface> held_;
};

}  // namespace moe::inline MOE_TARGET
