/// @file  A model of two layers with experts of bfloat16, small enough for any budget.
#pragma once

#include <cstddef>
#include <filesystem>
#include <fstream>
#include <span>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "moe/core/types.hpp"
#include "moe/io/checkpoint.hpp"
#include "moe/io/store/stored_file.hpp"
#include "random.hpp"

namespace moe::test::small_model {

inline constexpr Index num_layers = 2, num_experts = 8, top_k = 2, d_model = 64, d_ff = 96;
inline constexpr std::size_t expert_bytes =
    3 * d_model * d_ff * sizeof(bfloat16) + io::StoredFile::block;  // in the store

inline void write_model(const std::filesystem::path& folder) {
  const nlohmann::json config = {{"model_type", "qwen3_moe"},  {"hidden_size", d_model},
                                 {"hidden_act", "silu"},       {"moe_intermediate_size", d_ff},
                                 {"num_experts", num_experts}, {"num_experts_per_tok", top_k},
                                 {"norm_topk_prob", true}};
  std::ofstream(folder / "config.json") << config;
  std::vector<Weight<bfloat16>> weights;
  std::vector<std::string> names;
  unsigned seed = 1;
  const auto add = [&](const std::string& name, Index rows, Index cols) {
    weights.push_back(random_matrix<Weight<float>>(rows, cols, seed++, 0.3).cast<bfloat16>());
    names.push_back(name);
  };
  for (Index l = 0; l < num_layers; ++l) {
    const std::string block = "model.layers." + std::to_string(l) + ".mlp.";
    add(block + "gate.weight", num_experts, d_model);
    for (Index e = 0; e < num_experts; ++e) {
      const std::string expert = block + "experts." + std::to_string(e) + ".";
      add(expert + "gate_proj.weight", d_ff, d_model);
      add(expert + "up_proj.weight", d_ff, d_model);
      add(expert + "down_proj.weight", d_model, d_ff);
    }
  }
  std::vector<io::Tensor> tensors;
  for (std::size_t i = 0; i < weights.size(); ++i) {
    tensors.push_back(io::make_tensor(names[i], {weights[i].rows(), weights[i].cols()},
                                      std::span(weights[i].data(), std::size_t(weights[i].size()))));
  }
  io::write_safetensors(folder / "model.safetensors", tensors);
}

}  // namespace moe::test::small_model
