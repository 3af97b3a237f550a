/// @file  Takes routes that were recorded instead of choosing any.
#pragma once

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <string>
#include <utility>

#include "moe/core/check.hpp"
#include "moe/core/routing.hpp"
#include "moe/core/tokens.hpp"
#include "moe/core/types.hpp"
#include "moe/routers/detail/logits.hpp"
#include "moe/routers/filters/filtered_router.hpp"
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

/// Takes the routes of SideInputs::recorded, where there is one.
struct ReplayFilter {
  ReplayOptions options;

  /// @throws std::invalid_argument if a recorded route leads nowhere or lacks a part, if `recorded` is `routing`, or is
  /// of more or fewer tokens: if R has a top_k, there are as many routes of each; else its logits tell, where there are
  /// any, and SideInputs::recorded_tokens, where the caller has it. For weights anew, unless routes are as R writes
  /// them: those of a token side by side, to different experts.
  template <class R, class Scalar>
  void route(const R& router, const Tokens<Scalar>& tokens, Routing<Scalar>& routing, Workers& workers) const {
    const Routing<Scalar>* const recorded = tokens.side.recorded;
    if (!recorded) return router.route(tokens, routing, workers);
    require(recorded != &routing, "Replay: side.recorded is the routing that is being written");
    require_routes(*recorded, tokens.count(), router.num_experts());
    require_all_tokens(router, *recorded, tokens);
    if (options.weights == ReplayedWeights::recorded) {
      routing = *recorded;
    } else if constexpr (detail::WeighsByChoice<R>) {
      require_order(*recorded, router.top_k());
      router.route(tokens, routing, workers);  // for its logits
      require_equal(std::ssize(routing.logits), router.num_experts() * tokens.count(), "Replay: the number of logits");
      router.choice().weigher().weigh(logits_of(routing, router.num_experts(), tokens.count()), routing, workers,
                                      [&](Index t) { return recorded->expert.data() + t * router.top_k(); });
      routing.dropped = recorded->dropped;
    }
  }

 private:
  template <class R, class Scalar>
  static void require_all_tokens(const R& router, const Routing<Scalar>& recorded, const Tokens<Scalar>& tokens) {
    const Index n = tokens.count(), said = tokens.side.recorded_tokens, logits = std::ssize(recorded.logits);
    if (said > 0) require_equal(said, n, "Replay: side.recorded_tokens");
    if constexpr (requires(const R& r) { r.top_k(); }) {
      if (recorded.size() == router.top_k() * n) return;
      require(false, "Replay: side.recorded has " + std::to_string(recorded.size()) + " routes, expected " +
                         std::to_string(router.top_k() * n) + ": " + std::to_string(router.top_k()) + " of each of " +
                         std::to_string(n) + " tokens");
    } else if (logits > 0 && logits != (router.num_experts() - 1) * n) {  // the identity of a BaseLayersRouter has none
      require_equal(logits, router.num_experts() * n, "Replay: side.recorded->logits.size()");
    }
  }

  template <class Scalar>
  static void require_order(const Routing<Scalar>& recorded, Index top_k) {
    for (Index r = 0; r < recorded.size(); ++r) {
      const auto first = recorded.expert.begin() + r / top_k * top_k, its = recorded.expert.begin() + r;
      if (recorded[r].token == r / top_k && std::find(first, its, *its) == its) continue;
      require(false, "Replay: recorded route " + std::to_string(r) + " sends token " +
                         std::to_string(recorded[r].token) + " to expert " + std::to_string(*its) +
                         ", expected token " + std::to_string(r / top_k) + " to one that it is not sent to yet");
    }
  }
};

/// A router that takes the routes of SideInputs::recorded, where there is one, and else routes as R does. So a layer
/// records (keep a copy of its workspace's routing) as well as it replays: to train on the very routes that inference
/// took, or to compare two machines. What was dropped then is dropped again.
template <class R>
class Replay : public FilteredRouter<R, ReplayFilter> {
 public:
  /// @throws std::invalid_argument if weights are wanted anew of a router whose TopKChoice has not the last word on
  /// them.
  explicit Replay(R router, const ReplayOptions& options = {}) : Replay::FilteredRouter(std::move(router), {options}) {
    require(detail::WeighsByChoice<R> || options.weights == ReplayedWeights::recorded,
            "Replay: weights are wanted anew, which takes a router whose choice() weighs, such as LinearTopK or "
            "LoraRouter; put filters around Replay, not into it");
  }
};

}  // namespace moe::inline MOE_TARGET
