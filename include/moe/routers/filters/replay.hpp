/// @file  Takes routes that were recorded instead of choosing any.
#pragma once

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <string>
#include <utility>

#include "moe/core/check.hpp"
#include "moe/core/concepts.hpp"
#include "moe/core/contracts.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/tokens.hpp"
#include "moe/core/types.hpp"
#include "moe/routers/detail/logits.hpp"
#include "moe/runtime/workers.hpp"

namespace moe::inline MOE_TARGET {

/// What a recorded route counts for.
enum class ReplayedWeights {
  recorded,  ///< what it counted for: a constant, from which the router learns nothing
  anew,  ///< what the router says now of the experts that were chosen then: it learns, as reinforcement learning needs
};

/// What is taken of a recording.
struct ReplayOptions {
  ReplayedWeights weights = ReplayedWeights::recorded;
};

namespace detail {

/// A router whose weights are a TopKChoice's, of its logits. (One with an expert_scale() multiplies them once more.)
template <class R>
concept WeighsByChoice = requires(const R& router) { router.choice().weigher(); } &&
                         !requires(const R& router) { router.choice().expert_scale(); };

}  // namespace detail

/// A router that takes the routes of SideInputs::recorded, where there is one, and else routes as R does. So a layer
/// records (keep a copy of its workspace's routing) as well as it replays: to train on the very routes that inference
/// took, or to compare two machines. What was dropped then is dropped again.
template <class R>
class Replay {
  static_assert(is_router<R>());

 public:
  using Scalar = typename R::Scalar;

  /// @throws std::invalid_argument if weights are wanted anew of a router whose TopKChoice has not the last word on
  /// them.
  explicit Replay(R router, const ReplayOptions& options = {}) : router_(std::move(router)), options_(options) {
    require(detail::WeighsByChoice<R> || options.weights == ReplayedWeights::recorded,
            "Replay: weights are wanted anew, which takes a router whose choice() weighs, such as LinearTopK or "
            "LoraRouter; put filters around Replay, not into it");
  }

  Index d_model() const { return router_.d_model(); }
  Index num_experts() const { return router_.num_experts(); }
  Index top_k() const
    requires requires(const R& r) { r.top_k(); }
  {
    return router_.top_k();
  }
  const R& router() const { return router_; }
  R& router() { return router_; }
  const ReplayOptions& options() const { return options_; }

  /// @throws std::invalid_argument if a recorded route leads nowhere or lacks a part, if `recorded` is `routing`, or is
  /// of more or fewer tokens: if R has a top_k, there are as many routes of each; else its logits tell, where there are
  /// any, and SideInputs::recorded_tokens, where the caller has it. For weights anew, unless routes are as R writes
  /// them: those of a token side by side, to different experts.
  void route(const Tokens<Scalar>& tokens, Routing<Scalar>& routing, Workers& workers) const {
    const Routing<Scalar>* const recorded = tokens.side.recorded;
    if (!recorded) return router_.route(tokens, routing, workers);
    require(recorded != &routing, "Replay: side.recorded is the routing that is being written");
    require_routes(*recorded, tokens.count(), num_experts());
    require_all_tokens(*recorded, tokens);
    if (options_.weights == ReplayedWeights::recorded) {
      routing = *recorded;
    } else if constexpr (detail::WeighsByChoice<R>) {
      require_order(*recorded, top_k());
      router_.route(tokens, routing, workers);  // for its logits
      require_equal(std::ssize(routing.logits), num_experts() * tokens.count(), "Replay: the number of logits");
      router_.choice().weigher().weigh(logits_of(routing, num_experts(), tokens.count()), routing, workers,
                                       [&](Index t) { return recorded->expert.data() + t * top_k(); });
      routing.dropped = recorded->dropped;
    }
  }

  template <class Visit>
  void visit_parameters(Visit& visit) {
    visit.in("", router_);
  }

 private:
  void require_all_tokens(const Routing<Scalar>& recorded, const Tokens<Scalar>& tokens) const {
    const Index n = tokens.count(), said = tokens.side.recorded_tokens, logits = std::ssize(recorded.logits);
    if (said > 0) require_equal(said, n, "Replay: side.recorded_tokens");
    if constexpr (requires(const R& r) { r.top_k(); }) {
      if (recorded.size() == top_k() * n) return;
      require(false, "Replay: side.recorded has " + std::to_string(recorded.size()) + " routes, expected " +
                         std::to_string(top_k() * n) + ": " + std::to_string(top_k()) + " of each of " +
                         std::to_string(n) + " tokens");
    } else if (logits > 0 && logits != (num_experts() - 1) * n) {  // the identity of a BaseLayersRouter has none
      require_equal(logits, num_experts() * n, "Replay: side.recorded->logits.size()");
    }
  }

  static void require_order(const Routing<Scalar>& recorded, Index top_k) {
    for (Index r = 0; r < recorded.size(); ++r) {
      const auto first = recorded.expert.begin() + r / top_k * top_k, its = recorded.expert.begin() + r;
      if (recorded.token[std::size_t(r)] == r / top_k && std::find(first, its, *its) == its) continue;
      require(false, "Replay: recorded route " + std::to_string(r) + " sends token " +
                         std::to_string(recorded.token[std::size_t(r)]) + " to expert " + std::to_string(*its) +
                         ", expected token " + std::to_string(r / top_k) + " to one that it is not sent to yet");
    }
  }

  R router_;
  ReplayOptions options_;
};

}  // namespace moe::inline MOE_TARGET
