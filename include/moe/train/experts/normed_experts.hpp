/// @file  Gradients of experts whose answers are normalised before they are weighted.
#pragma once

#include <cstddef>
#include <span>
#include <type_traits>
#include <vector>

#include "moe/core/dispatch.hpp"
#include "moe/core/types.hpp"
#include "moe/experts/normed_experts.hpp"
#include "moe/kernels/vectors.hpp"
#include "moe/runtime/workers.hpp"
#include "moe/train/dispatch.hpp"
#include "moe/train/gradient_shape.hpp"
#include "moe/train/kernels/rms_norm.hpp"

namespace moe::inline MOE_TARGET {

/// What a forward pass keeps for its backward pass, (d_model × num_slots) each.
template <class Scalar, class ExpertsTape>
struct NormedExpertsTape {
  std::vector<Scalar> in, answers, normed;  // of each slot: what it reads, what its expert answers, the norm of that
  ExpertsTape experts;
};

template <class G>
auto tape_of(const NormedExperts<G>& group) {
  return NormedExpertsTape<typename G::Scalar, decltype(tape_of(group.experts()))>{};
}

/// As group.apply(), and keeps in `tape` what backward() needs.
template <class G, class ExpertsTape, class Scalar = typename G::Scalar>
void apply(const NormedExperts<G>& group, const ConstMatrixRef<Scalar>& x, const DispatchPlan<Scalar>& plan,
           MatrixRef<Scalar> y, NormedExpertsTape<Scalar, ExpertsTape>& tape, Workers& workers) {
  const auto keep = [&](std::vector<Scalar>& numbers) {
    numbers.resize(std::size_t(group.d_model() * plan.num_slots()));
    return Eigen::Map<Matrix<Scalar>>(numbers.data(), group.d_model(), plan.num_slots());
  };
  auto in = keep(tape.in), answers = keep(tape.answers), normed = keep(tape.normed);
  group.run(x, plan, y, in, answers, normed, workers,
            [&](const auto& slots) { apply(group.experts(), in, slots, answers, tape.experts, workers); });
}

/// As backward() of a bank: experts/gated_ffn_bank.hpp.
template <class G, class ExpertsTape, class Gradient, class Scalar = typename G::Scalar>
void backward(const NormedExperts<G>& group, const ConstMatrixRef<Scalar>&, const DispatchPlan<Scalar>& plan,
              const ConstMatrixRef<Scalar>& d_y, const NormedExpertsTape<Scalar, ExpertsTape>& tape,
              std::span<std::type_identity_t<Scalar>> d_weight, MatrixRef<Scalar> d_x, Gradient& gradient,
              Workers& workers) {
  const bool on_input = plan.weight_on == WeightOn::input;
  const Index d = group.d_model(), slots = plan.num_slots();
  const auto kept = [&](const std::vector<Scalar>& numbers) {
    require_tape(numbers, d * slots);
    return Eigen::Map<const Matrix<Scalar>>(numbers.data(), d, slots);
  };
  const auto in = kept(tape.in), normed = kept(tape.normed);
  auto d_normed = workers.shared().template matrix<Scalar>(d, slots);
  auto d_answers = workers.shared().template matrix<Scalar>(d, slots);
  auto d_in = workers.shared().template matrix<Scalar>(d, slots);
  workers.for_each_band(slots, 16, [&](Index first, Index last, Scratch&) {
    for (Index s = first; s < last; ++s) {
      const auto slot = std::size_t(s);
      const auto d_token = d_y.col(plan.token[slot]);
      if (!on_input) d_weight[std::size_t(plan.route[slot])] += kernels::dot(normed.col(s), d_token);
      d_normed.col(s) = plan.output_weight(s) * d_token;
      d_answers.col(s).setZero();
      d_in.col(s).setZero();
    }
  });
  backward(group.norm(), kept(tape.answers), d_normed, d_answers, gradient.norm().gain(), workers);
  const auto by_slot = NormedExperts<G>::by_slot(plan, workers.shared());
  const auto d_slot_weight = unread_weights(by_slot, workers.shared());
  backward(group.experts(), in, by_slot, d_answers, tape.experts, d_slot_weight, d_in, gradient.experts(), workers);
  for (Index s = 0; on_input && s < slots; ++s) {
    d_weight[std::size_t(plan.route[std::size_t(s)])] += d_slot_weight[std::size_t(s)];
  }
  add_slots_to_tokens(d_in, plan, d_x, workers);
}

}  // namespace moe::inline MOE_TARGET
