/// @file  Gradients of logits that are scaled, or kept within a bound.
#pragma once

#include "moe/core/tokens.hpp"
#include "moe/core/types.hpp"
#include "moe/routers/shaped_top_k.hpp"
#include "moe/runtime/workers.hpp"
#include "moe/train/routers/linear_logits.hpp"
#include "moe/train/routers/logits_router.hpp"

namespace moe::inline MOE_TARGET {

/// As backward() of LinearLogits. Through l' = c·tanh(m·l/c):  ∂L/∂l = m (1 − (l'/c)²) ∂L/∂l', and on through the part
/// that is shaped, whose logits are computed anew.
/// @param logits    shaped
/// @param d_logits  ∂L/∂ the shaped logits
template <class Logits, class Gradient, class Scalar = typename Logits::Scalar>
void backward(const ShapedLogits<Logits>& shaped, const Tokens<Scalar>& tokens, const ConstMatrixRef<Scalar>& logits,
              const ConstMatrixRef<Scalar>& d_logits, MatrixRef<Scalar> d_x, Gradient& gradient, Workers& workers) {
  auto before = workers.shared().template matrix<Scalar>(logits.rows(), logits.cols());
  auto d_before = workers.shared().template matrix<Scalar>(logits.rows(), logits.cols());
  shaped.unshaped().compute(tokens, before, workers);
  for (Index t = 0; t < logits.cols(); ++t) {
    for (Index e = 0; e < logits.rows(); ++e) d_before(e, t) = d_logits(e, t) * shaped.slope(logits(e, t));
  }
  backward(shaped.unshaped(), tokens, ConstMatrixRef<Scalar>(before), ConstMatrixRef<Scalar>(d_before), d_x,
           gradient.unshaped(), workers);
}

}  // namespace moe::inline MOE_TARGET
