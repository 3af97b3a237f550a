/// @file  The keys of a GGUF file's model, of which each is asked for or complained of.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "moe/core/types.hpp"
#include "moe/io/error.hpp"
#include "moe/io/gguf.hpp"

namespace moe::inline MOE_TARGET::io::detail {

/// Those of a model that every block has in common, as the file says them.
class GgufKeys {
 public:
  GgufKeys(const GgufMetadata& metadata, std::string architecture, std::string file)
      : metadata_(metadata), prefix_(std::move(architecture) + '.'), file_(std::move(file)) {}

  const std::string& file() const { return file_; }
  std::string in_full(std::string_view key) const { return prefix_ + std::string(key); }

  bool has(std::string_view key) const { return find(key) != nullptr; }

  /// A whole number. A list, one number a layer, is the one that all have that do not have 0.
  /// @throws Error if it is none, or layers differ.
  std::optional<Index> count(std::string_view key) const {
    const GgufValue* const value = find(key);
    if (value == nullptr) return std::nullopt;
    const nlohmann::json said = to_json(*value);
    if (!said.is_array()) return to_count(said, key);
    Index common = 0;
    for (const nlohmann::json& of_layer : said) {
      const Index number = to_count(of_layer, key);
      if (number != 0 && common != 0 && number != common) {
        fail(file_, ": ", in_full(key), " is ", common, " in some layers and ", number,
             " in others, expected one number: layers of unlike sizes are not read from GGUF");
      }
      if (number != 0) common = number;
    }
    return common;
  }

  std::optional<double> number(std::string_view key) const {
    const GgufValue* const value = find(key);
    if (value == nullptr) return std::nullopt;
    const nlohmann::json said = to_json(*value);
    if (!said.is_number() || !std::isfinite(said.get<double>())) complain(said, key, "a number");
    return said.get<double>();
  }

  /// One for each layer, or one for all.
  std::vector<double> numbers(std::string_view key) const {
    const GgufValue* const value = find(key);
    if (value == nullptr) return {};
    const nlohmann::json said = to_json(*value);
    if (!said.is_array()) return {*number(key)};
    std::vector<double> all;
    for (const nlohmann::json& one : said) {
      if (!one.is_number() || !std::isfinite(one.get<double>())) complain(one, key, "numbers");
      all.push_back(one.get<double>());
    }
    return all;
  }

  std::optional<bool> flag(std::string_view key) const {
    const GgufValue* const value = find(key);
    if (value == nullptr) return std::nullopt;
    const nlohmann::json said = to_json(*value);
    if (!said.is_boolean()) complain(said, key, "a flag");
    return said.get<bool>();
  }

  /// What is not 0 in a list of numbers, one a layer; 0 if there is nothing.
  /// @throws Error if layers differ in it.
  double limit(std::string_view key) const {
    double common = 0;
    for (const double number : numbers(key)) {
      if (number != 0 && common != 0 && number != common) {
        fail(file_, ": ", in_full(key), " is ", common, " in some layers and ", number,
             " in others, expected one number");
      }
      if (number != 0) common = number;
    }
    return common;
  }

  /// It says where there are experts, and files show that by their tensors.
  void ignore(std::string_view key) const { find(key); }

  /// @throws Error naming a key of experts or routers that nobody asked for.
  void require_all_read() const {
    constexpr auto words = std::to_array<std::string_view>({"expert", "moe_", "router", "swiglu", "activation_"});
    for (const auto& [key, value] : metadata_) {
      if (!key.starts_with(prefix_)) continue;
      const std::string_view end = std::string_view(key).substr(prefix_.size());
      if (std::ranges::none_of(words, [&](auto word) { return end.starts_with(word); }) || asked_.contains(key))
        continue;
      fail(file_, ": has \"", key, "\", which changes what MoE blocks compute, and nothing here reads it");
    }
  }

 private:
  const GgufValue* find(std::string_view key) const {
    std::string full = in_full(key);
    const GgufValue* const value = find_key(metadata_, full);
    asked_.insert(std::move(full));
    return value;
  }

  Index to_count(const nlohmann::json& said, std::string_view key) const {
    if (!said.is_number_integer() || said.get<double>() < 0 || said.get<double>() > INT32_MAX) {
      complain(said, key, "a whole number from 0 to 2147483647");
    }
    return said.get<Index>();
  }

  [[noreturn]] void complain(const nlohmann::json& said, std::string_view key, const char* expected) const {
    const bool is_short = said.is_number() || said.is_boolean();
    const bool is_none = said.is_number_float() && !std::isfinite(said.get<double>());  // which JSON has no word for
    fail(file_, ": ", in_full(key), " is ",
         is_none    ? std::to_string(said.get<double>())
         : is_short ? said.dump()
                    : std::string("a ") + said.type_name(),
         ", expected ", expected);
  }

  const GgufMetadata& metadata_;
  std::string prefix_, file_;
  mutable std::set<std::string> asked_;
};

}  // namespace moe::inline MOE_TARGET::io::detail
