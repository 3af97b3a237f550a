/// @file  Small models in formats of few bits, as the software of each format writes them, with what a block computed
///        from the numbers that they stand for: those in tests/real_quant/folders, and those of MOE_QUANT_DIR.
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <string>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "load_layer.hpp"
#include "moe/io/checkpoint.hpp"
#include "moe/moe.hpp"
#include "recorded_folders.hpp"
#include "recorded_layers.hpp"

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

/// Of every scheme that has a matrix, down to the bit: names, config and layers together, where there is no folder.
TEST(QuantizedLayers, OfRecordedMatricesHaveTheBitsOfTheirNumbers) {
  std::size_t schemes = 0;
  test::for_each_recorded_layer([&](const fs::path& folder, const fs::path& plain_folder) {
    const auto coded = load_layer(folder, "mlp"), plain = load_layer(plain_folder, "mlp");
    const Matrix<float> x = random_tokens<float>(coded.layer.d_model(), 3, /*seed=*/3);
    const Matrix<float> y = coded.layer.forward(x), expected = plain.layer.forward(x);
    EXPECT_TRUE(
        (y.array() == expected.array() || (y.array() != y.array() && expected.array() != expected.array())).all());
    ++schemes;
  });
  EXPECT_GE(schemes, 50U);
}

}  // namespace
}  // namespace moe::io
