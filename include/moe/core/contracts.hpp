/// @file  Says in one sentence what a type lacks of a contract.
///
/// A failed concept answers "constraints not satisfied", and some compilers no more. So class templates take any type,
/// and open with `static_assert(is_expert<E>());`, whose first error names the member. The contracts themselves are in
/// concepts.hpp; each function here ends with one, so that what it has no sentence for is refused, too.
#pragma once

#include <concepts>
#include <type_traits>

#include "moe/core/concepts.hpp"
#include "moe/core/dispatch.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/scratch.hpp"
#include "moe/core/task.hpp"
#include "moe/core/tokens.hpp"
#include "moe/core/types.hpp"

namespace moe::inline MOE_TARGET {

namespace detail {

template <class T>
concept HasScalar = requires { typename T::Scalar; };
template <class T>
concept HasWidth = requires(const T& t) {
  { t.d_model() } -> std::convertible_to<Index>;
};
template <class T>
concept HasNumExperts = requires(const T& t) {
  { t.num_experts() } -> std::convertible_to<Index>;
};

// What the three kinds do, on a T or a const T, whatever they return.
template <class T, class Scalar>
concept Forwards = requires(T& t, const ConstMatrixRef<Scalar>& x, MatrixRef<Scalar> y, Scratch& scratch) {
  t.forward(x, y, scratch);
};
template <class T, class Scalar>
concept Routes = requires(T& t, const Tokens<Scalar>& tokens, Routing<Scalar>& routing, Workers& workers) {
  t.route(tokens, routing, workers);
};
template <class T, class Scalar>
concept Applies = requires(T& t, const ConstMatrixRef<Scalar>& x, const DispatchPlan<Scalar>& plan, MatrixRef<Scalar> y,
                           Workers& workers) { t.apply(x, plan, y, workers); };

template <class X>
concept HasWorkers = requires(X& executor) {
  { executor.workers() } -> std::convertible_to<Index>;
};
template <class X>
concept RunsTasks = requires(X& executor, Index n, const Task& task) {
  { executor.for_each(n, task) } -> std::same_as<void>;
};

}  // namespace detail

/// @return true; does not compile for an E that is no Expert.
template <class E>
consteval bool is_expert() {
  if constexpr (!Expert<E>) {
    static_assert(detail::HasScalar<E>, "moe: this expert has no `using Scalar = float;` (or double)");
    static_assert(detail::HasWidth<E>, "moe: this expert has no `Index d_model() const`");
    if constexpr (detail::HasScalar<E>) {
      using S = typename E::Scalar;
      static_assert(detail::Forwards<const E, S> || !detail::Forwards<E, S>,
                    "moe: this expert's forward() is not const: one expert serves many threads");
      static_assert(detail::Forwards<E, S>,
                    "moe: this expert has no `void forward(const ConstMatrixRef<Scalar>& x, MatrixRef<Scalar> y, "
                    "Scratch& scratch) const` for its Scalar");
      static_assert(Expert<E> || !detail::HasWidth<E> || !detail::Forwards<const E, S>,
                    "moe: this expert's forward() returns something, expected void: it writes y");
    }
  }
  return true;
}

/// @return true; does not compile for an R that is no Router.
template <class R>
consteval bool is_router() {
  if constexpr (!Router<R>) {
    static_assert(detail::HasScalar<R>, "moe: this router has no `using Scalar = float;` (or double)");
    static_assert(detail::HasWidth<R>, "moe: this router has no `Index d_model() const`");
    static_assert(detail::HasNumExperts<R>, "moe: this router has no `Index num_experts() const`");
    if constexpr (detail::HasScalar<R>) {
      using S = typename R::Scalar;
      static_assert(detail::Routes<const R, S> || !detail::Routes<R, S>,
                    "moe: this router's route() is not const: one router serves many threads");
      static_assert(detail::Routes<R, S>,
                    "moe: this router has no `void route(const Tokens<Scalar>& tokens, Routing<Scalar>& routing, "
                    "Workers& workers) const` for its Scalar; it adds its routes to `routing` and returns nothing");
      static_assert(Router<R> || !detail::HasWidth<R> || !detail::HasNumExperts<R> || !detail::Routes<const R, S>,
                    "moe: this router's route() returns something, expected void: it adds its routes to `routing`");
    }
  }
  return true;
}

/// @return true; does not compile for a G that is no group of Experts.
template <class G>
consteval bool is_group_of_experts() {
  if constexpr (!Experts<G>) {
    static_assert(!Expert<G>, "moe: this is one expert, expected a group of them: ExpertList(std::vector{expert})");
    if constexpr (!Expert<G>) {
      static_assert(detail::HasScalar<G>, "moe: this group of experts has no `using Scalar = float;` (or double)");
      static_assert(detail::HasWidth<G>, "moe: this group of experts has no `Index d_model() const`");
      static_assert(detail::HasNumExperts<G>, "moe: this group of experts has no `Index num_experts() const`");
    }
    if constexpr (!Expert<G> && detail::HasScalar<G>) {
      using S = typename G::Scalar;
      static_assert(detail::Applies<const G, S> || !detail::Applies<G, S>,
                    "moe: this group's apply() is not const: one group serves many threads");
      static_assert(detail::Applies<G, S>,
                    "moe: this group of experts has no `void apply(const ConstMatrixRef<Scalar>& x, const "
                    "DispatchPlan<Scalar>& plan, MatrixRef<Scalar> y, Workers& workers) const` for its Scalar");
      static_assert(Experts<G> || !detail::HasWidth<G> || !detail::HasNumExperts<G> || !detail::Applies<const G, S>,
                    "moe: this group's apply() returns something, expected void: it adds to y");
    }
  }
  return true;
}

/// @return true; does not compile for an X that is no Executor.
template <class X>
consteval bool is_executor() {
  if constexpr (!Executor<X>) {
    static_assert(detail::HasWorkers<X>, "moe: this executor has no `Index workers()`: how many tasks run at once");
    static_assert(detail::RunsTasks<X>, "moe: this executor has no `void for_each(Index n, const Task& task)`");
  }
  return true;
}

/// @return true; does not compile unless Act is a GatedActivation of Scalar.
template <class Act, class Scalar>
consteval bool is_gated_activation() {
  static_assert(GatedActivation<Act, Scalar> || !Activation<Act, Scalar>,
                "moe: this activation takes one argument, expected gate and up: Glu<Act> makes a gated one of it");
  static_assert(GatedActivation<Act, Scalar> || Activation<Act, Scalar>,
                "moe: a gated activation has `auto operator()(gate, up) const` of Eigen arrays, and is copied");
  return true;
}

/// @return true; does not compile unless Act is an Activation of Scalar.
template <class Act, class Scalar>
consteval bool is_activation() {
  static_assert(Activation<Act, Scalar> || !GatedActivation<Act, Scalar>,
                "moe: this activation takes gate and up, expected one argument: a gated bank has w_gate, too");
  static_assert(Activation<Act, Scalar> || GatedActivation<Act, Scalar>,
                "moe: an activation has `auto operator()(x) const` of an Eigen array, and is copied");
  return true;
}

/// @return true; does not compile unless A and B compute in one Scalar.
template <class A, class B>
consteval bool are_of_one_scalar() {
  if constexpr (detail::HasScalar<A> && detail::HasScalar<B>) {
    static_assert(std::is_same_v<typename A::Scalar, typename B::Scalar>,
                  "moe: one of these computes in float and the other in double, expected one Scalar");
  }
  return true;
}

}  // namespace moe::inline MOE_TARGET
