/// @file  Small models in formats of few bits, as the software of each format writes them, with what a block computed
///        from the numbers that they stand for: those in tests/real_quant/folders, and those of MOE_QUANT_DIR.
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <span>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "load_layer.hpp"
#include "moe/io/checkpoint.hpp"
#include "moe/moe.hpp"
#include "recorded_folders.hpp"
#include "recorded_schemes.hpp"
#include "temporary_folder.hpp"

namespace moe::io {
namespace {

namespace fs = std::filesystem;

struct Quantized : testing::TestWithParam<test::RecordedFolder> {};

Model model_in(const fs::path& folder) { return fs::exists(folder / "model.gguf") ? folder / "model.gguf" : folder; }

TEST_P(Quantized, BlocksComputeWhatTheirNumbersDo) {
  const fs::path& folder = GetParam().path;
  ASSERT_TRUE(fs::exists(folder / "case.json")) << folder;
  const auto about = nlohmann::json::parse(std::ifstream(folder / "case.json"));
  const Model model = model_in(folder);
  const Tensors records = Tensors::open(folder / "expected.safetensors");
  ASSERT_EQ(std::ssize(model.moe_blocks()), Index(about.at("layers")));
  for (Index i = 0; i < std::ssize(model.moe_blocks()); ++i) {
    SCOPED_TRACE(model.moe_blocks()[std::size_t(i)]);
    const std::string prefix = "layers." + std::to_string(i);
    const Matrix<float> x = records.read<float>(prefix + ".input").transpose();
    const Matrix<float> expected = records.read<float>(prefix + ".output").transpose();
    const LoadedLayer<float> loaded = model.layer(model.moe_blocks()[std::size_t(i)]);
    const Matrix<float> y = loaded.layer.forward(x);
    ASSERT_EQ(y.rows(), expected.rows());
    ASSERT_EQ(y.cols(), expected.cols());
    EXPECT_LE((y - expected).cwiseAbs().maxCoeff(), 1e-5F * expected.cwiseAbs().maxCoeff());
  }
}

INSTANTIATE_TEST_SUITE_P(Folders, Quantized,
                         testing::ValuesIn(test::recorded_folders("tests/real_quant/folders", "MOE_QUANT_DIR",
                                                                  "case.json", "folders")),
                         test::name_of);

/// A layer of two experts whose gates and ups are matrices that a family's software stored: all of a scheme, as a
/// folder of the hub has them, or what the software decodes them to. Their downs and the router are plain, in both.
void write_layer(const fs::path& folder, const Tensors& recorded, const std::string& family, const std::string& scheme,
                 const std::vector<std::string>& matrices, const std::vector<Index>& shape, bool coded) {
  const Index ff = shape[0], d = shape[1];
  nlohmann::json config = {{"model_type", "qwen3_moe"}, {"hidden_size", d},         {"moe_intermediate_size", ff},
                           {"num_experts", 2},          {"num_experts_per_tok", 2}, {"norm_topk_prob", true},
                           {"hidden_act", "silu"}};
  if (coded) config["quantization_config"] = test::config_of(family, scheme);
  if (coded && (family == "compressed_tensors" || family == "transformers_fp8" || family == "modelopt")) {
    const char* const down = family == "compressed_tensors" ? "re:.*down_proj" : ".*down_proj";
    config["quantization_config"]["ignore"].push_back(family == "modelopt" ? "*down_proj" : down);
  }
  const Weight<float> down = random_weight<float>(d, ff, 1), gate = random_weight<float>(2, d, 2);
  std::vector<Tensor> tensors = {make_tensor("mlp.gate.weight", {2, d}, std::span(gate.data(), std::size_t(2 * d)))};
  const std::vector<std::string> modules = {"0.gate_proj", "0.up_proj", "1.gate_proj", "1.up_proj"};
  for (std::size_t i = 0; i < modules.size(); ++i) {
    const std::string module = "mlp.experts." + modules[i], from = matrices[i % matrices.size()] + "." + scheme + ".";
    recorded.for_each_below(from, [&](const Tensor& tensor) {
      Tensor its = tensor;
      const std::string end = tensor.name.substr(from.size());
      if ((end == "dequantized") == coded) return;
      its.name = module + (!coded ? ".weight" : family == "torchao" ? "._weight_" + end : "." + end);
      tensors.push_back(std::move(its));
    });
    if (i % 2 == 0) continue;
    tensors.push_back(make_tensor(module.substr(0, module.rfind('.')) + ".down_proj.weight", {d, ff},
                                  std::span(down.data(), std::size_t(d * ff))));
  }
  fs::create_directories(folder);
  std::ofstream(folder / "config.json") << config;
  write_safetensors(folder / "model.safetensors", tensors);
}

/// Of every scheme that has a matrix, down to the bit: names, config and layers together, where there is no folder.
TEST(QuantizedLayers, OfRecordedMatricesHaveTheBitsOfTheirNumbers) {
  std::size_t schemes = 0;
  for (const char* const family :
       {"compressed_tensors", "transformers_fp8", "gptq_awq", "bitsandbytes", "mlx", "modelopt", "torchao"}) {
    const Tensors recorded = Tensors::open(fs::path("tests/real_quant") / (std::string(family) + ".safetensors"));
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
        const test::TemporaryFolder temporary("quantized_layers");
        const std::vector<Index>& shape = recorded.find(its[0] + "." + scheme + ".dequantized")->shape;
        write_layer(temporary.path / "coded", recorded, family, scheme + version, its, shape, true);
        write_layer(temporary.path / "plain", recorded, family, scheme, its, shape, false);
        const auto coded = load_layer(temporary.path / "coded", "mlp"),
                   plain = load_layer(temporary.path / "plain", "mlp");
        const Matrix<float> x = random_tokens<float>(coded.layer.d_model(), 3, /*seed=*/3);
        const Matrix<float> y = coded.layer.forward(x), expected = plain.layer.forward(x);
        EXPECT_TRUE(
            (y.array() == expected.array() || (y.array() != y.array() && expected.array() != expected.array())).all());
        ++schemes;
      }
    }
  }
  EXPECT_GE(schemes, 50U);
}

}  // namespace
}  // namespace moe::io
