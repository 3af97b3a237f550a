/// @file  Gradients of experts between two projections.
#pragma once

#include <cstddef>
#include <span>
#include <type_traits>
#include <vector>

#include "moe/core/dispatch.hpp"
#include "moe/core/types.hpp"
#include "moe/experts/latent_experts.hpp"
#include "moe/runtime/workers.hpp"
#include "moe/train/experts/projection.hpp"
#include "moe/train/gradient_shape.hpp"
#include "moe/train/kernels/rms_norm.hpp"
#include "moe/train/no_gradient.hpp"

namespace moe::inline MOE_TARGET {

/// What a forward pass keeps for its backward pass, (d_latent × n_tokens) each.
template <class Scalar, class ExpertsTape>
struct LatentExpertsTape {
  std::vector<Scalar> projected, normed, answers, normed_answers;  // W_in·x + b_in; what experts read, if there is a
                                                                   // norm; v; what is projected, if there is one
  ExpertsTape experts;
};

template <class G, class In, class Out>
auto tape_of(const LatentExperts<G, In, Out>& group) {
  return LatentExpertsTape<typename G::Scalar, decltype(tape_of(group.experts()))>{};
}

/// As group.apply(), and keeps in `tape` what backward() needs.
template <class G, class In, class Out, class ExpertsTape, class Scalar = typename G::Scalar>
void apply(const LatentExperts<G, In, Out>& group, const ConstMatrixRef<Scalar>& x, const DispatchPlan<Scalar>& plan,
           MatrixRef<Scalar> y, LatentExpertsTape<Scalar, ExpertsTape>& tape, Workers& workers) {
  const auto keep = [&](std::vector<Scalar>& numbers) {
    numbers.resize(std::size_t(group.d_latent() * x.cols()));
    return Eigen::Map<Matrix<Scalar>>(numbers.data(), group.d_latent(), x.cols());
  };
  auto projected = keep(tape.projected), u = keep(group.norm() ? tape.normed : tape.projected), v = keep(tape.answers),
       normed = keep(group.norm_of_answers() ? tape.normed_answers : tape.answers);
  group.run(x, projected, u, v, normed, y, workers, [&] { apply(group.experts(), u, plan, v, tape.experts, workers); });
}

/// As backward() of a bank: experts/gated_ffn_bank.hpp.
template <class G, class In, class Out, class ExpertsTape, class Gradient, class Scalar = typename G::Scalar>
void backward(const LatentExperts<G, In, Out>& group, const ConstMatrixRef<Scalar>& x, const DispatchPlan<Scalar>& plan,
              const ConstMatrixRef<Scalar>& d_y, const LatentExpertsTape<Scalar, ExpertsTape>& tape,
              std::span<std::type_identity_t<Scalar>> d_weight, MatrixRef<Scalar> d_x, Gradient& gradient,
              Workers& workers) {
  const Index latent = group.d_latent(), n = x.cols();
  const auto kept = [&](const std::vector<Scalar>& numbers) {
    require_tape(numbers, latent * n);
    return Eigen::Map<const Matrix<Scalar>>(numbers.data(), latent, n);
  };
  const auto zeros = [&] {
    auto matrix = workers.shared().template matrix<Scalar>(latent, n);
    matrix.setZero();
    return matrix;
  };
  const auto projected = kept(tape.projected), u = kept(group.norm() ? tape.normed : tape.projected);

  const auto through = [&](const RmsNorm<Scalar>& norm, const auto& its_x, const auto& d_its_y, auto gain_of) {
    auto d_its_x = zeros();
    if constexpr (learns<Gradient>) {
      backward(norm, its_x, d_its_y, d_its_x, gain_of(gradient)->gain(), workers);
    } else {
      backward(norm, its_x, d_its_y, d_its_x, gradient.gain(), workers);
    }
    return d_its_x;
  };
  auto d_u = zeros(), d_answers = zeros();
  const auto v = kept(tape.answers);
  backward(group.out(), kept(group.norm_of_answers() ? tape.normed_answers : tape.answers), d_y, d_answers,
           gradient.out(), workers);
  const auto d_v = group.norm_of_answers() ? through(*group.norm_of_answers(), v, d_answers,
                                                     [](auto& its) -> auto& { return its.norm_of_answers(); })
                                           : d_answers;
  backward(group.experts(), u, plan, d_v, tape.experts, d_weight, d_u, gradient.experts(), workers);
  const auto d_projected =
      group.norm() ? through(*group.norm(), projected, d_u, [](auto& its) -> auto& { return its.norm(); }) : d_u;
  backward(group.in(), x, d_projected, d_x, gradient.in(), workers);
}

}  // namespace moe::inline MOE_TARGET
