/// @file  The tensors of a block as GGUF has them.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "moe/core/quantized.hpp"
#include "moe/core/types.hpp"
#include "moe/io/architectures.hpp"
#include "moe/io/block_form.hpp"
#include "moe/io/error.hpp"
#include "moe/io/expert_tensors.hpp"
#include "moe/io/gguf_architectures.hpp"
#include "moe/io/gguf_scales.hpp"
#include "moe/io/model.hpp"
#include "moe/io/safetensors.hpp"
#include "moe/io/shape_difference.hpp"
#include "moe/io/tensor.hpp"
#include "moe/io/weight_tensors.hpp"
#include "moe/models/moe_shape.hpp"

namespace moe::inline MOE_TARGET::io {

namespace detail {

/// Where a parameter of a layer goes: a tensor, and which expert's part of it (−1: it is all).
struct GgufPlace {
  std::string name;  // "ffn_up_exps.weight"
  Index expert = -1;
};

/// @throws Error if GGUF has no tensor for it.
inline GgufPlace gguf_place(const std::string& parameter, const std::string& block) {
  constexpr auto known = std::to_array<std::pair<std::string_view, const char*>>({
      {"gate.weight", "ffn_gate_inp.weight"},
      {"gate.proj.weight", "ffn_gate_inp.weight"},
      {"gate.bias", "ffn_gate_inp.bias"},
      {"gate.selection_bias", "exp_probs_b.bias"},
      {"gate.scale", "ffn_gate_inp.scale"},
      {"gate.per_expert_scale", "ffn_down_exps.scale"},
      {"shared_expert.gate_proj.weight", "ffn_gate_shexp.weight"},
      {"shared_expert.up_proj.weight", "ffn_up_shexp.weight"},
      {"shared_expert.down_proj.weight", "ffn_down_shexp.weight"},
      {"shared_expert_gate.weight", "ffn_gate_inp_shexp.weight"},
      {"fc1_latent_proj.weight", "ffn_latent_down.weight"},
      {"fc2_latent_proj.weight", "ffn_latent_up.weight"},
      {"routed_expert_norm.weight", "ffn_routed_norm.weight"},
  });
  for (const auto& [name, its] : known) {
    if (name == parameter) return {its};
  }
  long long expert = 0;
  int length = 0;
  if (std::sscanf(parameter.c_str(), "experts.%lld.%n", &expert, &length) == 1 && length > 0) {
    const std::string rest = parameter.substr(std::size_t(length));
    for (const char* const kind : {"gate", "up", "down"}) {
      for (const char* const end : {"weight", "bias"}) {
        if (rest == std::string(kind) + "_proj." + end) {
          return {std::string("ffn_") + kind + "_exps." + end, Index(expert)};
        }
      }
    }
  }
  fail("\"", block, "\": its ", parameter, " has no place in GGUF");
}

/// Weights of 16 or 32 bits keep their type; coded ones, and what llama.cpp has in F32 alone, become F32.
inline std::string gguf_dtype(const GgufPlace& place, const Tensor& from) {
  const bool is_weight = place.name.ends_with("_exps.weight") || place.name.ends_with("_shexp.weight") ||
                         place.name.starts_with("ffn_latent");
  const bool is_gate = place.name.starts_with("ffn_gate_inp");
  const bool is_kept = is_weight && !is_gate && !from.coded && from.dtype != dtype_name<double>;
  return is_kept ? from.dtype : std::string(dtype_name<float>);
}

/// Numbers of one tensor, coded or not, to those of another.
inline void copy_numbers(const Tensor& from, const StoredParameter& place, std::byte* to, const std::string& dtype) {
  if (dtype == "I32") {  // a table of experts
    const auto numbers = as<std::int64_t>(from);
    std::int32_t* next = reinterpret_cast<std::int32_t*>(to);
    for (const std::int64_t number : numbers) {
      if (number < 0 || number > INT32_MAX) fail(to_string(from), " holds ", number, ", expected numbers of experts");
      *next++ = std::int32_t(number);
    }
    return;
  }
  const auto copy = [&](const auto& numbers, Index first) {
    const auto write = [&]<class T>(T) {
      T* next = reinterpret_cast<T*>(to);
      for (Index r = 0; r < place.rows; ++r) {
        for (Index c = 0; c < place.cols; ++c) {
          *next++ = static_cast<T>(numbers[std::size_t(first + r * place.row_step + c * place.col_step)]);
        }
      }
    };
    if (dtype == dtype_name<bfloat16>) return write(bfloat16());
    if (dtype == dtype_name<float16>) return write(float16());
    write(float());
  };
  if (!from.coded) return with_floats(aligned(from), [&](const auto& numbers) { copy(numbers, place.first); });
  const Index size = from.coded->front().rows() * from.coded->front().cols();
  const QuantizedMatrix& matrix = (*from.coded)[std::size_t(place.first / size)];
  std::vector<float> numbers(static_cast<std::size_t>(size));
  for (Index r = 0; r < matrix.rows(); ++r)
    matrix.decode(r, 0, matrix.cols(), &numbers[std::size_t(r * matrix.cols())]);
  copy(numbers, place.first % size);
}

/// llama.cpp's architecture that has this model type's mathematics.
/// @throws Error if there is none.
inline const GgufArchitecture& gguf_row_for(const Config& config) {
  const std::string type = config.text("model_type");
  constexpr auto others =
      std::to_array<std::pair<std::string_view, std::string_view>>({{"deepseek_v2", "deepseek2"},
                                                                    {"kimi_k2", "deepseek2"},
                                                                    {"glm4_moe_lite", "deepseek2"},
                                                                    {"glm4v_moe_text", "glm4moe"},
                                                                    {"granitemoe", "granitemoe"},
                                                                    {"qwen3_omni_moe_text", "qwen3moe"}});
  for (const GgufArchitecture& row : gguf_architectures) {
    if (row.refused) continue;
    if (row.model_type == type) return row;
    for (const auto& [other, name] : others) {
      if (other == type && row.name == name) return row;
    }
  }
  fail(config.file(), ": llama.cpp has no architecture for model_type \"", type, "\" that is known here");
}

/// What a model's blocks multiply by, and cap, as files round it.
struct Factors {
  float of_outputs = 1, of_logits = 1, cap_of_logits = 0;  // 0: none
};

inline Factors factors_of(const Architecture& architecture, const Config& config) {
  const auto factor = [&](const auto& of, double absent) { return float(of ? of(config) : absent); };
  return {factor(architecture.output_scale, 1), factor(architecture.logit_scale, 1), factor(architecture.logit_cap, 0)};
}

inline std::optional<SettingDifference> difference(const Factors& a, const Factors& b) {
  FirstDifference differs;
  differs("the factor of outputs", a.of_outputs, b.of_outputs);
  differs("the factor of the router's logits", a.of_logits, b.of_logits);
  differs("the cap of the router's logits", a.cap_of_logits, b.cap_of_logits);
  return differs.found;
}

/// A tensor of a block as GGUF has it, and where its numbers are: of each expert, or of all at once.
struct GgufSource {
  struct Part {
    Tensor from;
    StoredParameter place;
  };
  Tensor tensor;  // with bytes if they are those of a GGUF file
  std::vector<Part> parts;
  std::string scaled = {};  // of a scale in a GGUF file: the weight whose bytes, as they are, need it
};

/// Of a block of a GGUF file: its tensors, under another layer's name.
inline std::vector<GgufSource> sources_in_gguf(const Model& model, const std::string& block, const std::string& stem) {
  std::vector<GgufSource> all;
  model.tensors().for_each_below(block + ".", [&](Tensor tensor) {
    const std::string end = tensor.name.substr(block.size() + 1);
    if (!end.starts_with("ffn_") && !end.starts_with("exp_probs_b")) return;
    GgufSource source{tensor, {}};
    source.tensor.name = stem + end;
    for (const std::string_view its_end : {end_of_scale, end_of_input_scale}) {
      const std::string_view module = scaled_module(source.tensor.name, its_end);
      const bool is_of_router =
          model.tensors().contains(block + ".router.per_expert_scale") && end == "ffn_down_exps.scale";
      if (!module.empty() && !is_of_router) source.scaled = std::string(module) + ".weight";
    }
    const std::size_t n = tensor.shape.size();
    const Index rows = n > 1 ? tensor.shape[n - 2] : 1, cols = n > 0 ? tensor.shape[n - 1] : 1;
    const Index size = rows * cols, count = size == 0 ? 0 : element_count(tensor) / size;
    for (Index i = 0; i < count; ++i) {
      source.parts.push_back({tensor, {tensor.name, tensor.name, tensor.shape, rows, cols, i * size, cols}});
    }
    all.push_back(std::move(source));
  });
  return all;
}

/// What gguf_tensors() gives, still without the bytes of models that are no GGUF files.
/// @throws Error naming the parameter, if GGUF has no place for it; or the tensor, if it is missing, has another shape
///         than the block gives it, or is one that nothing of the block reads; or a setting that nothing reads; or the
///         model type, if llama.cpp has no architecture for it.
inline std::vector<GgufSource> gguf_sources(const Model& model, const std::string& block,
                                            std::optional<Index> layer = std::nullopt) {
  check_block(model, block);
  const Index number = layer.value_or(std::max<Index>(layer_number(block), 0));
  const Architecture& architecture = model.architecture(block);
  const Config& config = model.config(block);
  const std::string stem = "blk." + std::to_string(number) + '.';
  if (const Index own = layer_number(block); layer && own >= 0) {
    const auto differs = io::difference(moe_shape(config, architecture, own), moe_shape(config, architecture, number));
    if (differs) {
      fail("\"", block, "\" cannot be layer ", number, " of a file: ", differs->setting, " is ", differs->of_a,
           " in it, and ", differs->of_b, " in layer ", number);
    }
  }
  if (is_gguf(model.folder())) return sources_in_gguf(model, block, stem);
  gguf_row_for(config);  // complains if there is none
  const MoeShape shape = moe_shape(config, architecture, block);
  const std::shared_ptr<const Tensors> weights = model.weights(block);
  const WeightTensors tensors(*weights, block, shape.num_experts);
  const BlockForm form(tensors, config, architecture,
                       find_names(tensors, expert_spellings, architecture.experts, architecture.gated), shape);
  const bool is_hashed = architecture.router_kind == RouterKind::hashed && tensors.contains("gate.tid2eid");
  std::map<std::string, std::size_t> place_of;
  std::set<std::string> listed;
  std::vector<GgufSource> all;
  for (const StoredParameter& stored : form.list(shape.num_experts, shape.d_ff)) {
    const GgufPlace place = gguf_place(stored.parameter, block);
    if (place.expert >= shape.num_experts) fail("\"", block, "\": its ", stored.parameter, " has no place in GGUF");
    if (!weights->contains(stored.tensor)) weights->at(stored.tensor);  // says which
    const Tensor& from = *weights->find(stored.tensor);
    require_shape(from, stored.shape);
    listed.insert(from.name);
    const auto [found, is_new] = place_of.emplace(place.name, all.size());
    if (is_new) {
      std::vector<Index> its;
      if (place.expert >= 0) its.push_back(shape.num_experts);
      if (stored.rows > 1 || !place.name.ends_with("bias")) its.push_back(stored.rows);
      if (place.name.ends_with(".scale") || (place.expert < 0 && place.name.ends_with(".bias"))) its.clear();
      its.push_back(stored.cols);
      all.push_back({{.name = stem + place.name, .dtype = gguf_dtype(place, from), .shape = its}, {}});
      all.back().parts.resize(place.expert >= 0 ? std::size_t(shape.num_experts) : 1);
    }
    all[found->second].parts[std::size_t(std::max<Index>(place.expert, 0))] = {from, stored};
  }
  if (const Tensor* const table = is_hashed ? tensors.find("gate.tid2eid") : nullptr) {
    const Index rows = table->shape.empty() ? 1 : table->shape[0];
    require_shape(*table, {rows, shape.top_k});
    all.push_back({{.name = stem + "ffn_gate_tid2eid.weight", .dtype = "I32", .shape = table->shape},
                   {{*table, {"gate.tid2eid", table->name, table->shape, rows, shape.top_k, 0, shape.top_k}}}});
    listed.insert(table->name);
  }
  factors_of(architecture, config);  // whose settings count as read
  if (shape.d_ff_shared == 0 && !architecture.shared_gate.empty()) tensors.ignore(architecture.shared_gate);
  tensors.ignore(architecture.ignored);
  for (const Tensor& left : tensors.with_spare(shape.num_zero_experts).unread(architecture.scope)) {
    if (listed.contains(left.name)) continue;
    fail(to_string(left), " is of the block \"", block, "\", and a layer of model_type \"", config.text("model_type"),
         "\" with these settings has nothing that reads it: to leave it out would ", "change what the layer computes");
  }
  require_no_other_settings(config, architecture);
  return all;
}

}  // namespace detail

/// The tensors of a block as GGUF has them: "blk.3.ffn_up_exps.weight" (experts × d_ff × d_model) and so on, in memory
/// of their own. Weights of 16 or 32 bits keep their type, coded ones become their numbers, and all else is F32. Code
/// weights as you like, then save_gguf(). Of a model that is a GGUF file already, those of the file; but weights that
/// have a scale beside them become their numbers, the scale among them.
/// @param layer  the number in their names; else the block's own
/// @throws Error naming the parameter, if GGUF has no place for it; or the tensor, if it is missing, has another shape
///         than the block gives it, or is one that nothing of the block reads; or a setting that nothing reads; or the
///         model type, if llama.cpp has no architecture for it.
inline std::vector<Tensor> gguf_tensors(const Model& model, const std::string& block,
                                        std::optional<Index> layer = std::nullopt) {
  std::vector<Tensor> all;
  std::vector<detail::GgufSource> sources = detail::gguf_sources(model, block, layer);
  for (detail::GgufSource& source : sources) {
    if (!source.scaled.empty()) continue;
    Tensor& tensor = all.emplace_back(std::move(source.tensor));
    if (detail::is_gguf(model.folder())) {
      const bool is_scaled = std::ranges::any_of(sources, [&](const detail::GgufSource& its) {
        return its.scaled == tensor.name && its.tensor.name.ends_with(detail::end_of_scale);
      });
      if (!is_scaled) continue;
      tensor.dtype = dtype_name<float>;
      tensor.coded = nullptr;
    }
    const int bits = dtype_bits(tensor.dtype);
    const auto bytes = std::size_t(element_count(tensor) * bits / 8);
    const std::shared_ptr<std::byte[]> memory(new std::byte[bytes]);
    std::byte* to = memory.get();
    for (const auto& [from, place] : source.parts) {
      detail::copy_numbers(from, place, to, tensor.dtype);
      to += place.rows * place.cols * bits / 8;
    }
    tensor.bytes = {memory.get(), bytes};
    tensor.owner = memory;
  }
  return all;
}

}  // namespace moe::inline MOE_TARGET::io
