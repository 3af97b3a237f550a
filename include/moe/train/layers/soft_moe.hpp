/// @file  Gradients of the layer whose experts see weighted averages of all tokens.
#pragma once

#include <span>
#include <utility>
#include <vector>

#include "moe/core/check.hpp"
#include "moe/core/types.hpp"
#include "moe/kernels/lanes.hpp"
#include "moe/kernels/matmul.hpp"
#include "moe/kernels/vectors.hpp"
#include "moe/layers/soft_moe.hpp"
#include "moe/routers/detail/logits.hpp"
#include "moe/runtime/executors/serial.hpp"
#include "moe/runtime/workers.hpp"
#include "moe/runtime/workspace.hpp"
#include "moe/train/dispatch.hpp"
#include "moe/train/gradient_shape.hpp"
#include "moe/train/kernels/add_product.hpp"
#include "moe/train/layer_tape.hpp"
#include "moe/train/routers/detail/scores.hpp"
#include "moe/train/routers/detail/unit_length.hpp"
#include "moe/train/routers/linear_logits.hpp"

namespace moe::inline MOE_TARGET {

/// What backward() needs of the forward() before.
template <class Scalar, class ExpertsTape>
struct SoftMoeTape : LayerTape<Scalar> {  // whose routing has the logits of slots and tokens
  std::vector<Scalar> in, out;  // (d_model × num_sequences · num_slots) what slots averaged, what was answered
  ExpertsTape experts;
};

template <class G>
auto tape_of(const SoftMoe<G>& layer) {
  return SoftMoeTape<typename G::Scalar, decltype(tape_of(layer.experts()))>{};
}

namespace detail {

template <class Scalar>
Eigen::Map<Matrix<Scalar>, Eigen::Aligned64> zeros(Index rows, Index cols, Scratch& scratch) {
  auto zeros = scratch.matrix<Scalar>(rows, cols);
  zeros.setZero();
  return zeros;
}

/// Through mean = from · shares of average(): d_from += d_mean · sharesᵀ, d_shares = fromᵀ · d_mean.
template <class Scalar>
void average_backward(const ConstMatrixRef<Scalar>& from, const ConstMatrixRef<Scalar>& shares,
                      const ConstMatrixRef<Scalar>& d_mean, MatrixRef<Scalar> d_from, MatrixRef<Scalar> d_shares,
                      Index num_sequences, Workers& workers) {
  if (num_sequences == 0) return;
  const Index d_model = from.rows(), ins = from.cols() / num_sequences, outs = d_mean.cols() / num_sequences;
  workers.for_each_band(d_model, 2 * kernels::lanes<Scalar>, [&](Index first, Index last, Scratch& scratch) {
    Scalar* const room = kernels::make_product_room<Scalar>(scratch);
    for (Index b = 0; b < num_sequences; ++b) {
      kernels::add_outer<Scalar>(shares.middleCols(b * outs, outs), d_mean.block(first, b * outs, last - first, outs),
                                 d_from.block(first, b * ins, last - first, ins).transpose(), room);
    }
  });
  for_each_sequence(num_sequences, workers, [&](Index b, auto&... how) {
    const Index stride = from.outerStride();
    const WeightMap<Scalar> rows(from.data() + b * ins * stride, ins, d_model, Eigen::OuterStride<>(stride));
    kernels::matmul<Scalar, Scalar>(rows, d_mean.middleCols(b * outs, outs), d_shares.middleCols(b * outs, outs),
                                    how...);
  });
}

/// Through out = normalize(v, gain, length) of each column: adds to d_v, and leaves in d what adds up to ∂L/∂gain.
template <class Scalar, class Gain>
void normalize_backward(const ConstMatrixRef<Scalar>& v, const Gain& gain, Scalar length, MatrixRef<Scalar> d,
                        MatrixRef<Scalar> d_v, Workers& workers) {
  using Vector = Eigen::Matrix<Scalar, Eigen::Dynamic, 1>;
  workers.for_each_band(v.cols(), 1, [&](Index first, Index last, Scratch& scratch) {
    Eigen::Map<Vector> u(scratch.array<Scalar>(v.rows()), v.rows()), d_u(scratch.array<Scalar>(v.rows()), v.rows());
    for (Index c = first; c < last; ++c) {
      u = v.col(c);
      const Scalar norm = to_length(u, 1);
      d_u = length * d.col(c);
      d.col(c) = d_u.cwiseProduct(u);
      if (gain.size() > 0) d_u = d_u.cwiseProduct(gain);
      unit_length_backward(u, norm, d_u);
      d_v.col(c) += d_u;
    }
  });
}

/// From shares of soft_dispatch() and soft_combine() to the logits that both are made of. Overwrites d_dispatch and
/// d_combine.
template <class Scalar>
void shares_backward(const ConstMatrixRef<Scalar>& dispatch, const ConstMatrixRef<Scalar>& combine,
                     MatrixRef<Scalar> d_dispatch, MatrixRef<Scalar> d_combine, MatrixRef<Scalar> d_logits,
                     Workers& workers) {
  const Index num_slots = combine.rows(), length = dispatch.rows();
  workers.for_each_band(dispatch.cols(), 1, [&](Index first, Index last, Scratch&) {
    for (Index c = first; c < last; ++c) {
      softmax_backward(dispatch.col(c), d_dispatch.col(c));
      d_logits.row(c % num_slots).segment(c / num_slots * length, length) += d_dispatch.col(c).transpose();
    }
  });
  workers.for_each_band(combine.cols(), 1, [&](Index first, Index last, Scratch&) {
    for (Index t = first; t < last; ++t) {
      softmax_backward(combine.col(t), d_combine.col(t));
      d_logits.col(t) += d_combine.col(t);
    }
  });
}

/// From scale · φ' to the slots, their gain and the scale. Slots lie in memory as tokens do.
/// @param d  (d_model × num_slots) overwritten
template <class Scalar, class Layer, class GradientLayer>
void slots_backward(const Layer& layer, MatrixRef<Scalar> d, GradientLayer& gradient, Workers& workers) {
  const Eigen::Map<const Matrix<Scalar>> slots(layer.slots().data(), d.rows(), d.cols());
  auto slot = workers.shared().template matrix<Scalar>(d.rows(), 1);
  for (Index s = 0; s < slots.cols(); ++s) {
    normalize(slots.col(s), layer.slot_gain(), layer.target_norm(), slot.col(0));
    gradient.scale() += kernels::dot(slot, d.col(s));
  }
  normalize_backward<Scalar>(slots, layer.slot_gain(), layer.scale() * layer.target_norm(), d,
                             Eigen::Map<Matrix<Scalar>>(gradient.slots().data(), d.rows(), d.cols()), workers);
  if (layer.slot_gain().size() > 0) kernels::add_columns(d, gradient.slot_gain());
}

}  // namespace detail

/// As forward() of a MoeLayer: train/layers/moe_layer.hpp.
template <class G, class T, class Scalar = typename G::Scalar>
void forward(const SoftMoe<G>& layer, const ConstMatrixRef<Scalar>& x, MatrixRef<Scalar> y,
             SoftMoeTape<Scalar, T>& tape, ExecutorRef executor = Serial{}) {
  if (is_padded(tape.workspace())) return learn_real_tokens(layer, x, y, tape, executor);
  layer.require_fit();
  require_columns(x, y, layer.d_model(), "forward");
  Workspace<Scalar>& ws = tape.ws;
  const Index num_sequences = layer.count_sequences(x.cols(), ws.side), slots = num_sequences * layer.num_slots();
  Workers workers = workers_of(ws, executor, Mode::learn);
  tape.in.resize(std::size_t(layer.d_model() * slots));
  tape.out.assign(tape.in.size(), Scalar(0));
  Eigen::Map<Matrix<Scalar>> in(tape.in.data(), layer.d_model(), slots), out(tape.out.data(), layer.d_model(), slots);

  const auto combine = layer.fill_slots(x, in, ws.routing, workers);
  const auto plan = plan_slots(num_sequences, layer.slots_per_expert(), layer.num_experts(), ws.plan);
  apply(layer.experts(), in, plan, out, tape.experts, workers);
  detail::average<Scalar>(out, combine, y, num_sequences, workers);
  tape.start(x, layer.num_slots());
}

/// As backward() of a MoeLayer.
template <class G, class T, class GradientLayer, class Scalar = typename G::Scalar>
void backward(const SoftMoe<G>& layer, const ConstMatrixRef<Scalar>& x, const ConstMatrixRef<Scalar>& d_y,
              SoftMoeTape<Scalar, T>& tape, MatrixRef<Scalar> d_x, GradientLayer& gradient,
              ExecutorRef executor = Serial{}) {
  if (is_padded(tape.workspace())) return backward_real_tokens(layer, x, d_y, tape, d_x, gradient, executor);
  tape.require_start(x, d_y, d_x, layer.d_model(), layer.num_experts());
  require_gradient(gradient.slots(), layer.slots(), "slots");
  require_gradient(gradient.token_gain(), layer.token_gain(), "token_gain");
  require_gradient(gradient.slot_gain(), layer.slot_gain(), "slot_gain");
  require_tape(tape.ws.routing.logits, layer.num_slots() * x.cols());
  require_tape(tape.in, layer.d_model() * tape.ws.plan.view().num_slots());
  Workspace<Scalar>& ws = tape.ws;
  Workers workers = workers_of(ws, executor, Mode::learn);
  Scratch& shared = workers.shared();
  const auto plan = ws.plan.view();
  const Index d = layer.d_model(), num_slots = layer.num_slots(), num_tokens = x.cols();
  const Index num_sequences = plan.num_slots() / num_slots, length = num_sequences > 0 ? num_tokens / num_sequences : 0;
  const bool of_normalized = layer.options().average_normalized;
  const Eigen::Map<const Matrix<Scalar>> in(tape.in.data(), d, plan.num_slots());
  const Eigen::Map<const Matrix<Scalar>> out(tape.out.data(), d, plan.num_slots());

  const auto tokens = layer.normalize_tokens(x, workers);
  const auto logits = logits_of(ws.routing, num_slots, num_tokens);
  auto dispatch = shared.matrix<Scalar>(length, plan.num_slots()),
       combine = shared.matrix<Scalar>(num_slots, num_tokens);
  soft_dispatch<Scalar>(logits, dispatch, workers);
  soft_combine<Scalar>(logits, combine, workers);

  auto d_out = detail::zeros<Scalar>(d, plan.num_slots(), shared);
  auto d_in = detail::zeros<Scalar>(d, plan.num_slots(), shared);
  auto d_tokens = detail::zeros<Scalar>(d, num_tokens, shared);
  auto d_dispatch = shared.matrix<Scalar>(length, plan.num_slots());
  auto d_combine = shared.matrix<Scalar>(num_slots, num_tokens);
  detail::average_backward<Scalar>(out, combine, d_y, d_out, d_combine, num_sequences, workers);
  backward(layer.experts(), in, plan, d_out, std::as_const(tape.experts), unread_weights(plan, shared), d_in,
           gradient.experts(), workers);
  if (of_normalized) {
    detail::average_backward<Scalar>(tokens, dispatch, d_in, d_tokens, d_dispatch, num_sequences, workers);
  } else {
    detail::average_backward<Scalar>(x, dispatch, d_in, d_x, d_dispatch, num_sequences, workers);
  }

  auto d_logits = tape.logit_gradient();
  detail::shares_backward<Scalar>(dispatch, combine, d_dispatch, d_combine, d_logits, workers);
  auto d_slots = detail::zeros<Scalar>(d, num_slots, shared);
  linear_backward<Scalar>(layer.normalize_slots(workers), tokens, d_logits, d_tokens, {d_slots.data(), num_slots, d},
                          {nullptr, 0}, workers);
  detail::slots_backward<Scalar>(layer, d_slots, gradient, workers);
  detail::normalize_backward<Scalar>(x, layer.token_gain(), layer.target_norm(), d_tokens, d_x, workers);
  if (layer.token_gain().size() > 0) kernels::add_columns(d_tokens, gradient.token_gain());
  tape.is_spent = true;
}

}  // namespace moe::inline MOE_TARGET
