/// @file  Adapters to a folder as Hugging Face's PEFT writes it, and back.
#pragma once

#include <algorithm>
#include <filesystem>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "moe/core/parameters.hpp"
#include "moe/core/types.hpp"
#include "moe/io/atomic_file.hpp"
#include "moe/io/error.hpp"
#include "moe/io/parameters.hpp"
#include "moe/io/peft_config.hpp"
#include "moe/io/safetensors.hpp"
#include "moe/io/tensor.hpp"
#include "moe/io/weight_tensors.hpp"
#include "moe/lora/named_adapters.hpp"

namespace moe::inline MOE_TARGET::io {

/// What save_adapters() writes beside the adapters.
struct AdapterFileOptions {
  double dropout = 0;        // that the adapters have learnt with
  std::string base_model{};  // name or path of the model that they belong to
};

/// What a file may hold that is not read here.
struct ReadAdaptersOptions {
  /// Matrices whose adapters something else reads of this file: "model.layers.3.mlp.experts" is
  /// adopt_fused_adapters()'s.
  std::vector<std::string> read_elsewhere{};
};

namespace detail {

/// What learns in a layer beside its adapters, as a file has it, whole.
template <class Scalar>
struct NamedWhole {
  std::string name;  // "model.layers.3.mlp.shared_expert_gate.weight"
  Parameter<Scalar> parameter;
};

/// The layers that adapters are of, each once.
template <class Scalar>
std::vector<std::shared_ptr<const AdaptedLayer<Scalar>>> layers_of(const std::vector<NamedAdapter<Scalar>>& adapters) {
  std::vector<std::shared_ptr<const AdaptedLayer<Scalar>>> layers;
  for (const auto& named : adapters) {
    if (named.layer && std::ranges::count(layers, named.layer) == 0) layers.push_back(named.layer);
  }
  return layers;
}

inline std::string in_layer(const std::string& layer, const std::string& name) {
  return layer.empty() ? name : layer + "." + name;
}

template <class Scalar>
std::vector<NamedWhole<Scalar>> learns_beside(const std::vector<NamedAdapter<Scalar>>& adapters) {
  std::vector<NamedWhole<Scalar>> all;
  for (const auto& layer : layers_of(adapters)) {
    for (const auto& parameter : layer->beside) all.push_back({in_layer(layer->name, parameter.name), parameter});
  }
  return all;
}

/// What adapter_config.json says of adapters, one of which is of a rank above 0. Each matrix is named in full.
template <class Scalar>
nlohmann::json peft_config(const std::vector<NamedAdapter<Scalar>>& adapters, const AdapterFileOptions& options) {
  nlohmann::json config{{"peft_type", "LORA"},
                        {"base_model_name_or_path", options.base_model},
                        {"bias", "none"},
                        {"fan_in_fan_out", false},
                        {"inference_mode", true},
                        {"init_lora_weights", true},
                        {"lora_dropout", options.dropout},
                        {"use_dora", false},
                        {"use_rslora", false},
                        {"target_modules", nlohmann::json::array()},
                        {"rank_pattern", nlohmann::json::object()},
                        {"alpha_pattern", nlohmann::json::object()}};
  for (const auto& named : adapters) {
    const Index rank = named.adapter->rank();
    const double alpha = named.adapter->alpha;
    if (rank == 0) continue;
    if (!config.contains("r")) config.update({{"r", rank}, {"lora_alpha", alpha}});
    config["target_modules"].push_back(named.matrix);
    if (config["r"] != rank) config["rank_pattern"][named.matrix] = rank;
    if (config["lora_alpha"] != alpha) config["alpha_pattern"][named.matrix] = alpha;
  }
  for (const auto& [name, parameter] : learns_beside(adapters)) {
    config["modules_to_save"].push_back(name.substr(0, name.rfind('.')));
  }
  return config;
}

/// Reads adapters into memory of their own, and then, when all is there, writes them where they belong.
template <class Scalar>
class AdapterReader {
 public:
  explicit AdapterReader(const std::filesystem::path& folder)
      : tensors_(Tensors::open(folder / "adapter_model.safetensors")),
        config_(folder / "adapter_config.json"),
        weights_(tensors_, "", 0) {}

  bool has(const std::string& matrix) const { return tensors_.contains(peft_prefix + matrix + ".lora_A.weight"); }

  /// Of which rank the file has one; 0 if there is none.
  Index rank(const std::string& matrix) const {
    if (!has(matrix)) return 0;
    const Tensor a = tensors_.at(peft_prefix + matrix + ".lora_A.weight");
    return a.shape.size() == 2 ? a.shape[0] : 0;
  }

  /// One of the file's, or none of rank 0, to be written.
  void read(const NamedAdapter<Scalar>& named, Index rank) {
    const Index out = named.adapter->out(), in = named.adapter->in();
    Adapter<Scalar> found{Weight<Scalar>(0, in), Weight<Scalar>(out, 0)};
    if (rank > 0) {
      found = {weight(named.matrix + ".lora_A.weight", rank, in), weight(named.matrix + ".lora_B.weight", out, rank),
               config_.alpha(named.matrix, rank)};
    }
    adapters_.push_back({named.adapter, std::move(found)});
  }

  /// What learns beside adapters, where the file has it.
  void read(const NamedWhole<Scalar>& whole) {
    if (!tensors_.contains(peft_prefix + whole.name)) return;
    const Index rows = whole.parameter.rows, cols = whole.parameter.cols;
    const Tensor tensor = tensors_.at(peft_prefix + whole.name);
    taken_.insert(peft_prefix + whole.name);
    const bool is_vector = rows == 1 && tensor.shape.size() == 1;
    const auto numbers = weights_.copy<Scalar>(peft_prefix + whole.name,
                                               is_vector ? std::vector<Index>{cols} : std::vector<Index>{rows, cols});
    wholes_.push_back({whole.parameter, Eigen::Map<const Weight<Scalar>>(numbers.data(), rows, cols)});
  }

  /// @throws Error naming the first tensor that is of one of these layers, and that nothing has read.
  void require_all_taken(const std::vector<NamedAdapter<Scalar>>& adapters, const ReadAdaptersOptions& options) const {
    for (const auto& layer : layers_of(adapters)) {
      const std::string prefix = peft_prefix + in_layer(layer->name, "");
      for (const std::string& name : tensors_.names()) {
        if (!name.starts_with(prefix) || taken_.contains(name)) continue;
        if (std::ranges::any_of(options.read_elsewhere, [&](const std::string& matrix) {
              return name.starts_with(peft_prefix + matrix + ".lora_") ||
                     name.starts_with(peft_prefix + matrix + ".base_layer.lora_");
            })) {
          continue;
        }
        const bool fused =
            name.starts_with(prefix + "experts.lora_") || name.starts_with(prefix + "experts.base_layer.");
        fail(
            to_string(tensors_.at(name)), " is of \"", layer->name, "\", and none of its ", adapters.size(),
            " adapters, such as \"", adapters.front().matrix, "\", takes it: it would be left out",
            fused ? ". It is of all experts together: adopt_fused_adapters() reads it, if read_elsewhere says so" : "");
      }
    }
  }

  /// Numbers go where those before them lie, if these are as many: who knows their addresses (an optimiser) knows them
  /// still.
  void write() {
    for (auto& [adapter, found] : adapters_) {
      if (adapter->a.rows() == found.a.rows() && adapter->a.cols() == found.a.cols() &&
          adapter->b.rows() == found.b.rows() && adapter->b.cols() == found.b.cols()) {
        std::copy_n(found.a.data(), found.a.size(), adapter->a.data());
        std::copy_n(found.b.data(), found.b.size(), adapter->b.data());
        adapter->alpha = found.alpha;
      } else {
        *adapter = std::move(found);
      }
    }
    for (const auto& [parameter, numbers] : wholes_) parameter.matrix() = numbers;
  }

 private:
  Weight<Scalar> weight(const std::string& name, Index rows, Index cols) {
    const auto numbers = weights_.copy<Scalar>(peft_prefix + name, {rows, cols});
    taken_.insert(peft_prefix + name);
    return Eigen::Map<const Weight<Scalar>>(numbers.data(), rows, cols);
  }

  Tensors tensors_;
  PeftConfig config_;
  WeightTensors weights_;
  std::set<std::string> taken_;
  std::vector<std::pair<Adapter<Scalar>*, Adapter<Scalar>>> adapters_;
  std::vector<std::pair<Parameter<Scalar>, Weight<Scalar>>> wholes_;
};

}  // namespace detail

/// Writes adapter_model.safetensors, "base_model.model.<matrix>.lora_A.weight" and "….lora_B.weight" of each, and
/// adapter_config.json; each file whole or not at all. What learns beside the adapters in their layers, such as the
/// gate of a shared expert, is written whole: PEFT's modules_to_save.
/// @param adapters  named_adapters(…), of one layer or of several together
/// @throws Error if there is none of a rank above 0, or a file cannot be written.
template <class Scalar>
void save_adapters(const std::filesystem::path& folder, const std::vector<NamedAdapter<Scalar>>& adapters,
                   const AdapterFileOptions& options = {}) {
  std::vector<Parameter<Scalar>> parameters;
  ParameterVisitor<Scalar> visit(parameters);
  for (const auto& named : adapters) visit.in(detail::peft_prefix + named.matrix, *named.adapter);
  if (parameters.empty()) fail(utf8(folder), ": there is no adapter of a rank above 0 to be written");
  for (const auto& [name, whole] : detail::learns_beside(adapters)) {
    parameters.push_back({detail::peft_prefix + name, whole.data, whole.rows, whole.cols});
  }
  const std::string config = detail::peft_config(adapters, options).dump(2) + "\n";
  save_parameters(folder / "adapter_model.safetensors", parameters, {{"format", "pt"}});
  write_atomically(folder / "adapter_config.json", {std::as_bytes(std::span(config))});
}

/// Reads adapters of the ranks that they have, and what is in the file of all that learns beside them. Where they lie
/// stays the same, so that optimisers go on. What the files hold of other layers is left alone.
/// @throws Error naming the file, the matrix and both shapes if one is missing, or of another shape, or there where one
/// of rank 0 is asked for; or the tensor, if it is of these layers and nothing takes it; then nothing has been written.
template <class Scalar>
void load_adapters(const std::filesystem::path& folder, const std::vector<NamedAdapter<Scalar>>& adapters,
                   const ReadAdaptersOptions& options = {}) {
  detail::AdapterReader<Scalar> reader(folder);
  for (const auto& named : adapters) {
    const Index rank = named.adapter->rank();
    if (rank == 0 && reader.has(named.matrix)) {
      fail(utf8(folder), ": \"", named.matrix, "\" has an adapter of shape ",
           to_string({reader.rank(named.matrix), named.adapter->in()}), ", expected none, of rank 0");
    }
    reader.read(named, rank);
  }
  for (const auto& whole : detail::learns_beside(adapters)) reader.read(whole);
  reader.require_all_taken(adapters, options);
  reader.write();
}

/// Gives adapters the ranks that the files say, 0 where there is none: to serve what has been trained elsewhere, beside
/// with_lora(bank, {.rank = 0}). Optimisers of adapters whose rank changes must be made anew.
/// @throws Error as load_adapters(), and if none of them is there; then nothing has been written.
template <class Scalar>
void adopt_adapters(const std::filesystem::path& folder, const std::vector<NamedAdapter<Scalar>>& adapters,
                    const ReadAdaptersOptions& options = {}) {
  detail::AdapterReader<Scalar> reader(folder);
  bool any = false;
  for (const auto& named : adapters) {
    const Index rank = reader.rank(named.matrix);
    any = any || rank > 0;
    reader.read(named, rank);
  }
  for (const auto& whole : detail::learns_beside(adapters)) reader.read(whole);
  reader.require_all_taken(adapters, options);
  if (!any) {
    fail(utf8(folder), ": has none of ", adapters.size(), " adapters",
         adapters.empty() ? "" : ", such as \"" + adapters[0].matrix + "\"");
  }
  reader.write();
}

}  // namespace moe::inline MOE_TARGET::io
