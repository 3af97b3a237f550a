/// @file  Routing statistics as comma-separated values (RFC 4180).
#pragma once

#include <cmath>
#include <string>
#include <string_view>

#include "moe/core/types.hpp"
#include "moe/telemetry/readings.hpp"
#include "moe/telemetry/text.hpp"

namespace moe::inline MOE_TARGET {

namespace detail {

inline std::string csv_number(double number) { return std::isfinite(number) ? shortest(number) : ""; }

/// In quotes where it must be.
inline std::string csv_string(std::string_view text) {
  if (text.find_first_of(",\"\r\n") == std::string_view::npos) return std::string(text);
  std::string quoted = "\"";
  for (const char c : text) quoted += c == '"' ? std::string("\"\"") : std::string(1, c);
  return quoted + "\"";
}

inline std::string csv_start(const LayerStats& layer) {
  return csv_string(layer.label) + "," + std::to_string(layer.step);
}

}  // namespace detail

/// A row for each layer: layer, step, num_experts, all layer_readings. Lines end in CR LF; what is not finite is empty.
/// @param header  write the row of names first; without it the rows can be appended to a file that has one
inline std::string to_layer_csv(const StatsOfLayers& layers, bool header = true) {
  std::string csv = header ? "layer,step,num_experts" : "";
  for (const LayerReading& reading : layer_readings) csv += header ? "," + std::string(reading.name) : "";
  if (header) csv += "\r\n";
  for (const LayerStats& layer : layers) {
    csv += detail::csv_start(layer) + "," + std::to_string(layer.stats.num_experts());
    for (const LayerReading& reading : layer_readings) csv += "," + detail::csv_number(reading.of(layer.stats));
    csv += "\r\n";
  }
  return csv;
}

/// A row for each expert of each layer: layer, step, expert, all expert_readings. Otherwise as to_layer_csv.
inline std::string to_expert_csv(const StatsOfLayers& layers, bool header = true) {
  std::string csv = header ? "layer,step,expert" : "";
  for (const ExpertReading& reading : expert_readings) csv += header ? "," + std::string(reading.name) : "";
  if (header) csv += "\r\n";
  for (const LayerStats& layer : layers) {
    for (Index e = 0; e < layer.stats.num_experts(); ++e) {
      csv += detail::csv_start(layer) + "," + std::to_string(e);
      for (const ExpertReading& reading : expert_readings) csv += "," + detail::csv_number(reading.of(layer.stats, e));
      csv += "\r\n";
    }
  }
  return csv;
}

}  // namespace moe::inline MOE_TARGET
