/// @file  Everything that a forward pass writes besides y.
#pragma once

#include <vector>

#include "moe/dispatch.hpp"
#include "moe/routing.hpp"
#include "moe/scratch.hpp"

namespace moe {

/// Reuse it to run without allocating; read it to see who went where. One per thread that calls forward().
template <class Scalar>
struct Workspace {
  Routing<Scalar> routing;
  DispatchPlan<Scalar> plan;
  DispatchPlan<Scalar> shared_plan;  // of the expert that every token sees, if there is one
  std::vector<Scratch> scratch;      // one shared, then one per worker
};

}  // namespace moe
