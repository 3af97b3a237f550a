#include <algorithm>
#include <filesystem>
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

namespace moe::distributed {

namespace fs = std::filesystem;

/// Cases that are layers.
std::vector<fs::path> layer_cases() {
  std::vector<fs::path> folders;
  for (const auto& entry : fs::directory_iterator(MOE_SOURCE_DIR "/tests/golden")) {
    if (!fs::exists(entry.path() / "config.json")) continue;
    const auto config = io::Config::open(entry.path() / "config.json");
    const auto type = config.text("model_type");
    if (std::ranges::count(io::architectures(), type, &io::Architecture::model_type) > 0)
      folders.push_back(entry.path());
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
  for (const auto& shared_out :
       {load_layer<float>(GetParam(), "", MPI_COMM_WORLD),
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

/// What a rank says of what another one met, or it itself.
std::string of_rank(int rank, const std::string& what) {
  return (rank == test::my_rank() ? "" : "rank " + std::to_string(rank) + ": ") + what;
}

TEST(LoadLayer, OnAllRanksTellsWhatOneMissesInItsFiles) {
  const fs::path golden = MOE_SOURCE_DIR "/tests/golden";
  const int last = test::num_ranks() - 1;
  const fs::path folder = golden / (test::my_rank() == last ? "nowhere" : "olmoe");
  EXPECT_EQ(test::error_of<std::runtime_error>([&] { load_layer<float>(folder, "", MPI_COMM_WORLD); }),
            of_rank(last, (golden / "nowhere/config.json").string() + ": no such file"));
  EXPECT_EQ(test::error_of<std::runtime_error>(
                [&] { load_layer<float>(golden / "olmoe", test::my_rank() == 0 ? "model.mlp" : "", MPI_COMM_WORLD); }),
            of_rank(0, (golden / "olmoe").string() + ": no MoE block \"model.mlp\" among 1; did you mean \"\"?"));
  EXPECT_NO_THROW(load_layer<float>(golden / "olmoe", "", MPI_COMM_WORLD)) << "and all is as before";
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
