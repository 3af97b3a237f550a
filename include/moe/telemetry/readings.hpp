/// @file  What is told of a layer, by name: the files of all formats use these names.
#pragma once

#include <array>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "moe/core/types.hpp"
#include "moe/telemetry/routing_stats.hpp"

namespace moe::inline MOE_TARGET {

/// The statistics of one layer.
struct LayerStats {
  std::string label;  // e.g. "layer 3"
  const RoutingStats& stats;
  Index step = 0;  // of training, or the number of the batch; in JSON lines and CSV
};

/// What every writer takes: one layer, {"layer 3", stats}; several, {{"layer 3", stats}, {"layer 4", others}}; or a
/// LayerStats, or a std::vector of them, that was made before.
class StatsOfLayers {
 public:
  /// One layer, under a label.
  StatsOfLayers(std::string label, const RoutingStats& stats, Index step = 0)
      : layers_{{std::move(label), stats, step}} {}
  StatsOfLayers(const LayerStats& layer) : layers_{layer} {}                    ///< One layer.
  StatsOfLayers(std::initializer_list<LayerStats> layers) : layers_(layers) {}  ///< Several layers.
  StatsOfLayers(const std::vector<LayerStats>& layers) : layers_(layers) {}     ///< Several layers.

  auto begin() const { return layers_.begin(); }  ///< In the order given.
  auto end() const { return layers_.end(); }      ///< Behind the last.

 private:
  std::vector<LayerStats> layers_;
};

/// A counter only grows while batches are added, a gauge goes up and down.
enum class ReadingKind { counter, gauge };

/// One number of a layer.
struct LayerReading {
  std::string_view name;  // ends with the unit, if there is one
  std::string_view unit;
  ReadingKind kind;
  std::string_view help;
  double (*of)(const RoutingStats&);
};

/// One number of an expert.
struct ExpertReading {
  std::string_view name;
  std::string_view unit;
  ReadingKind kind;
  std::string_view help;
  double (*of)(const RoutingStats&, Index expert);
};

inline constexpr std::array layer_readings = {
    LayerReading{"tokens", "", ReadingKind::counter, "Tokens that were routed.",
                 [](const RoutingStats& s) { return double(s.num_tokens()); }},
    LayerReading{"nan_tokens", "", ReadingKind::counter, "Tokens with a NaN among their logits.",
                 [](const RoutingStats& s) { return double(s.num_nan_tokens()); }},
    LayerReading{"routes", "", ReadingKind::counter, "Routes that reached an expert.",
                 [](const RoutingStats& s) { return double(s.total_load()); }},
    LayerReading{"dropped_routes", "", ReadingKind::counter, "Routes that were dropped.",
                 [](const RoutingStats& s) { return double(s.total_dropped()); }},
    LayerReading{"routes_per_token", "", ReadingKind::gauge, "Experts that a token reached, on average.",
                 [](const RoutingStats& s) { return s.routes_per_token(); }},
    LayerReading{"dropped_ratio", "ratio", ReadingKind::gauge, "Share of all routes that was dropped.",
                 [](const RoutingStats& s) { return s.drop_rate(); }},
    LayerReading{"load_peak_ratio", "ratio", ReadingKind::gauge, "Largest load of an expert relative to the mean load.",
                 [](const RoutingStats& s) { return s.load_peak(); }},
    LayerReading{"load_variation_ratio", "ratio", ReadingKind::gauge,
                 "Standard deviation of the loads relative to the mean load.",
                 [](const RoutingStats& s) { return s.load_variation(); }},
    LayerReading{"dead_experts", "", ReadingKind::gauge, "Experts that no token reached.",
                 [](const RoutingStats& s) { return double(s.num_dead_experts()); }},
    LayerReading{"entropy_nats", "nats", ReadingKind::gauge, "Mean entropy of a token's probabilities.",
                 [](const RoutingStats& s) { return s.mean_entropy(); }},
    LayerReading{"entropy_ratio", "ratio", ReadingKind::gauge,
                 "The mean entropy relative to that of even probabilities.",
                 [](const RoutingStats& s) { return s.entropy_share(); }},
    LayerReading{"mean_margin_logits", "logits", ReadingKind::gauge,
                 "How far the last chosen logit of a token is above the next, on average.",
                 [](const RoutingStats& s) { return s.mean_margin(); }},
    LayerReading{"min_margin_logits", "logits", ReadingKind::gauge,
                 "How far the last chosen logit of a token is above the next, at least.",
                 [](const RoutingStats& s) { return s.min_margin(); }},
};

inline constexpr std::array expert_readings = {
    ExpertReading{"expert_routes", "", ReadingKind::counter, "Routes that reached the expert.",
                  [](const RoutingStats& s, Index e) { return double(s.load(e)); }},
    ExpertReading{"expert_dropped_routes", "", ReadingKind::counter, "Routes to the expert that were dropped.",
                  [](const RoutingStats& s, Index e) { return double(s.dropped(e)); }},
    ExpertReading{"expert_dropped_ratio", "ratio", ReadingKind::gauge,
                  "Share of the routes to the expert that was dropped.",
                  [](const RoutingStats& s, Index e) { return s.drop_rate(e); }},
    ExpertReading{"expert_probability_ratio", "ratio", ReadingKind::gauge,
                  "Mean probability of the expert over all tokens.",
                  [](const RoutingStats& s, Index e) { return s.mean_probability(e); }},
};

}  // namespace moe::inline MOE_TARGET
