/// @file  The tensors of a block, with what is coded as one tensor of all its numbers, whatever it is made of in files.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <filesystem>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "moe/core/quantized.hpp"
#include "moe/core/types.hpp"
#include "moe/io/architecture.hpp"
#include "moe/io/config.hpp"
#include "moe/io/error.hpp"
#include "moe/io/quantization.hpp"
#include "moe/io/quantized_tensors.hpp"
#include "moe/io/safetensors.hpp"
#include "moe/io/store/lender.hpp"
#include "moe/io/tensor.hpp"

namespace moe::inline MOE_TARGET::io::detail {

/// What config.json says, or else the file that ModelOpt puts beside it.
inline Quantization quantization_of(const Config& config, const std::filesystem::path& folder) {
  for (const char* const key : {"quantization_config", "quantization", "compression_config"}) {
    if (const nlohmann::json* const said = config.value(key)) return {*said, config.file() + ": " + key};
  }
  return folder.empty() ? Quantization() : hf_quant_config(folder).value_or(Quantization());
}

/// The module whose weight a tensor belongs to, as codes, or as what decodes them; none of a tensor of numbers. Of
/// tensors of all experts that is their own name: "experts.gate_up_proj" of "experts.gate_up_proj_blocks".
inline std::optional<std::string> coded_module_of(const Tensor& tensor) {
  const std::string_view name = tensor.name;
  for (const std::string_view end : {".weight_packed", ".qweight", "._weight_qdata", "_packed", "_blocks"}) {
    if (name.ends_with(end)) return std::string(name.substr(0, name.size() - end.size()));
  }
  for (const std::string_view end :
       {".weight_scale", ".weight_scale_inv", ".weight_scale_2"}) {  // even beside plain ones
    if (name.ends_with(end)) return std::string(name.substr(0, name.size() - end.size()));
  }
  const bool is_integer = std::ranges::count(std::array{"U32", "U8", "I8"}, std::string_view(tensor.dtype)) > 0;
  if (!tensor.dtype.starts_with("F8_E4M3") && !is_integer) return {};
  constexpr std::string_view weight = ".weight";
  if (name.ends_with(weight)) return std::string(name.substr(0, name.size() - weight.size()));
  const std::string_view last = name.substr(name.rfind('.') + 1);
  if (last.ends_with("_proj")) return std::string(name);  // of all experts
  return {};
}

/// How many experts' weights a tensor of codes holds; 0 of one that is a matrix.
inline Index experts_in(const Tensors& tensors, const std::string& module) {
  for (const char* const end : {".weight", "", ".weight_packed", "_packed"}) {
    const Tensor* const tensor = tensors.find(module + end);
    if (tensor != nullptr) return tensor->shape.size() == 3 ? tensor->shape[0] : 0;
  }
  const Tensor* const blocks = tensors.find(module + "_blocks");
  return blocks != nullptr && blocks->shape.size() == 4 ? blocks->shape[0] : 0;
}

/// The weight of a module as one tensor; names of what it is made of go into `used`.
inline std::optional<Tensor> coded_weight(const Tensors& tensors, const std::string& module, const Quantization& said,
                                          ExpertLender* lender, std::set<std::string, std::less<>>& used) {
  const Index num_experts = experts_in(tensors, module);
  Tensor all;
  std::vector<QuantizedMatrix> matrices;
  auto owners = std::make_shared<std::vector<std::shared_ptr<const void>>>();
  for (Index e = 0; e < std::max<Index>(num_experts, 1); ++e) {
    const auto which = num_experts > 0 ? std::optional(OfExperts{e, num_experts}) : std::nullopt;
    std::optional<QuantizedWeight> one = quantized_weight(tensors, module, said, which, lender);
    if (!one) return {};
    if (e == 0) {
      const Tensor& codes = *tensors.find(one->tensors.front());
      all = {.name = module + (num_experts > 0 && !tensors.contains(module + ".weight") ? "" : ".weight"),
             .dtype = one->coding.type,
             .shape = {one->matrix.rows(), one->matrix.cols()},
             .bytes = codes.bytes,
             .file = codes.file};
      if (num_experts > 0) all.shape.insert(all.shape.begin(), num_experts);
    }
    matrices.push_back(one->matrix);
    owners->push_back(std::move(one->owner));
    used.insert(one->tensors.begin(), one->tensors.end());
    for (const char* const of_activations : {".input_scale", ".input_global_scale", ".input_zero_point"}) {
      used.insert(module + of_activations);  // which stay in float
    }
  }
  all.owner = std::move(owners);
  all.coded = std::make_shared<const std::vector<QuantizedMatrix>>(std::move(matrices));
  return all;
}

/// Is it an expert's matrix, or a shared one's? Routers and the like stay as they are, whatever a config says of all.
inline bool is_projection(std::string_view module) {
  const std::string_view last = module.substr(module.rfind('.') + 1);
  return last.ends_with("_proj") || last == "w1" || last == "w2" || last == "w3";
}

/// All tensors, where nothing of the layer of a block is coded; else those of the layer.
/// @param lender  as of quantized_weight()
inline std::shared_ptr<const Tensors> with_coded_weights(const std::shared_ptr<const Tensors>& tensors,
                                                         const Quantization& said, const std::string& block,
                                                         const std::vector<std::string>& prefixes,
                                                         ExpertLender* lender) {
  std::set<std::string> modules;
  for (const std::string& prefix : prefixes) {
    tensors->for_each_below(prefix, [&](const Tensor& tensor) {
      constexpr std::string_view weight = ".weight";
      if (tensor.coded != nullptr) return;
      if (auto module = coded_module_of(tensor)) {
        modules.insert(*std::move(module));
      } else if (!said.method().empty()) {  // to be compared with what is said
        const bool is_weight = tensor.name.ends_with(weight);
        std::string plain = tensor.name.substr(0, tensor.name.size() - (is_weight ? weight.size() : 0));
        if (is_projection(plain) && (is_weight || said.is_of_parameters())) modules.insert(std::move(plain));
      }
    });
  }
  std::vector<Tensor> weights;
  std::set<std::string, std::less<>> used;
  for (const std::string& module : modules) {
    if (auto weight = coded_weight(*tensors, module, said, lender, used)) weights.push_back(*std::move(weight));
  }
  if (weights.empty()) return tensors;
  const std::size_t dot = block.rfind('.');
  tensors->for_each_below(dot == block.npos ? "" : block.substr(0, dot + 1), [&](const Tensor& tensor) {
    if (!used.contains(tensor.name)) weights.push_back(tensor);
  });
  const std::string file = weights.front().file;
  return std::make_shared<const Tensors>(Tensors::of(file, std::move(weights)));
}

/// The same, for what names of tensors of a block begin with: those below it, and those beside it that are part of it.
inline std::shared_ptr<const Tensors> with_coded_weights(const std::shared_ptr<const Tensors>& tensors,
                                                         const Quantization& said, const std::string& block,
                                                         const Architecture& architecture, ExpertLender* lender) {
  std::vector<std::string> prefixes = {block.empty() ? "" : block + '.'};
  const std::size_t dot = block.rfind('.');
  for (const std::string_view name : alternatives(architecture.shared)) {
    if (!name.starts_with("../")) continue;
    prefixes.push_back((dot == block.npos ? "" : block.substr(0, dot + 1)) + std::string(name.substr(3)));
  }
  return with_coded_weights(tensors, said, block, prefixes, lender);
}

}  // namespace moe::inline MOE_TARGET::io::detail
