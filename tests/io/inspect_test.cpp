/// @file  What moe_inspect says of folders: those of tests/real, tests/golden, and some that are damaged.
#include "moe/io/inspect.hpp"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <set>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "errors.hpp"
#include "load_layer.hpp"
#include "moe/io/inspection_text.hpp"
#include "temporary_folder.hpp"
#include "two_towers.hpp"

namespace {

namespace fs = std::filesystem;
using namespace moe;
using namespace moe::io;
using moe::test::TemporaryFolder;
using nlohmann::json;

const fs::path real = fs::path(MOE_SOURCE_DIR) / "tests/real", golden = fs::path(MOE_SOURCE_DIR) / "tests/golden";

std::vector<fs::path> folders_in(const fs::path& root) {
  std::vector<fs::path> all;
  for (const auto& entry : fs::directory_iterator(root)) {
    if (fs::exists(entry.path() / "config.json") && fs::exists(entry.path() / "model.safetensors")) {
      all.push_back(entry.path());
    }
  }
  std::ranges::sort(all);
  return all;
}

bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

/// Every tensor of a folder once more, but for those with a part in their name, under what rename(name) says.
template <class F>
void copy_model(const fs::path& from, const fs::path& to, const std::string& left_out, const F& rename) {
  fs::copy_file(from / "config.json", to / "config.json", fs::copy_options::overwrite_existing);
  const Tensors tensors = Tensors::open(from);
  std::vector<Tensor> kept;
  for (const std::string& name : tensors.names()) {
    if (!left_out.empty() && has(name, left_out)) continue;
    kept.push_back(tensors.at(name));
    kept.back().name = rename(name);
  }
  write_safetensors(to / "model.safetensors", kept);
}
const auto as_it_is = [](const std::string& name) { return name; };

TEST(Inspect, ListsDenseAndSparseBlocksAndWhatStandsElsewhere) {
  const Inspection found = inspect_folder(real / "qwen3_moe_steps");
  EXPECT_EQ(found.model_type, "qwen3_moe");
  EXPECT_FALSE(found.refuses());
  ASSERT_EQ(found.blocks.size(), 4U);
  for (std::size_t layer = 0; layer < 4; ++layer) {
    const BlockInspection& block = found.blocks[layer];
    EXPECT_EQ(block.name, "model.layers." + std::to_string(layer) + ".mlp");
    EXPECT_EQ(block.sparse, layer % 2 == 1);
    EXPECT_EQ(block.refused, "");
  }
  const BlockInspection &dense = found.blocks[0], &sparse = found.blocks[1];
  EXPECT_EQ(dense.d_ff, 24);
  EXPECT_EQ(dense.activation, "SwiGLU");
  EXPECT_EQ(dense.parameters, 3 * 40 * 24);
  ASSERT_TRUE(sparse.shape);
  EXPECT_EQ(sparse.shape->num_experts, 8);
  EXPECT_EQ(sparse.layout, "separate");
  EXPECT_EQ(sparse.formats.at("F32").tensors, 8 * 3 + 1);
  EXPECT_EQ(sparse.formats.at("F32").bytes, 4 * sparse.parameters);
  EXPECT_EQ(sparse.parameters, 8 * 40 + 8 * 3 * 40 * 18);
  EXPECT_EQ(sparse.active, 8 * 40 + 2 * 3 * 40 * 18);
  EXPECT_EQ(found.elsewhere.at("model.layers.#.self_attn.q_proj.weight").tensors, 4);
  EXPECT_EQ(found.elsewhere.at("lm_head.weight").bytes, 4 * 52 * 40);
  EXPECT_EQ(std::ranges::count(found.unread_keys, "num_attention_heads"), 1);
  EXPECT_EQ(std::ranges::count(found.unread_keys, "hidden_size"), 0);
}

TEST(Inspect, EveryTensorIsOfABlockOrElsewhere) {
  for (const fs::path& folder : folders_in(real)) {
    SCOPED_TRACE(folder);
    const Inspection found = inspect_folder(folder);
    Index tensors = 0;
    for (const BlockInspection& block : found.blocks) {
      for (const auto& [dtype, holding] : block.formats) tensors += holding.tensors;
    }
    for (const auto& [name, holding] : found.elsewhere) tensors += holding.tensors;
    const auto& names = Tensors::open(folder).names();  // codes and their scales are one
    EXPECT_EQ(tensors, std::ranges::count_if(names, [](const auto& name) { return !name.ends_with("_scales"); }));
  }
}

TEST(Inspect, OfAllFoldersThatLoadNothingIsRefused) {
  std::vector<fs::path> folders = folders_in(real);
  ASSERT_GT(folders.size(), 100U);
  for (const fs::path& folder : folders) {
    SCOPED_TRACE(folder);
    const Inspection found = inspect_folder(folder);
    EXPECT_EQ(found.refuses(), found.model_type == "doge");
    for (const BlockInspection& block : found.blocks) EXPECT_EQ(block.refused, "") << block.name;
    EXPECT_EQ(found.blocks.empty(), found.model_type == "doge");
  }
}

// Two ways to count: what the files hold, and what the shape says.
TEST(Inspect, ParametersAreThoseOfTheShape) {
  std::size_t compared = 0;
  for (const fs::path& folder : folders_in(real)) {
    SCOPED_TRACE(folder);
    for (const BlockInspection& block : inspect_folder(folder).blocks) {
      // The shape does not know of what some routers have besides a matrix, or of norms.
      if (!block.sparse || block.router.kind != "top-k" || !block.around.empty()) continue;
      if (block.formats.contains("U8")) continue;
      if (block.biased != block.shape->expert_bias) continue;  // it says so of shared experts alone
      const LayerParams params = count_params(*block.shape);
      EXPECT_EQ(block.parameters, params.total) << block.name;
      EXPECT_EQ(block.active, params.active) << block.name;
      ++compared;
    }
  }
  EXPECT_GT(compared, 100U);
}

TEST(Inspect, ParametersInFourBitsAreTwoAByte) {
  const BlockInspection block = inspect_folder(real / "gpt_oss_mxfp4").blocks.at(0);
  EXPECT_EQ(block.layout, "fused, interleaved");
  EXPECT_TRUE(block.formats.contains("MXFP4"));
  EXPECT_EQ(block.parameters, count_params(*block.shape).total);
  EXPECT_EQ(block.active, count_params(*block.shape).active);
}

// LongCat-Flash's files number its zero experts through, and hold weights for them.
TEST(Inspect, TensorsThatTheModelItselfDoesNotReadAreNoParameters) {
  const BlockInspection block = inspect_folder(real / "longcat_flash").blocks.at(0);
  EXPECT_EQ(block.shape->num_zero_experts, 4);
  EXPECT_GT(block.unused.tensors, 0);
  const BlockInspection gate = inspect_folder(real / "qwen2_moe_no_shared").blocks.at(0);
  EXPECT_EQ(gate.unused.bytes, 4 * 40);  // of a shared expert that is not there
}

TEST(Inspect, TellsLatentWidthsAndPlainActivations) {
  const BlockInspection block = inspect_folder(real / "nemotron_h_latent").blocks.at(0);
  EXPECT_EQ(block.shape->d_latent, 24);
  EXPECT_EQ(block.parameters, count_params(*block.shape).total);
  const std::string table = to_table(inspect_folder(real / "nemotron_h_latent"));
  EXPECT_TRUE(has(table, "latent      experts read and answer 24\n")) << table;
  EXPECT_TRUE(has(table, "8 × d_model 40, d_ff 18, relu²\n")) << table;
}

TEST(Inspect, TellsWhichRoutersReadMoreThanTheTokens) {
  const Inspection found = inspect_folder(real / "deepseek_v4");
  EXPECT_EQ(found.blocks.at(0).router.kind, "hash of token ids");
  EXPECT_EQ(found.blocks.at(0).router.side_input, "token_ids");
  EXPECT_EQ(found.blocks.at(1).router.side_input, "");
  EXPECT_EQ(inspect_folder(real / "gemma4_text").blocks.at(0).router.side_input, "router_input");
  EXPECT_EQ(inspect_folder(real / "zaya").blocks.at(0).router.side_input, "previous_state");
  EXPECT_EQ(inspect_folder(real / "ernie4_5_vl_moe").blocks.at(0).router.side_input, "modality");
  EXPECT_EQ(inspect_folder(real / "ernie4_5_vl_moe").blocks.at(0).around,
            std::vector<std::string>{"8 experts for images, d_ff 12"});
  EXPECT_EQ(inspect_folder(real / "switch_transformers").blocks.at(0).router.side_input, "sequence_length");
}

TEST(Inspect, TellsBothTowersOfAFolder) {
  const TemporaryFolder folder("inspect_towers");
  test::write_two_towers(folder.path, real / "qwen3_omni_moe_text", real / "qwen3_omni_moe_talker_text");
  const Inspection found = inspect_folder(folder.path);
  EXPECT_FALSE(found.refuses()) << to_table(found);
  std::set<Index> shared;
  for (const BlockInspection& block : found.blocks) {
    if (block.sparse) shared.insert(block.shape->d_ff_shared);
  }
  EXPECT_EQ(shared, (std::set<Index>{0, 22}));
}

/// Whose keys are those of the file, which are read or refused.
TEST(Inspect, OfAGgufFileSpeaksOfNoKeysOfConfigJson) {
  const Inspection found =
      inspect_folder(fs::path(MOE_SOURCE_DIR) / "tests/real_quant/folders/gguf_qwen3moe_q8_0/model.gguf");
  EXPECT_FALSE(found.refuses()) << to_table(found);
  EXPECT_TRUE(found.unread_keys.empty());
  EXPECT_FALSE(has(to_table(found), "config.json"));
}

TEST(Inspect, WhatLiesBesideABlockIsOfIt) {
  const Inspection found = inspect_folder(real / "step3p7");
  ASSERT_EQ(found.blocks.size(), 1U);
  EXPECT_TRUE(found.elsewhere.empty()) << found.elsewhere.begin()->first;  // share_expert is the block's
  EXPECT_EQ(found.blocks[0].layout, "stacked");
  EXPECT_EQ(to_string(found.blocks[0].shape->hidden), "SwiGLU (factors within 0.5)");
}

TEST(Inspect, AModelTypeThatIsNotKnownIsRefusedAsAWhole) {
  const Inspection found = inspect_folder(real / "doge");
  EXPECT_TRUE(found.refuses());
  EXPECT_TRUE(has(found.refused, "product keys")) << found.refused;
  EXPECT_TRUE(found.blocks.empty());
  EXPECT_EQ(found.elsewhere.size(), Tensors::open(real / "doge").names().size());
  EXPECT_TRUE(has(to_table(found), "\n  REFUSED     ")) << to_table(found);
  EXPECT_TRUE(to_json(found).at("refuses").get<bool>());
}

TEST(Inspect, NamesTheBlockThatWouldBeRefusedAndWhy) {
  const TemporaryFolder folder("inspect_refused");
  copy_model(real / "qwen3_moe_steps", folder.path, "layers.3.mlp.experts.5.up_proj", as_it_is);
  const Inspection found = inspect_folder(folder.path);
  EXPECT_TRUE(found.refuses());
  EXPECT_EQ(found.blocks.at(1).refused, "");
  EXPECT_TRUE(has(found.blocks.at(3).refused, "model.layers.3.mlp.experts.5.up_proj.weight"))
      << found.blocks[3].refused;
  const std::string table = to_table(found);
  EXPECT_TRUE(has(table, "\nmodel.layers.1.mlp\n")) << table;  // no longer alike
  EXPECT_TRUE(has(table, "1 of 4 blocks would be refused")) << table;
}

/// As loading does.
TEST(Inspect, HearsWhatModelOptPutsBesideAFolder) {
  const TemporaryFolder temporary("inspect");
  const fs::path from = fs::path(MOE_SOURCE_DIR) / "tests/real_quant/folders/qwen3_moe_nvfp4_modelopt";
  auto config = json::parse(std::ifstream(from / "config.json"));
  config.erase("quantization_config");
  std::ofstream(temporary.path / "config.json") << config;
  fs::copy_file(from / "model.safetensors", temporary.path / "model.safetensors");
  for (const char* const algorithm : {"NVFP4", "FP8"}) {
    std::ofstream(temporary.path / "hf_quant_config.json")
        << json{{"quantization", {{"quant_algo", algorithm}, {"exclude_modules", {"lm_head", "*.mlp.gate"}}}}};
    const Inspection all = inspect_folder(temporary.path);
    ASSERT_EQ(all.blocks.size(), 1U);
    EXPECT_EQ(has(all.blocks[0].refused, "hf_quant_config.json says that it is FP8"), algorithm == std::string("FP8"))
        << all.blocks[0].refused;
  }
}

TEST(Inspect, ATensorThatNobodyReadsIsARefusal) {
  const TemporaryFolder folder("inspect_unread");
  copy_model(real / "qwen3_moe_steps", folder.path, "", [](const std::string& name) {
    return name == "model.layers.1.post_attention_layernorm.weight" ? "model.layers.1.mlp.mystery" : name;
  });
  const Inspection found = inspect_folder(folder.path);
  EXPECT_TRUE(has(found.blocks.at(1).refused, "\"model.layers.1.mlp.mystery\"")) << found.blocks[1].refused;
  EXPECT_EQ(found.blocks.at(3).refused, "");
}

TEST(Inspect, BlocksThatAreRefusedAlikeAreOneLine) {
  const TemporaryFolder folder("inspect_alike");
  copy_model(real / "qwen3_moe_steps", folder.path, "mlp.experts.7.", as_it_is);
  const std::string table = to_table(inspect_folder(folder.path));
  EXPECT_TRUE(has(table, "\nmodel.layers.1.mlp, 3  (2 alike)\n")) << table;
  EXPECT_TRUE(has(table, "2 of 4 blocks would be refused")) << table;
}

TEST(Inspect, AModelWithoutExpertsIsRefused) {
  const TemporaryFolder folder("inspect_no_experts");
  copy_model(real / "qwen3_moe_steps", folder.path, ".mlp.experts.", as_it_is);
  const Inspection found = inspect_folder(folder.path);
  EXPECT_TRUE(found.refuses());
  EXPECT_EQ(found.refused, "no MoE block: no tensor is called \"experts.*\"");
}

TEST(Inspect, AFolderThatCannotBeReadIsAnError) {
  const TemporaryFolder folder("inspect_empty");
  const auto message = [&] { return moe::test::error_of<Error>([&] { inspect_folder(folder.path); }); };
  EXPECT_TRUE(has(message(), "config.json: no such file")) << message();
  std::ofstream(folder.path / "config.json") << R"({"model_type": "qwen3_moe"})";
  EXPECT_TRUE(has(message(), "no *.safetensors file in this folder")) << message();
}

TEST(Inspect, GoldenBlocksWithoutAPrefixAreTheWholeFile) {
  const Inspection found = inspect_folder(golden / "qwen3_moe");
  ASSERT_EQ(found.blocks.size(), 1U);
  EXPECT_EQ(found.blocks[0].name, "");
  EXPECT_TRUE(found.elsewhere.empty());
  EXPECT_TRUE(has(to_table(found), "\nthe whole file\n"));
}

// ---- what is printed

TEST(InspectionText, RunsOfAlikeBlocksAreOneEntry) {
  const std::string table = to_table(inspect_folder(real / "qwen3_moe_steps"));
  EXPECT_TRUE(has(table, R"(
model.layers.1.mlp, 3  (2 alike)
  router      top-k: 2 of 8, softmax
  experts     8 × d_model 40, d_ff 18, SwiGLU
              separate: experts.#.up_proj.weight
  formats     F32 70.4 kB in 25 tensors
  parameters  17.6 k, 4.64 k of them active

2 MoE layers of 35.2 k parameters, 9.28 k of them active, in 141 kB
2 dense FFNs of 5.76 k parameters in 23.0 kB
experts of 138 kB, of which one token uses 34.6 kB; everything else is 121 kB
)")) << table;
}

TEST(InspectionText, NumbersOfLayersAreShort) {
  EXPECT_EQ(io::detail::further_numbers({1, 2, 3, 4}), " … 4");
  EXPECT_EQ(io::detail::further_numbers({1, 2}), ", 2");
  EXPECT_EQ(io::detail::further_numbers({0, 2, 4, 6}), ", 2 … 6");
  EXPECT_EQ(io::detail::further_numbers({0, 2, 4}), ", 2, 4");
  EXPECT_EQ(io::detail::further_numbers({0, 3, 5, 6}), ", 3, 5, 6");
}

TEST(InspectionText, QuantitiesHaveThreeDigits) {
  EXPECT_EQ(io::detail::count_text(0), "0");
  EXPECT_EQ(io::detail::count_text(999), "999");
  EXPECT_EQ(io::detail::count_text(1000), "1.00 k");
  EXPECT_EQ(io::detail::count_text(999'499), "999 k");
  EXPECT_EQ(io::detail::count_text(999'500), "1.00 M");
  EXPECT_EQ(io::detail::bytes_text(61'065'000'000), "61.1 GB");
}

TEST(InspectionText, LinesAreAtMost100Columns) {
  for (const fs::path& folder : folders_in(real)) {
    const std::string table = to_table(inspect_folder(folder));
    std::size_t columns = 0;
    for (const char c : table) {
      if (c == '\n')
        columns = 0;
      else if ((static_cast<unsigned char>(c) & 0xc0) != 0x80)
        ++columns;
      ASSERT_LE(columns, 100U) << folder << "\n" << table;
    }
  }
}

TEST(InspectionText, NamesOfAStrangerCannotWriteToTheTerminal) {
  const TemporaryFolder folder("inspect_escapes");
  copy_model(real / "qwen3_moe_steps", folder.path, "",
             [](const std::string& name) { return name == "model.norm.weight" ? "model.\x1b[31m\nnorm" : name; });
  const Inspection found = inspect_folder(folder.path);
  EXPECT_FALSE(has(to_table(found), "\x1b")) << to_table(found);
  EXPECT_TRUE(has(to_table(found), "model. [31m norm")) << to_table(found);
  EXPECT_FALSE(has(to_json(found).dump(), "\\u001b"));
}

TEST(InspectionText, JsonHasEveryBlockByItself) {
  const json said = to_json(inspect_folder(real / "qwen3_moe_steps"));
  ASSERT_EQ(said.at("blocks").size(), 4U);
  EXPECT_EQ(said["blocks"][0].at("kind"), "dense");
  EXPECT_EQ(said["blocks"][0].at("d_ff"), 24);
  const json& sparse = said["blocks"][3];
  EXPECT_EQ(sparse.at("name"), "model.layers.3.mlp");
  EXPECT_EQ(sparse.at("router").at("score"), "softmax");
  EXPECT_EQ(sparse.at("router").at("top_k"), 2);
  EXPECT_EQ(sparse.at("experts").at("number"), 8);
  EXPECT_EQ(sparse.at("formats").at("F32").at("tensors"), 25);
  EXPECT_EQ(sparse.at("active_parameters"), 4640);
  EXPECT_FALSE(sparse.contains("refused"));
  EXPECT_EQ(said.at("moe_layers").at("parameters"), 2 * 17600);
  EXPECT_EQ(said.at("dense_ffns").at("number"), 2);
  EXPECT_EQ(said.at("refuses"), false);
}

/// Bytes that experts' weights would have in files, if there is one type of them.
Index bytes_of_numbers(const BlockInspection& block, Index bytes) {
  const MoeShape& shape = *block.shape;
  const Index in = shape.d_latent > 0 ? shape.d_latent : shape.d_model;
  return shape.num_experts * bytes *
         (is_gated(shape.hidden) ? count_gated_ffn_params(in, shape.d_ff) : count_ffn_params(in, shape.d_ff));
}

TEST(Inspect, KnowsTheBytesOfExperts) {
  Index blocks = 0, coded = 0;
  for (const fs::path& root : {real, fs::path(MOE_SOURCE_DIR) / "tests/real_quant/folders"}) {
    for (const fs::path& folder : folders_in(root)) {
      const Inspection found = inspect_folder(folder);
      Index experts = 0;
      for (const BlockInspection& block : found.blocks) {
        experts += block.expert_bytes;
        if (!block.sparse || !block.refused.empty()) continue;
        ++blocks;
        const Index sum = io::detail::bytes_of(block);
        EXPECT_EQ(block.bytes_of_token, block.expert_bytes * block.shape->top_k / block.shape->num_experts) << folder;
        const bool all_f32 = block.formats.size() == 1 && block.formats.contains("F32");
        if (all_f32) {
          EXPECT_EQ(block.expert_bytes, bytes_of_numbers(block, 4)) << folder << ", " << block.name;
        } else {
          ++coded;
          EXPECT_GT(block.expert_bytes, sum / 8) << folder << ", " << block.name;
        }
        Index smallest = block.expert_bytes, largest = 0;
        for (const FileParts& parts : expert_parts(Model(folder), block.name)) {
          smallest = std::min(smallest, bytes_of(parts)), largest = std::max(largest, bytes_of(parts));
          EXPECT_GE(room_of(parts), bytes_of(parts));
          EXPECT_EQ(room_of(parts) % 4096, 0);
        }
        EXPECT_EQ(smallest, largest) << folder << ", " << block.name;
      }
      EXPECT_TRUE(experts == 0 || experts < found.bytes) << folder << ": " << experts << " of " << found.bytes;
    }
  }
  EXPECT_GT(blocks, 190);
  EXPECT_GT(coded, 5);
}

}  // namespace
