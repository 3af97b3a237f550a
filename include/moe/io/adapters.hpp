/// @file  Adapters to a folder as Hugging Face's PEFT writes it, and back.
#pragma once

#include <cstddef>
#include <filesystem>
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

struct AdapterFileOptions {
  double dropout = 0;        // that the adapters have learnt with
  std::string base_model{};  // name or path of the model that they belong to
};

namespace detail {

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
  return config;
}

/// Reads adapters into memory of their own.
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

  Adapter<Scalar> read(const std::string& matrix, Index out, Index in, Index rank) const {
    return {weight(matrix + ".lora_A.weight", rank, in), weight(matrix + ".lora_B.weight", out, rank),
            config_.alpha(matrix, rank)};
  }

 private:
  Weight<Scalar> weight(const std::string& name, Index rows, Index cols) const {
    const auto numbers = weights_.copy<Scalar>(peft_prefix + name, {rows, cols});
    return Eigen::Map<const Weight<Scalar>>(numbers.data(), rows, cols);
  }

  Tensors tensors_;
  PeftConfig config_;
  WeightTensors weights_;
};

}  // namespace detail

/// Writes adapter_model.safetensors, "base_model.model.<matrix>.lora_A.weight" and "….lora_B.weight" of each, and
/// adapter_config.json; each file whole or not at all.
/// @param adapters  named_adapters(…), of one layer or of several together
/// @throws Error if there is none of a rank above 0, or a file cannot be written.
template <class Scalar>
void save_adapters(const std::filesystem::path& folder, const std::vector<NamedAdapter<Scalar>>& adapters,
                   const AdapterFileOptions& options = {}) {
  std::vector<Parameter<Scalar>> parameters;
  ParameterVisitor<Scalar> visit(parameters);
  for (const auto& named : adapters) visit.in(detail::peft_prefix + named.matrix, *named.adapter);
  if (parameters.empty()) fail(utf8(folder), ": there is no adapter of a rank above 0 to be written");
  const std::string config = detail::peft_config(adapters, options).dump(2) + "\n";
  save_parameters(folder / "adapter_model.safetensors", parameters, {{"format", "pt"}});
  write_atomically(folder / "adapter_config.json", {std::as_bytes(std::span(config))});
}

/// Reads adapters of the ranks that they have. What else the files hold is left alone.
/// @throws Error naming the file, the matrix and both shapes if one is missing, or of another shape, or there where one
/// of rank 0 is asked for; then nothing has been written.
template <class Scalar>
void load_adapters(const std::filesystem::path& folder, const std::vector<NamedAdapter<Scalar>>& adapters) {
  const detail::AdapterReader<Scalar> reader(folder);
  std::vector<Adapter<Scalar>> found;
  for (const auto& [matrix, adapter, out, in] : adapters) {
    const Index rank = adapter->rank();
    if (rank == 0 && reader.has(matrix)) {
      fail(utf8(folder), ": \"", matrix, "\" has an adapter of shape ", to_string({reader.rank(matrix), in}),
           ", expected none, of rank 0");
    }
    found.push_back(rank == 0 ? Adapter<Scalar>() : reader.read(matrix, out, in, rank));
  }
  for (std::size_t i = 0; i < adapters.size(); ++i) *adapters[i].adapter = std::move(found[i]);
}

/// Gives adapters the ranks that the files say, 0 where there is none: to serve what has been trained elsewhere, beside
/// with_lora(bank, {.rank = 0}). Optimisers of these adapters must be made anew.
/// @throws Error as load_adapters(), and if none of them is there; then nothing has been written.
template <class Scalar>
void adopt_adapters(const std::filesystem::path& folder, const std::vector<NamedAdapter<Scalar>>& adapters) {
  const detail::AdapterReader<Scalar> reader(folder);
  std::vector<Adapter<Scalar>> found;
  bool any = false;
  for (const auto& [matrix, adapter, out, in] : adapters) {
    const Index rank = reader.rank(matrix);
    any = any || rank > 0;
    found.push_back(rank == 0 ? Adapter<Scalar>() : reader.read(matrix, out, in, rank));
  }
  if (!any) {
    fail(utf8(folder), ": has none of ", adapters.size(), " adapters",
         adapters.empty() ? "" : ", such as \"" + adapters[0].matrix + "\"");
  }
  for (std::size_t i = 0; i < adapters.size(); ++i) *adapters[i].adapter = std::move(found[i]);
}

}  // namespace moe::inline MOE_TARGET::io
