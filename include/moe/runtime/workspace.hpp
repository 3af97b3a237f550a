/// @file  Everything that a forward pass writes besides y.
#pragma once

#include <vector>

#include "moe/core/dispatch.hpp"
#include "moe/core/numerics.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/scratch.hpp"
#include "moe/core/tokens.hpp"
#include "moe/core/types.hpp"
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
};

/// y = layer(x) with a y of its own: for a first try, or where a few allocations do not matter.
template <class Layer>
Matrix<typename Layer::Scalar> forward_alone(const Layer& layer, const ConstMatrixRef<typename Layer::Scalar>& x,
                                             Workspace<typename Layer::Scalar>& ws, ExecutorRef executor) {
  Matrix<typename Layer::Scalar> y(x.rows(), x.cols());
  layer.forward(x, y, ws, executor);
  return y;
}

/// The same with a workspace of its own, too.
template <class Layer>
Matrix<typename Layer::Scalar> forward_alone(const Layer& layer, const ConstMatrixRef<typename Layer::Scalar>& x,
                                             ExecutorRef executor) {
  Workspace<typename Layer::Scalar> ws;
  return forward_alone(layer, x, ws, executor);
}

}  // namespace moe::inline MOE_TARGET
