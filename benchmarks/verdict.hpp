/// @file  The answer to "is sparse worth it here?", in words.
#pragma once

#include <algorithm>
#include <span>
#include <string>
#include <vector>

#include "row.hpp"
#include "text.hpp"

namespace moe::bench {

namespace detail {

/// "1 token", "4 tokens"
inline std::string tokens_text(Index tokens) { return std::to_string(tokens) + (tokens == 1 ? " token" : " tokens"); }

/// "1 to 16, 256 and 1024 tokens": neighbours among `all` are drawn together where `holds`.
inline std::string ranges_text(const std::vector<Index>& all, const std::vector<bool>& holds) {
  std::vector<std::string> ranges;
  for (std::size_t i = 0; i < all.size(); ++i) {
    if (!holds[i]) continue;
    std::size_t last = i;
    while (last + 1 < all.size() && holds[last + 1]) ++last;
    ranges.push_back(std::to_string(all[i]) + (last > i ? " to " + std::to_string(all[last]) : ""));
    i = last;
  }
  std::string joined;
  for (std::size_t i = 0; i < ranges.size(); ++i) {
    joined += (i == 0 ? "" : i + 1 == ranges.size() ? " and " : ", ") + ranges[i];
  }
  return joined + (joined == "1" ? " token" : " tokens");
}

/// "0.98 to 1.31", or one of them where they read alike
template <class ToText>
std::string span_text(const std::vector<double>& numbers, const ToText& to_text) {
  const auto [least, most] = std::minmax_element(numbers.begin(), numbers.end());
  const std::string low = to_text(*least), high = to_text(*most);
  return low == high ? low : low + " to " + high;
}

/// Where sparse wins against a dense FFN of equal total size, and by how much.
inline std::string against_total(std::span<const Row> rows) {
  std::vector<Index> counts;
  std::vector<bool> wins;
  std::vector<double> gains;
  for (const Row& row : rows) {
    if (row.kind != Kind::moe) continue;
    if (const auto times = times_as_long(rows, Kind::dense_total, row)) {
      counts.push_back(row.tokens);
      wins.push_back(*times > 1);
      gains.push_back(*times);
    }
  }
  if (counts.empty()) return "Sparse was not compared with the dense FFN of equal total size.";
  const auto least = std::size_t(std::min_element(gains.begin(), gains.end()) - gains.begin());
  const auto most = std::size_t(std::max_element(gains.begin(), gains.end()) - gains.begin());
  const auto at = [&](std::size_t i) { return three_digits(gains[i]) + " times as long at " + tokens_text(counts[i]); };
  const std::string extent = ": dense takes " + at(most) + (least == most ? "." : ", " + at(least) + ".");

  const auto won = std::count(wins.begin(), wins.end(), true);
  const auto first_win = std::find(wins.begin(), wins.end(), true);
  const bool from_there_on = std::find(first_win, wins.end(), false) == wins.end();
  const std::string beats = " the dense FFN of equal total size ";
  if (won == 0) return "Sparse does not beat" + beats + "at any number of tokens" + extent;
  if (won == std::ssize(wins)) return "Sparse beats" + beats + "at every number of tokens" + extent;
  if (!from_there_on) return "Sparse beats" + beats + "at " + ranges_text(counts, wins) + extent;
  return "Sparse beats" + beats + "from " + tokens_text(counts[std::size_t(first_win - wins.begin())]) + " on" + extent;
}

}  // namespace detail

/// @param rows  of one shape and one type of weights, in order of rising tokens
inline std::string verdict(std::span<const Row> rows) {
  std::string words = detail::against_total(rows);
  std::vector<double> costs, routing;
  for (const Row& row : rows) {
    if (row.routing_share) routing.push_back(*row.routing_share);
    if (row.kind != Kind::moe) continue;
    if (const auto times = times_as_long(rows, Kind::dense_active, row)) costs.push_back(1 / *times);
  }
  if (!costs.empty()) {
    words +=
        " It takes " + detail::span_text(costs, three_digits) + " times as long as the dense FFN of equal active size.";
  }
  if (!routing.empty()) {
    words += " Routing and dispatch are " + detail::span_text(routing, percent_text) + " of its time.";
  }
  return words;
}

}  // namespace moe::bench
