/// @file  Writes adapters under the names that the modules of their model have in transformers.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <deque>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "moe/core/parameters.hpp"
#include "moe/core/types.hpp"
#include "moe/experts/latent_experts.hpp"
#include "moe/io/adapters.hpp"
#include "moe/io/architecture.hpp"
#include "moe/io/atomic_file.hpp"
#include "moe/io/block_adapters.hpp"
#include "moe/io/error.hpp"
#include "moe/io/expert_tensors.hpp"
#include "moe/io/mapped_file.hpp"
#include "moe/io/model.hpp"
#include "moe/io/parameters.hpp"
#include "moe/io/peft_config.hpp"
#include "moe/io/safetensors_file.hpp"
#include "moe/io/tensor.hpp"
#include "moe/io/weight_tensors.hpp"
#include "moe/lora/adapter.hpp"
#include "moe/lora/bank.hpp"
#include "moe/lora/named_adapters.hpp"

namespace moe::inline MOE_TARGET::io {

namespace detail {

/// Two adapters of matrices that lie below each other as one of both, whose scale is 1: of a rank that both share where
/// their A are the same.
template <class Scalar>
Adapter<Scalar> below_each_other(const Adapter<Scalar>& upper, const Adapter<Scalar>& lower) {
  const auto scaled = [](const Adapter<Scalar>& one) -> Weight<Scalar> {
    if (one.rank() == 0) return one.b;
    return one.scale() * one.b;
  };
  const bool shared = upper.rank() > 0 && upper.rank() == lower.rank() && upper.a == lower.a;
  const Index first = upper.rank(), rank = shared ? first : first + lower.rank();
  Adapter<Scalar> both{Weight<Scalar>::Zero(rank, std::max(upper.in(), lower.in())),
                       Weight<Scalar>::Zero(upper.out() + lower.out(), rank), double(rank)};
  if (first > 0) both.a.topRows(first) = upper.a;
  if (lower.rank() > 0) both.a.bottomRows(lower.rank()) = lower.a;
  both.b.topLeftCorner(upper.out(), first) = scaled(upper);
  both.b.bottomRightCorner(lower.out(), lower.rank()) = scaled(lower);
  return both;
}

/// What goes into the two files of a folder.
template <class Scalar>
class PeftFolder {
 public:
  explicit PeftFolder(const Model& model) : model_(model) {
    if (architecture().of_adapters == nullptr) return;
    fail(model.place(), ": is a GGUF file, whose modules PEFT does not know: save_adapters(folder, adapters) ",
         "writes them as load_lora_layer() reads them beside this file");
  }

  void add(const AdaptedLayer<Scalar>& layer, const std::vector<NamedAdapter<Scalar>>& adapters) {
    layer_ = layer.name;
    weights_ = model_.weights(layer_);
    block_ = module_of(layer.name);
    experts_.clear();
    shared_ = {};
    for (const NamedAdapter<Scalar>& named : adapters) {
      if (named.layer.get() == &layer) take(named);
    }
    add_experts();
    add_shared();
    for (const auto& parameter : layer.beside) add_whole(parameter);
  }

  void write(const std::filesystem::path& folder, const AdapterFileOptions& options) {
    if (parameters_.empty()) fail(utf8(folder), ": there is no adapter of a rank above 0 to be written");
    std::vector<Tensor> all;
    for (auto& [name, numbers] : parameters_) {
      all.push_back(as_tensor(Parameter<Scalar>{name, numbers.data(), numbers.rows(), numbers.cols()}));
    }
    for (const auto& [parameter, shape] : whole_) {
      all.push_back(as_tensor(parameter));
      all.back().shape = shape;
    }
    const nlohmann::json config{{"peft_type", "LORA"},
                                {"task_type", "CAUSAL_LM"},
                                {"base_model_name_or_path", options.base_model},
                                {"bias", "none"},
                                {"fan_in_fan_out", false},
                                {"inference_mode", true},
                                {"init_lora_weights", true},
                                {"lora_dropout", 0.0},
                                {"r", 1},
                                {"lora_alpha", 1},
                                {"use_dora", false},
                                {"use_rslora", false},
                                {"target_modules", nlohmann::json::array()},
                                {"target_parameters", targets_},
                                {"modules_to_save", modules_to_save_.empty() ? nlohmann::json() : modules_to_save_},
                                {"rank_pattern", ranks_},
                                {"alpha_pattern", alphas_}};
    const std::string text = config.dump(2) + "\n";
    write_safetensors(folder / "adapter_model.safetensors", all, {{"format", "pt"}});
    write_atomically(folder / "adapter_config.json", {std::as_bytes(std::span(text))});
  }

 private:
  /// Of the layer that is being added.
  const Architecture& architecture() const { return model_.architecture(layer_); }

  /// What transformers calls a block of the model's file.
  std::string module_of(const std::string& block) const {
    const std::size_t last = block.rfind('.') + 1;  // 0 if there is no dot
    constexpr auto older = std::to_array<std::string_view>({"block_sparse_moe", "moe", "ffn"});
    if (std::ranges::count(older, std::string_view(block).substr(last)) == 0) return block;
    const std::string_view now = architecture().module.empty() ? "mlp" : architecture().module;
    return block.substr(0, last) + std::string(now);
  }

  WeightTensors tensors() const { return {*weights_, layer_, model_.shape(layer_).num_experts}; }

  /// The last of several names is transformers' own, unless the first is in the file and all are usual.
  std::string router() const {
    const bool usual = architecture().router == Architecture{}.router;
    const auto all = alternatives(architecture().router);
    std::string_view name = all.back();
    for (const std::string_view one : all) {
      if (usual && tensors().contains(one)) name = one;
    }
    return std::string(name);
  }

  void take(const NamedAdapter<Scalar>& named) {
    const std::string name = layer_.empty() ? named.matrix : named.matrix.substr(layer_.size() + 1);
    constexpr std::string_view experts = "experts.", shared = "shared_expert.";
    constexpr auto matrices = std::to_array<std::string_view>({"gate_proj", "up_proj", "down_proj"});
    const auto matrix_of = [&](std::string_view last) { return std::ranges::find(matrices, last) - matrices.begin(); };
    if (name == "gate") return put(in_layer(block_, router()), *named.adapter);
    if (name == "gate.0") return put(in_layer(block_, "text_moe.gate.weight"), *named.adapter);
    if (name == "gate.1") return put(in_layer(block_, "vision_moe.gate.weight"), *named.adapter);
    const LatentNames latent;
    for (const auto& [ours, theirs] :
         {std::pair(latent.in, architecture().latent_in), {latent.out, architecture().latent_out}}) {
      if (name != ours || theirs.empty()) continue;
      return put(in_layer(block_, std::string(alternatives(theirs).back()) + ".weight"), *named.adapter);
    }
    const std::size_t dot = name.rfind('.');
    const Index matrix = matrix_of(std::string_view(name).substr(dot + 1));
    if (matrix < 3 && name.starts_with(experts) && dot > experts.size()) {
      experts_[std::stol(name.substr(experts.size()))][matrix] = *named.adapter;
    } else if (matrix < 3 && name.starts_with(shared) && dot + 1 == shared.size()) {
      shared_[matrix] = *named.adapter;
    } else if (named.adapter->rank() > 0) {
      fail("\"", named.matrix, "\" has an adapter, and no name in transformers that is known");
    }
  }

  using Experts = std::map<Index, ExpertAdapters<Scalar>>;

  void add_experts() {
    const auto behind = experts_.lower_bound(model_.shape(layer_).num_experts);  // others that compute
    const Experts routed(experts_.begin(), behind), others(behind, experts_.end());
    std::string_view name = "experts.";
    for (const std::string_view one : alternatives(architecture().experts)) {
      if (one.ends_with("experts.")) name = one;
    }
    const bool by_modality = architecture().router_kind == RouterKind::by_modality && !others.empty();
    add_group(routed, by_modality ? "text_moe.experts" : std::string(name.substr(0, name.size() - 1)),
              model_.shape(layer_).num_zero_experts);
    if (!by_modality) return refuse(others);
    add_group(others, "vision_moe.experts", 0);
  }

  void refuse(const Experts& experts) const {
    for (const auto& [number, its] : experts) {
      if (its.gate.rank() + its.up.rank() + its.down.rank() == 0) continue;
      fail("\"", in_layer(layer_, "experts." + std::to_string(number)),
           "\" has an adapter, and no name in transformers that is known");
    }
  }

  /// @param module     of all experts
  /// @param num_spare  how many more gate_up_proj has, which compute nothing
  void add_group(const Experts& experts, const std::string& module, Index num_spare) {
    if (experts.empty()) return;
    const bool gated = experts.begin()->second.gate.out() > 0;
    std::vector<Adapter<Scalar>> up, down;
    for (const auto& [number, its] : experts) {
      up.push_back(gated ? below_each_other(its.gate, its.up) : below_each_other(Adapter<Scalar>(), its.up));
      if (gated && architecture().interleaved) up.back().b = alternating(up.back().b);
      down.push_back(below_each_other(Adapter<Scalar>(), its.down));
    }
    const auto parameters = alternatives(architecture().parameters_of_experts);
    if (parameters.size() < 2) return refuse(experts);
    if (parameters[0].find('.') != std::string_view::npos) {
      add_all_of(up, in_layer(block_, std::string(parameters[0])));
      return add_all_of(down, in_layer(block_, std::string(parameters[1])));
    }
    if (gated) up.resize(up.size() + std::size_t(num_spare));
    const auto any = [](const Adapter<Scalar>& one) { return one.rank() > 0; };
    const bool has_up = std::ranges::any_of(up, any), has_down = std::ranges::any_of(down, any);
    const std::string full = in_layer(block_, module);
    if (has_up) put_all(full + (has_down ? ".base_layer" : ""), full + (gated ? ".gate_up_proj" : ".up_proj"), up);
    if (has_down) put_all(full, full + ".down_proj", down);
  }

  /// Those of one matrix of all experts, beside a weight of all of them, or where there is a "#" of each.
  void add_all_of(const std::vector<Adapter<Scalar>>& all, const std::string& weight) {
    if (std::ranges::all_of(all, [](const Adapter<Scalar>& one) { return one.rank() == 0; })) return;
    const std::size_t number = weight.find('#');
    if (number == std::string::npos) return put_all(weight.substr(0, weight.rfind('.')), weight, all);
    for (std::size_t e = 0; e < all.size(); ++e) put(std::string(weight).replace(number, 1, std::to_string(e)), all[e]);
  }

  /// What learns and has no adapter: modules_to_save.
  void add_whole(const Parameter<Scalar>& parameter) {
    std::string name = parameter.name;
    std::vector<Index> shape = {parameter.rows, parameter.cols};
    for (const auto& [ours, theirs] : whole_vectors(architecture())) {
      if (name != ours) continue;
      shape = tensors().shape(theirs);
      name = std::string(alternatives(theirs).back());
    }
    const std::size_t dot = name.rfind('.');
    if (dot == std::string::npos) {  // of no module below the block
      const std::string full = in_layer(layer_, name);
      const Weight<Scalar> before = model_.tensors().template read<Scalar>(full);
      if (before.size() == parameter.size() &&
          std::equal(before.data(), before.data() + before.size(), parameter.data)) {
        return;
      }
      fail("\"", full, "\" has learned, and PEFT has no place for a parameter that is no module's");
    }
    whole_.push_back(
        {{peft_prefix + in_layer(block_, name), parameter.data, parameter.rows, parameter.cols}, std::move(shape)});
    modules_to_save_.push_back(in_layer(block_, name.substr(0, dot)));
  }

  static Weight<Scalar> alternating(const Weight<Scalar>& rows) {
    Weight<Scalar> mixed(rows.rows(), rows.cols());
    const Index half = rows.rows() / 2;
    mixed(Eigen::seqN(0, half, 2), every) = rows.topRows(half);
    mixed(Eigen::seqN(1, half, 2), every) = rows.bottomRows(half);
    return mixed;
  }

  void put_all(const std::string& module, const std::string& parameter, const std::vector<Adapter<Scalar>>& all) {
    Index rank = 0;
    const Index n = std::ssize(all);
    for (const auto& one : all) rank = std::max(rank, one.rank());
    const bool turned = architecture().turned_adapters;
    const Index in = turned ? all[0].out() : all[0].in(), out = turned ? all[0].in() : all[0].out();
    Weight<Scalar> a = Weight<Scalar>::Zero(n * rank, in), b = Weight<Scalar>::Zero(out, n * rank);
    for (Index e = 0; e < n; ++e) {
      const Adapter<Scalar>& one = all[std::size_t(e)];
      for (Index k = 0; k < one.rank(); ++k) {
        if (turned) {
          a.row(e * rank + k) = one.b.col(k).transpose();
          b.col(k * n + e) = one.a.row(k).transpose();
        } else {
          a.row(e * rank + k) = one.a.row(k);
          b.col(k * n + e) = one.b.col(k);
        }
      }
    }
    put(module, parameter, std::move(a), std::move(b), rank, double(rank));
  }

  void add_shared() {
    if (shared_.up.out() == 0 && shared_.down.out() == 0) return;
    const bool gated = shared_.gate.out() > 0;
    Names names = find_names(tensors(), ffn_spellings, architecture().shared, gated);
    const std::string_view native = alternatives(architecture().shared).back();
    const auto module = [&](const std::string& weight) {
      const std::string_view whole = weight;
      const std::string_view last = whole.substr(whole.rfind('.', whole.size() - 8) + 1);
      if (!native.starts_with("../")) return in_layer(block_, std::string(native) + std::string(last));
      return block_.substr(0, block_.rfind('.') + 1) + std::string(native.substr(3)) + std::string(last);
    };
    if (names.layout == Layout::fused) {
      const auto both = below_each_other(shared_.gate, shared_.up);
      if (both.rank() > 0) put(module(names.up), both);
    } else {
      if (gated) put(module(names.gate), shared_.gate);
      put(module(names.up), shared_.up);
    }
    put(module(names.down), shared_.down);
  }

  /// @param weight  "model.layers.3.mlp.gate.weight"
  void put(const std::string& weight, const Adapter<Scalar>& adapter) {
    constexpr std::size_t end = 7;  // ".weight"
    if (adapter.rank() == 0) return;
    put(weight.substr(0, weight.size() - end), weight, adapter.a, adapter.b, adapter.rank(), adapter.alpha);
  }

  void put(const std::string& module, const std::string& parameter, Weight<Scalar> a, Weight<Scalar> b, Index rank,
           double alpha) {
    parameters_.emplace_back(peft_prefix + module + ".lora_A.weight", std::move(a));
    parameters_.emplace_back(peft_prefix + module + ".lora_B.weight", std::move(b));
    std::string pattern;
    for (const char letter : parameter) pattern += letter == '.' ? "\\." : std::string(1, letter);
    targets_.push_back(parameter);
    ranks_[pattern] = rank;
    alphas_[pattern] = alpha;
  }

  const Model& model_;
  std::string layer_, block_;  // in the model's file; in transformers
  std::shared_ptr<const Tensors> weights_;
  std::map<Index, ExpertAdapters<Scalar>> experts_;
  ExpertAdapters<Scalar> shared_;
  std::deque<std::pair<std::string, Weight<Scalar>>> parameters_;
  std::vector<std::pair<Parameter<Scalar>, std::vector<Index>>> whole_;  // and the shapes that they have in the model
  nlohmann::json targets_ = nlohmann::json::array(), ranks_ = nlohmann::json::object(),
                 alphas_ = nlohmann::json::object(), modules_to_save_ = nlohmann::json::array();
};

}  // namespace detail

/// Writes adapters for transformers since 5 and PEFT since 0.19.1: as `target_parameters`, those of all experts in one
/// piece (of the largest of their ranks, filled with zeros; gate and up side by side, unless they have one A), under
/// the names of the model's modules. load_lora_layer() reads them, too. PEFT has no dropout beside parameters: it is
/// not written.
/// @param adapters  named_adapters(block) of layers of this model, of one or of several together
/// @throws Error if there is none of a rank above 0, if one is beside what has no name there (as nothing of a GGUF file
/// has), or a file cannot be written.
template <class Scalar>
void save_adapters(const std::filesystem::path& folder, const Model& model,
                   const std::vector<NamedAdapter<Scalar>>& adapters, const AdapterFileOptions& options = {}) {
  detail::PeftFolder<Scalar> files(model);
  for (const auto& layer : detail::layers_of(adapters)) files.add(*layer, adapters);
  files.write(folder, options);
}

}  // namespace moe::inline MOE_TARGET::io
