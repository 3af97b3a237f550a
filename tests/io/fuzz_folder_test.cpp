/// @file  What fuzzers write down as a text is the folder that they mean.
#include <filesystem>
#include <new>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "fuzz/folder.hpp"
#include "load_layer.hpp"
#include "moe/io/model.hpp"

namespace {

using namespace moe;

const std::string config = R"(@@ config.json text
{"model_type": "mixtral", "hidden_size": 4, "intermediate_size": 3, "num_local_experts": 2, "num_experts_per_tok": 1}
)";
const std::string router = "a.block_sparse_moe.gate.weight F32 2,4 0000803f000000c0\n";  // 1, −2, 1, −2, …
const std::string experts = R"(a.block_sparse_moe.experts.0.w1.weight BF16 3,4 803f
a.block_sparse_moe.experts.0.w2.weight BF16 4,3 803f
a.block_sparse_moe.experts.0.w3.weight BF16 3,4 803f
a.block_sparse_moe.experts.1.w1.weight BF16 3,4 803f
a.block_sparse_moe.experts.1.w2.weight BF16 4,3 803f
a.block_sparse_moe.experts.1.w3.weight BF16 3,4 803f
)";

TEST(FuzzFolder, WritesDescribedTensorsThatLoad) {
  const fuzz::Folder folder(config + "@@ model.safetensors tensors\n" + router + experts);
  const io::Model files(folder.path());
  EXPECT_EQ(files.moe_blocks(), std::vector<std::string>{"a.block_sparse_moe"});
  Weight<float> expected(2, 4);
  expected << 1, -2, 1, -2, 1, -2, 1, -2;
  EXPECT_EQ(files.tensors().read<float>("a.block_sparse_moe.gate.weight", {2, 4}), expected);
  EXPECT_EQ(files.tensors().read<float>("a.block_sparse_moe.experts.1.w2.weight", {4, 3}), Weight<float>::Ones(4, 3));
  EXPECT_EQ(io::load_layer(files, "a.block_sparse_moe").dtype, "BF16");
}

TEST(FuzzFolder, WritesAHeaderWithItsLength) {
  const std::string header = R"({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}})";
  const fuzz::Folder folder("@@ model.safetensors header\n" + header + std::string(1, '\0') +
                            std::string("\0\0\x80\x3f", 4));
  EXPECT_EQ(io::Tensors::open(folder.path()).read<float>("x"), Weight<float>::Ones(1, 1));
}

TEST(FuzzFolder, WritesShardsAndLeavesOutWhatLiesElsewhere) {
  const fuzz::Folder folder(
      config + "@@ ../escaped.json text\n{}\n@@ a.safetensors tensors\n" + router +
      "@@ b.safetensors tensors\nnorm F16 3 003c\n@@ model.safetensors.index.json text\n" +
      R"({"weight_map": {"norm": "b.safetensors", "a.block_sparse_moe.gate.weight": "a.safetensors"}})");
  EXPECT_EQ(io::Tensors::open(folder.path()).read<float>("norm"), Weight<float>::Ones(3, 1));
  EXPECT_FALSE(std::filesystem::exists(folder.path() / "../escaped.json"));
}

TEST(FuzzFolder, LeavesOutTensorsTooLargeToBeACase) {
  const fuzz::Folder folder("@@ model.safetensors tensors\nbig F32 3000000000,3000000000 00\nsmall F32 1 0000803f\n");
  EXPECT_EQ(io::Tensors::open(folder.path()).names(), std::vector<std::string>{"small"});
}

TEST(FuzzFolder, LetsAnErrorPassThatNamesAFileAndNoOther) {
  const fuzz::Folder folder(config);
  fuzz::may_complain(folder, [&] { io::Model files(folder.path()); });
  EXPECT_DEATH(fuzz::may_complain(folder, [] { io::fail("something is wrong"); }), "names no file: something is wrong");
  EXPECT_THROW(fuzz::may_complain(folder, [] { throw std::bad_alloc(); }), std::bad_alloc);
}

}  // namespace
