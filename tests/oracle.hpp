// What a layer is by definition.
#pragma once

#include <utility>
#include <vector>

#include "moe/core/concepts.hpp"
#include "moe/core/dispatch.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/scratch.hpp"
#include "moe/core/tokens.hpp"
#include "moe/core/types.hpp"
#include "moe/layers/moe_layer.hpp"
#include "moe/runtime/executors/serial.hpp"
#include "moe/runtime/workers.hpp"

namespace moe::test {

/// The definition itself, slow and obvious: every expert sees every token, and routes pick from all those answers.
/// Tests compare every layer with it.
template <Router R, Experts G>
Matrix<typename G::Scalar> oracle_forward(const MoeLayer<R, G>& layer, const ConstMatrixRef<typename G::Scalar>& x,
                                          const SideInputs<typename G::Scalar>& side = {}) {
  using Scalar = typename G::Scalar;
  std::vector<Scratch> scratch;
  const Serial serial;

  Routing<Scalar> routing;
  Workers router_workers(serial, scratch);
  layer.router().route(Tokens(x, side), routing, router_workers);

  const auto answers_to = [&](const Matrix<Scalar>& tokens) {
    std::vector<Matrix<Scalar>> answer(std::size_t(layer.num_experts()), Matrix<Scalar>::Zero(x.rows(), x.cols()));
    for (Index e = 0; e < layer.num_experts(); ++e) {
      PlanMemory<Scalar> memory;
      const auto everyone = plan_all_to(e, x.cols(), layer.num_experts(), memory);
      Workers workers(serial, scratch);
      layer.experts().apply(tokens, everyone, answer[std::size_t(e)], workers);
    }
    return answer;
  };

  Matrix<Scalar> y = Matrix<Scalar>::Zero(x.rows(), x.cols());
  if (routing.weight_on == WeightOn::output) {
    const auto answer = answers_to(x);
    for (std::size_t r = 0; r < routing.token.size(); ++r) {
      if (routing.is_dropped(Index(r))) continue;
      const Index t = routing.token[r];
      y.col(t) += routing.weight[r] * answer[std::size_t(routing.expert[r])].col(t);
    }
  } else {
    for (std::size_t r = 0; r < routing.token.size(); ++r) {
      if (routing.is_dropped(Index(r))) continue;
      const Index t = routing.token[r];
      y.col(t) += answers_to(routing.weight[r] * x)[std::size_t(routing.expert[r])].col(t);
    }
  }
  return y;
}

}  // namespace moe::test
