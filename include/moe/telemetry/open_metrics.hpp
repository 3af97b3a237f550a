/// @file  Routing statistics as text that a monitoring system scrapes.
#pragma once

#include <cmath>
#include <set>
#include <string>
#include <string_view>

#include "moe/core/check.hpp"
#include "moe/core/types.hpp"
#include "moe/telemetry/readings.hpp"
#include "moe/telemetry/text.hpp"

namespace moe::inline MOE_TARGET {

/// Two formats that differ in one place: the type of a counter x, whose samples are x_total, is given to x in
/// OpenMetrics and to x_total in Prometheus. So a text with counters cannot be right in both.
enum class MetricsFormat {
  open_metrics,  ///< 1.0, application/openmetrics-text; ends with "# EOF"
  prometheus,    ///< 0.0.4, text/plain; what promtool check metrics reads
};

namespace detail {

inline std::string metric_number(double number) {
  if (std::isnan(number)) return "NaN";
  return std::isinf(number) ? (number > 0 ? "+Inf" : "-Inf") : shortest(number);
}

/// The label's value: backslash, quote and newline are escaped.
inline std::string metric_label(std::string_view text) {
  const auto escape = [](char c) -> std::string {
    return c == '\\' ? "\\\\" : c == '"' ? "\\\"" : c == '\n' ? "\\n" : "";
  };
  return '"' + escaped(text, escape) + '"';
}

/// moe_name{layer="…",expert="…"} number
inline std::string metric_sample(const auto& reading, const LayerStats& layer, std::string_view expert, double number) {
  std::string sample = "moe_" + std::string(reading.name) + (reading.kind == ReadingKind::counter ? "_total" : "");
  sample += "{layer=" + metric_label(layer.label);
  if (!expert.empty()) sample += ",expert=" + metric_label(expert);
  return sample + "} " + metric_number(number) + "\n";
}

/// The lines above the samples of one reading.
inline std::string metric_head(const auto& reading, MetricsFormat format) {
  const bool counter = reading.kind == ReadingKind::counter, open = format == MetricsFormat::open_metrics;
  const std::string name = "moe_" + std::string(reading.name) + (counter && !open ? "_total" : "");
  std::string head = "# TYPE " + name + (counter ? " counter\n" : " gauge\n");
  if (open && !reading.unit.empty()) head += "# UNIT " + name + " " + std::string(reading.unit) + "\n";
  return head + "# HELP " + name + " " + std::string(reading.help) + "\n";
}

}  // namespace detail

/// All layer_readings and expert_readings of these layers, named moe_…, with labels {layer="…",expert="…"}.
/// @throws std::invalid_argument if two layers have one label.
inline std::string to_metrics(const StatsOfLayers& layers, MetricsFormat format = MetricsFormat::open_metrics) {
  std::set<std::string_view> labels;
  for (const LayerStats& layer : layers) {
    if (!labels.insert(layer.label).second) {
      require(false, "to_metrics: two layers have the label \"" + std::string(layer.label) + "\"");
    }
  }
  std::string text;
  for (const LayerReading& reading : layer_readings) {
    text += detail::metric_head(reading, format);
    for (const LayerStats& layer : layers) text += detail::metric_sample(reading, layer, "", reading.of(layer.stats));
  }
  for (const ExpertReading& reading : expert_readings) {
    text += detail::metric_head(reading, format);
    for (const LayerStats& layer : layers) {
      for (Index e = 0; e < layer.stats.num_experts(); ++e) {
        text += detail::metric_sample(reading, layer, std::to_string(e), reading.of(layer.stats, e));
      }
    }
  }
  return format == MetricsFormat::open_metrics ? text + "# EOF\n" : text;
}

}  // namespace moe::inline MOE_TARGET
