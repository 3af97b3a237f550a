/// @file  Small models in formats of few bits, as the software of each format writes them, with what a block computed
///        from the numbers that they stand for: those in tests/real_quant/folders, and those of MOE_QUANT_DIR.
#include <filesystem>
#include <fstream>
#include <string>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "load_layer.hpp"
#include "moe/io/checkpoint.hpp"
#include "moe/moe.hpp"
#include "recorded_folders.hpp"

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

}  // namespace
}  // namespace moe::io
