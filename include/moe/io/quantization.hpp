/// @file  What a model's files say of how its weights are coded.
#pragma once

#include <algorithm>
#include <array>
#include <charconv>
#include <cstddef>
#include <filesystem>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "moe/core/types.hpp"
#include "moe/io/error.hpp"
#include "moe/io/json.hpp"
#include "moe/io/name_pattern.hpp"

namespace moe::inline MOE_TARGET::io {

/// How the numbers of one matrix are coded, as far as it is known.
struct Coding {
  std::string type = {};           // "FP8", "INT4", "MXFP4", "NVFP4", "NF4", …; "" if it is not known
  std::optional<Index> rows = {};  // that share a scale; 0 is all
  std::optional<Index> cols = {};  // and how many of each
  std::optional<bool> zeros = {};  // are there zero points?
  bool plain = false;              // not at all: float
  bool optional = false;           // plain weights are right as well
  std::string layout = {};         // of GPTQ's zeros: "v1" or "v2"
  std::string format = {};         // how it lies in files, by the word of its software: "pack-quantized"; of
                                   // bitsandbytes "load_in_4bit" or "load_in_8bit"; "" if it is not said
};

/// "FP8 E4M3, blocks of 128×128"; "INT4, groups of 32, with zero points"; "INT8, a scale a row".
inline std::string to_string(const Coding& coding) {
  if (coding.plain) return "no coded weights";
  std::string text = coding.type.empty() ? "coded weights" : coding.type == "FP8" ? "FP8 E4M3" : coding.type;
  if (coding.rows && coding.cols) {
    const Index r = *coding.rows, c = *coding.cols;
    text += r == 0 && c == 0   ? ", one scale"
            : r == 1 && c == 0 ? ", a scale a row"
            : r == 1           ? ", groups of " + std::to_string(c)
                               : ", blocks of " + std::to_string(r) + "×" + std::to_string(c);
  }
  return text + (coding.zeros.value_or(false) ? ", with zero points" : "");
}

/// Of one model: what its quantization_config, MLX's "quantization", or ModelOpt's hf_quant_config.json promise of each
/// module's weight.
class Quantization {
 public:
  /// Nothing is said: tensors alone count.
  Quantization() = default;

  /// @param json   what the key says, or the file
  /// @param where  for messages: config.json: quantization_config
  /// @throws Error naming the method, if it is none that is read, or what it says makes no sense.
  Quantization(nlohmann::json json, std::string where) : json_(std::move(json)), where_(std::move(where)) {
    if (!json_.is_object()) fail(where_, " is ", json_.type_name(), ", expected an object");
    if (const auto* const nested = find(json_, "quantization"); nested != nullptr && nested->is_object()) {
      nlohmann::json inner = *nested;  // hf_quant_config.json
      if (!inner.contains("quant_method")) inner["quant_method"] = "modelopt";
      json_ = std::move(inner);
    }
    method_ = text(json_, "quant_method");
    if (method_.empty() && json_.contains("bits") && json_.contains("group_size")) method_ = "mlx";
    if (method_ == "modelopt_fp4" || method_ == "modelopt_fp8" || method_ == "modelopt_mixed") method_ = "modelopt";
    constexpr std::array<std::string_view, 9> known = {"fp8", "compressed-tensors", "modelopt", "mxfp4",  "gptq",
                                                       "awq", "bitsandbytes",       "mlx",      "torchao"};
    if (std::ranges::count(known, method_) == 0) {
      fail(where_, ": quant_method is \"", method_, "\", ",
           method_.empty()
               ? ""
               : "a quantised model of another tool, whose codes nothing here reads: take the model that it "
                 "was made of (moe_quantize makes 8 or 4 bits of it), or one by another method; ",
           "expected fp8, compressed-tensors, modelopt, mxfp4, gptq, awq, bitsandbytes, torchao, or MLX's bits and "
           "group_size");
    }
    if (method_ == "gptq") learn_gptq();
    if (const std::string version = text(json_, "version");
        method_ == "awq" && !version.empty() && version != "gemm" && version != "GEMM") {
      fail(where_, ": version is \"", version, "\", expected \"gemm\"");
    }
    if (method_ == "compressed-tensors") learn_groups();
    for (const char* const key : {"ignore", "modules_to_not_convert", "ignored_layers", "exclude_modules"}) {
      for (const std::string& name : texts(json_, key)) {
        if (method_ == "compressed-tensors") {
          ignored_.push_back(matcher(name));
        } else if (method_ == "modelopt") {
          ignored_.push_back({NamePattern("^(?:" + with_wildcards(name) + ")(\\..*)?$", where_), ""});
        } else if (method_ == "fp8" || method_ == "mxfp4") {
          ignored_.push_back({NamePattern("^(?:" + name + ")(?:\\..*)?$", where_), name});
        }
      }
    }
  }

  /// "fp8", "compressed-tensors", "modelopt", "mxfp4", "gptq", "awq", "bitsandbytes", "mlx", "torchao"; "" if nothing
  /// is said.
  const std::string& method() const { return method_; }

  /// Are weights of all experts coded that are parameters of one module? Others' software codes linear modules alone.
  bool is_of_parameters() const { return method_ == "fp8" || method_ == "mxfp4"; }

  /// For messages.
  const std::string& where() const { return where_; }

  /// What is said of a module's weight.
  /// @param module  "model.layers.3.mlp.experts.0.up_proj"
  /// @throws Error if what is said of it is no coding that we know.
  Coding of(std::string_view module) const {
    if (method_.empty() || method_ == "torchao") return {.optional = true};
    if (method_ == "bitsandbytes") return bitsandbytes();
    if (std::ranges::any_of(ignored_, [&](const Matcher& ignored) { return ignored.fits(module); })) {
      return {.plain = true, .optional = true};
    }
    if (method_ == "fp8") return fp8();
    if (method_ == "compressed-tensors") return compressed_tensors(module);
    if (method_ == "modelopt") return modelopt(module);
    if (method_ == "mxfp4") return {.type = "MXFP4", .rows = 1, .cols = 32};
    if (method_ == "mlx") return mlx(module);
    return gptq_or_awq(module);
  }

 private:
  /// A pattern, and for some methods an ending.
  struct Matcher {
    NamePattern pattern;
    std::string ending;
    bool fits(std::string_view name) const {
      return pattern.fits_end_of(name) || (!ending.empty() && name.ends_with(ending));
    }
  };

  static const nlohmann::json* find(const nlohmann::json& object, const char* key) {
    const auto found = object.is_object() ? object.find(key) : object.end();
    return found == object.end() || found->is_null() ? nullptr : &*found;
  }
  std::string text(const nlohmann::json& object, const char* key) const {
    const nlohmann::json* const value = find(object, key);
    if (value == nullptr) return "";
    if (!value->is_string()) fail(where_, ": ", key, " is ", shown(*value), ", expected a string");
    return value->get<std::string>();
  }
  std::optional<Index> integer(const nlohmann::json& object, const char* key) const {
    const nlohmann::json* const value = find(object, key);
    if (value == nullptr) return {};
    if (!value->is_number_integer()) fail(where_, ": ", key, " is ", shown(*value), ", expected a whole number");
    const double number = value->get<double>();
    if (number < -1 || number > 1 << 24) {
      fail(where_, ": ", key, " is ", shown(*value), ", expected a number from 1 to ", 1 << 24, ", or -1");
    }
    return Index(number);
  }
  std::vector<std::string> texts(const nlohmann::json& object, const char* key) const {
    std::vector<std::string> all;
    const nlohmann::json* const list = find(object, key);
    if (list == nullptr) return all;
    const bool right = list->is_array() && std::ranges::all_of(*list, [](const auto& one) { return one.is_string(); });
    if (!right) fail(where_, ": ", key, " is ", shown(*list), ", expected a list of names");
    for (const auto& one : *list) all.push_back(one.template get<std::string>());
    return all;
  }
  static std::string shown(const nlohmann::json& value) {
    return value.is_structured() ? std::string("an ") + value.type_name() : value.dump();
  }

  /// Letters that mean something in a pattern, as letters.
  static std::string escaped(std::string_view name) {
    std::string pattern;
    for (const char letter : name) {
      if (std::string_view(".[]()|*+?{}^$\\").find(letter) != std::string_view::npos) pattern += '\\';
      pattern += letter;
    }
    return pattern;
  }
  static std::string with_wildcards(std::string_view name) {
    std::string pattern;
    for (const char letter : name) pattern += letter == '*' ? ".*" : letter == '?' ? "." : escaped({&letter, 1});
    return pattern;
  }
  /// compressed-tensors' names: all of one, or what begins it.
  Matcher matcher(std::string_view name) const {
    if (!name.starts_with("re:")) return {NamePattern("^" + escaped(name) + "$", where_), ""};
    return {NamePattern("^(?:" + std::string(name.substr(3)) + ").*", where_), ""};
  }

  /// [128, 128] of "128x128", as older files have it.
  static nlohmann::json numbers_in(std::string_view text) {
    nlohmann::json all = nlohmann::json::array();
    for (std::size_t first = 0; first <= text.size();) {
      const std::size_t last = std::min(text.find('x', first), text.size());
      Index number = 0;
      const auto [end, error] = std::from_chars(text.data() + first, text.data() + last, number);
      if (error != std::errc() || end != text.data() + last) return nullptr;
      all.push_back(number);
      first = last + 1;
    }
    return all;
  }

  void learn_block(const nlohmann::json& settings, const char* key, Coding& coding) const {
    const nlohmann::json* const block = find(settings, key);
    if (block == nullptr) return;
    const nlohmann::json sizes = block->is_string() ? numbers_in(block->get<std::string>()) : *block;
    const auto is_size = [](const nlohmann::json& size) {
      return size.is_number_integer() && size.get<double>() > 0 && size.get<double>() < 1 << 24;
    };
    if (!sizes.is_array() || sizes.size() != 2 || !is_size(sizes[0]) || !is_size(sizes[1])) {
      fail(where_, ": ", key, " is ", shown(*block), ", expected two sizes");
    }
    coding.rows = sizes[0].get<Index>();
    coding.cols = sizes[1].get<Index>();
  }

  Coding fp8() const {
    Coding coding{.type = "FP8"};
    learn_block(json_, "weight_block_size", coding);
    return coding;
  }

  struct Group {
    std::vector<Matcher> targets;
    bool of_class = false;  // "Linear"
    Coding coding;
  };

  void learn_groups() {
    const auto* const groups = find(json_, "config_groups");
    if (groups == nullptr) return;
    if (!groups->is_object()) fail(where_, ": config_groups is ", shown(*groups), ", expected an object");
    for (const auto& [name, group] : groups->items()) {
      const auto* const weights = find(group, "weights");
      if (weights == nullptr) continue;
      Group one;
      for (const std::string& target : texts(group, "targets")) {
        one.of_class = one.of_class || target == "Linear";
        if (target != "Linear") one.targets.push_back(matcher(target));
      }
      one.coding = coding_of(*weights, text(group, "format").empty() ? text(json_, "format") : text(group, "format"));
      groups_.push_back(std::move(one));
    }
  }

  /// @throws Error naming the word and those that are known, unless it is one of these or "".
  void require_word(const char* key, const std::string& word, std::initializer_list<std::string_view> known) const {
    if (word.empty() || std::ranges::count(known, word) > 0) return;
    std::string list;
    for (const std::string_view one : known) list += (list.empty() ? "" : ", ") + std::string(one);
    fail(where_, ": ", key, " is \"", word, "\", which is not read: expected one of ", list);
  }

  Coding coding_of(const nlohmann::json& weights, const std::string& format) const {
    require_word("format", format,
                 {"pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "nvfp4-pack-quantized",
                  "mxfp4-pack-quantized", "mxfp6-pack-quantized", "mxfp8-quantized", "mixed-precision", "dense"});
    if (format == "dense") return {.plain = true, .optional = true};
    const Index bits = integer(weights, "num_bits").value_or(8);  // absent keys as compressed-tensors has them
    const std::optional<Index> group = integer(weights, "group_size");
    const std::string type = text(weights, "type"), said = text(weights, "strategy"),
                      strategy = !said.empty() ? said
                                 : !group      ? "tensor"
                                 : *group > 0  ? "group"
                                               : "channel";
    require_word("type", type, {"int", "float"});
    require_word("strategy", strategy, {"tensor", "channel", "group", "block", "tensor_group"});
    const bool is_integer = type.empty() || type == "int";
    if (is_integer ? bits < 2 || bits > 8 : bits != 4 && bits != 6 && bits != 8) {
      fail(where_, ": num_bits is ", bits, ", expected ", is_integer ? "2 to 8 of integers" : "4, 6 or 8 of floats");
    }
    Coding coding{.format = format == "mixed-precision" ? "" : format};
    if (is_integer) {
      const auto* const symmetric = find(weights, "symmetric");
      coding.type = "INT" + std::to_string(bits);
      coding.zeros = symmetric != nullptr && symmetric->is_boolean() && !symmetric->get<bool>();
    } else {
      coding.type = bits == 4 ? (strategy == "tensor_group" ? "NVFP4" : "MXFP4") : bits == 6 ? "MXFP6" : "FP8";
      if (bits == 8 && strategy == "group") coding.type = "MXFP8";
    }
    if (strategy == "tensor") coding.rows = coding.cols = 0;
    if (strategy == "channel") coding.rows = 1, coding.cols = 0;
    if (strategy == "group" || strategy == "tensor_group") coding.rows = 1, coding.cols = group;
    if (strategy == "block") learn_block(weights, "block_structure", coding);
    return coding;
  }

  /// @return what is said of weights that are coded; others may be plain
  Coding bitsandbytes() const {
    const auto is_true = [&](const char* key) {
      const nlohmann::json* const value = find(json_, key);
      return value != nullptr && value->is_boolean() && value->get<bool>();
    };
    Coding coding{.optional = true};
    if (is_true("load_in_8bit")) coding.format = "load_in_8bit";
    if (is_true("load_in_4bit")) {
      const std::string type = text(json_, "bnb_4bit_quant_type");
      require_word("bnb_4bit_quant_type", type, {"nf4", "fp4"});
      coding.type = type == "nf4" ? "NF4" : type == "fp4" ? "FP4" : "";
      coding.format = "load_in_4bit";
    }
    return coding;
  }

  Coding compressed_tensors(std::string_view module) const {
    if (groups_.empty()) return {.optional = true};
    for (const Group& group : groups_) {
      if (std::ranges::any_of(group.targets, [&](const Matcher& target) { return target.fits(module); })) {
        return group.coding;
      }
    }
    const auto any = std::ranges::find_if(groups_, &Group::of_class);
    return any == groups_.end() ? Coding{.plain = true, .optional = true} : any->coding;
  }

  Coding modelopt(std::string_view module) const {
    std::string algorithm = text(json_, "quant_algo");
    if (algorithm == "MIXED_PRECISION") {
      const auto* const layers = find(json_, "quantized_layers");
      const auto* const layer = layers == nullptr ? nullptr : find(*layers, std::string(module).c_str());
      if (layer == nullptr) return {.plain = layers != nullptr, .optional = true};
      algorithm = text(*layer, "quant_algo");
    }
    if (algorithm.find("NVFP4") != algorithm.npos) return {.type = "NVFP4", .rows = 1, .cols = 16};
    if (algorithm.starts_with("FP8")) return {.type = "FP8"};
    if (algorithm == "MXFP8") return {.type = "MXFP8", .rows = 1, .cols = 32};
    if (algorithm == "MXFP4" || algorithm == "W4A8_MXFP4_FP8") return {.type = "MXFP4", .rows = 1, .cols = 32};
    fail(where_, ": quant_algo is \"", algorithm, "\", expected NVFP4, FP8, MXFP8, MXFP4 or MIXED_PRECISION");
  }

  Coding mlx(std::string_view module) const {
    const auto* settings = &json_;
    if (const auto* const own = find(json_, std::string(module).c_str())) {
      if (own->is_boolean() && !own->get<bool>()) return {.plain = true, .optional = true};
      if (own->is_object()) settings = own;
    }
    const std::string mode = text(*settings, "mode");
    if (mode == "mxfp4") return {.type = "MXFP4", .rows = 1, .cols = 32, .optional = true};
    if (mode == "mxfp8") return {.type = "MXFP8", .rows = 1, .cols = 32, .optional = true};
    if (mode == "nvfp4") return {.type = "NVFP4", .rows = 1, .cols = 16, .optional = true};
    if (!mode.empty() && mode != "affine") {
      fail(where_, ": mode is \"", mode, "\", expected affine, mxfp4, mxfp8 or nvfp4");
    }
    return {.type = "INT" + std::to_string(bits_of(*settings, {2, 3, 4, 5, 6, 8})),
            .rows = 1,
            .cols = integer(*settings, "group_size"),
            .zeros = true,
            .optional = true};
  }

  Index bits_of(const nlohmann::json& settings, std::initializer_list<Index> may_be) const {
    const Index bits = integer(settings, "bits").value_or(0);
    if (std::ranges::count(may_be, bits) > 0) return bits;
    std::string list;
    for (const Index one : may_be) list += (list.empty() ? "" : ", ") + std::to_string(one);
    fail(where_, ": bits is ", bits, ", expected one of ", list);
  }

  void learn_gptq() {
    const std::string format = text(json_, "checkpoint_format");
    if (!format.empty() && format != "gptq" && format != "gptq_v2") {
      fail(where_, ": checkpoint_format is \"", format, "\", expected \"gptq\" or \"gptq_v2\"");
    }
    const auto* const dynamic = find(json_, "dynamic");
    if (dynamic == nullptr || !dynamic->is_object()) return;
    for (const auto& [name, settings] : dynamic->items()) {
      const std::size_t sign = name.starts_with("-:") || name.starts_with("+:") ? 2 : 0;
      overrides_.push_back(
          {{NamePattern("^(?:" + name.substr(sign) + ").*", where_), ""}, settings, name.starts_with("-:")});
    }
  }

  Coding gptq_or_awq(std::string_view module) const {
    Index bits = method_ == "awq" ? bits_of(json_, {4}) : bits_of(json_, {2, 3, 4, 8});
    std::optional<Index> group = integer(json_, "group_size");
    for (const Override& one : overrides_) {
      if (!one.module.fits(module)) continue;
      if (one.skips) return {.plain = true, .optional = true};
      if (one.settings.contains("bits")) bits = bits_of(one.settings, {2, 3, 4, 8});
      if (one.settings.contains("group_size")) group = integer(one.settings, "group_size");
      break;
    }
    if (group && *group <= 0) group = 0;  // -1: of a whole row
    return {.type = "INT" + std::to_string(bits),
            .rows = 1,
            .cols = group,
            .zeros = {},
            .optional = true,
            .layout = text(json_, "checkpoint_format") == "gptq_v2" ? "v2" : "v1"};
  }

  struct Override {
    Matcher module;
    nlohmann::json settings;
    bool skips;
  };

  nlohmann::json json_ = nlohmann::json::object();
  std::string where_, method_;
  std::vector<Matcher> ignored_;
  std::vector<Group> groups_;
  std::vector<Override> overrides_;
};

/// ModelOpt's word on a folder, which stands in a file of its own where config.json says nothing.
inline std::optional<Quantization> hf_quant_config(const std::filesystem::path& folder) {
  const std::filesystem::path file = folder / "hf_quant_config.json";
  std::error_code error;
  if (!std::filesystem::exists(file, error)) return {};
  return Quantization(read_json(file), utf8(file));
}

}  // namespace moe::inline MOE_TARGET::io
