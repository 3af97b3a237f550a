/// @file  How far one name is from another, to suggest the nearest.
#pragma once

#include <algorithm>
#include <cstddef>
#include <numeric>
#include <string>
#include <string_view>
#include <vector>

#include "moe/core/target.hpp"

namespace moe::inline MOE_TARGET::io::detail {

/// Insertions, deletions, replacements that make b of a (Levenshtein distance).
inline std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);  // from the part of a seen so far to each prefix of b
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (const char letter : a) {
    std::size_t diagonal = row[0]++;
    for (std::size_t j = 0; j < b.size(); ++j) {
      const std::size_t replaced = diagonal + (letter == b[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({replaced, row[j] + 1, diagonal + 1});
    }
  }
  return row.back();
}

/// For messages: of many names the four nearest, how many others there are, and where.
inline std::string nearest_names(std::vector<std::string> names, std::string_view name, std::string_view listed) {
  constexpr std::size_t shown = 4;
  const auto distance = [&](const std::string& one) { return edit_distance(one, name); };
  std::ranges::stable_sort(names, {}, distance);
  std::string text;
  for (std::size_t i = 0; i < std::min(names.size(), shown); ++i) text += (i == 0 ? "" : ", ") + names[i];
  if (names.size() <= shown) return text;
  return text + ", or another of " + std::to_string(names.size()) + " (" + std::string(listed) + ")";
}

}  // namespace moe::inline MOE_TARGET::io::detail
