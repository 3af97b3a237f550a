/// @file  What a model's folder holds, written for a terminal or as JSON.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include <nlohmann/json.hpp>

#include "moe/core/types.hpp"
#include "moe/experts/any_activation.hpp"
#include "moe/io/architecture.hpp"
#include "moe/io/inspect.hpp"
#include "moe/kernels/scores.hpp"
#include "moe/models/moe_shape.hpp"
#include "moe/routers/sparse_mixer.hpp"
#include "moe/routers/top_k.hpp"
#include "moe/telemetry/text.hpp"

namespace moe::inline MOE_TARGET::io {

namespace detail {

/// To three digits, with a unit a thousand times as large as the last: 30.5 B.
template <std::size_t n>
std::string in_units(double number, const std::array<const char*, n>& units) {
  std::size_t unit = 0;
  for (; number >= 999.5 && unit + 1 < n; ++unit) number /= 1000;
  const int digits = unit == 0 || number >= 99.95 ? 0 : number >= 9.995 ? 1 : 2;
  return moe::detail::fixed(number, digits) + units[unit];
}
inline std::string bytes_text(Index bytes) {
  return in_units(double(bytes), std::array{" B", " kB", " MB", " GB", " TB"});
}
inline std::string count_text(Index count) { return in_units(double(count), std::array{"", " k", " M", " B", " T"}); }

/// As a terminal shows it on one line, whatever a stranger's file said.
inline std::string printable(std::string_view text) {
  return moe::detail::escaped(text, [](char c) {
    const auto code = static_cast<unsigned char>(c);
    return std::string(code < 0x20 || code == 0x7f ? " " : "");
  });
}

inline const char* name_of(Score score) {
  switch (score) {
    case Score::softmax:
      return "softmax";
    case Score::softmax_of_chosen:
      return "softmax of the chosen";
    case Score::sigmoid:
      return "sigmoid";
    case Score::sqrt_softplus:
      return "sqrt(softplus)";
  }
  return "";
}

inline std::string number_text(double number) { return moe::detail::shortest(number); }

/// The settings that are not as usual, each in a few words.
inline std::vector<std::string> settings_of(const BlockInspection& block) {
  const MoeShape& shape = *block.shape;
  std::vector<std::string> all;
  if (const auto* const mixer = std::get_if<SparseMixerOptions>(&block.router.options)) {
    all.push_back("jitter " + number_text(mixer->jitter));
  } else {
    const auto& options = std::get<TopKOptions>(block.router.options);
    all.emplace_back(name_of(options.score));
    if (options.renormalize) {
      all.push_back("renormalised" + (options.norm == 1 ? "" : " in norm " + number_text(options.norm)) +
                    (options.floor == 0 ? "" : " (norm at least " + number_text(options.floor) + ")"));
    }
    if (options.scale != 1) all.push_back("× " + number_text(options.scale));
    if (options.num_groups > 1) {
      all.push_back("the best " + std::to_string(options.kept_groups) + " of " + std::to_string(options.num_groups) +
                    " groups, by their best " + std::to_string(options.group_top));
      if (options.rejected_groups == RejectedGroups::ranked_at_zero) all.emplace_back("others rank at zero");
    }
    if (options.weight_on == WeightOn::input) all.emplace_back("weights multiply the input");
    if (options.always_chosen > 0) all.push_back(std::to_string(options.always_chosen) + " more always");
  }
  if (shape.router_bias) all.emplace_back("bias on logits");
  if (shape.selection_bias) all.emplace_back("selection bias");
  if (block.router.logit_scale != 1) all.push_back("logits × " + number_text(block.router.logit_scale));
  if (block.router.logit_cap != 0) all.push_back("logits capped at " + number_text(block.router.logit_cap));
  if (block.router.has_capacity) all.emplace_back("limited capacity");
  return all;
}

inline std::string joined(const std::vector<std::string>& texts, const std::string& between = ", ") {
  std::string all;
  for (const std::string& text : texts) all += (all.empty() ? "" : between) + text;
  return all;
}

inline std::string number_of(std::size_t count, const std::string& noun) {
  return std::to_string(count) + " " + noun + (count == 1 ? "" : "s");
}

inline std::string formats_text(const Formats& formats) {
  std::vector<std::string> all;
  for (const auto& [dtype, holding] : formats) {
    all.push_back(dtype + " " + bytes_text(holding.bytes) + " in " + number_of(std::size_t(holding.tensors), "tensor"));
  }
  return joined(all);
}

/// Words between blanks, on lines of at most `width` columns, all but the first indented.
inline std::string folded(std::string_view text, std::size_t indent, std::size_t width = 100) {
  std::string all;
  std::size_t column = indent;
  for (std::size_t first = 0; first < text.size();) {
    const std::size_t end = std::min(text.find(' ', first), text.size());
    const std::string_view word = text.substr(first, end - first);
    if (first > 0 && column + 1 + word.size() > width) {
      all += '\n' + std::string(indent, ' ');
      column = indent;
    } else if (first > 0) {
      all += ' ', column += 1;
    }
    all += word;
    column += word.size();
    first = end + 1;
  }
  return all;
}

inline std::string line(const std::string& title, const std::string& text) {
  constexpr std::size_t indent = 14;
  return "  " + title + std::string(indent - 2 - std::min<std::size_t>(title.size(), indent - 3), ' ') +
         folded(text, indent) + "\n";
}

/// All but its name.
inline std::string lines_of(const BlockInspection& block) {
  std::string text;
  if (!block.sparse) {
    text += line("dense FFN", "d_ff " + std::to_string(block.d_ff) + ", " + block.activation);
  }
  if (block.shape) {
    const MoeShape& shape = *block.shape;
    const std::string zero =
        shape.num_zero_experts == 0 ? "" : " + " + std::to_string(shape.num_zero_experts) + " without parameters";
    text += line("router", block.router.kind + ": " + std::to_string(shape.top_k) + " of " +
                               std::to_string(shape.num_experts) + zero + ", " + joined(settings_of(block)));
    if (!block.router.side_input.empty()) text += line("", "reads SideInputs::" + block.router.side_input);
    text += line("experts", std::to_string(shape.num_experts) + " × d_model " + std::to_string(shape.d_model) +
                                ", d_ff " + std::to_string(shape.d_ff) + ", " + to_string(shape.hidden) +
                                (block.biased ? ", with biases" : ""));
    text += line("", block.layout + ": " + printable(block.experts));
    if (shape.d_latent > 0) text += line("latent", "experts read and answer " + std::to_string(shape.d_latent));
    if (shape.d_ff_shared > 0) {
      text += line("shared", "d_ff " + std::to_string(shape.d_ff_shared) + ", " + to_string(shape.hidden_shared) +
                                 (shape.expert_bias ? ", with biases" : "") +
                                 (shape.shared_gate ? ", gated by σ(w·x)" : ""));
    }
    if (!block.around.empty()) text += line("around", joined(block.around));
  }
  text += line("formats", formats_text(block.formats));
  if (block.unused.tensors > 0) {
    text += line("unused", number_of(std::size_t(block.unused.tensors), "tensor") + ", " +
                               bytes_text(block.unused.bytes) + ": the model's own code does not read them, either");
  }
  if (block.refused.empty()) {
    text += line("parameters", count_text(block.parameters) +
                                   (block.sparse ? ", " + count_text(block.active) + " of them active" : ""));
  }
  if (!block.refused.empty()) text += line("REFUSED", printable(block.refused));
  return text;
}

/// What follows the first of several numbers: " … 47" of 1 to 47, ", 2 … 46" of 0, 2, 4 to 46, ", 3, 5" of 0, 3, 5.
inline std::string further_numbers(const std::vector<Index>& numbers) {
  const Index step = numbers.size() > 1 ? numbers[1] - numbers[0] : 1;
  bool is_even = numbers.size() > 2;
  for (std::size_t i = 1; i < numbers.size(); ++i) is_even = is_even && numbers[i] - numbers[i - 1] == step;
  if (is_even && step == 1) return " … " + std::to_string(numbers.back());
  if (is_even && numbers.size() > 3) {
    return ", " + std::to_string(numbers[1]) + " … " + std::to_string(numbers.back());
  }
  std::string all;
  for (std::size_t i = 1; i < numbers.size(); ++i) all += ", " + std::to_string(numbers[i]);
  return all;
}

/// Blocks that differ in the number of their layer alone.
struct AlikeBlocks {
  const BlockInspection* first;
  std::vector<Index> layers;
};

inline std::vector<AlikeBlocks> alike(const std::vector<BlockInspection>& blocks) {
  std::vector<AlikeBlocks> all;
  std::map<std::string, std::size_t> place;
  for (const BlockInspection& block : blocks) {
    // A complaint names the layer, too.
    const std::string name = without_numbers(block.name);
    BlockInspection nameless = block;
    for (std::size_t at = 0;
         !block.name.empty() && (at = nameless.refused.find(block.name, at)) != std::string::npos;) {
      nameless.refused.replace(at, block.name.size(), name);
    }
    const Index layer = layer_number(block.name);
    // Of several numbers in a name the others are not those of layers.
    const bool one_number = std::ranges::count(name, '#') == 1;
    const std::string key = (one_number ? name : block.name) + "\n" + lines_of(nameless);
    const auto [found, is_new] = place.try_emplace(key, all.size());
    if (is_new) all.push_back({&block, {}});
    all[found->second].layers.push_back(layer);
  }
  return all;
}

inline std::string title_of(const AlikeBlocks& blocks) {
  const std::string name = printable(blocks.first->name);
  if (name.empty()) return "the whole file";
  if (blocks.layers.size() == 1) return name;
  return name + further_numbers(blocks.layers) + "  (" + std::to_string(blocks.layers.size()) + " alike)";
}

inline Index bytes_of(const BlockInspection& block) {
  Index bytes = 0;
  for (const auto& [dtype, holding] : block.formats) bytes += holding.bytes;
  return bytes;
}

/// All blocks of one kind together.
struct Sum {
  Index blocks = 0, bytes = 0, parameters = 0, active = 0, expert_bytes = 0, bytes_of_token = 0;
  bool refused = false;  // is one: then it is not known how many are active
};

inline Sum sum_of_blocks(const Inspection& inspection, bool sparse) {
  Sum sum;
  for (const BlockInspection& block : inspection.blocks) {
    if (block.sparse != sparse) continue;
    sum.blocks += 1;
    sum.bytes += bytes_of(block);
    sum.parameters += block.parameters;
    sum.active += block.active;
    sum.expert_bytes += block.expert_bytes;
    sum.bytes_of_token += block.bytes_of_token;
    sum.refused = sum.refused || !block.refused.empty();
  }
  return sum;
}

inline std::string sum_text(const Sum& sum, const std::string& noun) {
  return number_of(std::size_t(sum.blocks), noun) + " of " + count_text(sum.parameters) + " parameters" +
         (noun == "MoE layer" && !sum.refused ? ", " + count_text(sum.active) + " of them active," : "") + " in " +
         bytes_text(sum.bytes);
}

/// What must be in memory, and what need not.
inline std::string experts_text(const Inspection& inspection) {
  const Sum moe = sum_of_blocks(inspection, true);
  if (moe.refused || moe.expert_bytes == 0) return "";
  return "experts of " + bytes_text(moe.expert_bytes) + ", of which one token uses " + bytes_text(moe.bytes_of_token) +
         "; everything else is " + bytes_text(inspection.bytes - moe.expert_bytes) + "\n";
}

inline std::string elsewhere_text(const Inspection& inspection) {
  if (inspection.elsewhere.empty()) return "";
  Holding sum;
  std::vector<std::string> kinds;
  for (const auto& [name, holding] : inspection.elsewhere) {
    sum.tensors += holding.tensors;
    sum.bytes += holding.bytes;
    kinds.push_back(printable(name) + (holding.tensors == 1 ? "" : " ×" + std::to_string(holding.tensors)));
  }
  constexpr std::size_t shown_at_most = 40;
  const std::size_t others = kinds.size() - std::min(kinds.size(), shown_at_most);
  kinds.resize(kinds.size() - others);
  if (others > 0) kinds.push_back("and of " + std::to_string(others) + " more kinds (--json has all)");
  return "\n" + number_of(std::size_t(sum.tensors), "tensor") + " of no block, " + bytes_text(sum.bytes) + "\n  " +
         folded(joined(kinds), 2) + "\n";
}

inline nlohmann::json to_json(const Holding& holding) {
  return {{"tensors", holding.tensors}, {"bytes", holding.bytes}};
}

inline nlohmann::json to_json(const std::map<std::string, Holding>& all) {
  nlohmann::json json = nlohmann::json::object();
  for (const auto& [name, holding] : all) json[printable(name)] = to_json(holding);
  return json;
}

inline nlohmann::json to_json(const RouterInspection& router, const MoeShape& shape) {
  nlohmann::json json = {{"kind", router.kind},
                         {"top_k", shape.top_k},
                         {"bias", shape.router_bias},
                         {"selection_bias", shape.selection_bias},
                         {"logit_scale", router.logit_scale},
                         {"logit_cap", router.logit_cap},
                         {"capacity", router.has_capacity}};
  if (!router.side_input.empty()) json["side_input"] = router.side_input;
  if (const auto* const mixer = std::get_if<SparseMixerOptions>(&router.options)) {
    json["jitter"] = mixer->jitter;
    return json;
  }
  const auto& options = std::get<TopKOptions>(router.options);
  json["score"] = name_of(options.score);
  json["renormalize"] = options.renormalize;
  json["norm"] = options.norm;
  json["epsilon"] = options.epsilon;
  json["floor"] = options.floor;
  json["scale"] = options.scale;
  json["num_groups"] = options.num_groups;
  json["kept_groups"] = options.kept_groups;
  json["group_top"] = options.group_top;
  json["rejected_groups_rank_at_zero"] = options.rejected_groups == RejectedGroups::ranked_at_zero;
  json["weight_on"] = options.weight_on == WeightOn::input ? "input" : "output";
  json["always_chosen"] = options.always_chosen;
  return json;
}

inline nlohmann::json to_json(const BlockInspection& block) {
  nlohmann::json json = {{"name", printable(block.name)},
                         {"kind", block.sparse ? "moe" : "dense"},
                         {"formats", to_json(block.formats)},
                         {"bytes", bytes_of(block)},
                         {"parameters", block.parameters}};
  if (block.refused.empty()) {
    if (block.sparse) json["expert_bytes"] = block.expert_bytes, json["expert_bytes_of_a_token"] = block.bytes_of_token;
    json["active_parameters"] = block.active;
  } else {
    json["refused"] = printable(block.refused);
  }
  if (!block.sparse) json["d_ff"] = block.d_ff, json["activation"] = block.activation;
  if (block.unused.tensors > 0) json["unused"] = to_json(block.unused);
  if (!block.shape) return json;
  const MoeShape& shape = *block.shape;
  json["router"] = to_json(block.router, shape);
  json["experts"] = {{"number", shape.num_experts},     {"without_parameters", shape.num_zero_experts},
                     {"d_model", shape.d_model},        {"d_ff", shape.d_ff},
                     {"d_latent", shape.d_latent},      {"bias", block.biased},
                     {"gated", is_gated(shape.hidden)}, {"activation", to_string(shape.hidden)},
                     {"layout", block.layout},          {"names", printable(block.experts)}};
  if (shape.d_ff_shared > 0) {
    json["shared"] = {{"d_ff", shape.d_ff_shared},
                      {"activation", to_string(shape.hidden_shared)},
                      {"bias", shape.expert_bias},
                      {"gate", shape.shared_gate}};
  }
  if (!block.around.empty()) json["around"] = block.around;
  return json;
}

}  // namespace detail

/// For people: lines of about 100 columns, blocks that are alike as one.
inline std::string to_table(const Inspection& inspection) {
  using namespace detail;
  std::string text = printable(inspection.folder) + ": " + printable(inspection.model_type) + "\n";
  if (!inspection.refused.empty()) text += line("REFUSED", printable(inspection.refused));
  for (const AlikeBlocks& blocks : alike(inspection.blocks))
    text += "\n" + title_of(blocks) + "\n" + lines_of(*blocks.first);
  if (const Sum moe = sum_of_blocks(inspection, true); moe.blocks > 0) text += "\n" + sum_text(moe, "MoE layer") + "\n";
  if (const Sum dense = sum_of_blocks(inspection, false); dense.blocks > 0) text += sum_text(dense, "dense FFN") + "\n";
  text += experts_text(inspection);
  text += elsewhere_text(inspection);
  if (!inspection.unread_keys.empty()) {
    text +=
        "\nkeys of config.json that no block reads\n  " + folded(printable(joined(inspection.unread_keys)), 2) + "\n";
  }
  const auto refused =
      std::ranges::count_if(inspection.blocks, [](const auto& block) { return !block.refused.empty(); });
  if (refused > 0) {
    text += "\n" + std::to_string(refused) + " of " + std::to_string(inspection.blocks.size()) +
            " blocks would be refused\n";
  }
  return text;
}

/// For programs: every block by itself.
inline nlohmann::json to_json(const Inspection& inspection) {
  nlohmann::json json = {{"folder", detail::printable(inspection.folder)},
                         {"model_type", detail::printable(inspection.model_type)},
                         {"refuses", inspection.refuses()},
                         {"bytes", inspection.bytes},
                         {"blocks", nlohmann::json::array()},
                         {"elsewhere", detail::to_json(inspection.elsewhere)},
                         {"unread_keys", nlohmann::json::array()}};
  if (!inspection.refused.empty()) json["refused"] = detail::printable(inspection.refused);
  for (const BlockInspection& block : inspection.blocks) json["blocks"].push_back(detail::to_json(block));
  for (const std::string& key : inspection.unread_keys) json["unread_keys"].push_back(detail::printable(key));
  for (const bool sparse : {true, false}) {
    const detail::Sum sum = detail::sum_of_blocks(inspection, sparse);
    json[sparse ? "moe_layers" : "dense_ffns"] = {
        {"number", sum.blocks}, {"bytes", sum.bytes}, {"parameters", sum.parameters}};
    if (sum.refused) continue;
    json[sparse ? "moe_layers" : "dense_ffns"]["active_parameters"] = sum.active;
    if (!sparse) continue;
    json["moe_layers"]["expert_bytes"] = sum.expert_bytes;
    json["moe_layers"]["expert_bytes_of_a_token"] = sum.bytes_of_token;
  }
  return json;
}

}  // namespace moe::inline MOE_TARGET::io
