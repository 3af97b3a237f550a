/// @file  Reads a model's config.json, so that every complaint names the file and the key.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "moe/core/types.hpp"
#include "moe/io/built_with.hpp"
#include "moe/io/edit_distance.hpp"
#include "moe/io/error.hpp"
#include "moe/io/json.hpp"
#include "moe/io/reference_defaults.hpp"

namespace moe::inline MOE_TARGET::io {

namespace detail {

/// Is a number of this setting as if nothing were said? 1 is of factors; 0 and 1 are of numbers of groups and of steps
/// from one MoE layer to the next; 0 is of all else: limits, caps, widths, numbers of experts, flags.
inline bool is_neutral(std::string_view key, double number) {
  constexpr auto factors =
      std::to_array<std::string_view>({"moe_routed_scaling_factor", "moe_router_scaling_factor", "output_multiplier",
                                       "route_scale", "routed_scaling_factor", "router_scaling_factor"});
  constexpr auto groups_and_steps = std::to_array<std::string_view>(
      {"n_group", "num_expert_group", "topk_group", "decoder_sparse_step", "encoder_sparse_step", "expert_layer_period",
       "interleave_moe_layer_step", "moe_layer_freq", "moe_layer_interval"});
  if (std::ranges::count(factors, key) > 0) return number == 1;
  return number == 0 || (number == 1 && std::ranges::count(groups_and_steps, key) > 0);
}

}  // namespace detail

/// The settings of a model, or of the text part of one that also sees or hears. A key may be spelt as any name that the
/// model's configuration class knows it by; where it is absent, it says what it says there (reference_defaults.hpp).
class Config {
 public:
  /// @param path  of a config.json
  /// @throws Error if it cannot be read or is not a JSON object.
  static Config open(const std::filesystem::path& path) { return {read_settings(path), utf8(path)}; }

  /// Where transformers' class and the code that a maker put beside the weights disagree: is it the maker's that
  /// counts?
  bool hub_code() const { return hub_code_; }
  void set_hub_code(bool counts) { hub_code_ = counts; }  ///< See hub_code().

  /// @param file  for messages
  /// @throws Error if `json` is not an object.
  Config(nlohmann::json json, std::string file) : json_(std::move(json)), file_(std::move(file)) { take_parts(); }

  const std::string& file() const { return file_; }

  /// Another part of the model that has layers of its own, and settings: "talker", whose tensors' names begin so.
  struct Tower {
    std::string name;
    std::shared_ptr<const Config> config;
  };
  /// Those beside the one whose settings these are, of whose type and experts the file speaks.
  const std::vector<Tower>& towers() const { return towers_; }

  /// Is it in the file, or has it a default?
  bool has(const std::string& key) const { return find(key) != nullptr; }

  /// Is it absent, without a default, or null, which is what Python calls None?
  bool is_null(const std::string& key) const {
    const nlohmann::json* const value = find(key);
    return value == nullptr || value->is_null();
  }

  /// Where the key is absent, and has no default, `absent`. null is no number, flag, or text: ask is_null() before, if
  /// it means something.
  /// @throws Error as below, and if it is absent but one is there that looks like it misspelt.
  Index integer(const char* key, Index absent) const { return may_have(key) ? integer(key) : absent; }
  /// As integer(key, absent).
  double number(const char* key, double absent) const { return may_have(key) ? number(key) : absent; }
  /// As integer(key, absent).
  bool flag(const char* key, bool absent) const { return may_have(key) ? flag(key) : absent; }
  /// As integer(key, absent).
  std::string text(const char* key, const std::string& absent) const { return may_have(key) ? text(key) : absent; }

  /// How many there are of something that a model need not have: null, 0 and an absent key are none.
  /// @throws Error if it is anything else but a whole number.
  Index count(const char* key) const {
    if (!may_have(key) || is_null(key)) return 0;
    const nlohmann::json& value = common_to_layers(at(key));
    return value.is_number_integer() && value.get<double>() == 0 ? 0 : integer(key);
  }

  /// What a key has, whatever that is; null if it has nothing.
  const nlohmann::json* value(const std::string& key) const { return is_null(key) ? nullptr : find(key); }

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
  Index integer(const char* key) const { return to_integer(common_to_layers(at(key)), key); }
  double number(const char* key) const { return to_number(at(key), key); }  ///< As integer(key), of any finite number.
  /// As integer(key), of true and false.
  bool flag(const char* key) const {
    const nlohmann::json& value = at(key);
    if (!value.is_boolean()) fail(file_, ": ", key, " is ", shown(value), ", expected true or false");
    return value.get<bool>();
  }
  /// As integer(key), of a string.
  std::string text(const char* key) const {
    const nlohmann::json& value = at(key);
    if (!value.is_string()) fail(file_, ": ", key, " is ", shown(value), ", expected a string");
    return value.get<std::string>();
  }

  /// The number of one layer in a list that has one for each; 0 if there is no list.
  /// @param layer  from 0, or −1 if it is not known
  /// @throws Error if it is no list of numbers, or has none for this layer.
  double number_of_layer(const char* key, Index layer) const {
    if (is_null(key)) return 0;
    const nlohmann::json& value = common_to_layers(at(key));
    if (!value.is_array()) return to_number(value, key);
    if (value.empty()) return 0;
    if (layer < 0 || layer >= std::ssize(value)) {
      fail(file_, ": ", key, " has ", value.size(), " numbers, one for each layer, and this layer's ",
           layer < 0 ? "is not known: its name has no number" : "is " + std::to_string(layer));
    }
    return to_number(value[std::size_t(layer)], key);
  }

  /// The number at a place in a list.
  /// @throws Error if the key is absent, or no list that is so long, or the number is none from 1 to 2^31 − 1.
  Index integer_in_list(const char* key, std::size_t place) const {
    const nlohmann::json& value = at(key);
    if (!value.is_array() || value.size() <= place) {
      fail(file_, ": ", key, " is ", shown(value), ", expected a list of ", place + 1, " or more numbers");
    }
    return to_integer(value[place], key);
  }

  /// Writes another value at a key of `whole`, which is what the file holds: under each name by which it has the key,
  /// else under the class's own. A list, one number a layer, becomes a list of this value.
  template <class Json>
  void change(Json& whole, const std::string& key, const Json& value) const {
    Json* object = &whole;
    while (const char* const part = text_part(*object)) object = &(*object)[part];
    const std::size_t dot = key.find('.');
    bool found = false;
    for (const std::string& spelling : spellings(key.substr(0, dot))) {
      if (!object->contains(spelling)) continue;
      change_within((*object)[spelling], dot == key.npos ? "" : key.substr(dot + 1), value);
      found = true;
    }
    if (!found)
      change_within((*object)[name_of(key.substr(0, dot))], dot == key.npos ? "" : key.substr(dot + 1), value);
  }

  /// Is it there, and a list?
  bool is_list(const char* key) const {
    const nlohmann::json* const value = find(key);
    return value != nullptr && value->is_array();
  }

  /// Of the file itself, all names that were not asked for since it was opened, and say something: no null, false,
  /// "", empty list, or number that is as if nothing were said.
  std::vector<std::string> unread() const {
    std::vector<std::string> names;
    const std::lock_guard lock(asked_->mutex);
    for (const auto& [name, value] : json_.items()) {
      if (!asked_->names.contains(name) && says_something(name, value)) names.push_back(name);
    }
    return names;
  }

 private:
  template <class BuiltAs = detail::Flags>
  void take_parts();

  /// The names of objects that hold the settings of the part that reads text.
  template <class Json>
  static const char* text_part(const Json& json) {
    for (const char* const name : {"text_config", "llm_config", "language_config", "thinker_config"}) {
      if (const auto found = json.find(name); found != json.end() && found->is_object()) return name;
    }
    return nullptr;
  }

  /// Of the objects "…_config" beside the part that is taken.
  void add_towers_beside(std::string_view part) {
    constexpr std::string_view end = "_config";
    for (const auto& [key, value] : json_.items()) {
      if (key == part || !key.ends_with(end) || !value.is_object() || key == "quantization_config") continue;
      nlohmann::json of_tower = value;
      inherit_quantization(json_, of_tower);
      auto config = std::make_shared<const Config>(std::move(of_tower), file_);
      if (!config->may_be_tower()) continue;
      towers_.push_back({key.substr(0, key.size() - end.size()), config});
    }
  }

  bool may_be_tower() const {
    const auto type = json_.find("model_type");
    return type != json_.end() && type->is_string() && mentions_experts();
  }

  /// How weights are quantised often stands outside.
  static void inherit_quantization(const nlohmann::json& outer, nlohmann::json& inner) {
    for (const char* const outside : {"quantization_config", "quantization", "compression_config"}) {
      if (!inner.contains(outside) && outer.contains(outside)) inner[outside] = outer[outside];
    }
  }

  template <class Json>
  static void change_within(Json& at, const std::string& path, const Json& value) {
    if (!path.empty()) {
      const std::size_t dot = path.find('.');
      change_within(at[path.substr(0, dot)], dot == path.npos ? "" : path.substr(dot + 1), value);
    } else if (at.is_array() && !at.empty()) {
      for (Json& of_layer : at) of_layer = value;
    } else {
      at = value;
    }
  }

  void learn_defaults(const std::string& model_type) {
    for (const auto& of : detail::reference_defaults) {
      if (of.model_type != model_type) continue;
      defaults_ = nlohmann::json::parse(of.values);
      const auto aliases = nlohmann::json::parse(of.aliases);
      for (const auto& [alias, name] : aliases.items()) names_of_[alias] = name.get<std::string>();
    }
  }

  static bool says_something(std::string_view key, const nlohmann::json& value) {
    if (value.is_null() || value.empty()) return false;
    if (value.is_boolean()) return value.get<bool>();
    if (value.is_number()) return !detail::is_neutral(key, value.get<double>());
    return !value.is_string() || !value.get<std::string>().empty();
  }

  template <class BuiltAs = detail::Flags>
  static std::string shown(const nlohmann::json& value);

  Index to_integer(const nlohmann::json& value, const char* key) const {
    // Compared as double, which holds what JSON says signed, unsigned, or too large for either.
    if (!value.is_number_integer() || value.get<double>() < 1 || value.get<double>() > INT32_MAX) {
      fail(file_, ": ", key, " is ", shown(value), ", expected a whole number from 1 to ", INT32_MAX);
    }
    return value.get<Index>();
  }

  double to_number(const nlohmann::json& value, const char* key) const {
    if (value.is_number()) return value.get<double>();
    // As Python writes what JSON has no numbers for, and as transformers does: {"__float__": "Infinity"}.
    const auto tagged = value.is_object() && value.size() == 1 ? value.find("__float__") : value.end();
    const nlohmann::json& text = tagged != value.end() ? *tagged : value;
    if (text == "Infinity") return std::numeric_limits<double>::infinity();
    if (text == "-Infinity") return -std::numeric_limits<double>::infinity();
    if (text == "NaN") return std::numeric_limits<double>::quiet_NaN();
    fail(file_, ": ", key, " is ", shown(value), ", expected a number");
  }

  static const nlohmann::json& common_to_layers(const nlohmann::json& value) {
    if (!value.is_array() || value.empty()) return value;
    const nlohmann::json& first = value.front();
    return std::all_of(value.begin(), value.end(), [&](const auto& other) { return other == first; }) ? first : value;
  }

  std::string name_of(const std::string& key) const {
    const auto found = names_of_.find(key);
    return found == names_of_.end() ? key : found->second;
  }

  /// Every spelling of a key, the class's own first.
  std::vector<std::string> spellings(const std::string& key) const {
    std::vector<std::string> all = {name_of(key)};
    for (const auto& [alias, name] : names_of_) {
      if (name == all[0]) all.push_back(alias);
    }
    return all;
  }

  /// The value at a key, or its default, or null; "ffn_config.moe_top_k" is moe_top_k of the object ffn_config.
  /// @throws Error if two spellings of the key say different things.
  template <class BuiltAs = detail::Flags>
  const nlohmann::json* find(const std::string& key) const;

  static const nlohmann::json* within(const nlohmann::json& object, const std::string& path) {
    const nlohmann::json* value = &object;
    for (std::size_t first = 0, dot = 0; dot != std::string::npos; first = dot + 1) {
      dot = path.find('.', first);
      const std::string name = path.substr(first, dot == std::string::npos ? dot : dot - first);
      if (!value->is_object() || !value->contains(name)) return nullptr;
      value = &value->at(name);
    }
    return value;
  }

  bool may_have(const std::string& key) const {
    check_spelling(key);
    return find(key) != nullptr;
  }

  /// @throws Error if the file has no such key, by any of its names, but one that looks like it misspelt.
  template <class BuiltAs = detail::Flags>
  void check_spelling(const std::string& key) const;

  const nlohmann::json& at(const char* key) const {
    const nlohmann::json* const value = find(key);
    check_spelling(key);
    if (value == nullptr) fail(file_, ": has no \"", key, "\"");
    return *value;
  }

  struct Asked {
    std::mutex mutex;
    std::set<std::string> names;
  };
  void remember(const std::string& name) const {
    const std::lock_guard lock(asked_->mutex);
    asked_->names.insert(name);
  }

  nlohmann::json json_;
  std::string file_;
  bool hub_code_ = false;
  std::vector<Tower> towers_;
  nlohmann::json defaults_ = nlohmann::json::object();
  std::map<std::string, std::string> names_of_;  // of aliases, what the class calls them
  std::shared_ptr<Asked> asked_ = std::make_shared<Asked>();
};

template <class BuiltAs>
void Config::take_parts() {
  if (!json_.is_object()) fail(file_, ": is ", json_.type_name(), ", expected an object");
  while (const char* const part = text_part(json_)) {
    nlohmann::json text = std::move(json_[part]);
    add_towers_beside(part);
    inherit_quantization(json_, text);
    json_ = std::move(text);
  }
  if (const auto type = json_.find("model_type"); type != json_.end() && type->is_string()) learn_defaults(*type);
}

template <class BuiltAs>
std::string Config::shown(const nlohmann::json& value) {
  return value.is_structured() ? std::string("an ") + value.type_name() : value.dump();
}

template <class BuiltAs>
const nlohmann::json* Config::find(const std::string& key) const {
  const std::size_t dot = key.find('.');
  const nlohmann::json* found = nullptr;
  std::string found_as;
  for (const std::string& spelling : spellings(key.substr(0, dot))) {
    remember(spelling);
    const auto value = json_.find(spelling);
    if (value == json_.end()) continue;
    if (found != nullptr && *found != *value) {
      fail(file_, ": ", found_as, " is ", shown(*found), " and ", spelling, " is ", shown(*value),
           ", expected one value: the two are one setting");
    }
    if (found == nullptr) found = &*value, found_as = spelling;
  }
  if (found != nullptr && dot == std::string::npos) return found;
  if (found != nullptr) found = within(*found, key.substr(dot + 1));
  if (found != nullptr) return found;
  const auto usual = defaults_.find(name_of(key.substr(0, dot)));
  if (usual == defaults_.end() || dot == std::string::npos) return usual == defaults_.end() ? nullptr : &*usual;
  return within(*usual, key.substr(dot + 1));
}

template <class BuiltAs>
void Config::check_spelling(const std::string& key) const {
  const nlohmann::json* const value = find(key);
  const bool in_file =
      value != nullptr &&
      (key.find('.') != key.npos ||
       std::ranges::any_of(spellings(key), [&](const std::string& spelling) { return json_.contains(spelling); }));
  if (in_file) return;
  const std::size_t slips = std::min<std::size_t>(2, key.size() / 6);  // of the pen, that we see through
  for (const auto& item : json_.items()) {
    const std::string& name = item.key();
    if (name == key || name == "n_groups" || detail::edit_distance(name, key) > slips) continue;
    if (defaults_.contains(name) || names_of_.contains(name)) continue;
    fail(file_, ": has \"", name, "\", which nothing reads, and no \"", key, "\": is that meant?");
  }
}

#if defined(MOE_IO_COMPILED)
extern template void Config::take_parts<detail::Flags>();
extern template const nlohmann::json* Config::find<detail::Flags>(const std::string&) const;
extern template void Config::check_spelling<detail::Flags>(const std::string&) const;
extern template std::string Config::shown<detail::Flags>(const nlohmann::json&);
#endif

}  // namespace moe::inline MOE_TARGET::io
