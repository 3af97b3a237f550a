/// @file  An expert that every token sees, beside a sparse layer.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "moe/core/dispatch.hpp"
#include "moe/core/types.hpp"
#include "moe/experts/combine.hpp"
#include "moe/runtime/meanwhile.hpp"
#include "moe/runtime/workers.hpp"
#include "moe/runtime/workspace.hpp"

namespace moe::inline MOE_TARGET::detail {

/// y = the layer's answer, as weigh() leaves it, + weight[t] · expert(x.col(t)). Where experts of the layer wait for
/// tokens that travel, the expert runs meanwhile.
/// @param plan          of the expert; plan.weight is what weigh() writes
/// @param run_layer     run_layer() writes the layer's answer to y
/// @param apply_expert  apply_expert(plan, y, workers) adds to y
/// @param weigh         weigh(y, weight, workers); weight is of ones, one for each token
template <class Scalar, class RunLayer, class ApplyExpert, class Weigh>
void forward_beside(const ConstMatrixRef<Scalar>& x, MatrixRef<Scalar> y, Workspace<Scalar>& ws,
                    PlanMemory<Scalar>& plan, ExecutorRef executor, Mode mode, const RunLayer& run_layer,
                    const ApplyExpert& apply_expert, const Weigh& weigh) {
  const auto answers = [&] { return Eigen::Map<Matrix<Scalar>>(ws.shared_answers.data(), x.rows(), x.cols()); };
  const auto run_expert = [&](Workers& workers) {
    ws.shared_answers.assign(std::size_t(x.size()), Scalar(0));
    apply_expert(plan_all_to(0, x.cols(), 1, plan), answers(), workers);
  };
  bool has_run = false;
  {
    const Meanwhile meanwhile(ws.meanwhile, run_expert);
    run_layer();
    has_run = meanwhile.is_done();
  }
  Workers workers = workers_of(ws, executor, mode);
  const auto everyone = plan_all_to(0, x.cols(), 1, plan);
  weigh(y, std::span<Scalar>(plan.weight), workers);
  if (has_run) {
    combine(answers(), everyone, y, workers);
  } else {
    apply_expert(everyone, y, workers);
  }
}

}  // namespace moe::inline MOE_TARGET::detail
