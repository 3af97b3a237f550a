#include <algorithm>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "compare.hpp"
#include "distributed/ranks.hpp"
#include "errors.hpp"
#include "golden_checks/common.hpp"
#include "load_layer.hpp"
#include "moe/distributed/checkpoint.hpp"
#include "moe/io/architectures.hpp"
#include "moe/io/expert_store.hpp"
#include "temporary_folder.hpp"

namespace moe::distributed {

namespace fs = std::filesystem;

/// Cases that are layers.
std::vector<fs::path> layer_cases() {
  std::vector<fs::path> folders;
  for (const auto& entry : fs::directory_iterator(MOE_SOURCE_DIR "/tests/golden")) {
    if (!fs::exists(entry.path() / "config.json")) continue;
    const auto config = io::Config::open(entry.path() / "config.json");
    const auto type = config.text("model_type");
    if (io::find_architecture(type) != nullptr) folders.push_back(entry.path());
  }
  std::ranges::sort(folders);
  return folders;
}

Matrix<float> forward(const AnyLayer<float>& layer, const Matrix<float>& x, Index sequence_length) {
  Matrix<float> y(x.rows(), x.cols());
  Workspace<float> ws;
  ws.numerics.batch_invariant = true;
  ws.side.sequence_length = sequence_length;
  layer.forward(x, y, ws);
  return y;
}

/// The others hold none.
Placement only_on_rank_0(Index num_experts) { return {std::vector(std::size_t(num_experts), std::vector{0})}; }

class Golden : public testing::TestWithParam<fs::path> {};

TEST_P(Golden, IsWhatTheReferenceComputesAndToTheBitWhatOneProcessDoes) {
  const auto reference = golden::Case::open(GetParam());
  const Matrix<float> x = reference.columns("input");
  const auto alone = io::load_layer<float>(GetParam(), "");
  const Index num_experts = alone.shape.num_experts + alone.shape.num_zero_experts;
  const io::ExpertStore store(GetParam(), {.memory = 4_MiB, .threads = 1});  // of each rank
  for (const auto& shared_out :
       {load_layer<float>(store, "", MPI_COMM_WORLD), load_layer<float>(GetParam(), "", MPI_COMM_WORLD),
        load_layer<float>(GetParam(), "", test::copied(num_experts, test::num_ranks()), MPI_COMM_WORLD, {.chunks = 2}),
        load_layer<float>(GetParam(), "", only_on_rank_0(num_experts), MPI_COMM_WORLD)}) {
    EXPECT_EQ(shared_out.model_type, alone.model_type);
    EXPECT_EQ(shared_out.dtype, alone.dtype);
    const Index length = reference.size("_sequence_length");
    const auto y = forward(shared_out.layer, x, length);  // all tokens on every rank
    golden::expect_close(y, reference.columns("output"), "output");
    EXPECT_TRUE(test::same_bits(y, forward(alone.layer, x, length)));

    // Another part of them on each rank.
    const Index first = x.cols() * test::my_rank() / test::num_ranks();
    const Index count = x.cols() * (test::my_rank() + 1) / test::num_ranks() - first;
    const Matrix<float> part = x.middleCols(first, count);
    EXPECT_TRUE(test::same_bits(forward(shared_out.layer, part, count), forward(alone.layer, part, count)));
  }
}

INSTANTIATE_TEST_SUITE_P(Layers, Golden, testing::ValuesIn(layer_cases()),
                         [](const auto& param) { return param.param.filename().string(); });

TEST(LoadLayer, OnAllRanksTellsWhatOneMissesInItsFiles) {
  const fs::path golden = MOE_SOURCE_DIR "/tests/golden";
  const int last = test::num_ranks() - 1;
  const fs::path folder = golden / (test::my_rank() == last ? "nowhere" : "olmoe");
  EXPECT_EQ(
      test::error_of<std::runtime_error>([&] { load_layer<float>(folder, "", MPI_COMM_WORLD); }),
      test::told_by(last, (golden / "nowhere/config.json").string() +
                              ": no such file: expected a model's folder, with config.json beside *.safetensors"));
  EXPECT_EQ(test::error_of<std::runtime_error>(
                [&] { load_layer<float>(golden / "olmoe", test::my_rank() == 0 ? "model.mlp" : "", MPI_COMM_WORLD); }),
            test::told_by(0, (golden / "olmoe").string() + ": no MoE block \"model.mlp\" among 1; did you mean \"\"?"));
  EXPECT_NO_THROW(load_layer<float>(golden / "olmoe", "", MPI_COMM_WORLD)) << "and all is as before";
}

TEST(LoadLayer, OnAllRanksTellsThatTheyLoadOtherModels) {
  const std::string golden = MOE_SOURCE_DIR "/tests/golden/";
  const auto shape = [&](const std::string& model) { return io::load_layer<float>(golden + model, "").shape; };
  const auto load = [&](const std::string& of_first, const std::string& of_others) {
    return test::error_of(
        [&] { load_layer<float>(golden + (test::my_rank() == 0 ? of_first : of_others), "", MPI_COMM_WORLD); });
  };
  ASSERT_NE(shape("olmoe").num_experts, shape("mixtral").num_experts);
  const std::string expected = "load_layer: ranks disagree on ";
  EXPECT_EQ(load("olmoe", "olmoe"), "no error");
  EXPECT_EQ(load("olmoe", "mixtral").substr(0, expected.size()), test::num_ranks() > 1 ? expected : "no error");
}

TEST(LoadLayer, OnAllRanksTellsThatAConfigHasMoreExpertsThanTheFilesWithoutRoomForThem) {
  const fs::path golden = MOE_SOURCE_DIR "/tests/golden/olmoe";
  const test::TemporaryFolder folder("of_rank_" + std::to_string(test::my_rank()));
  fs::copy(golden / "model.safetensors", folder.path / "model.safetensors");
  std::stringstream config;
  config << std::ifstream(golden / "config.json").rdbuf();
  std::string text = config.str();
  const std::string ten = "\"num_experts\": 10,";
  ASSERT_NE(text.find(ten), std::string::npos);
  text.replace(text.find(ten), ten.size(), "\"num_experts\": 10000000000000,");
  std::ofstream(folder.path / "config.json") << text;
  const std::string error =
      test::error_of<std::runtime_error>([&] { load_layer<float>(folder.path, "", MPI_COMM_WORLD); });
  EXPECT_NE(error.find("10000000000000"), std::string::npos) << error;
}

TEST(LoadLayer, OnAllRanksRefusesAPlacementOfOtherExperts) {
  const fs::path folder = MOE_SOURCE_DIR "/tests/golden/olmoe";
  const Index num_experts = io::load_layer<float>(folder, "").shape.num_experts;
  const Placement one_more = place_in_blocks(num_experts + 1, test::num_ranks());
  EXPECT_EQ(test::error_of([&] { load_layer<float>(folder, "", one_more, MPI_COMM_WORLD); }),
            "load_layer: placement.num_experts() is " + std::to_string(num_experts + 1) + ", expected " +
                std::to_string(num_experts));
}

}  // namespace moe::distributed
