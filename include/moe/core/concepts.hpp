/// @file  The five things that you can bring yourself. Each contract is one `requires` you can read aloud.
#pragma once

#include <concepts>

#include "moe/core/dispatch.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/scratch.hpp"
#include "moe/core/task.hpp"
#include "moe/core/tokens.hpp"
#include "moe/core/types.hpp"

namespace moe::inline MOE_TARGET {

class Workers;  // workers.hpp: the threads of one call, and their scratch

/// f(x), element by element, on any Eigen array expression: silu, gelu, relu, …
template <class A, class Scalar>
concept Activation = std::copy_constructible<A> &&
                     requires(const A& f, const Eigen::Array<Scalar, 8, 1>& x) { Eigen::Array<Scalar, 8, 1>(f(x)); };

/// f(gate, up), element by element: the hidden layer of a gated FFN. Glu<A> makes one from any Activation.
template <class A, class Scalar>
concept GatedActivation = std::copy_constructible<A> && requires(const A& f, const Eigen::Array<Scalar, 8, 1>& x) {
  Eigen::Array<Scalar, 8, 1>(f(x, x));
};

/// Maps its tokens x (d_model × n) to y (d_model × n), column by column. Const: one expert, many threads.
template <class E>
concept Expert = requires(const E& expert, const ConstMatrixRef<typename E::Scalar>& x, MatrixRef<typename E::Scalar> y,
                          Scratch& scratch) {
  { expert.d_model() } -> std::convertible_to<Index>;
  { expert.forward(x, y, scratch) } -> std::same_as<void>;
};

/// Decides which experts see which tokens, into an empty Routing. Tokens convert to x (d_model × n_tokens), so a router
/// that reads nothing else writes route(const ConstMatrixRef<Scalar>& x, …).
template <class R>
concept Router = requires(const R& router, const Tokens<typename R::Scalar>& tokens,
                          Routing<typename R::Scalar>& routing, Workers& workers) {
  { router.d_model() } -> std::convertible_to<Index>;
  { router.num_experts() } -> std::convertible_to<Index>;
  { router.route(tokens, routing, workers) } -> std::same_as<void>;
};

/// A group of experts: y.col(t) += weight · expert(x.col(t)) for every slot of the plan. The layer knows nothing else
/// of its experts; they may be a list, stacked weights in a mapped file, or live on other machines.
template <class G>
concept Experts =
    requires(const G& group, const ConstMatrixRef<typename G::Scalar>& x, const DispatchPlan<typename G::Scalar>& plan,
             MatrixRef<typename G::Scalar> y, Workers& workers) {
      { group.d_model() } -> std::convertible_to<Index>;
      { group.num_experts() } -> std::convertible_to<Index>;
      { group.apply(x, plan, y, workers) } -> std::same_as<void>;
    };

/// Runs task(i, worker) once for each i in [0, n), in any order, 0 ≤ worker < workers(), and returns when all are
/// done. No two tasks share a worker at the same time. If tasks throw, one of the errors reaches the caller: see
/// executors/first_error.hpp.
template <class X>
concept Executor = requires(X& executor, Index n, const Task& task) {
  { executor.workers() } -> std::convertible_to<Index>;
  { executor.for_each(n, task) } -> std::same_as<void>;
};

}  // namespace moe::inline MOE_TARGET
