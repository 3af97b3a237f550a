/// @file  Gradients of a list of experts, from the backward() of each.
#pragma once

#include <concepts>
#include <span>
#include <vector>

#include "moe/core/concepts.hpp"
#include "moe/core/dispatch.hpp"
#include "moe/core/parameters.hpp"
#include "moe/core/types.hpp"
#include "moe/experts/expert_list.hpp"
#include "moe/kernels/vectors.hpp"
#include "moe/runtime/workers.hpp"
#include "moe/train/dispatch.hpp"
#include "moe/train/gradient_shape.hpp"
#include "moe/train/no_gradient.hpp"

namespace moe::inline MOE_TARGET {

/// An expert that learns: two functions beside it.
///   backward()          from x and ∂L/∂y (d_model × n) of one call of forward(): adds ∂L/∂x to d_x, and ∂L/∂ each
///                       parameter to `gradient`, an expert of the same shape that holds gradients
///   visit_parameters()  visit("name", its matrix) for each
/// backward() is called with other tokens than before; what it needs of forward() it computes again.
template <class E>
concept TrainableExpert = Expert<E> && std::copyable<E> &&
                          requires(const E& expert, const ConstMatrixRef<typename E::Scalar>& x,
                                   const ConstMatrixRef<typename E::Scalar>& d_y, MatrixRef<typename E::Scalar> d_x,
                                   E& gradient, Scratch& scratch, ParameterVisitor<typename E::Scalar>& visit) {
                            { backward(expert, x, d_y, d_x, gradient, scratch) } -> std::same_as<void>;
                            { visit_parameters(gradient, visit) } -> std::same_as<void>;
                          };

/// What a forward pass of a list keeps for its backward pass.
template <class Scalar>
struct ExpertListTape {
  std::vector<Scalar> answers;  // (d_model × num_slots), not weighted
};

template <class E>
ExpertListTape<typename E::Scalar> tape_of(const ExpertList<E>&) {
  return {};
}

/// As list.apply(), and keeps in `tape` what backward() needs.
template <class E, class Scalar = typename E::Scalar>
void apply(const ExpertList<E>& list, const ConstMatrixRef<Scalar>& x, const DispatchPlan<Scalar>& plan,
           MatrixRef<Scalar> y, ExpertListTape<Scalar>& tape, Workers& workers) {
  tape.answers.resize(std::size_t(list.d_model() * plan.num_slots()));
  list.apply(x, plan, y, Eigen::Map<Matrix<Scalar>>(tape.answers.data(), list.d_model(), plan.num_slots()), workers);
}

/// As backward() of a bank: experts/ffn_bank.hpp. A Frozen list calls that of its experts with a NoGradient.
template <TrainableExpert E, class Gradient, class Scalar = typename E::Scalar>
void backward(const ExpertList<E>& list, const ConstMatrixRef<Scalar>& x, const DispatchPlan<Scalar>& plan,
              const ConstMatrixRef<Scalar>& d_y, const ExpertListTape<Scalar>& tape, std::span<Scalar> d_weight,
              MatrixRef<Scalar> d_x, Gradient& gradient, Workers& workers) {
  require_group(list, x, plan, d_x, "backward");
  require_tape(tape.answers, list.d_model() * plan.num_slots());
  if constexpr (learns<Gradient>) {
    require_equal(gradient.num_experts(), list.num_experts(), "backward: gradient.num_experts()");
  }
  const bool on_input = plan.weight_on == WeightOn::input;
  const Index d = list.d_model(), slots = plan.num_slots();
  const Eigen::Map<const Matrix<Scalar>> answers(tape.answers.data(), d, slots);
  auto in = workers.shared().template matrix<Scalar>(d, slots);
  auto d_in = workers.shared().template matrix<Scalar>(d, slots);
  auto d_out = workers.shared().template matrix<Scalar>(d, slots);

  workers.for_each(list.num_experts(), [&](Index e, Scratch& scratch) {
    const Index first = plan.first(e), count = plan.count(e);
    if (count == 0) return;
    for (Index s = first; s < first + count; ++s) {
      const auto slot = std::size_t(s);
      const auto d_answer = d_y.col(plan.token[slot]);
      if (!on_input) d_weight[std::size_t(plan.route[slot])] += kernels::dot(answers.col(s), d_answer);
      in.col(s) = plan.input_weight(s) * x.col(plan.token[slot]);
      d_out.col(s) = plan.output_weight(s) * d_answer;
      d_in.col(s).setZero();
    }
    backward(list[e], in.middleCols(first, count), d_out.middleCols(first, count), d_in.middleCols(first, count),
             gradient[e], scratch);
    if (!on_input) return;
    for (Index s = first; s < first + count; ++s) {
      const auto slot = std::size_t(s);
      d_weight[std::size_t(plan.route[slot])] += kernels::dot(d_in.col(s), x.col(plan.token[slot]));
      d_in.col(s) *= plan.weight[slot];
    }
  });

  add_slots_to_tokens(d_in, plan, d_x, workers);
}

}  // namespace moe::inline MOE_TARGET
