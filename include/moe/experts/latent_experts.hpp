/// @file  Experts that are narrower than the model, between two projections.
#pragma once

#include <optional>
#include <string>
#include <utility>

#include "moe/core/check.hpp"
#include "moe/core/concepts.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/dispatch.hpp"
#include "moe/core/scratch.hpp"
#include "moe/core/types.hpp"
#include "moe/experts/projection.hpp"
#include "moe/kernels/rms_norm.hpp"
#include "moe/runtime/workers.hpp"

namespace moe::inline MOE_TARGET {

/// What the parts around the experts are called; by default as in Nemotron 3. Muse Spark: {"pre_expert_proj",
/// "pre_expert_norm", "post_expert_proj"}; Kimi K3: {.in = "routed_expert_down_proj", .out = "routed_expert_up_proj",
/// .norm_of_answers = "routed_expert_norm"}.
struct LatentNames {
  std::string in = "fc1_latent_proj", norm = "latent_norm", out = "fc2_latent_proj",
              norm_of_answers = "routed_expert_norm";
};

/// Of each token: y += W_out·norm'(v) + b_out, where v = Σ weight · expert(u) and u = norm(W_in·x + b_in); either norm
/// may be missing. A weight on the input multiplies u. b_out is added to every token once, whoever is routed where, and
/// no weight multiplies it: nor would the gate of a shared expert.
/// The router, and a shared expert beside the layer, read x in its full width; a token is projected once, whatever the
/// number of its experts.
///
/// Experts on many ranks stand inside, LatentExperts(in, shard_experts(bank, …), out): projections are on every rank.
///
/// "LatentMoE", Elango et al. 2026, arXiv:2601.18089; Nemotron 3 (no norm, optional biases), Kimi K3 (a norm of the
/// answers), Muse Spark (one of what experts read).
/// @tparam In, Out  Projection<W> or LoraProjection<W>: in(), out(), compute(x, y, workers)
template <class G, class In = Projection<typename G::Scalar>, class Out = In>
class LatentExperts {
  static_assert(is_group_of_experts<G>() && are_of_one_scalar<G, In>() && are_of_one_scalar<G, Out>());

 public:
  using Scalar = typename G::Scalar;

  /// @param in    (latent × d_model)
  /// @param out   (d_model × latent)
  /// @param norm  of `latent` numbers, if there is one
  /// @param norm_of_answers  of what a token's experts answer together, `latent` numbers, if there is one
  /// @throws std::invalid_argument unless these fit each other.
  LatentExperts(In in, G experts, Out out, std::optional<RmsNorm<Scalar>> norm = {}, LatentNames names = {},
                std::optional<RmsNorm<Scalar>> norm_of_answers = {})
      : in_(std::move(in)),
        experts_(std::move(experts)),
        out_(std::move(out)),
        norm_(std::move(norm)),
        norm_of_answers_(std::move(norm_of_answers)),
        names_(std::move(names)) {
    require_equal(experts_.d_model(), in_.out(), "LatentExperts: experts.d_model(), beside in.out(),");
    require_equal(out_.in(), in_.out(), "LatentExperts: out.in(), beside in.out(),");
    require_equal(out_.out(), in_.in(), "LatentExperts: out.out(), beside in.in(),");
    if (norm_) require_equal(norm_->size(), in_.out(), "LatentExperts: norm.size(), beside in.out(),");
    if (norm_of_answers_) {
      require_equal(norm_of_answers_->size(), in_.out(), "LatentExperts: norm_of_answers.size(), beside in.out(),");
    }
  }

  Index d_model() const { return in_.in(); }
  Index d_latent() const { return in_.out(); }  ///< The width that the experts read and write.
  Index d_ff() const
    requires requires(const G& group) { group.d_ff(); }
  {
    return experts_.d_ff();
  }
  Index num_experts() const { return experts_.num_experts(); }
  const In& in() const { return in_; }
  const G& experts() const { return experts_; }
  const Out& out() const { return out_; }
  const std::optional<RmsNorm<Scalar>>& norm() const { return norm_; }
  const std::optional<RmsNorm<Scalar>>& norm_of_answers() const { return norm_of_answers_; }
  const LatentNames& names() const { return names_; }

  /// To write: the numbers, but no other shape.
  In& in() { return in_; }
  G& experts() { return experts_; }
  Out& out() { return out_; }
  std::optional<RmsNorm<Scalar>>& norm() { return norm_; }
  std::optional<RmsNorm<Scalar>>& norm_of_answers() { return norm_of_answers_; }

  void apply(const ConstMatrixRef<Scalar>& x, const DispatchPlan<Scalar>& plan, MatrixRef<Scalar> y,
             Workers& workers) const {
    auto u = workers.shared().template matrix<Scalar>(d_latent(), x.cols());
    auto v = workers.shared().template matrix<Scalar>(d_latent(), x.cols());
    run(x, u, u, v, v, y, workers, [&] { experts_.apply(u, plan, v, workers); });
  }

  /// The same, and keeps what it computes between.
  /// @param projected  (d_latent × n_tokens) W_in·x + b_in
  /// @param u          (d_latent × n_tokens), may be the same memory; without a norm it must be
  /// @param v          (d_latent × n_tokens)
  /// @param normed     (d_latent × n_tokens) norm'(v), may be the same memory; without a norm it must be
  /// @param apply      apply() adds the answers of the experts to v
  template <class Apply>
  void run(const ConstMatrixRef<Scalar>& x, MatrixRef<Scalar> projected, MatrixRef<Scalar> u, MatrixRef<Scalar> v,
           MatrixRef<Scalar> normed, MatrixRef<Scalar> y, Workers& workers, const Apply& apply) const {
    auto answers = workers.shared().template matrix<Scalar>(d_model(), x.cols());
    in_.compute(x, projected, workers);
    if (norm_) norm_->apply(projected, u, workers);
    v.setZero();
    apply();
    if (norm_of_answers_) norm_of_answers_->apply(v, normed, workers);
    out_.compute(normed, answers, workers);
    workers.for_each_band(y.cols(), 16, [&](Index first, Index last, Scratch&) {
      for (Index t = first; t < last; ++t) y.col(t) += answers.col(t);
    });
  }

  template <class Visit>
  void visit_parameters(Visit& visit) {
    visit.beside_experts(names_.in, in_);
    if (norm_) visit.beside_experts(names_.norm, *norm_);
    visit.in("", experts_);
    if (norm_of_answers_) visit.beside_experts(names_.norm_of_answers, *norm_of_answers_);
    visit.beside_experts(names_.out, out_);
  }

 private:
  In in_;
  G experts_;
  Out out_;
  std::optional<RmsNorm<Scalar>> norm_, norm_of_answers_;
  LatentNames names_;
};

}  // namespace moe::inline MOE_TARGET
