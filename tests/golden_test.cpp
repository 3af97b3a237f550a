// One test per case folder under $MOE_GOLDEN_DIR (default: tests/golden), named after the folder: our layer against
// what a published reference implementation computed. Tolerances are those of golden/README.md.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <ranges>
#include <string>
#include <utility>
#include <vector>

#include "moe/io/checkpoint.hpp"
#include "moe/io/safetensors.hpp"
#include "moe/moe.hpp"

namespace {

using namespace moe;
namespace fs = std::filesystem;

/// Every |got − expected| ≤ 1e-5 + 1e-5 · |expected|.
template <class Got>
void expect_close(const Got& got, const io::Tensor& tensor) {
  const auto values = io::as<float>(tensor, {got.cols(), got.rows()});
  const Eigen::Map<const Matrix<float>> expected(values.data(), got.rows(), got.cols());
  const auto excess = ((got - expected).array().abs() - 1e-5f - 1e-5f * expected.array().abs()).eval();
  ASSERT_TRUE(got.allFinite()) << tensor.name;
  Index row = 0, column = 0;
  EXPECT_LE(excess.maxCoeff(&row, &column), 0) << tensor.name << " of token " << column << ", feature " << row << " is "
                                               << got(row, column) << ", expected " << expected(row, column);
}

using Choice = std::pair<std::int64_t, float>;  // expert, weight

/// Chosen experts in order of number: references ask for an unsorted top-k.
template <class Experts, class Weights>
std::vector<Choice> sorted(const Experts& experts, const Weights& weights, std::size_t first, std::size_t k) {
  std::vector<Choice> choices;
  for (std::size_t i = first; i < first + k; ++i) choices.emplace_back(experts[i], weights[i]);
  std::ranges::sort(choices);
  return choices;
}

void expect_same_routes(const Routing<float>& routing, const io::Tensors& tensors, Index num_tokens) {
  const io::Tensor index = tensors.at("topk_index"), weight = tensors.at("topk_weight");
  ASSERT_EQ(index.shape.size(), 2u);
  const Index k = index.shape[1];
  const auto experts = io::as<std::int64_t>(index, {num_tokens, k});
  const auto weights = io::as<float>(weight, {num_tokens, k});
  ASSERT_EQ(routing.size(), num_tokens * k);
  for (std::size_t t = 0; t < std::size_t(num_tokens); ++t) {
    const std::size_t first = t * std::size_t(k);
    const auto got = sorted(routing.expert, routing.weight, first, std::size_t(k));
    const auto expected = sorted(experts, weights, first, std::size_t(k));
    for (std::size_t i = 0; i < got.size(); ++i) {
      EXPECT_EQ(routing.token[first + i], Index(t));
      EXPECT_EQ(got[i].first, expected[i].first) << "chosen by token " << t;
      EXPECT_NEAR(got[i].second, expected[i].second, 1e-5 + 1e-5 * std::abs(expected[i].second))
          << "weight of expert " << expected[i].first << " for token " << t;
    }
  }
}

/// A layer that load_layer() knows.
void check_layer(const fs::path& folder) {
  const auto loaded = io::load_layer<float>(folder, "");
  const auto tensors = io::Tensors::open(folder);
  const io::Tensor input = tensors.at("input");
  ASSERT_EQ(input.shape.size(), 2u);
  const Index num_tokens = input.shape[0];
  const auto values = io::as<float>(input, {num_tokens, loaded.layer.d_model()});
  const Eigen::Map<const Matrix<float>> x(values.data(), loaded.layer.d_model(), num_tokens);

  Matrix<float> y(x.rows(), x.cols());
  Workspace<float> ws;
  loaded.layer.forward(x, y, ws);

  const Eigen::Map<const Matrix<float>> logits(ws.routing.logits.data(), loaded.shape.num_experts, num_tokens);
  expect_close(logits, tensors.at("router_logits"));
  expect_same_routes(ws.routing, tensors, num_tokens);
  expect_close(y, tensors.at("output"));
}

class GoldenTest : public testing::Test {
 public:
  explicit GoldenTest(fs::path folder) : folder_(std::move(folder)) {}

  void TestBody() override {
    const std::string type = io::Config::open(folder_ / "config.json").text("model_type");
    if (std::ranges::find(io::architectures(), type, &io::Architecture::model_type) == io::architectures().end()) {
      GTEST_SKIP() << "model_type \"" << type << "\" is not supported yet";
    }
    check_layer(folder_);
  }

 private:
  fs::path folder_;
};

std::vector<fs::path> case_folders(const fs::path& root) {
  std::vector<fs::path> folders;
  for (const auto& entry : fs::directory_iterator(root)) {
    if (fs::exists(entry.path() / "config.json")) folders.push_back(entry.path());
  }
  std::ranges::sort(folders);
  return folders;
}

}  // namespace

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  const char* const chosen = std::getenv("MOE_GOLDEN_DIR");
  const fs::path root = chosen ? chosen : MOE_SOURCE_DIR "/tests/golden";
  if (!fs::is_directory(root)) {
    std::cerr << "golden_test: " << root.string() << " is not a folder\n";
    return EXIT_FAILURE;
  }
  const auto folders = case_folders(root);
  if (folders.empty()) {
    std::cerr << "golden_test: no case (a folder with config.json) in " << root.string() << "\n";
    return EXIT_FAILURE;
  }
  for (const fs::path& folder : folders) {
    testing::RegisterTest("Golden", folder.filename().string().c_str(), nullptr, nullptr, __FILE__, __LINE__,
                          [folder]() -> testing::Test* { return new GoldenTest(folder); });
  }
  return RUN_ALL_TESTS();
}
