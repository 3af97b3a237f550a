/// @file  What becomes of each tensor of a model whose experts are quantised.
#pragma once

#include <algorithm>
#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "moe/core/types.hpp"
#include "moe/io/architectures.hpp"
#include "moe/io/block_form.hpp"
#include "moe/io/config.hpp"
#include "moe/io/error.hpp"
#include "moe/io/expert_tensors.hpp"
#include "moe/io/folder_codings.hpp"
#include "moe/io/model.hpp"
#include "moe/io/model_quantization.hpp"
#include "moe/io/ordered_json.hpp"
#include "moe/io/safetensors.hpp"
#include "moe/io/tensor.hpp"
#include "moe/io/weight_tensors.hpp"
#include "moe/models/moe_shape.hpp"

namespace moe::inline MOE_TARGET::io {

/// How quantize_model() writes.
struct QuantizeModelOptions {
  std::string type = "fp8";            // one of quantized_folder_types
  bool all_linears = false;            // attention and dense FFNs as well, not experts alone
  std::vector<std::string> keep = {};  // of which one is part of a module's name: it stays as it is
  bool overwrite = false;              // a model's folder of this name, with all that is in it
  std::function<void(const QuantizeProgress&)> progress = {};
  std::function<void(const std::filesystem::path&)> check = {};  // what is written, before it appears; what this throws
                                                                 // is thrown, and that is beside, as OUT.refused
};

namespace detail {

/// The parts of a name between its dots.
inline std::vector<std::string_view> parts_of(std::string_view name) {
  std::vector<std::string_view> parts;
  for (std::size_t at = 0; at <= name.size();) {
    const std::size_t dot = std::min(name.find('.', at), name.size());
    parts.push_back(name.substr(at, dot - at));
    at = dot + 1;
  }
  return parts;
}

/// "model.layers.0.mlp.experts.3.up_proj.weight" and its like, also of all experts at once.
inline bool is_of_experts(std::string_view name) {
  const auto parts = parts_of(name);
  return std::ranges::any_of(parts, [](std::string_view part) {
    return part == "experts" || part == "local_experts" || part == "shared_expert" || part == "shared_experts" ||
           part == "shared_mlp";
  });
}

/// A tensor of experts of a model whose type is known.
struct ExpertWeight {
  std::string block;
  std::vector<StoredParameter> parts;  // that lie in it
  bool turned = false;                 // (experts × in × out)
  bool biased = false;                 // there is a bias beside it
};

/// Weights of experts, all or shared ones, of a model whose type is known, by the names of their tensors: what a loader
/// reads as such.
/// @throws Error naming the tensor and its shape, if it is one that no reader would take once its numbers are coded.
inline std::map<std::string, ExpertWeight> expert_weights(const Model& model) {
  std::map<std::string, ExpertWeight> found;
  for (const std::string& block : model.moe_blocks()) {
    const Architecture& its = model.architecture(block);
    const Config& config = model.config(block);
    const MoeShape shape = moe_shape(config, its, block);
    const WeightTensors tensors(model.tensors(), block, shape.num_experts);
    const Names names = find_names(tensors, expert_spellings, its.experts, its.gated);
    const Index in = shape.d_latent > 0 ? shape.d_latent : shape.d_model;
    const bool turned = names.layout == Layout::fused && is_turned(tensors, names, in, shape.d_ff);
    if (names.layout == Layout::rows) {
      const Tensor& tensor = model.tensors().at(tensors.full_name(names.down));
      fail(to_string(tensor), " has shape ", to_string(tensor.shape), ", rows that are multiplied from behind, and ",
           "numbers are coded along what a row multiplies: take an OUT that ends in .gguf");
    }
    for (const StoredParameter& stored :
         BlockForm(tensors, config, its, names, shape).list(shape.num_experts, shape.d_ff)) {
      const std::string& parameter = stored.parameter;
      const bool is_of_one = parameter.starts_with("experts.") || parameter.starts_with("shared_expert.");
      if (!is_of_one || !parameter.ends_with("_proj.weight")) continue;
      ExpertWeight& weight = found[stored.tensor];
      weight.block = block;
      weight.parts.push_back(stored);
      weight.turned = turned && parameter.starts_with("experts.");
      weight.biased = model.tensors().contains(bias_name(stored.tensor));
    }
  }
  return found;
}

/// The weight of a linear module, as far as names tell: no embedding, head, norm, router or convolution.
inline bool is_linear(std::string_view name) {
  const auto parts = parts_of(name);
  if (parts.back() != "weight" || parts.size() < 2) return false;
  const std::string_view module = parts[parts.size() - 2];
  for (const std::string_view other : {"embed", "norm", "conv", "router", "wte", "wpe", "lm_head", "patch"}) {
    if (module.find(other) != module.npos) return false;
  }
  return module != "gate" && module != "shared_expert_gate" && module != "head" && module != "classifier";
}

/// A matrix of a tensor, and the tensors that it becomes, or becomes part of.
struct BecomingMatrix {
  StoredParameter matrix;
  std::vector<Tensor> become;
  Index part = 0;         // which of as many bytes of each of these it is
  bool is_coded = true;   // or else its numbers stay
  std::string name = {};  // for the report
  Index expert = -1;      // for the report: of a tensor of all
};

/// What is done with each tensor of a model.
struct QuantizePlan {
  const FolderCoding* coding;
  std::map<std::string, std::vector<std::string>> tensors_of;  // by file
  std::map<std::string, std::vector<BecomingMatrix>> become;   // of those that do not stay as they are, by name
  std::vector<std::string> kept_modules;                       // linear ones that are not quantised
};

/// Of a matrix that is a tensor.
inline StoredParameter whole_matrix(const Tensor& tensor) {
  const Index rows = tensor.shape[0], cols = tensor.shape[1];
  return {"", tensor.name, tensor.shape, rows, cols, 0, cols};
}

/// All matrices of a tensor of all experts, which stay together.
/// @param turned  is each stored (in × out)?
inline std::vector<BecomingMatrix> together(const Tensor& tensor, const FolderCoding& coding, bool turned) {
  const Index n = tensor.shape[0], down = tensor.shape[1], across = tensor.shape[2];
  const Index rows = turned ? across : down, cols = turned ? down : across;
  std::vector<BecomingMatrix> all;
  const std::vector<Tensor> become = coding.become(tensor.name, tensor.dtype, {n, rows, cols});
  for (Index e = 0; e < n; ++e) {
    const std::string who = "expert " + std::to_string(e);
    all.push_back({{who, tensor.name, tensor.shape, rows, cols, e * rows * cols, turned ? 1 : cols, turned ? rows : 1},
                   become,
                   e,
                   true,
                   tensor.name,
                   e});
  }
  return all;
}

/// The same, each in tensors of its own, under the names that compressed-tensors' software gives them:
/// "….experts.3.up_proj.weight" and so on, of "….experts.gate_up_proj".
/// @param coding  null: their numbers stay
inline std::vector<BecomingMatrix> apart(const Tensor& tensor, const ExpertWeight& weight, const FolderCoding* coding) {
  std::vector<BecomingMatrix> all;
  const std::string module = tensor.name.substr(0, tensor.name.rfind('.') + 1);  // "….experts."
  for (const StoredParameter& part : weight.parts) {
    require_shape(tensor, part.shape);
    const std::string name = module + part.parameter.substr(part.parameter.find('.') + 1);
    const std::vector<Index> shape = {part.rows, part.cols};
    std::vector<Tensor> become = {{.name = name, .dtype = tensor.dtype, .shape = shape}};
    if (coding != nullptr) become = coding->become(name, tensor.dtype, shape);
    all.push_back({part, std::move(become), 0, coding != nullptr, name, -1});
  }
  return all;
}

/// Is it what transformers calls the weights of all experts, and others take apart?
inline bool is_separable(const Tensor& tensor) {
  return tensor.name.ends_with("experts.gate_up_proj") || tensor.name.ends_with("experts.down_proj");
}

/// Plans what becomes of a model's tensors.
class QuantizePlanner {
 public:
  /// @param experts  experts' weights; null: of a model whose type is not known, so names alone tell
  QuantizePlanner(const Tensors& tensors, const FolderCoding& coding,
                  const std::map<std::string, ExpertWeight>* experts, const QuantizeModelOptions& options,
                  ModelQuantization& report)
      : tensors_(tensors),
        coding_(coding),
        experts_(experts),
        options_(options),
        report_(report),
        plan_{&coding, {}, {}, {}} {}

  /// @throws Error as quantize_model().
  QuantizePlan plan() {
    std::vector<bool> is_found(options_.keep.size());
    tensors_.for_each_below("", [&](const Tensor& tensor) { add(tensor, is_found); });
    for (const auto& [block, all] : apart_) take_apart(all);
    for (std::size_t k = 0; k < is_found.size(); ++k) {
      if (is_found[k]) continue;
      fail("\"", options_.keep[k], "\" was asked to stay, and is in no name of a weight that would not: as \"",
           plan_.become.empty() ? "" : plan_.become.begin()->first, "\"");
    }
    if (!any_) {
      fail("no tensor is a weight of experts", options_.all_linears ? " or of another linear module" : "",
           " that could be ", options_.type,
           report_.kept.empty() ? "" : ": of \"" + report_.kept[0].first + "\" " + report_.kept[0].second);
    }
    return std::move(plan_);
  }

 private:
  /// A tensor of all experts that is taken apart if one of its block is quantised.
  struct Fused {
    Tensor tensor;
    const ExpertWeight* weight;
    std::string reason;  // why its numbers stay; empty if they do not
  };

  static std::string module_of(const Tensor& tensor) {
    return tensor.name.ends_with(".weight") ? tensor.name.substr(0, tensor.name.size() - 7) : tensor.name;
  }

  void add(const Tensor& tensor, std::vector<bool>& is_found) {
    if (dtype_bits(tensor.dtype) == 0) fail(to_string(tensor), " has unknown dtype ", tensor.dtype);
    plan_.tensors_of[tensor.file].push_back(tensor.name);
    report_.bytes_before += tensor.bytes.size();
    const auto known =
        experts_ != nullptr ? experts_->find(tensor.name) : std::map<std::string, ExpertWeight>::const_iterator();
    const ExpertWeight* const weight = experts_ != nullptr && known != experts_->end() ? &known->second : nullptr;
    const bool linear = is_linear(tensor.name) && tensor.shape.size() == 2;
    const bool of_experts = experts_ != nullptr ? weight != nullptr : is_of_experts(tensor.name);
    const bool fused = of_experts && tensor.shape.size() == 3;
    const std::string module = module_of(tensor);
    const bool wanted = fused || (linear && (of_experts || options_.all_linears));
    std::string reason;
    for (std::size_t k = 0; wanted && k < options_.keep.size(); ++k) {
      if (module.find(options_.keep[k]) == module.npos) continue;
      is_found[k] = true;
      reason = "asked to stay";
    }
    if (wanted && reason.empty()) {
      require_float(tensor);
      if (fused) {
        if (weight != nullptr && !weight->biased && is_separable(tensor) &&
            coding_.all_experts != AllExperts::gpt_oss) {
          reason = why_not_apart(tensor, *weight);
          apart_[weight->block].push_back({tensor, weight, reason});
          return;
        }
        return add_together(tensor, weight, module);
      }
      if (linear && tensor.bytes.empty()) reason = "has no elements";
      if (reason.empty()) reason = why_not(tensor, tensor.shape[0], tensor.shape[1], module);
      if (reason.empty()) {
        any_ = true;
        plan_.become[tensor.name] = {
            {whole_matrix(tensor), coding_.become(tensor.name, tensor.dtype, tensor.shape), 0, true, tensor.name, -1}};
        return;
      }
    } else if (wanted && fused && weight != nullptr && !weight->biased && is_separable(tensor)) {
      apart_[weight->block].push_back({tensor, weight, reason});
      return;
    }
    stays(tensor, reason, fused);
  }

  void stays(const Tensor& tensor, const std::string& reason, bool fused) {
    if (!reason.empty()) report_.kept.emplace_back(tensor.name, reason);
    if (tensor.shape.size() >= 2 && (tensor.name.ends_with(".weight") || fused)) {
      plan_.kept_modules.push_back(module_of(tensor));
    }
  }

  static void require_float(const Tensor& tensor) {
    if (tensor.dtype == "F32" || tensor.dtype == "BF16" || tensor.dtype == "F16") return;
    fail(to_string(tensor), " has dtype ", tensor.dtype,
         ", expected F32, BF16 or F16: what is quantised already is not quantised again");
  }

  /// why_not_divided(), but for codings that complain of it.
  std::string why_not(const Tensor& tensor, Index rows, Index cols, const std::string& module) const {
    std::string what = why_not_divided(coding_, rows, cols);
    if (!what.empty() && coding_.refuses) {
      fail(to_string(tensor), ": ", what, ", the block of ", coding_.type, ": keep it as it is (--keep ", module,
           "), or take another type");
    }
    return what;
  }

  std::string why_not_apart(const Tensor& tensor, const ExpertWeight& weight) const {
    if (tensor.bytes.empty()) return "has no elements";
    for (const StoredParameter& part : weight.parts) {
      std::string what = why_not(tensor, part.rows, part.cols, tensor.name);
      if (!what.empty()) return what;
    }
    return {};
  }

  /// All experts of a block, whose names are then those of models that never had them in one.
  void take_apart(const std::vector<Fused>& all) {
    const bool is_any_coded = std::ranges::any_of(all, [](const Fused& its) { return its.reason.empty(); });
    for (const Fused& its : all) {
      if (!is_any_coded) {
        stays(its.tensor, its.reason, true);
        continue;
      }
      any_ = true;
      if (!its.reason.empty()) report_.kept.emplace_back(its.tensor.name, its.reason);
      std::vector<BecomingMatrix> parts = apart(its.tensor, *its.weight, its.reason.empty() ? &coding_ : nullptr);
      for (const BecomingMatrix& part : parts) {
        if (!part.is_coded) plan_.kept_modules.push_back(module_of(part.become[0]));
      }
      plan_.become.emplace(its.tensor.name, std::move(parts));
    }
  }

  /// Matrices of all experts that cannot, or need not, be taken apart.
  void add_together(const Tensor& tensor, const ExpertWeight* weight, const std::string& module) {
    const bool is_turned = weight != nullptr && weight->turned;
    if (coding_.all_experts == AllExperts::apart_only) {
      fail(to_string(tensor), " has shape ", to_string(tensor.shape),
           ", all experts at once, expected a tensor for each: ",
           weight == nullptr ? "of a model type that is not known here, so nothing says how to take them apart"
           : weight->biased  ? "there are biases beside them, which no software expects apart"
                             : "no software expects them apart under such a name",
           ", and ", coding_.type, " has no form for them together; take ",
           weight != nullptr && weight->biased ? "an OUT that ends in .gguf" : "fp8, or an OUT that ends in .gguf");
    }
    if (is_turned && coding_.all_experts != AllExperts::gpt_oss) {
      fail(to_string(tensor), " has shape ", to_string(tensor.shape),
           ", (experts × in × out), and numbers are coded along what a row multiplies: take an OUT that ends in .gguf",
           weight->biased ? ", or mxfp4" : "");
    }
    const Index rows = tensor.shape[is_turned ? 2 : 1], cols = tensor.shape[is_turned ? 1 : 2];
    const std::string reason = tensor.bytes.empty() ? "has no elements" : why_not(tensor, rows, cols, module);
    if (!reason.empty()) return stays(tensor, reason, true);
    any_ = true;
    plan_.become.emplace(tensor.name, together(tensor, coding_, is_turned));
  }

  const Tensors& tensors_;
  const FolderCoding& coding_;
  const std::map<std::string, ExpertWeight>* experts_;
  const QuantizeModelOptions& options_;
  ModelQuantization& report_;
  QuantizePlan plan_;
  std::map<std::string, std::vector<Fused>> apart_;  // by block
  bool any_ = false;
};

/// The coding of this type that folders of such a model have.
inline const FolderCoding& coding_for_model(const OrderedJson& config, const QuantizeModelOptions& options) {
  const FolderCoding& coding = folder_coding(options.type);
  if (options.type != "mxfp4" || !config.contains("model_type") || config["model_type"] != "gpt_oss") return coding;
  if (options.all_linears) {
    fail("all linear modules are to be mxfp4, and gpt_oss' own form of that, which its software reads, is of experts ",
         "alone");
  }
  return mxfp4_of_gpt_oss_folders;
}

/// Is the model of a type that can be loaded?
inline bool is_known_model(const std::filesystem::path& folder) {
  const Config config = Config::open(config_file_in(folder));
  return config.has("model_type") && find_architecture(config.text("model_type")) != nullptr;
}

/// Tensors that a tensor becomes: each once.
inline std::vector<Tensor> tensors_of(const std::vector<BecomingMatrix>& matrices) {
  std::vector<Tensor> all;
  for (const BecomingMatrix& its : matrices) {
    if (its.part == 0) all.insert(all.end(), its.become.begin(), its.become.end());
  }
  return all;
}

}  // namespace detail

}  // namespace moe::inline MOE_TARGET::io
