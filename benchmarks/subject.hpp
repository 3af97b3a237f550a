/// @file  The layers that a comparison is about.
#pragma once

#include <cctype>
#include <filesystem>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <variant>
#include <vector>

#include "arena.hpp"
#include "command_line.hpp"
#include "moe/io/checkpoint.hpp"
#include "moe/layers/any_layer.hpp"
#include "moe/models/presets.hpp"
#include "options.hpp"
#include "text.hpp"

namespace moe::bench {

struct Subject {
  std::string name;
  MoeShape shape;
  WeightType weights;
  std::optional<AnyLayer<float>> layer{};  // with real weights; else random ones are made up

  /// Of a real layer there is one; so nothing it is compared with gets more.
  Index num_layers() const { return layer ? 1 : layers_beyond_cache(shape, bytes_of(weights)); }
};

/// @throws std::invalid_argument for a dtype that no row is measured in.
inline WeightType weight_type(const std::string& dtype) {
  if (dtype == "FP8 E4M3") return WeightType::fp8;
  if (dtype == "INT4") return WeightType::int4_g32;
  std::string name = dtype;
  for (char& c : name) c = char(std::tolower(static_cast<unsigned char>(c)));
  for (const NamedWeightType& type : weight_types) {
    if (name == type.name) return type.type;
  }
  throw std::invalid_argument("weights have dtype " + dtype + ", expected one of " + names_of(weight_types));
}

inline Subject subject_from(const std::filesystem::path& folder, const std::string& prefix) {
  const auto loaded = io::load_layer(folder, prefix);
  return {.name = loaded.model_type + (prefix.empty() ? "" : " " + prefix),
          .shape = loaded.shape,
          .weights = weight_type(loaded.dtype),
          .layer = loaded.layer};
}

inline std::vector<Subject> subjects_of(const CommandLine& line) {
  if (!line.checkpoint.empty()) return {subject_from(line.checkpoint, line.layer)};
  const bool is_preset = line.shape.empty();
  const MoeShape shape = is_preset ? layer_shape(line.preset) : parse_shape(line.shape);
  std::vector<Subject> subjects;
  for (const WeightType type : parse_weight_types(line.weights, line.distributed ? float_types : weight_types)) {
    subjects.push_back({.name = is_preset ? line.preset : line.shape, .shape = shape, .weights = type});
  }
  return subjects;
}

/// What the weights of a published model have and the layers made up here have not, a line each.
inline std::string left_out(const Subject& subject) {
  std::string what;
  if (subject.layer) return what;
  if (subject.shape.expert_bias) what += "Its experts' biases are left out.\n";
  if (subject.shape.num_zero_experts > 0) what += "Its experts without parameters are left out.\n";
  if (!std::holds_alternative<TopKOptions>(subject.shape.router)) {
    what += "A softmax top-k stands in for its own router.\n";
  }
  return what;
}

/// The lines above its table.
inline std::string description(const Subject& subject) {
  const MoeShape& shape = subject.shape;
  const std::string shared = shape.d_ff_shared > 0 ? text(", shared d_ff %td", shape.d_ff_shared) : "";
  const bool coded = is_coded(subject.weights);
  const std::string bits = coded ? text(" (%.4g bits each)", 8 * bytes_of(subject.weights)) : "";
  const std::string by_hand =
      coded ? text("By hand is left out: Eigen has no products of %s weights.\n", name_of(subject.weights)) : "";
  return text("%s, %s weights%s: d_model %td, d_ff %td%s, %td experts, top %td\n", subject.name.c_str(),
              name_of(subject.weights), bits.c_str(), shape.d_model, shape.d_ff, shared.c_str(), shape.num_experts,
              shape.top_k) +
         left_out(subject) + by_hand;
}

}  // namespace moe::bench
