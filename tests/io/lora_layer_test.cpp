// Published layers that learn by adapters beside the weights in their files.
#include <unistd.h>

#include <filesystem>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "compare.hpp"
#include "load_layer.hpp"
#include "moe/io/adapters.hpp"
#include "moe/train.hpp"
#include "moe/train/io/checkpoint.hpp"
#include "random.hpp"

namespace moe::io {
namespace {

namespace fs = std::filesystem;
using test::random_matrix;
using test::same_bits;

const LoraLayerOptions everywhere{.router = {.rank = 2}, .experts = {.rank = 3}, .shared = {.rank = 2}};

Matrix<float> answer(TrainableLayer<float>& layer, const Matrix<float>& x) {
  Matrix<float> y(x.rows(), x.cols());
  layer.forward(x, y);
  return y;
}

TEST(LoadLoraLayer, BeginsAsTheModelAndLearnsBesideItsFile) {
  const fs::path golden = fs::path(MOE_SOURCE_DIR) / "tests/golden";
  const fs::path adapters = fs::path(testing::TempDir()) / ("moe_lora_layer_" + std::to_string(::getpid()));
  fs::create_directories(adapters);
  for (const char* const name : {"mixtral_bf16", "qwen2_moe", "deepseek_v3", "llama4", "gpt_oss"}) {
    SCOPED_TRACE(name);
    const auto model = load_layer(golden / name, "");
    auto layer = load_lora_layer(golden / name, "", everywhere);
    const auto x = random_matrix<Matrix<float>>(model.layer.d_model(), 40, 1);
    EXPECT_TRUE(same_bits(answer(layer, x), model.layer.forward(x)));
    for (const auto& parameter : layer.parameters()) {
      EXPECT_TRUE(parameter.name.find(".lora_") != std::string::npos || parameter.name == "shared_expert_gate.weight");
    }
    EXPECT_GT(layer.frozen_parameters().size(), std::size_t(3 * model.shape.num_experts));

    AdamW<float> adam(layer.parameters(), {.learning_rate = 0.01});
    double first = 0, last = 0;
    Matrix<float> d_x = Matrix<float>::Zero(x.rows(), x.cols());
    for (int step = 0; step < 20; ++step) {
      const Matrix<float> y = answer(layer, x);
      (step == 0 ? first : last) = double((y - x).squaredNorm());
      set_to_zero(layer.gradients());
      layer.backward(x, y - x, d_x);
      adam.step(layer.gradients());
    }
    EXPECT_LT(last, first);

    save_adapters(adapters, layer.named_adapters("model.layers.0.mlp"));
    auto read = load_lora_layer(golden / name, "", everywhere);
    load_adapters(adapters, read.named_adapters("model.layers.0.mlp"));
    if (layer.parameters().back().name != "shared_expert_gate.weight") {  // which is no adapter
      EXPECT_TRUE(same_bits(answer(read, x), answer(layer, x)));
    }
    EXPECT_TRUE(same_bits(load_layer(golden / name, "").layer.forward(x), model.layer.forward(x)));
  }
  fs::remove_all(adapters);
}

}  // namespace
}  // namespace moe::io
