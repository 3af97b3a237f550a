/// @file  The comparison as JSON: an array with one object for each measured row.
#pragma once

#include <string>

#include "limits.hpp"
#include "moe/io/ordered_json.hpp"
#include "moe/models/presets.hpp"
#include "options.hpp"
#include "records_file.hpp"
#include "row.hpp"

namespace moe::bench {

/// What all rows of one table have in common.
struct Setting {
  std::string shape_name;
  MoeShape shape;
  WeightType weights;
  Index threads;
  Limits limits;
};

/// `bits` are of a weight, `bytes` of the experts that were used; `error` and `routing_share` are null but for the
/// sparse layer; `fma_gflops` is the limit of the products that the row has.
inline io::OrderedJson record_of(const Row& row, const Setting& setting) {
  io::OrderedJson record{
      {"shape", setting.shape_name},
      {"weights", name_of(setting.weights)},
      {"bits", 8 * bytes_of(setting.weights)},
      {"kind", name_of(row.kind)},
      {"tokens", row.tokens},
      {"threads", setting.threads},
      {"ms", 1e3 * row.seconds},
      {"gflops", row.gflops()},
      {"gbs", row.gbs()},
      {"bytes", row.experts.bytes},
      {"error", nullptr},
      {"limit_share", row.limit_share},
      {"routing_share", nullptr},
      {"fma_gflops", limits_of(row.kind, setting.weights, setting.limits).fma_gflops},
      {"read_gbs", setting.limits.read_gbs},
      {"d_model", setting.shape.d_model},
      {"d_ff", setting.shape.d_ff},
      {"experts", setting.shape.num_experts},
      {"top_k", setting.shape.top_k},
  };
  if (row.error) record["error"] = *row.error;
  if (row.routing_share) record["routing_share"] = *row.routing_share;
  return record;
}

}  // namespace moe::bench
