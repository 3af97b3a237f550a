/// @file  A folder with two models in it: Qwen3-Omni's thinker and talker, as transformers nests them.
#pragma once

#include <filesystem>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "moe/io/safetensors.hpp"
#include "moe/io/safetensors_file.hpp"

namespace moe::test {

/// Blocks "thinker.model.layers.#.mlp" of one folder, and "talker.model.layers.#.mlp" of another.
inline void write_two_towers(const std::filesystem::path& folder, const std::filesystem::path& thinker,
                             const std::filesystem::path& talker) {
  std::vector<io::Tensor> tensors;
  nlohmann::json config = {{"model_type", "qwen3_omni_moe"}};
  for (const auto& [name, from] : {std::pair("thinker", thinker), std::pair("talker", talker)}) {
    const io::Tensors all = io::Tensors::open(from);
    for (const std::string& its : all.names()) {
      tensors.push_back(all.at(its));
      tensors.back().name = name + std::string(".model.") + its.substr(its.find("layers."));
    }
    config[name + std::string("_config")] = {
        {"model_type", name}, {"text_config", nlohmann::json::parse(std::ifstream(from / "config.json"))}};
  }
  config["code2wav_config"] = {{"model_type", "qwen3_omni_moe_code2wav"}, {"hidden_size", 7}};
  std::filesystem::create_directories(folder);
  std::ofstream(folder / "config.json") << config;
  io::write_safetensors(folder / "model.safetensors", tensors);
}

}  // namespace moe::test
