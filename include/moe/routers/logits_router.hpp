/// @file  A router that computes logits, then chooses by them.
#pragma once

#include <concepts>
#include <utility>

#include "moe/core/check.hpp"
#include "moe/core/concepts.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/tokens.hpp"
#include "moe/core/types.hpp"
#include "moe/routers/detail/logits.hpp"
#include "moe/runtime/workers.hpp"

namespace moe::inline MOE_TARGET {

/// Computes logits (num_experts × n_tokens) of tokens, all of them. Const: one router, many threads. Optional:
/// require_side(side, routing), which throws before anything is written to the routing; state_size(), of a part whose
/// compute(tokens, logits, state, workers) writes a state (state_size × n_tokens) for the next layer's router, too.
template <class L>
concept ComputesLogits = requires(const L& part, const Tokens<typename L::Scalar>& tokens,
                                  MatrixRef<typename L::Scalar> logits, Workers& workers) {
  { part.d_model() } -> std::convertible_to<Index>;
  { part.num_experts() } -> std::convertible_to<Index>;
  { part.compute(tokens, logits, workers) } -> std::same_as<void>;
};

/// Decides by logits, as a Router does by tokens: of the Tokens that it is handed, x are the logits (num_experts ×
/// n_tokens). Optional: experts_for(num_logits), the number of experts to choose from by so many logits, which throws
/// if it cannot, and else is their number; top_k(); visit_parameters(visit), if it has any.
template <class C>
concept ChoosesByLogits = requires(const C& choice, const Tokens<typename C::Scalar>& logits,
                                   Routing<typename C::Scalar>& routing, Workers& workers) {
  { choice.route(logits, routing, workers) } -> std::same_as<void>;
};

/// Any logits with any choice: LogitsRouter(CosineLogits(…), SinkhornChoice<float>(…)). Most published routers are one,
/// with a name, such as LinearTopK, which adds a constructor. The logits stay in the routing, and so does a state.
template <class Logits, class Choice>
class LogitsRouter {
  static_assert(ComputesLogits<Logits>, "moe: this part has no d_model(), num_experts() or compute(): ComputesLogits");
  static_assert(ChoosesByLogits<Choice>, "moe: this part has no route(logits, routing, workers): ChoosesByLogits");

 public:
  using Scalar = typename Logits::Scalar;
  using Vector = moe::Vector<Scalar>;

  /// @throws std::invalid_argument unless there is an expert, and the choice can choose by so many logits.
  LogitsRouter(Logits logits, Choice choice) : logits_(std::move(logits)), choice_(std::move(choice)) {}

  /// The same with a choice that is made of the number of logits and of what else it takes.
  template <class... Its>
  LogitsRouter(Logits logits, std::in_place_t, Its&&... its)
      : logits_(std::move(logits)), choice_(logits_.num_experts(), std::forward<Its>(its)...) {}

  Index d_model() const { return logits_.d_model(); }
  Index num_experts() const { return num_experts_; }
  const Logits& logits() const { return logits_; }
  const Choice& choice() const { return choice_; }

  /// To write: the numbers, but no other shape.
  Logits& logits() { return logits_; }
  Choice& choice() { return choice_; }

  // What is asked for most of the parts, where they have it.
  /// That of the logits.
  const auto& weight() const
    requires requires(const Logits& logits) { logits.weight(); }
  {
    return logits_.weight();
  }
  /// That of the logits, to write.
  auto weight()
    requires requires(Logits& logits) { logits.weight(); }
  {
    return logits_.weight();
  }
  /// That of the logits.
  const auto& bias() const
    requires requires(const Logits& logits) { logits.bias(); }
  {
    return logits_.bias();
  }
  /// That of the logits, to write.
  auto bias()
    requires requires(Logits& logits) { logits.bias(); }
  {
    return logits_.bias();
  }
  /// That of the choice.
  const auto& selection_bias() const
    requires requires(const Choice& choice) { choice.selection_bias(); }
  {
    return choice_.selection_bias();
  }
  /// That of the choice, to write.
  auto selection_bias()
    requires requires(Choice& choice) { choice.selection_bias(); }
  {
    return choice_.selection_bias();
  }
  /// Those of the choice.
  const auto& options() const
    requires requires(const Choice& choice) { choice.options(); }
  {
    return choice_.options();
  }
  Index top_k() const
    requires requires(const Choice& choice) { choice.top_k(); }
  {
    return choice_.top_k();
  }

  /// @throws std::invalid_argument if side inputs that a part reads are missing, or do not fit, or a part was replaced
  ///         by one of another shape.
  void route(const Tokens<Scalar>& tokens, Routing<Scalar>& routing, Workers& workers) const {
    require_equal(count_experts(), num_experts_, "LogitsRouter: num_experts() of a part that was replaced");
    require_equal(tokens.x.rows(), d_model(), "LogitsRouter: rows of what is read");
    if constexpr (requires { logits_.require_side(tokens.side, routing); }) logits_.require_side(tokens.side, routing);
    const auto logits = make_logits(logits_.num_experts(), tokens.count(), routing);
    if constexpr (requires { logits_.state_size(); }) {
      logits_.compute(tokens, logits, make_state(logits_.state_size(), tokens.count(), routing), workers);
    } else {
      routing.state.clear();
      logits_.compute(tokens, logits, workers);
    }
    choice_.route(Tokens(logits, tokens.side), routing, workers);
  }

  template <class Visit>
  void visit_parameters(Visit& visit) {
    visit.in("", logits_);
    if constexpr (requires { choice_.visit_parameters(visit); }) visit.in("", choice_);
  }

 private:
  Index count_experts() const {
    const Index num_logits = logits_.num_experts();
    if constexpr (requires { choice_.experts_for(num_logits); }) return choice_.experts_for(num_logits);
    require(num_logits >= 1, "LogitsRouter: needs at least one expert");
    return num_logits;
  }

  Logits logits_;
  Choice choice_;
  Index num_experts_ = count_experts();
};

}  // namespace moe::inline MOE_TARGET
