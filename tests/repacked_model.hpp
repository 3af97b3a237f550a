/// @file  A model whose experts are stored in codes that are repacked before they are used, none of them small.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "moe/core/types.hpp"
#include "moe/io/safetensors_file.hpp"
#include "moe/io/tensor.hpp"
#include "random.hpp"
#include "recorded_schemes.hpp"

namespace moe::test::repacked_model {

inline constexpr Index num_experts = 4, d_model = 1152, d_ff = 288;

/// Codes are whatever the bits of a seed are; scales are small numbers.
class Writer {
 public:
  /// @param scheme  "gptq4_g32", "gptq4_g32_actorder", "awq4_g32", "int4_g32_asym", "nf4_nested"
  explicit Writer(std::string scheme) : scheme_(std::move(scheme)) {}

  void write(const std::filesystem::path& folder) {
    nlohmann::json config = {{"model_type", "qwen3_moe"},     {"hidden_size", d_model},     {"hidden_act", "silu"},
                             {"moe_intermediate_size", d_ff}, {"num_experts", num_experts}, {"num_experts_per_tok", 1},
                             {"norm_topk_prob", true}};
    const bool is_packed = scheme_.starts_with("int4");
    config["quantization_config"] = config_of(is_packed                    ? "compressed_tensors"
                                              : scheme_.starts_with("nf4") ? "bitsandbytes"
                                                                           : "gptq_awq",
                                              scheme_);
    if (scheme_.ends_with("actorder")) config["quantization_config"]["desc_act"] = true;
    std::ofstream(folder / "config.json") << config;
    floats("mlp.gate.weight", {num_experts, d_model}, 1);
    for (Index e = 0; e < num_experts; ++e) {
      const std::string expert = "mlp.experts." + std::to_string(e) + ".";
      matrix(expert + "gate_proj", d_ff, d_model);
      matrix(expert + "up_proj", d_ff, d_model);
      matrix(expert + "down_proj", d_model, d_ff);
    }
    io::write_safetensors(folder / "model.safetensors", tensors_);
  }

 private:
  void matrix(const std::string& name, Index rows, Index cols) {
    constexpr Index group = 32;
    const Index groups = cols / group;
    if (scheme_.starts_with("gptq")) {
      bits(name + ".qweight", "I32", {cols / 8, rows});
      bits(name + ".qzeros", "I32", {groups, rows / 8});
      halves(name + ".scales", {groups, rows});
      indices(name + ".g_idx", cols, group, scheme_.ends_with("actorder"));
    } else if (scheme_.starts_with("awq")) {
      bits(name + ".qweight", "I32", {cols, rows / 8});
      bits(name + ".qzeros", "I32", {groups, rows / 8});
      halves(name + ".scales", {groups, rows});
    } else if (scheme_.starts_with("int4")) {
      bits(name + ".weight_packed", "I32", {rows, cols / 8});
      bits(name + ".weight_zero_point", "I32", {rows / 8, groups});
      halves(name + ".weight_scale", {rows, groups});
      longs(name + ".weight_shape", {rows, cols});
    } else {
      const Index blocks = rows * cols / 64;
      bits(name + ".weight", "U8", {rows * cols / 2, 1});
      bits(name + ".weight.absmax", "U8", {blocks});
      floats(name + ".weight.nested_absmax", {(blocks + 255) / 256}, 0.01);
      floats(name + ".weight.nested_quant_map", {256}, 1);
      floats(name + ".weight.quant_map", {16}, 1);
      text(name + ".weight.quant_state.bitsandbytes__nf4", nlohmann::json({{"quant_type", "nf4"},
                                                                           {"blocksize", 64},
                                                                           {"dtype", "bfloat16"},
                                                                           {"shape", {rows, cols}},
                                                                           {"nested_blocksize", 256},
                                                                           {"nested_dtype", "float32"},
                                                                           {"nested_offset", 0.02}})
                                                               .dump());
    }
  }

  void add(const std::string& name, const std::string& dtype, std::vector<Index> shape, std::vector<std::byte> bytes) {
    const auto owner = std::make_shared<const std::vector<std::byte>>(std::move(bytes));
    tensors_.push_back({.name = name, .dtype = dtype, .shape = std::move(shape), .bytes = *owner, .owner = owner});
  }
  template <class T>
  void numbers(const std::string& name, const std::string& dtype, std::vector<Index> shape, const std::vector<T>& all) {
    const auto bytes = std::as_bytes(std::span(all));
    add(name, dtype, std::move(shape), {bytes.begin(), bytes.end()});
  }
  static Index size_of(const std::vector<Index>& shape) {
    Index size = 1;
    for (const Index n : shape) size *= n;
    return size;
  }
  void bits(const std::string& name, const std::string& dtype, const std::vector<Index>& shape) {
    std::vector<std::byte> bytes(std::size_t(size_of(shape)) * (dtype == "U8" ? 1 : 4));
    for (std::byte& byte : bytes) byte = std::byte(random_.below(256));
    add(name, dtype, shape, std::move(bytes));
  }
  void halves(const std::string& name, const std::vector<Index>& shape) {
    std::vector<std::uint16_t> all(std::size_t(size_of(shape)));
    for (std::uint16_t& half : all) half = std::uint16_t(0x1400 + random_.below(0x800));  // 0.001 to 0.004 in F16
    numbers(name, "F16", shape, all);
  }
  void floats(const std::string& name, const std::vector<Index>& shape, double scale) {
    std::vector<float> all(std::size_t(size_of(shape)));
    for (float& number : all) number = float(scale * random_());
    numbers(name, "F32", shape, all);
  }
  void longs(const std::string& name, const std::vector<std::int64_t>& all) {
    numbers(name, "I64", {std::ssize(all)}, all);
  }
  void text(const std::string& name, const std::string& all) {
    numbers(name, "U8", {std::ssize(all)}, std::vector<char>(all.begin(), all.end()));
  }
  void indices(const std::string& name, Index cols, Index group, bool any_order) {
    std::vector<std::int32_t> all(static_cast<std::size_t>(cols));
    for (Index i = 0; i < cols; ++i) {
      all[std::size_t(i)] = std::int32_t(any_order ? random_.below(cols / group) : i / group);
    }
    numbers(name, "I32", {cols}, all);
  }

  std::string scheme_;
  std::vector<io::Tensor> tensors_;
  Random random_{5};
};

}  // namespace moe::test::repacked_model
