/// @file  Experts that cost next to nothing.
///
/// A router that may send a token to one of these spends less on easy tokens. Beside experts that do compute, hold them
/// in JoinedExperts. MoE++: Jin et al. 2024, arXiv:2410.07348; LongCat-Flash has copies alone, arXiv:2509.01322.
#pragma once

#include "moe/core/check.hpp"
#include "moe/core/scratch.hpp"
#include "moe/core/types.hpp"
#include "moe/kernels/scores.hpp"
#include "moe/kernels/vectors.hpp"

namespace moe::inline MOE_TARGET {

/// y = 0: skips the layer.
template <class Scalar_>
struct ZeroExpert {
  using Scalar = Scalar_;
  Index width;  // d_model

  Index d_model() const { return width; }
  void forward(const ConstMatrixRef<Scalar>& /*x*/, MatrixRef<Scalar> y, Scratch& /*scratch*/) const { y.setZero(); }
};

/// y = x: LongCat's "zero expert", MoE++'s "copy".
template <class Scalar_>
struct CopyExpert {
  using Scalar = Scalar_;
  Index width;  // d_model

  Index d_model() const { return width; }
  void forward(const ConstMatrixRef<Scalar>& x, MatrixRef<Scalar> y, Scratch& /*scratch*/) const { y = x; }
};

/// y = a·x + b·v, where (a, b) = softmax(W · x).
template <class Scalar_>
struct ConstantExpert {
  using Scalar = Scalar_;

  Eigen::Matrix<Scalar, Eigen::Dynamic, 1> v;  // (d_model)
  Weight<Scalar> w_mix;                        // (2 × d_model)

  Index d_model() const { return v.size(); }

  /// @throws std::invalid_argument unless w_mix is (2 × d_model).
  void forward(const ConstMatrixRef<Scalar>& x, MatrixRef<Scalar> y, Scratch& /*scratch*/) const {
    require_equal(w_mix.rows(), 2, "ConstantExpert: w_mix.rows()");
    require_equal(w_mix.cols(), d_model(), "ConstantExpert: w_mix.cols()");
    for (Index t = 0; t < x.cols(); ++t) {
      Eigen::Matrix<Scalar, 2, 1> mix(kernels::dot(w_mix.row(0), x.col(t)), kernels::dot(w_mix.row(1), x.col(t)));
      softmax(mix, mix);
      y.col(t) = mix(1) * v;
      kernels::add_scaled(mix(0), x.col(t), y.col(t));
    }
  }
};

}  // namespace moe::inline MOE_TARGET
