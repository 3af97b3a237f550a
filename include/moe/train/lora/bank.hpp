/// @file  Gradients of the adapters of a bank.
#pragma once

#include <algorithm>
#include <iterator>
#include <span>
#include <vector>

#include "moe/core/check.hpp"
#include "moe/core/dispatch.hpp"
#include "moe/core/types.hpp"
#include "moe/lora/bank.hpp"
#include "moe/runtime/workers.hpp"
#include "moe/train/experts/ffn_bank.hpp"
#include "moe/train/gradient_shape.hpp"
#include "moe/train/lora/adapter.hpp"
#include "moe/train/no_gradient.hpp"

namespace moe::inline MOE_TARGET {

template <class W, class Act>
FfnBankTape<ActivationScalar<W>> tape_of(const LoraBank<W, Act>&) {
  return {};
}

/// As bank.apply(), and keeps in `tape` what backward() needs. Adapters do not read what dropout leaves out, where the
/// step has a seed.
template <class W, class Act, class Scalar = ActivationScalar<W>>
void apply(const LoraBank<W, Act>& bank, const ConstMatrixRef<Scalar>& x, const DispatchPlan<Scalar>& plan,
           MatrixRef<Scalar> y, FfnBankTape<Scalar>& tape, Workers& workers) {
  detail::run_lora_bank(bank.base(), bank.adapters(), x, plan, y, workers, tape.keep(bank, plan.num_slots()),
                        Dropout(bank.dropout(), bank.seed(), workers.seed()));
}

namespace detail {

/// What the adapters of a bank add to its backward pass, and their gradients.
template <class Scalar>
class LoraBackward {
  using Slots = SlotsMap<Scalar>;
  using Adapters = std::vector<ExpertAdapters<Scalar>>;

 public:
  LoraBackward(const Adapters& adapters, const DispatchPlan<Scalar>& plan, Adapters& gradient, const Dropout& dropout,
               Workers& workers)
      : adapters_(adapters), plan_(plan), gradient_(gradient), workers_(workers), dropout_(dropout) {
    require_equal(std::ssize(gradient), std::ssize(adapters), "backward: gradient.num_experts()");
    for (Index m = 0; m < 3; ++m) {
      for (Index e = 0; e < std::ssize(adapters); ++e) {
        require_gradient(gradient[std::size_t(e)][m].a, adapter(e, m).a, "lora_A");
        require_gradient(gradient[std::size_t(e)][m].b, adapter(e, m).b, "lora_B");
        rank_[m] = std::max(rank_[m], adapter(e, m).rank());
      }
      u_[m] = workers.shared().template array<Scalar>(rank_[m] * plan.num_slots());
      t_[m] = workers.shared().template array<Scalar>(rank_[m] * plan.num_slots());
    }
    numbers_ = workers.shared().template array<const Scalar*>(plan.num_slots());
  }

  /// d_hidden += Δ_downᵀ·g, where g is not weighted.
  void to_hidden(const Slots& g, Slots& d_hidden) {
    find_t(2, g);
    add_back(2, d_hidden);
  }

  /// d_in += Δ_gateᵀ·∂L/∂a + Δ_upᵀ·∂L/∂b.
  void to_input(Slots& d_in) {
    add_back(0, d_in);
    add_back(1, d_in);
  }

  /// @param d_out  weighted
  void add_gradients(const Slots& in, const Slots& hidden, const Slots& d_gate, const Slots& d_up, const Slots& d_out) {
    find_t(0, d_gate);
    find_t(1, d_up);
    find_t(2, d_out);
    add_gradients_of(0, in, d_gate);
    add_gradients_of(1, in, d_up);
    add_gradients_of(2, hidden, d_out);
  }

 private:
  const Adapter<Scalar>& adapter(Index expert, Index matrix) const { return adapters_[std::size_t(expert)][matrix]; }

  /// Of slots that belong to one expert, (rank × count).
  Eigen::Map<Matrix<Scalar>> some(Scalar* all, Index expert, Index matrix, Index first, Index count) const {
    const Index rank = adapter(expert, matrix).rank(), start = plan_.first(expert);
    return {all + start * rank_[matrix] + (first - start) * rank, rank, count};
  }

  /// f(expert, its first slot, how many) for those among slots [first, last) that an adapter of this matrix reads.
  template <class F>
  void for_each_expert(Index matrix, Index first, Index last, const F& f) const {
    for (Index e = 0; e < plan_.num_experts(); ++e) {
      const Index from = std::max(first, plan_.first(e)), to = std::min(last, plan_.first(e) + plan_.count(e));
      if (from < to && adapter(e, matrix).rank() > 0) f(e, from, to - from);
    }
  }

  template <class F>
  void for_each_band(Index matrix, Index rows, const F& f) {
    if (rank_[matrix] == 0) return;
    workers_.for_each_band(rows, 2 * kernels::lanes<Scalar>, [&](Index first, Index last, Scratch& scratch) {
      for_each_expert(matrix, 0, plan_.num_slots(), [&](Index e, Index slot, Index count) {
        scratch.reset();
        f(e, slot, count, first, last - first, scratch);
      });
    });
  }

  /// t = scale·Bᵀ·d of each slot.
  void find_t(Index m, const Slots& d) {
    if (rank_[m] == 0) return;
    workers_.for_each_band(plan_.num_slots(), 16, [&](Index first, Index last, Scratch& scratch) {
      Scalar* const room = kernels::make_product_room<Scalar>(scratch);
      for_each_expert(m, first, last, [&](Index e, Index slot, Index count) {
        back_to_rank<Scalar>(adapter(e, m), d.middleCols(slot, count), some(t_[m], e, m, slot, count), room);
      });
    });
  }

  void add_back(Index m, Slots& d_read) {
    for_each_band(m, d_read.rows(), [&](Index e, Index slot, Index count, Index first, Index rows, Scratch& scratch) {
      Scalar* const room = kernels::make_product_room<Scalar>(scratch);
      add_back_to_tokens<Scalar>(adapter(e, m), dropout_.of_matrix(3 * e + m), &plan_.token[std::size_t(slot)], first,
                                 some(t_[m], e, m, slot, count), d_read.block(first, slot, rows, count), room, scratch);
    });
  }

  void add_gradients_of(Index m, const Slots& read, const Slots& d) {
    if (rank_[m] == 0) return;
    for (Index s = 0; s < plan_.num_slots(); ++s) numbers_[s] = read.data() + s * read.outerStride();
    const TokensRead<Scalar> tokens{numbers_, plan_.token.data()};
    workers_.for_each_band(plan_.num_slots(), 16, [&](Index first, Index last, Scratch& scratch) {
      for_each_expert(m, first, last, [&](Index e, Index slot, Index count) {
        scratch.reset();
        project(adapter(e, m), dropout_.of_matrix(3 * e + m), tokens.from(slot), count,
                some(u_[m], e, m, slot, count).data(), 1, adapter(e, m).rank(), scratch);
      });
    });
    for_each_band(m, read.rows(), [&](Index e, Index slot, Index count, Index first, Index rows, Scratch& scratch) {
      Scalar* const room = kernels::make_product_room<Scalar>(scratch);
      add_gradient_of_a<Scalar>(dropout_.of_matrix(3 * e + m), &plan_.token[std::size_t(slot)], first,
                                some(t_[m], e, m, slot, count), read.block(first, slot, rows, count),
                                gradient_[std::size_t(e)][m], room, scratch);
    });
    for_each_band(m, d.rows(), [&](Index e, Index slot, Index count, Index first, Index rows, Scratch& scratch) {
      Scalar* const room = kernels::make_product_room<Scalar>(scratch);
      add_gradient_of_b<Scalar>(first, d.block(first, slot, rows, count), some(u_[m], e, m, slot, count),
                                gradient_[std::size_t(e)][m], room);
    });
  }

  const Adapters& adapters_;
  const DispatchPlan<Scalar>& plan_;
  Adapters& gradient_;
  Workers& workers_;
  Dropout dropout_;
  Index rank_[3] = {};  // the largest of gate, up and down
  Scalar* u_[3];        // scale·A·x of each slot, and t
  Scalar* t_[3];
  const Scalar** numbers_;
};

}  // namespace detail

/// As backward() of a bank. The bank beside the adapters has no gradient.
/// @param workers   with the same seed as in forward, if there is one
/// @param gradient  of the same shape; only its adapters are added to
/// @throws std::invalid_argument naming both shapes if those of an adapter and of its gradient differ.
template <class W, class Act, class Scalar = ActivationScalar<W>>
void backward(const LoraBank<W, Act>& bank, const ConstMatrixRef<Scalar>& x, const DispatchPlan<Scalar>& plan,
              const ConstMatrixRef<Scalar>& d_y, const FfnBankTape<Scalar>& tape, std::span<Scalar> d_weight,
              MatrixRef<Scalar> d_x, LoraBank<W, Act>& gradient, Workers& workers) {
  require_group(bank, x, plan, d_x, "backward");
  detail::LoraBackward<Scalar> adapters(bank.adapters(), plan, gradient.adapters(),
                                        Dropout(bank.dropout(), bank.seed(), workers.seed()), workers);
  NoGradient<Scalar> none;
  detail::BankBackward<W, Act>(bank.base(), plan, tape.kept(bank, plan.num_slots()), workers)
      .run(x, d_y, d_weight, d_x, none, adapters);
}

}  // namespace moe::inline MOE_TARGET
