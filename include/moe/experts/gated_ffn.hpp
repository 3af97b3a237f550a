/// @file  The expert of Mixtral, DeepSeek and Llama-style models: two inputs multiplied, one output.
#pragma once

#include "moe/core/check.hpp"
#include "moe/core/concepts.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/scratch.hpp"
#include "moe/core/types.hpp"
#include "moe/experts/activation.hpp"
#include "moe/experts/detail/bank_kernels.hpp"

namespace moe::inline MOE_TARGET {

/// y = W_down · act(W_gate · x + b_gate, W_up · x + b_up) + b_down. An empty bias is none. act is SwiGLU where not
/// said otherwise: Shazeer 2020, arXiv:2002.05202.
/// Checkpoints call the three w1 / w3 / w2 or gate_proj / up_proj / down_proj.
template <class W, class Act = SwiGlu>
struct GatedFfn {
  static_assert(is_gated_activation<Act, ActivationScalar<W>>());

  using Scalar = ActivationScalar<W>;
  using Vector = Eigen::Matrix<Scalar, Eigen::Dynamic, 1>;

  Weight<W> w_gate;  // (d_ff × d_model)
  Weight<W> w_up;    // (d_ff × d_model)
  Weight<W> w_down;  // (d_model × d_ff)
  Act act{};
  Vector b_gate{};  // (d_ff)
  Vector b_up{};    // (d_ff)
  Vector b_down{};  // (d_model)

  Index d_model() const { return w_down.rows(); }
  Index d_ff() const { return w_down.cols(); }

  /// @throws std::invalid_argument if the weights do not fit each other.
  void forward(const ConstMatrixRef<Scalar>& x, MatrixRef<Scalar> y, Scratch& scratch) const {
    require_equal(w_gate.rows(), d_ff(), "GatedFfn: w_gate.rows()");
    require_equal(w_gate.cols(), d_model(), "GatedFfn: w_gate.cols()");
    require_equal(w_up.rows(), d_ff(), "GatedFfn: w_up.rows()");
    require_equal(w_up.cols(), d_model(), "GatedFfn: w_up.cols()");
    if (b_gate.size() > 0) require_equal(b_gate.size(), d_ff(), "GatedFfn: b_gate.size()");
    if (b_up.size() > 0) require_equal(b_up.size(), d_ff(), "GatedFfn: b_up.size()");
    if (b_down.size() > 0) require_equal(b_down.size(), d_model(), "GatedFfn: b_down.size()");
    const auto if_any = [](const Vector& b) { return b.size() > 0 ? b.data() : nullptr; };
    const kernels::Biases<Scalar> bias{if_any(b_gate), if_any(b_up), if_any(b_down)};
    y.setZero();
    using A = kernels::Exact<W>;
    scratch.reserve(kernels::batch_bytes<A>(d_model(), d_ff(), x.cols()) +
                    2 * kernels::scratch_bytes<A>(d_model(), d_ff(), x.cols()));  // gate_up() and down()
    kernels::for_each_form_in_turn<A>(x.cols(), Numerics{}, scratch, [&](Index first, Index count, bool in_blocks) {
      const auto batch = kernels::batch_of<W, Scalar>(x.middleCols(first, count), y.middleCols(first, count), in_blocks,
                                                      d_ff(), scratch);
      kernels::gate_up<A>(map_of(w_gate), map_of(w_up), bias, 0, d_ff(), batch, act, scratch);
      kernels::down<A>(map_of(w_down), bias, 0, d_model(), batch, scratch);
    });
  }
};

}  // namespace moe::inline MOE_TARGET
