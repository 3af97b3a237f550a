/// @file  Routing statistics as a table for the terminal.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <string>
#include <string_view>
#include <vector>

#include "moe/core/types.hpp"
#include "moe/telemetry/readings.hpp"
#include "moe/telemetry/text.hpp"

namespace moe::inline MOE_TARGET {

/// How to_table() draws.
struct TableOptions {
  Index width = 80;     // columns; bars take what the numbers leave
  bool sorted = false;  // by load, largest first; else by number
  Index max_rows = 64;  // of more experts, those with the largest and the smallest loads are shown
  Index few_rows = 16;  // … so many
};

namespace detail {

inline std::string right(const std::string& text, std::size_t width) {
  return std::string(width - std::min(width, text.size()), ' ') + text;
}

inline std::string percent(double share) {
  return share != share ? "-" : fixed(100 * share, share < 0.09995 ? 2 : 1) + " %";
}

/// `length` columns to the precision of an eighth, with a mark where an even share ends.
inline std::string bar(double length, Index even) {
  constexpr std::array eighths = {"", "▏", "▎", "▍", "▌", "▋", "▊", "▉"};
  const auto steps = static_cast<Index>(std::lround(8 * length));
  std::string text;
  for (Index i = 0; i < steps / 8; ++i) text += "█";
  text += eighths[std::size_t(steps % 8)];
  const Index used = (steps + 7) / 8;
  if (used < even) text += std::string(std::size_t(even - used - 1), ' ') + "╎";
  return text;
}

/// Experts by load, the largest first; of equal ones the lower number.
inline std::vector<Index> experts_by_load(const RoutingStats& stats) {
  std::vector<Index> experts(std::size_t(stats.num_experts()));
  std::iota(experts.begin(), experts.end(), Index(0));
  std::sort(experts.begin(), experts.end(),
            [&](Index a, Index b) { return stats.load(a) != stats.load(b) ? stats.load(a) > stats.load(b) : a < b; });
  return experts;
}

inline std::string table_label(std::string_view label) {
  return escaped(label, [](char c) { return std::string(static_cast<unsigned char>(c) < 0x20 ? " " : ""); });
}

inline std::string count_of(Index count, const std::string& noun) {
  return std::to_string(count) + " " + noun + (count == 1 ? "" : "s");
}

/// Their numbers, or the first few of many.
inline std::string dead_text(const RoutingStats& stats) {
  const std::vector<Index> dead = stats.dead_experts();
  if (dead.empty()) return "";
  constexpr std::size_t shown = 8;
  std::string text = "dead      " + std::to_string(dead.size()) + " of " + std::to_string(stats.num_experts()) + ": ";
  for (std::size_t i = 0; i < std::min(shown, dead.size()); ++i) text += (i > 0 ? ", " : "") + std::to_string(dead[i]);
  return text + (dead.size() > shown ? ", …\n" : "\n");
}

/// The two experts that meet most often; the lowest numbers of equals.
inline std::string pair_text(const RoutingStats& stats) {
  Index most = 0, a = 0, b = 0;
  for (Index i = 0; i < stats.num_experts(); ++i) {
    for (Index j = i + 1; j < stats.num_experts(); ++j) {
      if (stats.pairs(i, j) > most) most = stats.pairs(a = i, b = j);
    }
  }
  if (most == 0) return "";
  return "together  " + std::to_string(a) + " and " + std::to_string(b) + " most often: " + count_of(most, "token") +
         " (" + percent(double(most) / double(stats.num_tokens())) + ")\n";
}

/// What the logits say, as far as there are any.
inline std::string logits_text(const RoutingStats& stats) {
  std::string text;
  if (!std::isnan(stats.mean_entropy())) {
    text = "entropy   " + fixed(stats.mean_entropy(), 2) + " nats, " + percent(stats.entropy_share()) + " of even\n";
  }
  if (!std::isnan(stats.mean_margin())) {
    text +=
        "margin    " + fixed(stats.mean_margin(), 3) + " on average, " + rounded(stats.min_margin(), 2) + " at least\n";
  }
  if (stats.num_nan_tokens() > 0) {
    text += "NaN       in the logits of " + count_of(stats.num_nan_tokens(), "token") + "\n";
  }
  return text;
}

inline std::string table_summary(const LayerStats& layer) {
  const RoutingStats& stats = layer.stats;
  const std::string dropped = stats.total_dropped() > 0 ? percent(stats.drop_rate()) : "none";
  return table_label(layer.label) + ": " + count_of(stats.num_tokens(), "token") + ", " +
         fixed(stats.routes_per_token(), 2) + " experts each, " + dropped + " dropped\n" + "load      largest " +
         fixed(stats.load_peak(), 2) + " × mean, variation " + fixed(stats.load_variation(), 2) + "\n" +
         dead_text(stats) + logits_text(stats) + (stats.counts_pairs() ? pair_text(stats) : "");
}

/// How many experts have which load: a column for each step from 0 to the largest.
inline std::string table_histogram(const RoutingStats& stats, Index width) {
  constexpr std::array heights = {" ", "▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};
  const std::vector<Index> experts = experts_by_load(stats);
  const Index most = stats.load(experts.front());
  const std::string start = "loads     0 ", end = " " + std::to_string(most);
  const Index columns = std::clamp<Index>(width - Index(start.size() + end.size()), 1, most + 1);
  std::vector<Index> count(std::size_t(columns), 0);
  for (const Index e : experts) ++count[std::size_t(std::min(columns - 1, stats.load(e) * columns / (most + 1)))];
  const Index highest = *std::max_element(count.begin(), count.end());
  std::string line = start;
  for (const Index n : count)
    line += heights[std::size_t((8 * n + highest - 1) / highest)];  // not 0 where there is one
  return line + end + "\n";
}

inline std::string table_of(const LayerStats& layer, const TableOptions& options) {
  const RoutingStats& stats = layer.stats;
  const Index num_experts = stats.num_experts();
  std::vector<Index> experts = experts_by_load(stats);
  const double most = double(stats.load(experts.front()));
  const bool few = num_experts > std::max(options.max_rows, options.few_rows);
  const Index top = few ? (options.few_rows + 1) / 2 : num_experts, bottom = few ? options.few_rows / 2 : 0;
  if (!few && !options.sorted) std::sort(experts.begin(), experts.end());

  const std::string head = "expert    load    share     mean p   dropped  ";
  const auto room = std::max<Index>(1, options.width - Index(head.size()));
  const double scale = most > 0 ? double(room) / most : 0;
  const auto even = static_cast<Index>(std::lround(scale * stats.mean_load()));
  const auto row = [&](Index e) {
    const double load = double(stats.load(e));
    const std::string line = right(std::to_string(e), 6) + right(std::to_string(stats.load(e)), 8) +
                             right(percent(load / double(stats.total_load())), 9) +
                             right(percent(stats.mean_probability(e)), 11) + right(percent(stats.drop_rate(e)), 10);
    const std::string bar = detail::bar(scale * load, even);
    return line + (bar.empty() ? "" : "  " + bar) + "\n";
  };

  std::string text = table_summary(layer);
  if (few) text += table_histogram(stats, options.width);
  text += head.substr(0, head.find_last_not_of(' ') + 1) + "\n";
  for (Index i = 0; i < top; ++i) text += row(experts[std::size_t(i)]);
  if (few) text += "   … " + std::to_string(num_experts - top - bottom) + " more …\n";
  for (Index i = num_experts - bottom; i < num_experts; ++i) text += row(experts[std::size_t(i)]);
  return text;
}

}  // namespace detail

/// Of each layer a summary, then a row for each expert: its number, load, share of all loads, mean probability, drop
/// rate, load as a bar (╎ is an even share). Of many experts it shows those with the largest and the smallest loads,
/// and how the loads are distributed. Unicode, no colours: fit for a pipe.
inline std::string to_table(const StatsOfLayers& layers, const TableOptions& options = {}) {
  std::string tables;
  for (const LayerStats& layer : layers) tables += (tables.empty() ? "" : "\n") + detail::table_of(layer, options);
  return tables;
}

}  // namespace moe::inline MOE_TARGET
