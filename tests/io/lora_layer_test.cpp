// Published layers that learn by adapters beside the weights in their files.
#include <unistd.h>

#include <filesystem>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "compare.hpp"
#include "learning_layers.hpp"
#include "load_layer.hpp"
#include "moe/io/adapters.hpp"
#include "moe/train.hpp"
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
  for (const char* const name : {"mixtral_bf16", "qwen2_moe", "deepseek_v3", "llama4", "gpt_oss", "jetmoe"}) {
    SCOPED_TRACE(name);
    const auto model = load_layer(golden / name, "");
    auto layer = load_lora_layer(golden / name, "", everywhere);
    const auto x = random_matrix<Matrix<float>>(model.layer.d_model(), 40, 1);
    EXPECT_TRUE(same_bits(answer(layer, x), model.layer.forward(x)));
    for (const auto& parameter : layer.parameters()) {
      EXPECT_TRUE(parameter.name.find(".lora_") != std::string::npos || parameter.name == "shared_expert_gate.weight" ||
                  parameter.name == "bias");
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
    EXPECT_TRUE(same_bits(answer(read, x), answer(layer, x)));  // the gate of a shared expert is in the files, too

    const Matrix<float> expected = answer(layer, x), served = merged(layer).forward(x);
    const float rounding = model.dtype == "F32" ? 1e-5F : 1e-2F;  // of merged weights
    EXPECT_LT((served - expected).norm(), rounding * expected.norm());
    EXPECT_TRUE(same_bits(load_layer(golden / name, "").layer.forward(x), model.layer.forward(x)));
  }
  fs::remove_all(adapters);
}

/// Narrow weights are widened: what learns is float.
TEST(LoadTrainableLayer, WidensWhatIsStoredIn16Bits) {
  const fs::path golden = fs::path(MOE_SOURCE_DIR) / "tests/golden";
  for (const char* const name : {"mixtral_bf16", "qwen3_moe_bf16", "gpt_oss_mxfp4"}) {
    SCOPED_TRACE(name);
    const auto model = load_layer(golden / name, "");
    EXPECT_NE(model.dtype, "F32");
    auto layer = load_trainable_layer(golden / name, "");
    const auto x = random_matrix<Matrix<float>>(model.layer.d_model(), 40, 1);
    const Matrix<float> expected = model.layer.forward(x);
    EXPECT_TRUE(test::is_close(answer(layer, x), expected));
    Matrix<float> d_x = Matrix<float>::Zero(x.rows(), x.cols());
    layer.backward(x, expected, d_x);
    for (const auto& gradient : layer.gradients()) EXPECT_TRUE(gradient.array().allFinite()) << gradient.name;
    EXPECT_GT(d_x.norm(), 0);
  }
}

}  // namespace
}  // namespace moe::io
