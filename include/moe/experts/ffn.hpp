/// @file  The plain expert of Switch and NLLB: one layer, an activation, one layer.
#pragma once

#include "moe/core/check.hpp"
#include "moe/core/concepts.hpp"
#include "moe/core/scratch.hpp"
#include "moe/core/types.hpp"
#include "moe/experts/activation.hpp"
#include "moe/kernels/matmul.hpp"

namespace moe::inline MOE_TARGET {

/// y = W_out · act(W_in · x + b_in) + b_out. An empty bias is none.
/// Checkpoints call the two wi / wo, fc1 / fc2, c_fc / c_proj or w1 / w2.
template <class W, Activation<ActivationScalar<W>> Act = Relu>
struct Ffn {
  using Scalar = ActivationScalar<W>;
  using Vector = Eigen::Matrix<Scalar, Eigen::Dynamic, 1>;

  Weight<W> w_in;   // (d_ff × d_model)
  Weight<W> w_out;  // (d_model × d_ff)
  Vector b_in{};    // (d_ff)
  Vector b_out{};   // (d_model)
  Act act{};

  Index d_model() const { return w_out.rows(); }
  Index d_ff() const { return w_out.cols(); }

  /// @throws std::invalid_argument if the weights do not fit each other.
  void forward(const ConstMatrixRef<Scalar>& x, MatrixRef<Scalar> y, Scratch& scratch) const {
    require_equal(w_in.rows(), d_ff(), "Ffn: w_in.rows()");
    require_equal(w_in.cols(), d_model(), "Ffn: w_in.cols()");
    if (b_in.size() > 0) require_equal(b_in.size(), d_ff(), "Ffn: b_in.size()");
    if (b_out.size() > 0) require_equal(b_out.size(), d_model(), "Ffn: b_out.size()");
    auto hidden = scratch.matrix<Scalar>(d_ff(), x.cols());
    kernels::matmul<W, Scalar>(map_of(w_in), x, hidden, scratch);
    if (b_in.size() > 0) hidden.colwise() += b_in;
    hidden = act(hidden.array()).matrix();
    kernels::matmul<W, Scalar>(map_of(w_out), hidden, y, scratch);
    if (b_out.size() > 0) y.colwise() += b_out;
  }
};

}  // namespace moe::inline MOE_TARGET
