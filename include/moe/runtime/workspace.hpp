/// @file  Everything that a forward pass writes besides y.
#pragma once

#include <cstddef>
#include <optional>
#include <type_traits>
#include <vector>

#include "moe/core/dispatch.hpp"
#include "moe/core/numerics.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/scratch.hpp"
#include "moe/core/tokens.hpp"
#include "moe/core/types.hpp"
#include "moe/runtime/executors/serial.hpp"
#include "moe/runtime/meanwhile.hpp"
#include "moe/runtime/workers.hpp"

namespace moe::inline MOE_TARGET {

/// Reuse it to run without allocating; read it to see who went where. One per thread that calls forward(): two calls at
/// once on one workspace, and one of them throws std::logic_error.
template <class Scalar>
struct Workspace {
  SideInputs<Scalar> side;  // yours to set: what routers may be told of the tokens beside x
  Numerics numerics;        // yours to set: how products are summed
  Routing<Scalar> routing;
  PlanMemory<Scalar> plan, shared_plan;  // of the routed experts; of the expert that every token sees, if there is one
  CallScratch scratch;                   // of the call that runs
  std::vector<Scalar> shared_answers;    // of the expert that every token sees, if it was run meanwhile
  Meanwhile* meanwhile = nullptr;        // what may be done while tokens travel, during a forward pass
  CallScratch unpadded;                  // of a call that leaves padding out: its real tokens
  Routing<Scalar> unpadded_record;       // and their routes to replay

  /// What a forward pass takes beside x, y and the parameters, in bytes held from call to call: routing, plans, scratch
  /// of all workers. (Objects that are kept there are not counted: a few routers' own.)
  std::size_t bytes() const {
    return routing.bytes() + plan.bytes() + shared_plan.bytes() + scratch.bytes() + unpadded.bytes() +
           unpadded_record.bytes() + detail::held_bytes(shared_answers);
  }
};

/// Only while a layer learns does dropout leave out what SideInputs::seed says. (Routers that draw at random, such as
/// NoisyTopK, read it whenever it is there.)
enum class Mode { infer, learn };

/// What one call of a layer on this workspace works with.
/// @throws std::logic_error if another call holds the workspace.
template <class Scalar>
Workers workers_of(Workspace<Scalar>& ws, ExecutorRef executor, Mode mode = Mode::infer) {
  return Workers(executor, ws.scratch, ws.numerics, mode == Mode::learn ? ws.side.seed : std::nullopt, ws.meanwhile);
}

/// Shorter ways to call forward(x, y, workspace, executor) of a layer, for a first try or where a few allocations do
/// not matter. A layer inherits them and says `using ShortForwards<ItsName>::forward`.
template <class Layer>
struct ShortForwards {
  /// The same with a y of its own.
  template <class L = Layer, class Scalar = typename L::Scalar>
  Matrix<Scalar> forward(const ConstMatrixRef<std::type_identity_t<Scalar>>& x,
                         Workspace<std::type_identity_t<Scalar>>& ws, ExecutorRef executor = Serial{}) const {
    Matrix<Scalar> y(x.rows(), x.cols());
    static_cast<const L&>(*this).forward(x, y, ws, executor);
    return y;
  }

  /// The same with a workspace of its own, too: tokens are one sequence.
  template <class L = Layer, class Scalar = typename L::Scalar>
  Matrix<Scalar> forward(const ConstMatrixRef<std::type_identity_t<Scalar>>& x, ExecutorRef executor = Serial{}) const {
    Workspace<Scalar> ws;
    return forward<L>(x, ws, executor);
  }
};

}  // namespace moe::inline MOE_TARGET
