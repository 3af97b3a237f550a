/// @file  A group of FFN experts, gated or not, with their weights stacked: the fast path.
#pragma once

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "moe/core/check.hpp"
#include "moe/core/concepts.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/types.hpp"
#include "moe/core/weight_stack.hpp"
#include "moe/experts/activation.hpp"
#include "moe/experts/detail/run_bank.hpp"
#include "moe/runtime/workers.hpp"

namespace moe::inline MOE_TARGET {

/// What the experts of a bank add, an expert a column; an empty matrix is none.
template <class Scalar>
struct FfnBiases {
  Matrix<Scalar> gate{};  // (d_ff × num_experts), of gated experts alone
  Matrix<Scalar> up{};    // (d_ff × num_experts)
  Matrix<Scalar> down{};  // (d_model × num_experts)
};

/// For each of num_experts experts, as GatedFfn where act takes two arguments, and as Ffn where it takes one,
///
///   expert(x) = W_down · act(W_gate · x + b_gate, W_up · x + b_up) + b_down, or
///   expert(x) = W_down · act(W_up · x + b_up) + b_down.
///
/// Every expert's rows are split over the workers, never the experts: the load is even whatever the routing, nothing is
/// added by two workers, and each sum has one order. Weights are used where they lie; few tokens are read where they
/// lie, many are packed once; answers are added straight into y.
template <class W, class Act = SwiGlu>
class FfnBank {
 public:
  using Scalar = ActivationScalar<W>;
  using WeightScalar = W;

  static constexpr bool is_gated = GatedActivation<Act, Scalar>;

  /// Gated.
  /// @param w_gate, w_up  (d_ff × d_model) for each expert
  /// @param w_down        (d_model × d_ff) for each expert
  /// @throws std::invalid_argument if the shapes do not fit each other, or there is no expert.
  FfnBank(WeightStack<W> w_gate, WeightStack<W> w_up, WeightStack<W> w_down, Act act = {},
          FfnBiases<Scalar> biases = {})
      : w_gate_(std::move(w_gate)),
        w_up_(std::move(w_up)),
        w_down_(std::move(w_down)),
        act_(act),
        biases_(std::move(biases)) {
    static_assert(is_gated_activation<Act, Scalar>());
    require_fit();
  }

  /// Not gated; biases.gate is empty. Otherwise as above.
  FfnBank(WeightStack<W> w_up, WeightStack<W> w_down, Act act = {}, FfnBiases<Scalar> biases = {})
      : w_gate_(0, 0, 0), w_up_(std::move(w_up)), w_down_(std::move(w_down)), act_(act), biases_(std::move(biases)) {
    static_assert(is_activation<Act, Scalar>());
    require_fit();
  }

  /// Either, of what became of w_gate(), w_up() and w_down() of another bank.
  static FfnBank of(WeightStack<W> w_gate, WeightStack<W> w_up, WeightStack<W> w_down, Act act,
                    FfnBiases<Scalar> biases) {
    if constexpr (is_gated) {
      return {std::move(w_gate), std::move(w_up), std::move(w_down), std::move(act), std::move(biases)};
    } else {
      return {std::move(w_up), std::move(w_down), std::move(act), std::move(biases)};
    }
  }

  Index d_model() const { return first_stack().cols(); }
  Index d_ff() const { return first_stack().rows(); }
  Index num_experts() const { return first_stack().num_experts(); }
  const WeightStack<W>& w_gate() const { return w_gate_; }  // of no experts, if they are not gated
  const WeightStack<W>& w_up() const { return w_up_; }
  const WeightStack<W>& w_down() const { return w_down_; }
  const Act& activation() const { return act_; }
  const FfnBiases<Scalar>& biases() const { return biases_; }

  /// Adds weight · expert(x) to y for each slot of the plan, as Experts asks.
  void apply(const ConstMatrixRef<Scalar>& x, const DispatchPlan<Scalar>& plan, MatrixRef<Scalar> y,
             Workers& workers) const {
    detail::run_bank(*this, x, plan, y, workers);
  }

  /// One expert's parameters, to write; what is not there is empty.
  struct ExpertParameters {
    decltype(std::declval<WeightStack<W>&>().owned(0)) w_gate, w_up, w_down;
    Eigen::Map<Eigen::Matrix<Scalar, Eigen::Dynamic, 1>> b_gate, b_up, b_down;
  };

  /// @throws std::invalid_argument if weights are mapped.
  ExpertParameters operator[](Index expert) {
    const auto column = [&](Matrix<Scalar>& bias) {
      const bool is_there = bias.size() > 0;
      return decltype(ExpertParameters::b_gate)(is_there ? bias.col(expert).data() : nullptr,
                                                is_there ? bias.rows() : 0);
    };
    return {w_gate_.owned(expert), w_up_.owned(expert), w_down_.owned(expert),
            column(biases_.gate),  column(biases_.up),  column(biases_.down)};
  }

  /// From now on an expert's weights lie there; gate is not looked at where experts are not gated. Nobody may use them
  /// meanwhile.
  void move(Index expert, const typename WeightStack<W>::Place& gate, const typename WeightStack<W>::Place& up,
            const typename WeightStack<W>::Place& down) {
    if constexpr (is_gated) w_gate_.move(expert, gate);
    w_up_.move(expert, up);
    w_down_.move(expert, down);
  }

  template <class Visit>
  void visit_parameters(Visit& visit) {
    for (Index e = 0; e < num_experts(); ++e) {
      NamedExpert expert{*this, e};
      visit.expert(e, expert);
    }
  }

 private:
  /// Under the names that most checkpoints use.
  struct NamedExpert {
    FfnBank& bank;
    Index expert;

    template <class Visit>
    void visit_parameters(Visit& visit) {
      const auto both = [&](const std::string& name, WeightStack<W>& weights, Matrix<Scalar>& bias) {
        weights.show(expert, name + ".weight", visit);
        if (bias.size() > 0) visit(name + ".bias", bias.col(expert));
      };
      both("gate_proj", bank.w_gate_, bank.biases_.gate);
      both("up_proj", bank.w_up_, bank.biases_.up);
      both("down_proj", bank.w_down_, bank.biases_.down);
    }
  };

  const WeightStack<W>& first_stack() const { return is_gated ? w_gate_ : w_up_; }

  void require_fit() const {
    const std::string name = is_gated ? "GatedFfnBank: " : "FfnBank: ";
    require(num_experts() >= 1, name + "needs at least one expert");
    require_equal(w_up_.num_experts(), num_experts(), name + "w_up.num_experts()");
    require_equal(w_down_.num_experts(), num_experts(), name + "w_down.num_experts()");
    require_equal(w_up_.rows(), d_ff(), name + "w_up.rows()");
    require_equal(w_up_.cols(), d_model(), name + "w_up.cols()");
    require_equal(w_up_.row_stride(), first_stack().row_stride(), name + "w_up.row_stride()");
    require_equal(w_down_.rows(), d_model(), name + "w_down.rows()");
    require_equal(w_down_.cols(), d_ff(), name + "w_down.cols()");
    const auto require_bias = [&](const Matrix<Scalar>& bias, Index rows, const char* which) {
      if (bias.size() == 0) return;
      require_equal(bias.rows(), rows, name + "biases." + which + ".rows()");
      require_equal(bias.cols(), num_experts(), name + "biases." + which + ".cols()");
    };
    require_bias(biases_.gate, is_gated ? d_ff() : 0, "gate");
    require_bias(biases_.up, d_ff(), "up");
    require_bias(biases_.down, d_model(), "down");
  }

  WeightStack<W> w_gate_, w_up_, w_down_;
  Act act_;
  FfnBiases<Scalar> biases_;
};

/// The same experts with weights in memory of their own, to write.
template <class W, class Act>
FfnBank<W, Act> owned(const FfnBank<W, Act>& bank) {
  return FfnBank<W, Act>::of(owned(bank.w_gate()), owned(bank.w_up()), owned(bank.w_down()), bank.activation(),
                             bank.biases());
}

/// The same experts with the numbers that their coded weights stand for: in float to the bit, in W rounded to it.
template <class W, class Act>
FfnBank<W, Act> dequantized(const FfnBank<Quantized, Act>& bank) {
  return FfnBank<W, Act>::of(dequantized<W>(bank.w_gate()), dequantized<W>(bank.w_up()), dequantized<W>(bank.w_down()),
                             bank.activation(), bank.biases());
}

}  // namespace moe::inline MOE_TARGET
