/// @file  A layer whose experts see weighted averages of all tokens.
#pragma once

#include <cmath>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "moe/core/check.hpp"
#include "moe/core/concepts.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/dispatch.hpp"
#include "moe/core/sequences.hpp"
#include "moe/core/tokens.hpp"
#include "moe/core/types.hpp"
#include "moe/experts/expert_list.hpp"
#include "moe/kernels/matmul.hpp"
#include "moe/kernels/scores.hpp"
#include "moe/routers/detail/logits.hpp"
#include "moe/routers/detail/unit_length.hpp"
#include "moe/runtime/executors/serial.hpp"
#include "moe/runtime/padding.hpp"
#include "moe/runtime/workers.hpp"
#include "moe/runtime/workspace.hpp"

namespace moe::inline MOE_TARGET {

/// How tokens and slots are brought to one length before they are compared.
enum class SoftMoeNorm {
  unit,  ///< v / ‖v‖: the paper's
  rms,   ///< √d_model · v / ‖v‖: soft-moe-pytorch's
};

/// The defaults are the paper's. soft-moe-pytorch's are {.norm = SoftMoeNorm::rms, .average_normalized = true}, and a
/// gain for tokens and one for slots.
struct SoftMoeOptions {
  SoftMoeNorm norm = SoftMoeNorm::unit;
  double scale = 1;                 // of the logits, at first: it is learnt
  bool average_normalized = false;  // slots average x', else x
};

namespace detail {

/// out = length · gain ⊙ v / ‖v‖, where an empty gain is ones; 0 for a vector of zeros.
template <class Vector, class Gain, class Out>
void normalize(const Vector& v, const Gain& gain, typename Vector::Scalar length, Out&& out) {
  out = v;
  to_length(out, length);
  if (gain.size() > 0) out = out.cwiseProduct(gain);
}

/// f(b, how…) for each sequence b: many are shared out among the workers, few have all of them, one after the other.
template <class F>
void for_each_sequence(Index num_sequences, Workers& workers, const F& f) {
  if (num_sequences < workers.count()) {
    for (Index b = 0; b < num_sequences; ++b) f(b, workers);
  } else {
    workers.for_each(num_sequences, [&](Index b, Scratch& scratch) { f(b, scratch, workers.numerics()); });
  }
}

/// mean = from · shares, sequence by sequence: column c of a sequence's mean is Σ_i shares(i, c) · (its from).col(i).
template <class Scalar>
void average(const ConstMatrixRef<Scalar>& from, const ConstMatrixRef<Scalar>& shares, MatrixRef<Scalar> mean,
             Index num_sequences, Workers& workers) {
  if (num_sequences == 0) return;
  const Index d_model = from.rows(), ins = from.cols() / num_sequences, outs = mean.cols() / num_sequences;
  auto* const features = workers.shared().array<Scalar>(from.size());  // by rows, as a product reads them
  workers.for_each_band(d_model, 1, [&](Index first, Index last, Scratch&) {
    Eigen::Map<Weight<Scalar>>(features, d_model, from.cols()).middleRows(first, last - first) =
        from.middleRows(first, last - first);
  });
  for_each_sequence(num_sequences, workers, [&](Index b, auto&... how) {
    const WeightMap<Scalar> rows(features + b * ins, d_model, ins, Eigen::OuterStride<>(from.cols()));
    kernels::matmul<Scalar, Scalar>(rows, shares.middleCols(b * outs, outs), mean.middleCols(b * outs, outs), how...);
  });
}

}  // namespace detail

/// What each token gives to each slot: for each slot, a softmax over the tokens of a sequence.
/// @param logits    (num_slots × n_tokens)
/// @param dispatch  (sequence_length × num_sequences · num_slots): column b · num_slots + s is slot s of sequence b
template <class Scalar>
void soft_dispatch(const ConstMatrixRef<Scalar>& logits, MatrixRef<Scalar> dispatch, Workers& workers) {
  const Index num_slots = logits.rows(), length = dispatch.rows();
  workers.for_each_band(dispatch.cols(), 1, [&](Index first, Index last, Scratch&) {
    for (Index c = first; c < last; ++c) {
      const Index sequence = c / num_slots, slot = c % num_slots;
      dispatch.col(c) = logits.row(slot).segment(sequence * length, length).transpose();
      softmax(dispatch.col(c), dispatch.col(c));
    }
  });
}

/// What each token takes from each slot of its sequence: for each token, a softmax over the slots of all experts.
/// @param logits, combine  (num_slots × n_tokens)
template <class Scalar>
void soft_combine(const ConstMatrixRef<Scalar>& logits, MatrixRef<Scalar> combine, Workers& workers) {
  workers.for_each_band(combine.cols(), 1, [&](Index first, Index last, Scratch&) {
    for (Index t = first; t < last; ++t) softmax(logits.col(t), combine.col(t));
  });
}

/// Slot s of sequence b is column b · num_slots + s, and goes to expert s / slots_per_expert.
template <class Scalar>
DispatchPlan<Scalar> plan_slots(Index num_sequences, Index slots_per_expert, Index num_experts,
                                PlanMemory<Scalar>& memory) {
  auto& [offset, token, route, weight, weight_on] = memory;
  const Index num_slots = num_experts * slots_per_expert;
  offset.clear();
  token.clear();
  for (Index e = 0; e < num_experts; ++e) {
    offset.push_back(Index(token.size()));
    for (Index b = 0; b < num_sequences; ++b) {
      for (Index p = 0; p < slots_per_expert; ++p) token.push_back(b * num_slots + e * slots_per_expert + p);
    }
  }
  offset.push_back(Index(token.size()));
  route = token;
  weight.assign(token.size(), Scalar(1));
  weight_on = WeightOn::output;
  return memory.view();
}

/// Each slot φ_s averages the tokens of a sequence, an expert answers to it, and each token averages the answers:
///
///   l_st = scale · φ'_s · x'_t      where x' = gain ⊙ x / ‖x‖, and φ' alike with a gain of its own: SoftMoeNorm
///   y_t  = Σ_s softmax_s(l_st) · expert_of(s)(Σ_t softmax_t(l_st) · x_t)
///
/// Nothing is chosen, so there are no routes. Tokens of one sequence see each other; those of different ones do not
/// (SideInputs::sequence_length). A token or a slot of zeros has x' = 0.
/// Puigcerver et al. 2023, "From Sparse to Soft Mixtures of Experts", §2.1 and §2.3, arXiv:2308.00951.
template <class G>
class SoftMoe : public ShortForwards<SoftMoe<G>> {
  static_assert(is_group_of_experts<G>());

 public:
  using Scalar = typename G::Scalar;
  using Vector = Eigen::Matrix<Scalar, Eigen::Dynamic, 1>;

  /// @param slots       (num_experts · slots_per_expert × d_model): those of expert 0 first
  /// @param token_gain  (d_model), or empty: ones
  /// @param slot_gain   (d_model), or empty: ones
  /// @throws std::invalid_argument if a size differs, or the slots are not as many for each expert.
  SoftMoe(Weight<Scalar> slots, G experts, const SoftMoeOptions& options = {}, Vector token_gain = {},
          Vector slot_gain = {})
      : slots_(std::move(slots)),
        experts_(std::move(experts)),
        norm_(options.norm),
        average_normalized_(options.average_normalized),
        scale_(Scalar(options.scale)),
        token_gain_(std::move(token_gain)),
        slot_gain_(std::move(slot_gain)) {
    require_fit();
    if (token_gain_.size() > 0) require_equal(token_gain_.size(), d_model(), "SoftMoe: token_gain.size()");
    if (slot_gain_.size() > 0) require_equal(slot_gain_.size(), d_model(), "SoftMoe: slot_gain.size()");
  }

  /// @throws std::invalid_argument unless slots and experts fit each other, as they must also where those were
  /// replaced.
  void require_fit() const {
    require_equal(slots_.cols(), d_model(), "SoftMoe: slots.cols()");
    if (num_slots() >= 1 && num_slots() % num_experts() == 0) return;
    require(false, "SoftMoe: slots.rows() is " + std::to_string(num_slots()) + ", expected a multiple of num_experts " +
                       std::to_string(num_experts()));
  }

  Index d_model() const { return experts_.d_model(); }
  Index num_experts() const { return experts_.num_experts(); }
  Index num_slots() const { return slots_.rows(); }  ///< Of all experts together.
  /// Slots that an expert answers to, in each sequence.
  Index slots_per_expert() const { return num_slots() / num_experts(); }
  /// With the scale that was learnt.
  SoftMoeOptions options() const { return {norm_, double(scale()), average_normalized_}; }
  const G& experts() const { return experts_; }
  const Weight<Scalar>& slots() const { return slots_; }
  const Vector& token_gain() const { return token_gain_; }
  const Vector& slot_gain() const { return slot_gain_; }
  Scalar scale() const { return scale_.value(); }  ///< Multiplies the logits; it learns.

  /// To write.
  G& experts() { return experts_; }
  Eigen::Map<Weight<Scalar>> slots() { return {slots_.data(), slots_.rows(), slots_.cols()}; }
  Eigen::Map<Vector> token_gain() { return {token_gain_.data(), token_gain_.size()}; }
  Eigen::Map<Vector> slot_gain() { return {slot_gain_.data(), slot_gain_.size()}; }
  Scalar& scale() { return scale_(0); }  ///< The same, to write.

  /// x and y (d_model × n_tokens), not overlapping, in sequences of ws.side.sequence_length tokens. `ws.routing` holds
  /// no routes, but its logits are (num_slots × n_tokens); `ws.plan` is that of plan_slots().
  /// @throws std::invalid_argument if a shape is wrong, y overlaps x, or the tokens are not whole sequences.
  void forward(const ConstMatrixRef<Scalar>& x, MatrixRef<Scalar> y, Workspace<Scalar>& ws,
               ExecutorRef executor = Serial{}) const {
    if (is_padded(ws)) return forward_real_tokens(*this, x, y, ws, executor);
    require_fit();
    require_columns(x, y, d_model(), "SoftMoe");
    const Index num_sequences = count_sequences(x.cols(), ws.side);
    Workers workers = workers_of(ws, executor);
    auto in = workers.shared().template matrix<Scalar>(d_model(), num_sequences * num_slots());
    auto out = workers.shared().template matrix<Scalar>(d_model(), in.cols());

    const auto combine = fill_slots(x, in, ws.routing, workers);
    out.setZero();
    experts_.apply(in, plan_slots(num_sequences, slots_per_expert(), num_experts(), ws.plan), out, workers);
    detail::average<Scalar>(out, combine, y, num_sequences, workers);
  }
  using ShortForwards<SoftMoe>::forward;

  /// Under the names of soft-moe-pytorch, which has no scale.
  template <class Visit>
  void visit_parameters(Visit& visit) {
    visit("slot_embeds", slots_);
    visit("norm.gamma", token_gain_);
    visit("slot_norm.gamma", slot_gain_);
    visit("scale", scale_);
    visit.in("experts", experts_);
  }

  /// @throws std::invalid_argument if the tokens are not whole sequences, all of one length.
  Index count_sequences(Index num_tokens, const SideInputs<Scalar>& side) const {
    const Sequences all(num_tokens, side.sequence_length, side.sequence_starts, "SoftMoe");
    for (Index s = 1; s < all.count(); ++s) {
      if (all.size(s) != all.size(0)) require_equal(all.size(s), all.size(0), "SoftMoe: tokens of each sequence: one");
    }
    return num_tokens == 0 ? 0 : all.count();
  }

  /// The first half of forward(): tokens meet slots. Leaves the logits in `routing`.
  /// @param in  (d_model × num_sequences · num_slots) what each slot averages
  /// @return what each token takes from each slot, (num_slots × n_tokens), in memory of the workers
  Eigen::Map<Matrix<Scalar>, Eigen::Aligned64> fill_slots(const ConstMatrixRef<Scalar>& x, MatrixRef<Scalar> in,
                                                          Routing<Scalar>& routing, Workers& workers) const {
    const Index num_sequences = in.cols() / num_slots();
    Scratch& shared = workers.shared();
    routing.clear();
    const auto tokens = normalize_tokens(x, workers);
    auto logits = make_logits(num_slots(), x.cols(), routing);
    kernels::matmul<Scalar, Scalar>(normalize_slots(workers), tokens, logits, workers);
    auto dispatch = shared.matrix<Scalar>(num_sequences == 0 ? 0 : x.cols() / num_sequences, in.cols());
    auto combine = shared.matrix<Scalar>(num_slots(), x.cols());
    soft_dispatch<Scalar>(logits, dispatch, workers);
    soft_combine<Scalar>(logits, combine, workers);
    detail::average<Scalar>(average_normalized_ ? ConstMatrixRef<Scalar>(tokens) : x, dispatch, in, num_sequences,
                            workers);
    return combine;
  }

  /// x', (d_model × n_tokens), in memory of the workers.
  Eigen::Map<Matrix<Scalar>, Eigen::Aligned64> normalize_tokens(const ConstMatrixRef<Scalar>& x,
                                                                Workers& workers) const {
    auto out = workers.shared().template matrix<Scalar>(x.rows(), x.cols());
    workers.for_each_band(x.cols(), 1, [&](Index first, Index last, Scratch&) {
      for (Index t = first; t < last; ++t) detail::normalize(x.col(t), token_gain_, target_norm(), out.col(t));
    });
    return out;
  }

  /// scale · φ', (num_slots × d_model), in memory of the workers.
  WeightMap<Scalar> normalize_slots(Workers& workers) const {
    auto* const out = workers.shared().template array<Scalar>(slots_.size());
    Eigen::Map<Weight<Scalar>> rows(out, slots_.rows(), slots_.cols());
    workers.for_each_band(num_slots(), 1, [&](Index first, Index last, Scratch&) {
      for (Index s = first; s < last; ++s) {
        detail::normalize(slots_.row(s).transpose(), slot_gain_, scale() * target_norm(), rows.row(s).transpose());
      }
    });
    return {out, slots_.rows(), slots_.cols(), Eigen::OuterStride<>(slots_.cols())};
  }

  /// ‖x'‖ and ‖φ'‖, but for gains.
  Scalar target_norm() const { return norm_ == SoftMoeNorm::rms ? std::sqrt(Scalar(d_model())) : Scalar(1); }

 private:
  Weight<Scalar> slots_;
  G experts_;
  SoftMoeNorm norm_;
  bool average_normalized_;
  Eigen::Matrix<Scalar, 1, 1> scale_;
  Vector token_gain_, slot_gain_;
};

/// A std::vector of experts is an ExpertList.
template <Expert E, class Vector = Eigen::Matrix<typename E::Scalar, Eigen::Dynamic, 1>>
SoftMoe(Weight<typename E::Scalar>, std::vector<E>, SoftMoeOptions = {}, std::type_identity_t<Vector> = {},
        std::type_identity_t<Vector> = {}) -> SoftMoe<ExpertList<E>>;

}  // namespace moe::inline MOE_TARGET
