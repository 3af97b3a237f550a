/// @file  Gradients of a bank of FFN experts.
#pragma once

#include <algorithm>
#include <span>
#include <vector>

#include "moe/core/dispatch.hpp"
#include "moe/core/types.hpp"
#include "moe/experts/detail/run_bank.hpp"
#include "moe/experts/ffn_bank.hpp"
#include "moe/kernels/lanes.hpp"
#include "moe/kernels/vectors.hpp"
#include "moe/runtime/workers.hpp"
#include "moe/train/dispatch.hpp"
#include "moe/train/experts/activation.hpp"
#include "moe/train/gradient_shape.hpp"
#include "moe/train/kernels/add_product.hpp"
#include "moe/train/no_gradient.hpp"

namespace moe::inline MOE_TARGET {

/// What a forward pass of a bank keeps for its backward pass: what its activations read.
template <class Scalar>
struct FfnBankTape {
  std::vector<Scalar> gate, up;  // a slot after the other; no gate of experts that are not gated

  /// Room for so many slots.
  template <class Bank>
  kernels::Kept<Scalar> keep(const Bank& bank, Index num_slots) {
    const Index stride = kernels::kept_stride(bank.d_ff());
    if (Bank::is_gated) gate.resize(std::size_t(stride * num_slots));
    up.resize(std::size_t(stride * num_slots));
    return {gate.data(), up.data(), stride};
  }

  /// What was kept.
  /// @throws std::invalid_argument unless that is of this bank, and of as many slots.
  template <class Bank>
  kernels::Kept<const Scalar> kept(const Bank& bank, Index num_slots) const {
    const Index stride = kernels::kept_stride(bank.d_ff());
    if (Bank::is_gated) require_tape(gate, stride * num_slots);
    require_tape(up, stride * num_slots);
    return {gate.data(), up.data(), stride};
  }
};

template <class W, class Act>
FfnBankTape<ActivationScalar<W>> tape_of(const FfnBank<W, Act>&) {
  return {};
}

/// As bank.apply(), and keeps in `tape` what backward() needs.
template <class W, class Act, class Scalar = ActivationScalar<W>>
void apply(const FfnBank<W, Act>& bank, const ConstMatrixRef<Scalar>& x, const DispatchPlan<Scalar>& plan,
           MatrixRef<Scalar> y, FfnBankTape<Scalar>& tape, Workers& workers) {
  detail::run_bank(bank, x, plan, y, workers, detail::BankHooks<Scalar>{.kept = tape.keep(bank, plan.num_slots())});
}

namespace detail {

/// @throws std::invalid_argument naming both numbers unless the gradient is of the same shape.
template <class Gradient, class Bank>
void require_shape_of(const Gradient& gradient, const Bank& bank) {
  require_equal(gradient.num_experts(), bank.num_experts(), "backward: gradient.num_experts()");
  require_equal(gradient.d_model(), bank.d_model(), "backward: gradient.d_model()");
  require_equal(gradient.d_ff(), bank.d_ff(), "backward: gradient.d_ff()");
  require_gradient(gradient.biases().gate, bank.biases().gate, "biases.gate");
  require_gradient(gradient.biases().up, bank.biases().up, "biases.up");
  require_gradient(gradient.biases().down, bank.biases().down, "biases.down");
}

/// Some numbers of each slot, (rows × num_slots).
template <class Scalar>
using SlotsMap = Eigen::Map<Matrix<Scalar>, Eigen::Aligned64, Eigen::OuterStride<>>;

/// What is added to a backward pass where nothing lies beside the weights of a bank.
template <class Scalar>
struct NothingBeside {
  using Slots = SlotsMap<Scalar>;
  void to_hidden(const Slots&, Slots&) {}
  void to_input(Slots&) {}
  void add_gradients(const Slots&, const Slots&, const Slots&, const Slots&, const Slots&) {}
};

/// One backward pass of a bank. For each slot, with x what its expert has read, g = ∂L/∂(expert's answer) and
/// h = act(a, b) of a = W_gate·x + b_gate, b = W_up·x + b_up, or h = act(b):
///
///   ∂L/∂W_down += w g hᵀ      ∂L/∂h = W_downᵀ g       ∂L/∂w = h·∂L/∂h + g·b_down
///   ∂L/∂W_gate += ∂L/∂a xᵀ    ∂L/∂a = w ∂L/∂h ⊙ ∂act/∂a, and alike for up and b
///   ∂L/∂x = W_gateᵀ ∂L/∂a + W_upᵀ ∂L/∂b
///
/// where w is the slot's weight, if it weighs the answer. If it weighs what is read, x is w times a token's, and w = 1.
template <class W, class Act>
class BankBackward {
  using Scalar = ActivationScalar<W>;
  static constexpr bool is_gated = FfnBank<W, Act>::is_gated;
  static constexpr Index chunk = 64;
  using Chunk = Eigen::Array<Scalar, Eigen::Dynamic, 1, Eigen::ColMajor, chunk, 1>;  // on the stack
  using Slots = SlotsMap<Scalar>;
  using KeptMap = Eigen::Map<const Matrix<Scalar>, Eigen::Unaligned, Eigen::OuterStride<>>;

 public:
  /// @param kept  by the forward pass, of each slot of the plan
  BankBackward(const FfnBank<W, Act>& bank, const DispatchPlan<Scalar>& plan, const kernels::Kept<const Scalar>& kept,
               Workers& workers)
      : bank_(bank),
        plan_(plan),
        workers_(workers),
        gate_(map_of_slots(kept.gate, kept.stride)),
        up_(map_of_slots(kept.up, kept.stride)),
        in_(slots(bank.d_model())),
        d_in_(slots(bank.d_model())),
        d_out_(slots(bank.d_model())),
        hidden_(slots(bank.d_ff())),
        d_gate_(slots(is_gated ? bank.d_ff() : 0)),
        d_up_(slots(bank.d_ff())) {}

  /// @param beside  what lies beside the weights, such as adapters
  template <class Gradient, class Beside>
  void run(const ConstMatrixRef<Scalar>& x, const ConstMatrixRef<Scalar>& d_y, std::span<Scalar> d_weight,
           MatrixRef<Scalar> d_x, Gradient& gradient, Beside&& beside) {
    if (plan_.num_slots() == 0) return;
    gather(x, d_y);
    through_down();
    beside.to_hidden(d_out_, d_up_);
    through_activation(d_weight);
    add_gradients(gradient);
    beside.add_gradients(in_, hidden_, d_gate_, d_up_, d_out_);
    through_gate_and_up();
    beside.to_input(d_in_);
    add_to_tokens(x, d_weight, d_x);
  }

 private:
  bool on_input() const { return plan_.weight_on == WeightOn::input; }

  Slots slots(Index rows) {
    const Index stride = kernels::kept_stride(rows);
    return {workers_.shared().template array<Scalar>(stride * plan_.num_slots()), rows, plan_.num_slots(),
            Eigen::OuterStride<>(stride)};
  }
  KeptMap map_of_slots(const Scalar* numbers, Index stride) const {
    return {numbers, bank_.d_ff(), plan_.num_slots(), Eigen::OuterStride<>(stride)};
  }

  template <class F>
  void for_each_slot(const F& f) {
    workers_.for_each_band(plan_.num_slots(), 1, [&](Index first, Index last, Scratch&) {
      for (Index s = first; s < last; ++s) f(s, plan_.token[std::size_t(s)]);
    });
  }

  /// f(expert, its first slot, how many) for those with tokens.
  template <class F>
  void for_each_expert(const F& f) const {
    for (Index e = 0; e < plan_.num_experts(); ++e) {
      if (plan_.count(e) > 0) f(e, plan_.first(e), plan_.count(e));
    }
  }

  void gather(const ConstMatrixRef<Scalar>& x, const ConstMatrixRef<Scalar>& d_y) {
    for_each_slot([&](Index s, Index token) {
      in_.col(s) = plan_.input_weight(s) * x.col(token);
      d_out_.col(s) = d_y.col(token);
    });
  }

  /// f(expert, its first slot, how many, first row, rows, room) for a band of rows of each expert's matrices.
  template <class F>
  void for_each_band(Index rows, const F& f) {
    workers_.for_each_band(rows, 2 * kernels::lanes<Scalar>, [&](Index first, Index last, Scratch& scratch) {
      Scalar* const room = kernels::make_product_room<Scalar>(scratch);
      for_each_expert([&](Index e, Index slot, Index count) { f(e, slot, count, first, last - first, room); });
    });
  }

  /// d_up_ = W_downᵀ·g, for now: ∂L/∂h where w = 1.
  void through_down() {
    for_each_band(bank_.d_ff(), [&](Index e, Index slot, Index count, Index first, Index rows, Scalar* room) {
      auto d_hidden = d_up_.block(first, slot, rows, count);
      d_hidden.setZero();
      kernels::add_transposed<W, Scalar>(kernels::columns_of_weight(bank_.w_down()[e], first, first + rows),
                                         d_out_.middleCols(slot, count), d_hidden, room);
    });
  }

  /// From here on, g is weighted, and hidden_ is h.
  void through_activation(std::span<Scalar> d_weight) {
    for_each_slot([&](Index s, Index) {
      const Scalar w = plan_.output_weight(s);
      Scalar d_w = 0;
      for (Index i = 0; i < bank_.d_ff(); i += chunk) {
        const auto part = [&](auto& all) { return all.col(s).segment(i, std::min(chunk, bank_.d_ff() - i)).array(); };
        const Chunk b = part(up_), d_h = part(d_up_);
        Chunk h, by_up;
        if constexpr (is_gated) {
          const Chunk a = part(gate_);
          Chunk by_gate;
          h = bank_.activation()(a, b);
          slopes(bank_.activation(), a, b, by_gate, by_up);
          part(d_gate_) = w * d_h * by_gate;
        } else {
          h = bank_.activation()(b);
          by_up = slope(bank_.activation(), b);
        }
        d_w += kernels::dot(h, d_h);
        part(hidden_) = h;
        part(d_up_) = w * d_h * by_up;
      }
      if (on_input()) return;
      const Matrix<Scalar>& bias = bank_.biases().down;
      if (bias.size() > 0) d_w += kernels::dot(bias.col(expert_of(s)), d_out_.col(s));
      d_weight[std::size_t(plan_.route[std::size_t(s)])] += d_w;
      d_out_.col(s) *= w;
    });
  }

  Index expert_of(Index slot) const {
    return std::upper_bound(plan_.offset.begin(), plan_.offset.end(), slot) - plan_.offset.begin() - 1;
  }

  void add_gradients(NoGradient<Scalar>&) {}

  void add_gradients(FfnBank<Scalar, Act>& gradient) {
    for_each_band(bank_.d_ff(), [&](Index e, Index slot, Index count, Index first, Index rows, Scalar* room) {
      const auto x = in_.middleCols(slot, count);
      const auto to = gradient[e];
      const auto add = [&](const Slots& d, Eigen::Map<Weight<Scalar>> d_w, auto d_b) {
        const auto d_rows = d.block(first, slot, rows, count);
        kernels::add_outer<Scalar>(d_rows, x, d_w.middleRows(first, rows), room);
        if (d_b.size() > 0) kernels::add_columns(d_rows, d_b.segment(first, rows));
      };
      if constexpr (is_gated) add(d_gate_, to.w_gate, to.b_gate);
      add(d_up_, to.w_up, to.b_up);
    });
    for_each_band(bank_.d_model(), [&](Index e, Index slot, Index count, Index first, Index rows, Scalar* room) {
      const auto d_rows = d_out_.block(first, slot, rows, count);
      auto to = gradient[e];
      kernels::add_outer<Scalar>(d_rows, hidden_.middleCols(slot, count), to.w_down.middleRows(first, rows), room);
      if (to.b_down.size() > 0) kernels::add_columns(d_rows, to.b_down.segment(first, rows));
    });
  }

  void through_gate_and_up() {
    for_each_band(bank_.d_model(), [&](Index e, Index slot, Index count, Index first, Index rows, Scalar* room) {
      auto d_x = d_in_.block(first, slot, rows, count);
      d_x.setZero();
      const auto add = [&](const StoredWeight<W>& w, const Slots& d) {
        kernels::add_transposed<W, Scalar>(kernels::columns_of_weight(w, first, first + rows),
                                           d.middleCols(slot, count), d_x, room);
      };
      if constexpr (is_gated) add(bank_.w_gate()[e], d_gate_);
      add(bank_.w_up()[e], d_up_);
    });
  }

  void add_to_tokens(const ConstMatrixRef<Scalar>& x, std::span<Scalar> d_weight, MatrixRef<Scalar> d_x) {
    if (on_input()) {
      for_each_slot([&](Index s, Index token) {
        d_weight[std::size_t(plan_.route[std::size_t(s)])] += kernels::dot(x.col(token), d_in_.col(s));
        d_in_.col(s) *= plan_.input_weight(s);
      });
    }
    add_slots_to_tokens(d_in_, plan_, d_x, workers_);
  }

  const FfnBank<W, Act>& bank_;
  const DispatchPlan<Scalar>& plan_;
  Workers& workers_;
  KeptMap gate_, up_;
  Slots in_, d_in_, d_out_, hidden_, d_gate_, d_up_;
};

}  // namespace detail

/// Gradients of L through y.col(t) += weight · expert(x.col(t)), for the x and the plan of the apply() that wrote the
/// tape. Experts without a slot cost nothing, and their gradients stay as they are.
/// @param d_y       (d_model × n_tokens) ∂L/∂y
/// @param d_weight  ∂L/∂weight of each route; added to
/// @param d_x       (d_model × n_tokens) ∂L/∂x; added to
/// @param gradient  ∂L/∂ each parameter, of a bank of the same shape, added to; or NoGradient
/// @throws std::invalid_argument naming both numbers if a shape differs, or the tape is of another bank.
template <class W, class Act, class Gradient, class Scalar = ActivationScalar<W>>
void backward(const FfnBank<W, Act>& bank, const ConstMatrixRef<Scalar>& x, const DispatchPlan<Scalar>& plan,
              const ConstMatrixRef<Scalar>& d_y, const FfnBankTape<Scalar>& tape, std::span<Scalar> d_weight,
              MatrixRef<Scalar> d_x, Gradient& gradient, Workers& workers) {
  require_group(bank, x, plan, d_x, "backward");
  if constexpr (learns<Gradient>) detail::require_shape_of(gradient, bank);
  detail::BankBackward<W, Act>(bank, plan, tape.kept(bank, plan.num_slots()), workers)
      .run(x, d_y, d_weight, d_x, gradient, detail::NothingBeside<Scalar>());
}

}  // namespace moe::inline MOE_TARGET
