/// @file  Made-up rows.
#pragma once

#include <vector>

#include "../../benchmarks/row.hpp"

namespace moe::bench {

/// The sparse layer's times, and those of the dense ones, for each number of tokens.
struct MadeUp {
  Index tokens;
  double sparse, dense_active, dense_total;
  double routing_share = 0.01;
};

inline std::vector<Row> rows_of(const std::vector<MadeUp>& times) {
  std::vector<Row> rows;
  for (const auto& [tokens, sparse, dense_active, dense_total, routing_share] : times) {
    rows.push_back({.kind = Kind::moe, .tokens = tokens, .seconds = sparse, .routing_share = routing_share});
    rows.push_back({.kind = Kind::dense_active, .tokens = tokens, .seconds = dense_active});
    rows.push_back({.kind = Kind::dense_total, .tokens = tokens, .seconds = dense_total});
  }
  return rows;
}

}  // namespace moe::bench
