/// @file  Reads a model's config.json, so that every complaint names the file and the key.
#pragma once

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>

#include <nlohmann/json.hpp>

#include "moe/core/types.hpp"
#include "moe/io/edit_distance.hpp"
#include "moe/io/error.hpp"
#include "moe/io/json.hpp"

namespace moe::inline MOE_TARGET::io {

/// The settings of a model, or of the text part of one that also sees.
class Config {
 public:
  /// @param path  of a config.json
  /// @throws Error if it cannot be read or is not a JSON object.
  static Config open(const std::filesystem::path& path) { return {read_json(path), utf8(path)}; }

  /// @param file  for messages
  /// @throws Error if `json` is not an object.
  Config(nlohmann::json json, std::string file) : json_(std::move(json)), file_(std::move(file)) {
    if (!json_.is_object()) fail(file_, ": is ", json_.type_name(), ", expected an object");
    if (const auto text = json_.find("text_config"); text != json_.end() && text->is_object()) {
      json_ = nlohmann::json(*text);
    }
  }

  const std::string& file() const { return file_; }

  /// An absent key, or null, takes the default, as it does where the file was written.
  /// @throws Error as below, and if it is absent but one is there that looks like it misspelt.
  Index integer(const char* key, Index absent) const { return may_have(key) ? integer(key) : absent; }
  double number(const char* key, double absent) const { return may_have(key) ? number(key) : absent; }
  bool flag(const char* key, bool absent) const { return may_have(key) ? flag(key) : absent; }
  std::string text(const char* key, const std::string& absent) const { return may_have(key) ? text(key) : absent; }

  /// How its weights are quantised: "fp8", "gptq", "awq", …; empty if they are not, or as gpt-oss's are.
  std::string quantization() const {
    if (find("quantization_config").is_null()) return "";
    const nlohmann::json& method = find("quantization_config.quant_method");
    const std::string said = method.is_string() ? method.get<std::string>() : "unnamed";
    return said == "mxfp4" ? "" : said;
  }

  /// Does a key speak of experts, as those of every MoE model do?
  bool mentions_experts() const {
    for (const auto& item : json_.items()) {
      const std::string& key = item.key();
      for (const char* const word : {"expert", "moe", "ffn_config"}) {
        if (key.find(word) != std::string::npos) return true;
      }
    }
    return false;
  }

  /// A list, one number a layer, that repeats one number is that number.
  /// @throws Error if the key is absent or its value is of another kind; sizes are 1 to 2^31 − 1.
  Index integer(const char* key) const {
    const nlohmann::json& value = common_to_layers(at(key));
    // Compared as double, which holds what JSON says signed, unsigned, or too large for either.
    if (!value.is_number_integer() || value.get<double>() < 1 || value.get<double>() > INT32_MAX) {
      fail(file_, ": ", key, " is ", shown(value), ", expected a whole number from 1 to ", INT32_MAX);
    }
    return value.get<Index>();
  }
  double number(const char* key) const {
    const nlohmann::json& value = at(key);
    if (!value.is_number()) fail(file_, ": ", key, " is ", shown(value), ", expected a number");
    return value.get<double>();
  }
  bool flag(const char* key) const {
    const nlohmann::json& value = at(key);
    if (!value.is_boolean()) fail(file_, ": ", key, " is ", shown(value), ", expected true or false");
    return value.get<bool>();
  }
  std::string text(const char* key) const {
    const nlohmann::json& value = at(key);
    if (!value.is_string()) fail(file_, ": ", key, " is ", shown(value), ", expected a string");
    return value.get<std::string>();
  }

 private:
  static std::string shown(const nlohmann::json& value) {
    return value.is_structured() ? std::string("an ") + value.type_name() : value.dump();
  }

  static const nlohmann::json& common_to_layers(const nlohmann::json& value) {
    if (!value.is_array() || value.empty()) return value;
    const nlohmann::json& first = value.front();
    return std::all_of(value.begin(), value.end(), [&](const auto& other) { return other == first; }) ? first : value;
  }

  /// The value at a key, null if there is none; "ffn_config.moe_top_k" is moe_top_k of the object ffn_config.
  const nlohmann::json& find(const std::string& key) const {
    static const nlohmann::json nothing;
    const nlohmann::json* value = &json_;
    for (std::size_t first = 0, dot = 0; dot != std::string::npos; first = dot + 1) {
      dot = key.find('.', first);
      const std::string name = key.substr(first, dot == std::string::npos ? dot : dot - first);
      if (!value->is_object() || !value->contains(name)) return nothing;
      value = &value->at(name);
    }
    return *value;
  }

  bool has(const char* key) const { return !find(key).is_null(); }

  bool may_have(const std::string& key) const {
    if (!find(key).is_null()) return true;
    const std::size_t slips = std::min<std::size_t>(2, key.size() / 6);  // of the pen, that we see through
    for (const auto& [name, value] : json_.items()) {
      if (name == key || detail::edit_distance(name, key) > slips) continue;
      fail(file_, ": has \"", name, "\", which nothing reads, and no \"", key, "\": is that meant?");
    }
    return false;
  }

  const nlohmann::json& at(const char* key) const {
    const nlohmann::json& value = find(key);
    if (value.is_null()) fail(file_, ": has no \"", key, "\"");
    return value;
  }

  nlohmann::json json_;
  std::string file_;
};

}  // namespace moe::inline MOE_TARGET::io
