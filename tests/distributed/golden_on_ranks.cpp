#include <algorithm>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "compare.hpp"
#include "distributed/ranks.hpp"
#include "golden_checks/common.hpp"
#include "load_layer.hpp"
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

class Golden : public testing::TestWithParam<fs::path> {};

TEST_P(Golden, IsWhatTheReferenceComputesAndToTheBitWhatOneProcessDoes) {
  const auto reference = golden::Case::open(GetParam());
  const Matrix<float> x = reference.columns("input");
  const auto alone = io::load_layer<float>(GetParam(), "");
  for (const int chunks : {1, 2}) {
    const auto shared_out = io::load_layer<float>(GetParam(), "", [&](AnyExperts<float> experts) {
      return share_experts(std::move(experts), MPI_COMM_WORLD, {.chunks = chunks});
    });
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

}  // namespace moe::distributed
