/// @file  What Hugging Face's PEFT says of adapters beside their numbers.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <filesystem>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "moe/core/types.hpp"
#include "moe/io/config.hpp"
#include "moe/io/error.hpp"
#include "moe/io/json.hpp"
#include "moe/io/mapped_file.hpp"
#include "moe/io/name_pattern.hpp"
#include "moe/io/safetensors_file.hpp"

namespace moe::inline MOE_TARGET::io::detail {

/// What the names of PEFT's tensors begin with.
inline const std::string peft_prefix = "base_model.model.";

/// The keys of adapter_config.json's "alpha_pattern" in the order of the text: nlohmann::json sorts them, and of
/// several that fit a matrix PEFT takes the first.
class AlphaPatterns : public JsonGuard {
 public:
  using JsonGuard::JsonGuard;

  bool start_object(std::size_t size) {
    ++depth_;
    return JsonGuard::start_object(size);
  }
  bool end_object() {
    --depth_;
    return JsonGuard::end_object();
  }
  bool start_array(std::size_t size) {
    ++depth_;
    return JsonGuard::start_array(size);
  }
  bool end_array() {
    --depth_;
    return JsonGuard::end_array();
  }
  bool key(const std::string& key) {
    if (depth_ == 1) is_inside_ = key == "alpha_pattern";
    if (depth_ == 2 && is_inside_) found_.push_back(key);
    return JsonGuard::key(key);
  }

  const std::vector<std::string>& found() const { return found_; }

 private:
  int depth_ = 0;
  bool is_inside_ = false;
  std::vector<std::string> found_;
};

/// What adapter_config.json says of adapters, beside which matrices they lie, as the names of tensors tell. What it
/// says and is not read here changes what they compute, or may: it must be off.
class PeftConfig {
 public:
  /// @throws Error naming the key and its value, if the file cannot be read, or asks for what is not LoRA as we know
  /// it.
  explicit PeftConfig(const std::filesystem::path& path) : PeftConfig(map_file(path), utf8(path)) {}

  /// Share of what adapters read that was left out while they learned.
  /// @throws Error unless it is at least 0 and below 1.
  double dropout() const {
    const double share = config_.is_null("lora_dropout") ? 0 : config_.number("lora_dropout");
    if (!(share >= 0 && share < 1)) {
      fail(config_.file(), ": lora_dropout is ", share, ", expected at least 0 and below 1");
    }
    return share;
  }

  /// Did PEFT 0.19.0 or an older one write it? Their A of fused parameters is on another side. Without the key, no.
  bool has_old_sides() const {
    const std::string version = config_.is_null("peft_version") ? "" : config_.text("peft_version");
    return version.starts_with("0.19.0") || (version.starts_with("0.") && version.size() > 3 &&
                                             (version[3] == '.' ? true : version.substr(2, 2) < "19"));
  }

  /// Did PEFT adapt this parameter as such, not the module that it is of? Then patterns are of its own name.
  bool is_target_parameter(const std::string& name) const {
    return std::ranges::any_of(
        target_parameters_, [&](const std::string& target) { return name == target || name.ends_with("." + target); });
  }

  /// Ranks that any adapter may have. Where a file has those of several experts in one tensor, its rows do not tell.
  const std::vector<Index>& ranks() const { return ranks_; }

  /// Of a matrix. Where its B·A is multiplied by α / √rank, as much more.
  double alpha(const std::string& matrix, Index rank) const {
    const std::string name = is_target_parameter(matrix + ".weight") ? matrix + ".weight" : matrix;
    const auto fits = [&](const auto& pattern) { return pattern.first.fits_end_of(name); };
    const auto found = std::ranges::find_if(alpha_patterns_, fits);
    const double alpha = found == alpha_patterns_.end() ? config_.number("lora_alpha") : found->second;
    if (!std::isfinite(alpha))
      fail(config_.file(), ": alpha of \"", name, "\" is ", alpha, ", expected a finite number");
    return config_.flag("use_rslora", false) ? alpha * std::sqrt(double(rank)) : alpha;
  }

 private:
  PeftConfig(const MappedFile& file, const std::string& name)
      : PeftConfig(std::string_view(reinterpret_cast<const char*>(file.bytes.data()), file.bytes.size()), name) {}

  PeftConfig(std::string_view text, const std::string& file) : PeftConfig(parse_json(text, file), text, file) {}

  PeftConfig(const nlohmann::json& json, std::string_view text, const std::string& file) : config_(json, file) {
    const std::string type = config_.text("peft_type");
    if (type != "LORA") fail(file, ": peft_type is \"", type, "\", expected \"LORA\"");
    for (const auto& [key, value] : json.items()) {
      if (is_off(value) || std::ranges::count(read_or_harmless, key) > 0) continue;
      fail(file, ": ", key, " is ", describe(value), ", expected ", value.is_boolean() ? "false" : "null",
           ": adapters with it compute something else, which is not read");
    }
    const std::string bias = config_.text("bias", "none");
    if (bias != "none") fail(file, ": bias is \"", bias, "\", expected \"none\"");
    require_base_as_it_is(json, file);
    read_alpha_patterns(json, text, file);
    const auto add_rank = [&](const nlohmann::json& rank) {
      if (rank.is_number_integer()) ranks_.push_back(rank.get<Index>());
    };
    if (json.contains("r")) add_rank(json.at("r"));
    if (const auto patterns = json.find("rank_pattern"); patterns != json.end() && patterns->is_object()) {
      for (const auto& [pattern, rank] : patterns->items()) add_rank(rank);
    }
    if (const auto targets = json.find("target_parameters"); targets != json.end() && targets->is_array()) {
      for (const auto& target : *targets) target_parameters_.push_back(to_text(target, "target_parameters", file));
    }
  }

  static bool is_off(const nlohmann::json& value) {
    return value.is_null() || value == false || value == 0 || value == "" || (value.is_structured() && value.empty());
  }

  /// Some initialisations take out of the base what they put into the adapters: beside the base as it was, these count
  /// twice.
  static void require_base_as_it_is(const nlohmann::json& json, const std::string& file) {
    const nlohmann::json init = json.value("init_lora_weights", nlohmann::json(true));
    if (init.is_null() || init.is_boolean() || init == "gaussian" || init == "eva" || init == "orthogonal") return;
    fail(file, ": init_lora_weights is ", describe(init),
         ", expected true, false, \"gaussian\", \"eva\" or "
         "\"orthogonal\": others begin by changing the base. PEFT converts such adapters: "
         "save_pretrained(…, path_initial_model_for_weight_conversion=…)");
  }

  void read_alpha_patterns(const nlohmann::json& json, std::string_view text, const std::string& file) {
    const auto patterns = json.find("alpha_pattern");
    if (patterns == json.end() || patterns->is_null()) return;
    const std::string where = file + ": alpha_pattern";
    if (!patterns->is_object()) fail(where, " is ", describe(*patterns), ", expected an object");
    AlphaPatterns order(file);
    nlohmann::json::sax_parse(text.begin(), text.end(), &order);
    std::size_t cost = 0;
    for (const std::string& pattern : order.found()) {
      const nlohmann::json& value = patterns->at(pattern);
      if (!value.is_number()) fail(where, ": \"", pattern, "\" is ", describe(value), ", expected a number");
      alpha_patterns_.emplace_back(NamePattern(pattern, where), value.get<double>());
      cost += alpha_patterns_.back().first.cost();
      if (cost > NamePattern::max_steps)
        fail(where, ": its patterns have more than ", NamePattern::max_steps, " steps");
    }
  }

  /// Keys of PEFT that are read, here or in tensors' names and shapes, or that have no say in what adapters compute.
  // clang-format off
  static constexpr auto read_or_harmless = std::to_array<std::string_view>(
      {"alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "ensure_weight_tying",
       "eva_config", "exclude_modules", "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform",
       "loftq_config", "lora_alpha", "lora_dropout", "lora_ga_config", "megatron_config", "megatron_core",
       "modules_to_save", "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern", "revision",
       "runtime_config", "target_modules", "target_parameters", "task_type", "trainable_token_indices", "use_rslora"});
  // clang-format on

  Config config_;
  std::vector<std::pair<NamePattern, double>> alpha_patterns_;
  std::vector<std::string> target_parameters_;
  std::vector<Index> ranks_;
};

}  // namespace moe::inline MOE_TARGET::io::detail
