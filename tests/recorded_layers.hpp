/// @file  Layers of the matrices of tests/real_quant, in every scheme that software has stored them in.
#pragma once

#include <cstddef>
#include <filesystem>
#include <fstream>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "moe/io/safetensors.hpp"
#include "moe/io/safetensors_file.hpp"
#include "moe/models/random.hpp"
#include "recorded_schemes.hpp"
#include "temporary_folder.hpp"

namespace moe::test {

/// A layer of two experts whose gates and ups are matrices that a family's software stored: all of a scheme, as a
/// folder of the hub has them, or what the software decodes them to. Their downs and the router are plain, in both.
inline void write_layer(const std::filesystem::path& folder, const io::Tensors& recorded, const std::string& family,
                        const std::string& scheme, const std::vector<std::string>& matrices,
                        const std::vector<Index>& shape, bool coded) {
  const Index ff = shape[0], d = shape[1];
  nlohmann::json config = {{"model_type", "qwen3_moe"}, {"hidden_size", d},         {"moe_intermediate_size", ff},
                           {"num_experts", 2},          {"num_experts_per_tok", 2}, {"norm_topk_prob", true},
                           {"hidden_act", "silu"}};
  if (coded) config["quantization_config"] = config_of(family, scheme);
  if (coded && (family == "compressed_tensors" || family == "transformers_fp8" || family == "modelopt")) {
    const char* const down = family == "compressed_tensors" ? "re:.*down_proj" : ".*down_proj";
    config["quantization_config"]["ignore"].push_back(family == "modelopt" ? "*down_proj" : down);
  }
  const Weight<float> down = random_weight<float>(d, ff, 1), gate = random_weight<float>(2, d, 2);
  std::vector<io::Tensor> tensors = {
      io::make_tensor("mlp.gate.weight", {2, d}, std::span(gate.data(), std::size_t(2 * d)))};
  const std::vector<std::string> modules = {"0.gate_proj", "0.up_proj", "1.gate_proj", "1.up_proj"};
  for (std::size_t i = 0; i < modules.size(); ++i) {
    const std::string module = "mlp.experts." + modules[i], from = matrices[i % matrices.size()] + "." + scheme + ".";
    recorded.for_each_below(from, [&](const io::Tensor& tensor) {
      io::Tensor its = tensor;
      const std::string end = tensor.name.substr(from.size());
      if ((end == "dequantized") == coded) return;
      its.name = module + (!coded ? ".weight" : family == "torchao" ? "._weight_" + end : "." + end);
      tensors.push_back(std::move(its));
    });
    if (i % 2 == 0) continue;
    tensors.push_back(io::make_tensor(module.substr(0, module.rfind('.')) + ".down_proj.weight", {d, ff},
                                      std::span(down.data(), std::size_t(d * ff))));
  }
  std::filesystem::create_directories(folder);
  std::ofstream(folder / "config.json") << config;
  io::write_safetensors(folder / "model.safetensors", tensors);
}

/// f(folder, plain): of each scheme a folder with the layer "mlp" in it, and one with what its software decodes it to.
template <class F>
void for_each_recorded_layer(const F& f) {
  for (const char* const family :
       {"compressed_tensors", "transformers_fp8", "gptq_awq", "bitsandbytes", "mlx", "modelopt", "torchao"}) {
    const auto recorded = io::Tensors::open(std::filesystem::path(MOE_SOURCE_DIR "/tests/real_quant") /
                                            (std::string(family) + ".safetensors"));
    std::map<std::string, std::vector<std::string>> matrices;  // of each scheme, those of one shape
    for (const std::string& name : recorded.names()) {
      const std::size_t first = name.find('.'), last = name.rfind('.');
      if (name.substr(last + 1) != "dequantized" || recorded.find(name)->shape.size() != 2) continue;
      const std::string scheme = name.substr(first + 1, last - first - 1);
      auto& all = matrices[scheme];
      const auto& shape = recorded.find(name)->shape;
      if (all.empty() || recorded.find(all[0] + "." + scheme + ".dequantized")->shape == shape) {
        all.push_back(name.substr(0, first));
      }
    }
    for (const auto& [scheme, its] : matrices) {
      for (const char* const version : {"", ".v1", ".v2"}) {
        if (recorded.any_below(its[0] + "." + scheme + ".v1.") == (*version == '\0')) continue;
        SCOPED_TRACE(std::string(family) + ": " + scheme + version);
        const TemporaryFolder temporary("recorded_layers");
        const std::vector<Index>& shape = recorded.find(its[0] + "." + scheme + ".dequantized")->shape;
        write_layer(temporary.path / "coded", recorded, family, scheme + version, its, shape, true);
        write_layer(temporary.path / "plain", recorded, family, scheme, its, shape, false);
        f(temporary.path / "coded", temporary.path / "plain");
      }
    }
  }
}

}  // namespace moe::test
