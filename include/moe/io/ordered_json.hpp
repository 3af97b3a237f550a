/// @file  JSON whose objects keep their keys in the order in which they were written.
#pragma once

#include <nlohmann/json.hpp>

#include "moe/core/target.hpp"

namespace moe::inline MOE_TARGET::io {

/// What people read, or wrote in an order of their own: config.json, records of benchmarks. nlohmann-json before 3.9
/// has no such type: there an object's keys are in the order of the alphabet, and its values are the same.
#if NLOHMANN_JSON_VERSION_MAJOR > 3 || (NLOHMANN_JSON_VERSION_MAJOR == 3 && NLOHMANN_JSON_VERSION_MINOR >= 9)
using OrderedJson = nlohmann::ordered_json;
#else
using OrderedJson = nlohmann::json;
#endif

}  // namespace moe::inline MOE_TARGET::io
