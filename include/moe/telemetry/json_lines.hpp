/// @file  Routing statistics as JSON lines (jsonlines.org).
#pragma once

#include <cmath>
#include <string>
#include <string_view>

#include "moe/core/types.hpp"
#include "moe/telemetry/readings.hpp"
#include "moe/telemetry/text.hpp"

namespace moe::inline MOE_TARGET {

namespace detail {

inline std::string json_number(double number) { return std::isfinite(number) ? shortest(number) : "null"; }

/// RFC 8259, §7.
inline std::string json_string(std::string_view text) {
  const auto escape = [](char c) -> std::string {
    if (c == '"') return "\\\"";
    if (c == '\\') return "\\\\";
    if (static_cast<unsigned char>(c) >= 0x20) return "";
    constexpr std::string_view digits = "0123456789abcdef";
    return std::string("\\u00") + digits[std::size_t(c) / 16] + digits[std::size_t(c) % 16];
  };
  return '"' + escaped(text, escape) + '"';
}

/// "name":[of(0),of(1),…]
template <class Of>
std::string json_array(std::string_view name, Index size, const Of& of) {
  std::string array;
  for (Index i = 0; i < size; ++i) array += (i > 0 ? "," : "") + json_number(of(i));
  return json_string(name) + ":[" + array + "]";
}

/// An object with a closing newline.
inline std::string json_line(const LayerStats& layer) {
  const RoutingStats& stats = layer.stats;
  std::string line = "{\"layer\":" + json_string(layer.label) + ",\"step\":" + std::to_string(layer.step) +
                     ",\"num_experts\":" + std::to_string(stats.num_experts());
  for (const LayerReading& reading : layer_readings) {
    line += "," + json_string(reading.name) + ":" + json_number(reading.of(stats));
  }
  const auto dead = stats.dead_experts();
  line += "," + json_array("dead", Index(dead.size()), [&](Index i) { return double(dead[std::size_t(i)]); });
  for (const ExpertReading& reading : expert_readings) {
    line += "," + json_array(reading.name, stats.num_experts(), [&](Index e) { return reading.of(stats, e); });
  }
  return line + "}\n";
}

}  // namespace detail

/// A line for each layer, with an object of: layer, step, num_experts, all layer_readings as numbers, the list of dead
/// experts, each of expert_readings as an array over the experts. What is not finite is null.
inline std::string to_json_line(const StatsOfLayers& layers) {
  std::string lines;
  for (const LayerStats& layer : layers) lines += detail::json_line(layer);
  return lines;
}

}  // namespace moe::inline MOE_TARGET
