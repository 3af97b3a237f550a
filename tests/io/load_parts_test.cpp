// Some of a layer's experts.
#include "allocations.hpp"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "compare.hpp"
#include "errors.hpp"
#include "load_layer.hpp"
#include "moe/moe.hpp"
#include "temporary_folder.hpp"

namespace moe::io {
namespace {

namespace fs = std::filesystem;

// ---- they are those of the whole layer ------------------------------------------------------------------------------

std::vector<fs::path> layer_cases() {
  std::vector<fs::path> folders;
  for (const auto& entry : fs::directory_iterator(MOE_SOURCE_DIR "/tests/golden")) {
    if (!fs::exists(entry.path() / "config.json")) continue;
    const std::string type = Config::open(entry.path() / "config.json").text("model_type");
    if (find_architecture(type) != nullptr) folders.push_back(entry.path());
  }
  std::ranges::sort(folders);
  return folders;
}

/// What a group says of some tokens, each of which goes to all of its experts.
template <class G>
Matrix<float> answers(const G& group) {
  const Index num_tokens = 3, d = group.d_model();
  const Matrix<float> x = random_tokens<float>(d, num_tokens, 1);
  Routing<float> routing;
  for (Index t = 0; t < num_tokens; ++t) {
    for (Index e = 0; e < group.num_experts(); ++e) routing.add(t, e, float(1 + e));
  }
  PlanMemory<float> memory;
  const auto plan = plan_dispatch(routing, num_tokens, group.num_experts(), memory);
  std::vector<Scratch> scratch;
  Workers workers(Serial{}, scratch);
  Matrix<float> y = Matrix<float>::Zero(d, num_tokens);
  group.apply(x, plan, y, workers);
  return y;
}

class LoadParts : public testing::TestWithParam<fs::path> {};

TEST_P(LoadParts, SomeExpertsAreThoseOfTheWholeLayer) {
  const auto all = load_parts<float>(GetParam(), "");
  const Index n = all.shape.num_experts + all.shape.num_zero_experts;
  ASSERT_EQ(all.experts->num_experts(), n);
  EXPECT_FALSE(load_parts<float>(GetParam(), "", std::vector<Index>()).experts);
  std::vector<Index> odd;
  for (Index e = 1; e < n; e += 2) odd.push_back(e);
  for (const auto& some : {std::vector<Index>{0}, {n - 1}, {0, n - 1}, {n / 2, n / 2 + 1}, odd}) {
    const auto parts = load_parts<float>(GetParam(), "", some);
    ASSERT_EQ(parts.experts->num_experts(), std::ssize(some));
    EXPECT_TRUE(test::same_bits(answers(*parts.experts), answers(ExpertSubset(*all.experts, some))));
    EXPECT_EQ(parts.assemble(*all.experts).d_model(), all.shape.d_model);
    EXPECT_EQ(parts.dtype, all.dtype);
  }
}

TEST_P(LoadParts, RefusesWhatAreNoExpertsInOrder) {
  const MoeShape shape = moe_shape(Config::open(GetParam() / "config.json"));
  const Index n = shape.num_experts + shape.num_zero_experts;
  const auto error = [&](const std::vector<Index>& experts) {
    return test::error_of<Error>([&] { load_parts<float>(GetParam(), "", experts); });
  };
  const std::string config = (GetParam() / "config.json").string() + ": ", last = std::to_string(n - 1);
  EXPECT_EQ(error({0, n}), config + "experts[1] is " + std::to_string(n) + ", expected 1 to " + last);
  EXPECT_TRUE(error({0, 0}).starts_with(config + "experts[1] is 0, expected 1 to "));
  EXPECT_TRUE(error({-1}).starts_with(config + "experts[0] is -1, expected 0 to "));
}

INSTANTIATE_TEST_SUITE_P(Layers, LoadParts, testing::ValuesIn(layer_cases()),
                         [](const auto& param) { return param.param.filename().string(); });

// ---- nothing is held of the others ----------------------------------------------------------------------------------

/// A layer of zeros, whose experts are much larger than all that is said about them.
class Memory : public testing::Test {
 protected:
  static constexpr Index d = 64, ff = 96, n = 8;
  static constexpr long bytes_of_expert = 3 * d * ff * sizeof(bfloat16);  // as it runs

  void write(nlohmann::json config, const std::vector<Tensor>& tensors) const {
    config.update({{"hidden_size", d}, {"intermediate_size", ff}, {"num_experts_per_tok", 2}});
    std::ofstream(folder_.path / "config.json") << config;
    write_safetensors(folder_.path / "model.safetensors", tensors);
  }

  Tensor zeros(const std::string& name, const std::string& dtype, const std::vector<Index>& shape) {
    Index bytes = dtype_bits(dtype) / 8;
    for (const Index size : shape) bytes *= size;
    const auto memory = std::make_shared<std::vector<std::byte>>(std::size_t(bytes));
    return {.name = name, .dtype = dtype, .shape = shape, .bytes = *memory, .owner = memory};
  }

  /// To load the first experts, beside what it takes to load none.
  long bytes_for(Index num_experts) const {
    std::vector<Index> experts;
    const auto load = [&] { return test::bytes_allocated_in([&] { load_parts<float>(folder_.path, "", experts); }); };
    const long none = load();
    for (Index e = 0; e < num_experts; ++e) experts.push_back(e);
    return load() - none;
  }

  void expect_memory_of_their_own() const {
    for (const Index some : {n, n / 2, n / 4, Index(1)}) {
      EXPECT_GE(bytes_for(some), some * bytes_of_expert) << some << " experts";
      EXPECT_LT(bytes_for(some), some * bytes_of_expert + bytes_of_expert / 4) << some << " experts";
    }
  }

 private:
  test::TemporaryFolder folder_{"load_parts"};
};

TEST_F(Memory, OfTransposedExpertsIsThatOfThoseWhichAreTurned) {
  write({{"model_type", "llama4_text"}, {"num_local_experts", n}},
        {zeros("router.weight", "F32", {n, d}), zeros("experts.gate_up_proj", "BF16", {n, d, 2 * ff}),
         zeros("experts.down_proj", "BF16", {n, ff, d}), zeros("shared_expert.gate_proj.weight", "BF16", {ff, d}),
         zeros("shared_expert.up_proj.weight", "BF16", {ff, d}),
         zeros("shared_expert.down_proj.weight", "BF16", {d, ff})});
  expect_memory_of_their_own();
}

TEST_F(Memory, OfExpertsInFourBitsIsThatOfTheFile) {
  write({{"model_type", "gpt_oss"}, {"num_local_experts", n}},
        {zeros("router.weight", "F32", {n, d}), zeros("router.bias", "F32", {n}),
         zeros("experts.gate_up_proj_blocks", "U8", {n, 2 * ff, d / 32, 16}),
         zeros("experts.gate_up_proj_scales", "U8", {n, 2 * ff, d / 32}),
         zeros("experts.gate_up_proj_bias", "BF16", {n, 2 * ff}),
         zeros("experts.down_proj_blocks", "U8", {n, d, ff / 32, 16}),
         zeros("experts.down_proj_scales", "U8", {n, d, ff / 32}), zeros("experts.down_proj_bias", "BF16", {n, d})});
  EXPECT_LT(bytes_for(n), bytes_of_expert / 2);
}

TEST_F(Memory, OfExpertsWhereTheyLieIsThatOfTheFile) {
  std::vector<Tensor> tensors = {zeros("gate.weight", "F32", {n, d})};
  for (Index e = 0; e < n; ++e) {
    const std::string name = "experts." + std::to_string(e);
    tensors.push_back(zeros(name + ".gate_proj.weight", "BF16", {ff, d}));
    tensors.push_back(zeros(name + ".up_proj.weight", "BF16", {ff, d}));
    tensors.push_back(zeros(name + ".down_proj.weight", "BF16", {d, ff}));
  }
  write({{"model_type", "olmoe"}, {"num_experts", n}}, tensors);
  EXPECT_LT(bytes_for(n), bytes_of_expert / 4);
}

}  // namespace
}  // namespace moe::io
