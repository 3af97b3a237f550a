/// @file  A router whose type is known only at run time.
#pragma once

#include <concepts>
#include <memory>
#include <type_traits>
#include <utility>

#include "moe/core/concepts.hpp"
#include "moe/core/detail/erased_call.hpp"
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
  AnyRouter(R router) : AnyRouter(std::make_shared<R>(std::move(router))) {}

  /// One that others may hold as well.
  template <class R>
    requires(Router<std::remove_const_t<R>> && std::same_as<typename R::Scalar, Scalar>)
  explicit AnyRouter(std::shared_ptr<R> router)
      : d_model_(router->d_model()),
        num_experts_(router->num_experts()),
        route_(std::move(router), [](const R& its, const Tokens<Scalar>& tokens, Routing<Scalar>& routing,
                                     Workers& workers) { its.route(tokens, routing, workers); }) {}

  Index d_model() const { return d_model_; }
  Index num_experts() const { return num_experts_; }
  void route(const Tokens<Scalar>& tokens, Routing<Scalar>& routing, Workers& workers) const {
    route_(tokens, routing, workers);
  }

 private:
  Index d_model_, num_experts_;
  detail::ErasedCall<const Tokens<Scalar>&, Routing<Scalar>&, Workers&> route_;
};

}  // namespace moe::inline MOE_TARGET
