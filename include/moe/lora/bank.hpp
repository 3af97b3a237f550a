/// @file  A bank of FFN experts with adapters beside their matrices.
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "moe/core/check.hpp"
#include "moe/core/concepts.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/dispatch.hpp"
#include "moe/core/task.hpp"
#include "moe/core/types.hpp"
#include "moe/experts/detail/run_bank.hpp"
#include "moe/experts/detail/token_batch.hpp"
#include "moe/experts/ffn_bank.hpp"
#include "moe/kernels/low_rank.hpp"
#include "moe/lora/adapter.hpp"
#include "moe/lora/dropout.hpp"
#include "moe/lora/project.hpp"
#include "moe/runtime/workers.hpp"

namespace moe::inline MOE_TARGET {

/// Of one expert. Each may be of rank 0; that of gate is, beside experts that are not gated.
template <class Scalar>
struct ExpertAdapters {
  Adapter<Scalar> gate{}, up{}, down{};

  /// 0, 1 and 2.
  const Adapter<Scalar>& operator[](Index matrix) const { return matrix == 0 ? gate : matrix == 1 ? up : down; }
  /// The same, to write.
  Adapter<Scalar>& operator[](Index matrix) { return matrix == 0 ? gate : matrix == 1 ? up : down; }

  /// Beside matrices under the names that most checkpoints use.
  template <class Visit>
  void visit_parameters(Visit& visit) {
    if (gate.out() > 0) visit.in("gate_proj", gate);
    visit.in("up_proj", up);
    visit.in("down_proj", down);
  }
};

namespace detail {

/// f(adapter, outputs, inputs, name) for each, beside the experts of a bank.
/// @throws std::invalid_argument unless there are adapters of each expert.
template <class Adapters, class Bank, class F>
void for_each_adapter(Adapters& adapters, const Bank& bank, const std::string& who, const F& f) {
  require_equal(std::ssize(adapters), bank.num_experts(), who + ": adapters.size()");
  for (std::size_t e = 0; e < adapters.size(); ++e) {
    const std::string name = who + ": " + std::to_string(e);
    constexpr bool is_gated = Bank::is_gated;
    if (!is_gated) require_equal(adapters[e].gate.rank(), 0, name + ".gate_proj: rank(), as experts are not gated,");
    f(adapters[e].gate, is_gated ? bank.d_ff() : 0, bank.d_model(), name + ".gate_proj");
    f(adapters[e].up, bank.d_ff(), bank.d_model(), name + ".up_proj");
    f(adapters[e].down, bank.d_model(), bank.d_ff(), name + ".down_proj");
  }
}

/// The same of what may have been replaced, without making up a name that is not needed.
template <class Adapters, class Bank>
void require_adapters(const Adapters& adapters, const Bank& bank) {
  const Index d_model = bank.d_model(), d_ff = bank.d_ff();
  const bool fit = std::ssize(adapters) == bank.num_experts() && std::ranges::all_of(adapters, [&](const auto& its) {
                     return fits(its.gate, Bank::is_gated ? d_ff : 0, d_model) && fits(its.up, d_ff, d_model) &&
                            fits(its.down, d_model, d_ff);
                   });
  if (!fit) for_each_adapter(adapters, bank, "LoraBank", [](auto&&... adapter) { require_fit(adapter...); });
}

template <class W, class Act, class Scalar = ActivationScalar<W>>
void add_adapters(const std::vector<ExpertAdapters<Scalar>>& adapters, Scalar times, FfnBank<W, Act>& bank) {
  for_each_adapter(adapters, bank, "merge", [](auto&&... adapter) { require_fit(adapter...); });
  for (Index e = 0; e < bank.num_experts(); ++e) {
    const auto to = bank[e];
    const auto& its = adapters[std::size_t(e)];
    add_adapter<W>(its.gate, times, to.w_gate);
    add_adapter<W>(its.up, times, to.w_up);
    add_adapter<W>(its.down, times, to.w_down);
  }
}

/// U = scale·A·x of the adapters of one of three matrices, for the slots of a plan. As much memory for any plan of as
/// many slots.
template <class Scalar>
class LoraProjections {
 public:
  LoraProjections(const std::vector<ExpertAdapters<Scalar>>& adapters, Index matrix, const DispatchPlan<Scalar>& plan,
                  Workers& workers)
      : adapters_(adapters), matrix_(matrix), plan_(plan), workers_(workers) {
    for (const auto& its : adapters) rank_ = std::max(rank_, its[matrix].rank());
    u_ = workers.shared().template array<Scalar>(rank_ * plan.num_slots());
  }

  /// The largest.
  Index rank() const { return rank_; }

  /// Of one expert, (rank × its slots), row-major.
  kernels::LowRank<Scalar> operator[](Index expert) const {
    const Adapter<Scalar>& adapter = adapters_[std::size_t(expert)][matrix_];
    return {adapter.b.data(), adapter.rank(), u_ + rank_ * plan_.first(expert), plan_.count(expert)};
  }

  /// @param read  what the slots read, one after the other
  void compute(const TokensRead<Scalar>& read, const Dropout& dropout) {
    if (rank_ == 0) return;
    workers_.for_each_band(plan_.num_slots(), 16, [&](Index first, Index last, Scratch& scratch) {
      for (Index e = 0; e < plan_.num_experts(); ++e) {
        const Index start = plan_.first(e), from = std::max(first, start), to = std::min(last, start + plan_.count(e));
        const Adapter<Scalar>& adapter = adapters_[std::size_t(e)][matrix_];
        if (from >= to || adapter.rank() == 0) continue;
        scratch.reset();
        project(adapter, dropout.of_matrix(3 * e + matrix_), read.from(from), to - from,
                u_ + rank_ * start + (from - start), plan_.count(e), 1, scratch);
      }
    });
  }

 private:
  const std::vector<ExpertAdapters<Scalar>>& adapters_;
  Index matrix_;
  const DispatchPlan<Scalar>& plan_;
  Workers& workers_;
  Index rank_ = 0;
  Scalar* u_;
};

/// bank.apply(), with adapters beside each expert.
/// @param kept     where each slot's gate and up are kept, if anywhere
/// @param dropout  what adapters do not read
template <class Bank, class Scalar = typename Bank::Scalar>
void run_lora_bank(const Bank& bank, const std::vector<ExpertAdapters<Scalar>>& adapters,
                   const ConstMatrixRef<Scalar>& x, const DispatchPlan<Scalar>& plan, MatrixRef<Scalar> y,
                   Workers& workers, kernels::Kept<Scalar> kept = {}, const Dropout& dropout = Dropout()) {
  require_adapters(adapters, bank);
  const Index slots = plan.num_slots();
  Scratch& shared = workers.shared();
  LoraProjections<Scalar> gate(adapters, 0, plan, workers), up(adapters, 1, plan, workers),
      down(adapters, 2, plan, workers);
  if (down.rank() > 0) {
    kept.stride = kernels::kept_stride(bank.d_ff());
    kept.hidden = shared.template array<Scalar>(kept.stride * slots);
  }
  auto* const low_ranks = shared.template array<kernels::LowRanks<Scalar>>(bank.num_experts());
  for (Index e = 0; e < bank.num_experts(); ++e) low_ranks[e] = {gate[e], up[e], down[e]};

  auto** const numbers = shared.template array<const Scalar*>(slots);
  const TokensRead<Scalar> read{numbers, plan.token.data(),
                                plan.weight_on == WeightOn::input ? plan.weight.data() : nullptr};
  for (Index s = 0; s < slots; ++s) numbers[s] = x.data() + plan.token[std::size_t(s)] * x.outerStride();
  gate.compute(read, dropout);
  up.compute(read, dropout);
  const auto compute_down = [&](Index, Index) {
    for (Index s = 0; s < slots; ++s) numbers[s] = kept.hidden + s * kept.stride;
    down.compute({numbers, read.token}, dropout);
  };
  const Task before_down(compute_down);
  run_bank(bank, x, plan, y, workers, BankHooks<Scalar>{kept, low_ranks, &before_down});
}

}  // namespace detail

/// Adapters of each expert beside a bank, which stays as it is: copies share it.
template <class Bank>
class BesideBank {
 public:
  using Base = Bank;  ///< The bank that the adapters stand beside.
  using Scalar = typename Base::Scalar;

  static constexpr bool is_gated = Base::is_gated;

  /// @param adapters  of each expert
  /// @param dropout   share of what adapters read that is left out while they learn, as `seed` and that of the step say
  /// @throws std::invalid_argument if their number or a shape does not fit, or unless 0 ≤ dropout < 1.
  BesideBank(Base base, std::vector<ExpertAdapters<Scalar>> adapters, double dropout = 0, std::uint64_t seed = 1)
      : base_(std::make_shared<Base>(std::move(base))), adapters_(std::move(adapters)), dropout_(dropout), seed_(seed) {
    detail::for_each_adapter(adapters_, *base_, "LoraBank", [](auto&&... adapter) { fit(adapter...); });
    require_dropout(dropout, "LoraBank");
  }

  Index d_model() const { return base_->d_model(); }
  Index d_ff() const { return base_->d_ff(); }
  Index num_experts() const { return base_->num_experts(); }
  const Base& base() const { return *base_; }  ///< The bank as it is without adapters.
  double dropout() const { return dropout_; }
  std::uint64_t seed() const { return seed_; }
  const std::vector<ExpertAdapters<Scalar>>& adapters() const { return adapters_; }
  std::vector<ExpertAdapters<Scalar>>& adapters() { return adapters_; }

  /// The adapters alone learn.
  template <class Visit>
  void visit_parameters(Visit& visit) {
    for (std::size_t e = 0; e < adapters_.size(); ++e) visit.expert(Index(e), adapters_[e]);
    if constexpr (requires { base_->visit_parameters(visit); }) visit.frozen("", *base_);
  }

 private:
  std::shared_ptr<Base> base_;
  std::vector<ExpertAdapters<Scalar>> adapters_;
  double dropout_;
  std::uint64_t seed_;
};

/// expert(x) = W_down·h + Δ_down·h, h = act(W_gate·x + Δ_gate·x, W_up·x + Δ_up·x) or act(W_up·x + Δ_up·x), and the
/// biases of the bank. No Δ is ever computed: A and B of an adapter meet the tokens that the expert sees.
///
/// The bank may be mapped, of 16 bits, and coded (then what learns is what Dettmers et al. 2023 call "QLoRA",
/// arXiv:2305.14314). It is not written, and copies share it. With B = 0 or rank 0 the answers are the bank's, to the
/// last bit.
template <class W, class Act = SwiGlu>
class LoraBank : public BesideBank<FfnBank<W, Act>> {
 public:
  using Scalar = ActivationScalar<W>;

  /// As BesideBank.
  LoraBank(FfnBank<W, Act> base, std::vector<ExpertAdapters<Scalar>> adapters, double dropout = 0,
           std::uint64_t seed = 1)
      : BesideBank<FfnBank<W, Act>>(std::move(base), std::move(adapters), dropout, seed) {}

  void apply(const ConstMatrixRef<Scalar>& x, const DispatchPlan<Scalar>& plan, MatrixRef<Scalar> y,
             Workers& workers) const {
    detail::run_lora_bank(this->base(), this->adapters(), x, plan, y, workers);
  }
};

/// What with_lora() and make_adapters() make.
struct LoraBankOptions {
  Index rank = 8;
  std::vector<Index> expert_ranks{};  // of each expert, 0 for none; empty: all have `rank`
  double alpha = 16;
  bool gate = true, up = true, down = true;  // which of an expert's matrices have an adapter, if there
  double dropout = 0;                        // share of what adapters read that is left out while they learn
  std::uint64_t seed = 1;                    // of A, and of dropout
};

/// Adapters that add nothing yet, beside experts of these shapes.
/// @throws std::invalid_argument if expert_ranks are there, but not num_experts of them, or if a rank is below 0.
template <class Scalar>
std::vector<ExpertAdapters<Scalar>> make_adapters(Index num_experts, Index d, Index ff, bool gated,
                                                  const LoraBankOptions& options) {
  if (!options.expert_ranks.empty()) {
    require_equal(std::ssize(options.expert_ranks), num_experts, "LoRA: expert_ranks.size()");
  }
  std::vector<ExpertAdapters<Scalar>> adapters;
  for (Index e = 0; e < num_experts; ++e) {
    const Index rank = options.expert_ranks.empty() ? options.rank : options.expert_ranks[std::size_t(e)];
    const auto make = [&](bool wanted, Index out, Index in, Index matrix) {
      return make_adapter<Scalar>(out, in, wanted ? rank : 0, options.alpha,
                                  random_bits(options.seed, std::uint64_t(3 * e + matrix)));
    };
    adapters.push_back({gated ? make(options.gate, ff, d, 0) : Adapter<Scalar>(), make(options.up, ff, d, 1),
                        make(options.down, d, ff, 2)});
  }
  return adapters;
}

/// A bank beside adapters that add nothing yet.
/// @throws std::invalid_argument as make_adapters(), or unless 0 ≤ dropout < 1.
template <class W, class Act>
LoraBank<W, Act> with_lora(FfnBank<W, Act> bank, const LoraBankOptions& options = {}) {
  auto adapters = make_adapters<ActivationScalar<W>>(bank.num_experts(), bank.d_model(), bank.d_ff(),
                                                     FfnBank<W, Act>::is_gated, options);
  return {std::move(bank), std::move(adapters), options.dropout, options.seed};
}

/// Adds the adapters of each expert to the weights of a bank that they belong beside. Weights of 16 bits are rounded
/// once each.
/// @throws std::invalid_argument if their number or a shape does not fit, or if weights are mapped; then nothing has
/// been written.
template <class W, class Act>
void merge(const std::vector<ExpertAdapters<ActivationScalar<W>>>& adapters, FfnBank<W, Act>& bank) {
  detail::add_adapters(adapters, ActivationScalar<W>(1), bank);
}

/// Takes them out again: to rounding, the bank is what it was before merge().
template <class W, class Act>
void unmerge(const std::vector<ExpertAdapters<ActivationScalar<W>>>& adapters, FfnBank<W, Act>& bank) {
  detail::add_adapters(adapters, ActivationScalar<W>(-1), bank);
}

/// A bank without adapters that computes the same, to rounding, with weights of its own.
template <class W, class Act>
FfnBank<W, Act> merged(const LoraBank<W, Act>& bank) {
  FfnBank<W, Act> sum = owned(bank.base());
  merge(bank.adapters(), sum);
  return sum;
}

/// Coded weights have no room for a sum: the bank itself, if all adapters are of rank 0.
/// @throws std::invalid_argument if not, naming one that is not.
template <class Act>
FfnBank<Quantized, Act> merged(const LoraBank<Quantized, Act>& bank) {
  for (std::size_t e = 0; e < bank.adapters().size(); ++e) {
    for (Index matrix = 0; matrix < 3; ++matrix) {
      detail::require_no_adapter(bank.adapters()[e][matrix], "merged: expert " + std::to_string(e));
    }
  }
  return bank.base();
}

/// A bank without adapters, of the type that is asked for, which computes the same as one beside coded weights, to
/// rounding: each weight is rounded once.
template <class W, class Act>
FfnBank<W, Act> merged_as(const LoraBank<Quantized, Act>& bank) {
  const auto sums = [&](const WeightStack<Quantized>& coded, Index matrix) {
    WeightStack<W> sum(coded.num_experts(), coded.rows(), coded.cols());
    for (Index e = 0; e < coded.num_experts(); ++e) {
      sum.owned(e) = merged_as<W>(coded[e], bank.adapters()[std::size_t(e)][matrix]);
    }
    return sum;
  };
  const auto& base = bank.base();
  return FfnBank<W, Act>::of(sums(base.w_gate(), 0), sums(base.w_up(), 1), sums(base.w_down(), 2), base.activation(),
                             base.biases());
}

}  // namespace moe::inline MOE_TARGET
