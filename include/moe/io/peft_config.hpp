/// @file  What Hugging Face's PEFT says of adapters beside their numbers.
#pragma once

#include <cmath>
#include <filesystem>
#include <regex>
#include <string>

#include <nlohmann/json.hpp>

#include "moe/core/types.hpp"
#include "moe/io/config.hpp"
#include "moe/io/error.hpp"
#include "moe/io/json.hpp"
#include "moe/io/safetensors_file.hpp"

namespace moe::inline MOE_TARGET::io::detail {

/// What the names of PEFT's tensors begin with.
inline const std::string peft_prefix = "base_model.model.";

/// What a pattern of PEFT's says of a matrix: the value at a regular expression that its name ends with, after a dot.
inline double value_for(const nlohmann::json& patterns, const std::string& matrix, double otherwise,
                        const std::string& where) {
  for (const auto& [pattern, value] : patterns.items()) {
    try {
      if (!std::regex_match(matrix, std::regex("(.*\\.)?(" + pattern + ")"))) continue;
    } catch (const std::regex_error& error) {
      fail(where, ": \"", pattern, "\" is no regular expression: ", error.what());
    }
    if (!value.is_number()) fail(where, ": \"", pattern, "\" is ", describe(value), ", expected a number");
    return value.get<double>();
  }
  return otherwise;
}

/// What adapter_config.json says of α.
class PeftConfig {
 public:
  /// @throws Error if the file cannot be read, or asks for what is not LoRA as we know it.
  explicit PeftConfig(const std::filesystem::path& path) : config_(Config::open(path)), json_(read_json(path)) {
    const std::string type = config_.text("peft_type");
    if (type != "LORA") fail(config_.file(), ": peft_type is \"", type, "\", expected \"LORA\"");
    for (const char* const unknown : {"use_dora", "fan_in_fan_out", "lora_bias"}) {
      if (config_.flag(unknown, false)) fail(config_.file(), ": ", unknown, " is true, expected false");
    }
    const std::string bias = config_.text("bias", "none");
    if (bias != "none") fail(config_.file(), ": bias is \"", bias, "\", expected \"none\"");
  }

  /// Of a matrix. Where its B·A is multiplied by α / √rank, as much more.
  double alpha(const std::string& matrix, Index rank) const {
    double alpha = config_.number("lora_alpha");
    if (const auto patterns = json_.find("alpha_pattern"); patterns != json_.end()) {
      alpha = value_for(*patterns, matrix, alpha, config_.file() + ": alpha_pattern");
    }
    return config_.flag("use_rslora", false) ? alpha * std::sqrt(double(rank)) : alpha;
  }

 private:
  Config config_;
  nlohmann::json json_;
};

}  // namespace moe::inline MOE_TARGET::io::detail
