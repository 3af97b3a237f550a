/// @file  Folders of models whose experts are quantised: what is in them, and what is refused.
#include <moe/io/model.hpp>
#include <moe/io/quantize_model.hpp>
#include <moe/io/quantized_tensors.hpp>
#include <moe/models/random.hpp>
#include <moe/runtime/executors/openmp.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "errors.hpp"
#include "load_layer.hpp"
#include "temporary_folder.hpp"

namespace {

namespace fs = std::filesystem;
using namespace moe;
using io::Tensor, io::Tensors, io::quantize_model;
using test::TemporaryFolder;

/// A model of one layer with two experts, its numbers random, in one file or two.
struct SmallModel {
  Index d = 128, ff = 256;
  std::string dtype = "BF16";
  bool sharded = false, fused = false;
  unsigned seed = 1;
  nlohmann::json config = {{"model_type", "qwen3_moe"}, {"num_local_experts", 2}};
  float first_number = 0.5F;  // of the first expert's gate
  float times = 1;            // all numbers
  bool turned = false;        // those of all experts at once, (in × out)

  void write(const fs::path& folder) const {
    fs::create_directories(folder);
    std::ofstream(folder / "config.json") << config.dump(2);
    std::ofstream(folder / "tokenizer.json") << "{}";
    std::vector<std::vector<std::byte>> memory;
    std::vector<Tensor> tensors;
    unsigned next = seed;
    const auto add = [&](const std::string& name, std::vector<Index> shape, float first = 0) {
      const Index cols = shape.back();
      Index rows = 1;
      for (std::size_t i = 0; i + 1 < shape.size(); ++i) rows *= shape[i];
      Weight<float> numbers = random_weight<float>(rows, cols, ++next);
      if (first != 0) numbers(0, 0) = first;
      numbers *= times;
      const auto keep = [&](const auto& its) {
        const auto* const bytes = reinterpret_cast<const std::byte*>(its.data());
        memory.emplace_back(bytes, bytes + std::size_t(its.size()) * sizeof its(0, 0));
      };
      if (dtype == "BF16") keep(Weight<bfloat16>(numbers.cast<bfloat16>()));
      if (dtype == "F16") keep(Weight<float16>(numbers.cast<float16>()));
      if (dtype == "F32") keep(numbers);
      tensors.push_back({.name = name, .dtype = dtype, .shape = std::move(shape), .bytes = memory.back()});
    };
    const std::string layer = "model.layers.0.";
    if (fused) {
      const auto shape = [&](Index out, Index in) {
        return turned ? std::vector<Index>{2, in, out} : std::vector<Index>{2, out, in};
      };
      add(layer + "mlp.experts.gate_up_proj", shape(2 * ff, d));
      add(layer + "mlp.experts.down_proj", shape(d, ff));
    }
    for (int e = 0; e < 2 && !fused; ++e) {
      const std::string expert = layer + "mlp.experts." + std::to_string(e) + ".";
      add(expert + "gate_proj.weight", {ff, d}, e == 0 ? first_number : 0);
      add(expert + "up_proj.weight", {ff, d});
      add(expert + "down_proj.weight", {d, ff});
    }
    add(layer + "mlp.gate.weight", {2, d});
    add(layer + "self_attn.q_proj.weight", {128, d});
    add(layer + "input_layernorm.weight", {d});
    add("model.embed_tokens.weight", {32, d});
    add("lm_head.weight", {32, d});
    if (!sharded) return io::write_safetensors(folder / "model.safetensors", tensors, {{"format", "pt"}});
    std::map<std::string, std::string> shard_of;
    const auto shard = [&](const char* name, std::size_t first, std::size_t last) {
      const std::vector<Tensor> some(tensors.begin() + std::ptrdiff_t(first), tensors.begin() + std::ptrdiff_t(last));
      for (const Tensor& tensor : some) shard_of[tensor.name] = name;
      io::write_safetensors(folder / name, some, {{"format", "pt"}});
    };
    shard("model-00001-of-00002.safetensors", 0, 4);
    shard("model-00002-of-00002.safetensors", 4, tensors.size());
    io::write_index(folder, shard_of, 0);
  }
};

nlohmann::json json_of(const fs::path& file) { return nlohmann::json::parse(std::ifstream(file)); }

/// The numbers that a matrix has once coded as T.
template <class T, class W>
Weight<float> coded(const Tensor& tensor) {
  const auto numbers = io::as<W>(tensor);
  const WeightMap<W> map(numbers.data(), tensor.shape[0], tensor.shape[1], Eigen::OuterStride<>(tensor.shape[1]));
  return dequantized(matrix_of<T, W>(encode_matrix<T, W>(map)));
}

/// Each expert's matrix is read back as config.json promises, and is what encode_matrix() makes of it; all else is as
/// it was.
template <class T, class W>
void expect_quantized(const SmallModel& model, const std::string& type) {
  const TemporaryFolder temporary("quantize_" + type + model.dtype);
  const fs::path in = temporary.path / "in", out = temporary.path / "out";
  model.write(in);
  const auto report = quantize_model(in, out, {.type = type}, OpenMp{2});
  const Tensors before = Tensors::open(in), after = Tensors::open(out);
  const io::Quantization said(json_of(out / "config.json").at("quantization_config"), "config.json");
  EXPECT_EQ(report.matrices.size(), 6u);
  EXPECT_TRUE(report.kept.empty());
  std::size_t bytes = 0;
  for (const std::string& name : after.names()) bytes += after.find(name)->bytes.size();
  EXPECT_EQ(report.bytes_after, bytes);
  for (const auto& [name, expert, shape, error, its_type] : report.matrices) {
    EXPECT_EQ(expert, -1) << "each has tensors of its own";
    const std::string module = name.substr(0, name.size() - 7);
    const auto weight = io::quantized_weight(after, module, said);
    ASSERT_TRUE(weight.has_value()) << module;
    const Weight<float> is = dequantized(weight->matrix);
    const Weight<float> was = before.read<float>(name);
    EXPECT_EQ(is, (coded<T, W>(before.at(name)))) << module;
    EXPECT_EQ(shape, before.at(name).shape);
    EXPECT_EQ(its_type, type);
    EXPECT_NEAR(error, double((is - was).norm() / was.norm()), 1e-5);
    EXPECT_EQ(weight->own_bytes, 0u) << "it is used where it lies";
  }
  std::size_t same = 0;
  for (const std::string& name : before.names()) {
    const Tensor* const now = after.find(name);
    if (now == nullptr || now->dtype != before.find(name)->dtype) continue;
    ++same;
    EXPECT_TRUE(std::ranges::equal(now->bytes, before.find(name)->bytes)) << name;
  }
  EXPECT_EQ(same, 5u);
  EXPECT_TRUE(said.of("model.layers.0.self_attn.q_proj").plain);
  EXPECT_TRUE(said.of("model.layers.0.mlp.gate").plain);
  EXPECT_TRUE(said.of("lm_head").plain);
  EXPECT_FALSE(said.of("model.layers.0.mlp.experts.1.up_proj").plain);
  EXPECT_TRUE(fs::exists(out / "tokenizer.json"));
  EXPECT_EQ(std::distance(fs::directory_iterator(temporary.path), {}), 2) << "nothing else is left";
}

TEST(QuantizeModel, EachTypeIsReadBackAsItWasCoded) {
  expect_quantized<BlockFp8, bfloat16>({}, "fp8");
  expect_quantized<GroupInt4<32>, bfloat16>({}, "int4_g32");
  expect_quantized<GroupInt4<128>, bfloat16>({.sharded = true}, "int4_g128");
  expect_quantized<GroupMxfp4, bfloat16>({}, "mxfp4");
  expect_quantized<GroupNvfp4, bfloat16>({.sharded = true}, "nvfp4");
}

TEST(QuantizeModel, OfOtherFloatsToo) {
  expect_quantized<BlockFp8, float>({.dtype = "F32"}, "fp8");
  expect_quantized<GroupInt4<32>, float>({.dtype = "F32"}, "int4_g32");
  expect_quantized<GroupInt4<32>, float16>({.dtype = "F16"}, "int4_g32");
  expect_quantized<GroupNvfp4, float>({.dtype = "F32"}, "nvfp4");
}

TEST(QuantizeModel, ShardsStayAndTheIndexNamesAll) {
  const TemporaryFolder temporary("quantize_shards");
  SmallModel{.sharded = true}.write(temporary.path / "in");
  const auto report = quantize_model(temporary.path / "in", temporary.path / "out", {.type = "nvfp4"});
  const auto index = json_of(temporary.path / "out" / "model.safetensors.index.json");
  EXPECT_EQ(index["metadata"]["total_size"], report.bytes_after);
  EXPECT_EQ(index["weight_map"].size(), 5u + 3 * 6);
  EXPECT_EQ(index["weight_map"]["model.layers.0.mlp.experts.0.up_proj.weight_global_scale"],
            "model-00001-of-00002.safetensors");
  EXPECT_EQ(index["weight_map"]["lm_head.weight"], "model-00002-of-00002.safetensors");
}

TEST(QuantizeModel, AllLinearsButThoseThatAreAskedToStay) {
  const TemporaryFolder temporary("quantize_linears");
  SmallModel{}.write(temporary.path / "in");
  const auto all =
      quantize_model(temporary.path / "in", temporary.path / "all", {.type = "mxfp4", .all_linears = true});
  EXPECT_EQ(all.matrices.size(), 7u);
  EXPECT_EQ(all.matrices.back().tensor, "model.layers.0.self_attn.q_proj.weight");
  const auto some =
      quantize_model(temporary.path / "in", temporary.path / "some", {.type = "mxfp4", .keep = {"experts.1."}});
  EXPECT_EQ(some.matrices.size(), 3u);
  ASSERT_EQ(some.kept.size(), 3u);
  EXPECT_EQ(some.kept[0].second, "asked to stay");
  const auto ignore = json_of(temporary.path / "some" / "config.json")["quantization_config"]["ignore"];
  EXPECT_EQ(std::count(ignore.begin(), ignore.end(), "model.layers.0.mlp.experts.1.up_proj"), 1);
}

/// A model whose experts are in two tensors, of which config.json says how wide they are.
SmallModel fused_model(bool turned) {
  SmallModel model{.fused = true, .turned = turned};
  model.config = {{"model_type", "qwen3_moe"}, {"num_experts", 2},     {"num_experts_per_tok", 1},
                  {"hidden_size", 128},        {"hidden_act", "silu"}, {"moe_intermediate_size", 256}};
  return model;
}

/// Rows [first, first + rows) of what expert e has of such a tensor, (in × out) or not.
Weight<bfloat16> matrix_in(const Tensors& tensors, const std::string& name, Index e, Index first, Index rows,
                           bool turned) {
  const Tensor all = tensors.at(name);
  const Index down = all.shape[1], across = all.shape[2];
  const Eigen::Map<const Weight<bfloat16>> its(io::as<bfloat16>(all).data() + e * down * across, down, across);
  if (turned) return its.transpose().middleRows(first, rows);
  return its.middleRows(first, rows);
}

/// Each matrix of each expert has tensors of its own then, as compressed-tensors' software has them, and is coded as if
/// it always had; a layer of them answers as one of its numbers.
template <class T>
void expect_taken_apart(const std::string& type, bool turned) {
  SCOPED_TRACE(type + (turned ? ", turned" : ""));
  const TemporaryFolder temporary("quantize_apart_" + type);
  const fs::path in = temporary.path / "in", out = temporary.path / "out", some = temporary.path / "some";
  fused_model(turned).write(in);
  const auto report = quantize_model(in, out, {.type = type});
  ASSERT_EQ(report.matrices.size(), 6u);
  const Tensors before = Tensors::open(in), after = Tensors::open(out);
  const std::string experts = "model.layers.0.mlp.experts.";
  EXPECT_FALSE(after.contains(experts + "gate_up_proj") || after.contains(experts + "down_proj"));
  std::size_t bytes = 0;
  for (const std::string& name : after.names()) bytes += after.find(name)->bytes.size();
  EXPECT_EQ(report.bytes_after, bytes);
  const io::Quantization said(json_of(out / "config.json").at("quantization_config"), "config.json");
  for (Index e = 0; e < 2; ++e) {
    for (const auto& [kind, first] : {std::pair("gate", Index(0)), {"up", 256}, {"down", 0}}) {
      const std::string fused = experts + (std::string(kind) == "down" ? "down_proj" : "gate_up_proj"),
                        module = experts + std::to_string(e) + "." + kind + "_proj";
      const Weight<bfloat16> was = matrix_in(before, fused, e, first, std::string(kind) == "down" ? 128 : 256, turned);
      const Tensor alone{.name = module,
                         .dtype = "BF16",
                         .shape = {was.rows(), was.cols()},
                         .bytes = std::as_bytes(std::span(was.data(), std::size_t(was.size())))};
      const auto weight = io::quantized_weight(after, module, said);
      ASSERT_TRUE(weight.has_value()) << module;
      EXPECT_EQ(dequantized(weight->matrix), (coded<T, bfloat16>(alone))) << module;
      const auto its = std::ranges::find(report.matrices, module + ".weight", &io::MatrixQuantization::tensor);
      ASSERT_NE(its, report.matrices.end()) << module;
      EXPECT_EQ(its->expert, -1);
      const Weight<float> floats = was.cast<float>();
      EXPECT_NEAR(its->error, double((dequantized(weight->matrix) - floats).norm() / floats.norm()), 1e-5);
    }
  }
  const Matrix<float> x = random_tokens<float>(128, 5, /*seed=*/3);
  const Matrix<float> y = io::load_layer(in, "model.layers.0.mlp").layer.forward(x);
  EXPECT_LT((io::load_layer(out, "model.layers.0.mlp").layer.forward(x) - y).norm(), 0.3F * y.norm());

  // What stays goes along: no reader takes a half of them apart.
  const auto half = quantize_model(in, some, {.type = type, .keep = {"down_proj"}});
  EXPECT_EQ(half.matrices.size(), 4u);
  ASSERT_EQ(half.kept.size(), 1u);
  EXPECT_EQ(half.kept[0].second, "asked to stay");
  const Tensors halves = Tensors::open(some);
  const Weight<bfloat16> down = matrix_in(before, experts + "down_proj", 1, 0, 128, turned);
  EXPECT_TRUE(std::ranges::equal(halves.at(experts + "1.down_proj.weight").bytes,
                                 std::as_bytes(std::span(down.data(), std::size_t(down.size())))));
  EXPECT_LT((io::load_layer(some, "model.layers.0.mlp").layer.forward(x) - y).norm(), 0.3F * y.norm());
}

TEST(QuantizeModel, AllExpertsAtOnceAreTakenApart) {
  for (const bool turned : {false, true}) {
    expect_taken_apart<BlockFp8>("fp8", turned);
    expect_taken_apart<GroupInt4<32>>("int4_g32", turned);
    expect_taken_apart<GroupInt4<128>>("int4_g128", turned);
    expect_taken_apart<GroupMxfp4>("mxfp4", turned);
    expect_taken_apart<GroupNvfp4>("nvfp4", turned);
  }
}

TEST(QuantizeModel, AllExpertsAtOnceStayTogetherInFp8WhereNothingSaysHowTheyAreApart) {
  const TemporaryFolder temporary("quantize_fused");
  SmallModel model{.fused = true};
  model.config["model_type"] = "model_of_tomorrow";
  model.write(temporary.path / "in");
  const auto report = quantize_model(temporary.path / "in", temporary.path / "out");
  ASSERT_EQ(report.matrices.size(), 4u);
  EXPECT_EQ(report.matrices[3].tensor, "model.layers.0.mlp.experts.gate_up_proj");
  EXPECT_EQ(report.matrices[3].expert, 1);
  EXPECT_EQ(report.matrices[3].shape, (std::vector<Index>{512, 128}));
  const Tensors before = Tensors::open(temporary.path / "in"), after = Tensors::open(temporary.path / "out");
  const std::string name = "model.layers.0.mlp.experts.gate_up_proj";
  EXPECT_EQ(after.at(name).shape, (std::vector<Index>{2, 512, 128}));
  EXPECT_EQ(after.at(name + "_scale_inv").shape, (std::vector<Index>{2, 4, 1}));
  const io::Quantization said(json_of(temporary.path / "out" / "config.json")["quantization_config"], "config.json");
  const Weight<float> all = before.read<float>(name);  // (2 × the rest)
  for (Index e = 0; e < 2; ++e) {
    const auto weight = io::quantized_weight(after, name, said, io::OfExperts{e, 2});
    ASSERT_TRUE(weight.has_value());
    const Weight<float> is = dequantized(weight->matrix);
    const Eigen::Map<const Weight<float>> was(all.row(e).data(), 512, 128);
    EXPECT_LT((is - was).norm() / was.norm(), 0.04F);
  }
  const std::string error = test::error_of<io::Error>(
      [&] { quantize_model(temporary.path / "in", temporary.path / "other", {.type = "nvfp4"}); });
  EXPECT_NE(
      error.find("experts.down_proj\" has shape [2, 128, 256], all experts at once, expected a tensor for each: of "
                 "a model type that is not known here"),
      std::string::npos)
      << error;
}

/// gpt-oss' own form, with the numbers, and so the bits of the answers, of a folder that has it already.
TEST(QuantizeModel, Mxfp4OfAGptOssIsItsOwn) {
  const fs::path real = fs::path(MOE_SOURCE_DIR) / "tests/real/gpt_oss_mxfp4";
  const TemporaryFolder temporary("quantize_gpt_oss");
  const fs::path in = temporary.path / "in", out = temporary.path / "out";
  fs::create_directories(in);
  auto config = json_of(real / "config.json");
  const io::Quantization said(config.at("quantization_config"), "config.json");
  config.erase("quantization_config");
  std::ofstream(in / "config.json") << config.dump(2);
  const Tensors coded_ones = Tensors::open(real);
  std::vector<Weight<float>> memory;
  std::vector<Tensor> tensors;
  for (const std::string& name : coded_ones.names()) {
    const Tensor its = coded_ones.at(name);
    if (name.ends_with("_scales")) continue;
    if (!name.ends_with("_blocks")) {
      tensors.push_back(its);
      continue;
    }
    const std::string module = name.substr(0, name.size() - 7);
    const Index n = its.shape[0], rows = its.shape[1], cols = 32 * its.shape[2];
    Weight<float> turned(n * cols, rows);
    for (Index e = 0; e < n; ++e) {
      const auto weight = io::quantized_weight(coded_ones, module, said, io::OfExperts{e, n});
      turned.middleRows(e * cols, cols) = dequantized(weight->matrix).transpose();
    }
    memory.push_back(std::move(turned));
    tensors.push_back({.name = module,
                       .dtype = "F32",
                       .shape = {n, cols, rows},
                       .bytes = std::as_bytes(std::span(memory.back().data(), std::size_t(memory.back().size())))});
  }
  io::write_safetensors(in / "model.safetensors", tensors);
  const auto report = quantize_model(in, out, {.type = "mxfp4"});
  for (const auto& matrix : report.matrices) EXPECT_EQ(matrix.error, 0) << matrix.tensor;
  EXPECT_EQ(json_of(out / "config.json")["quantization_config"]["quant_method"], "mxfp4");
  const Tensors after = Tensors::open(out);
  EXPECT_EQ(after.names(), coded_ones.names());
  for (const std::string& name : after.names()) EXPECT_EQ(after.at(name).shape, coded_ones.at(name).shape) << name;
  const io::Model model(out), expected(real);
  for (const std::string& block : model.moe_blocks()) {
    const Matrix<float> x = random_tokens<float>(model.shape().d_model, 7, /*seed=*/2);
    EXPECT_EQ(model.layer(block).layer.forward(x), expected.layer(block).layer.forward(x)) << block;
  }
  const auto error = [&](const io::QuantizeModelOptions& options) {
    return test::error_of<io::Error>([&] { quantize_model(in, temporary.path / "other", options); });
  };
  EXPECT_NE(error({.type = "int4_g32"}).find("there are biases beside them, which no software expects apart"),
            std::string::npos);
  EXPECT_NE(error({.type = "fp8"})
                .find("(experts × in × out), and numbers are coded along what a row multiplies: take "
                      "an OUT that ends in .gguf, or mxfp4"),
            std::string::npos);
  EXPECT_NE(error({.type = "mxfp4", .all_linears = true}).find("is of experts alone"), std::string::npos);
}

TEST(QuantizeModel, ExpertsAreThoseThatALoaderReadsWhateverTheyAreCalled) {
  const fs::path real = fs::path(MOE_SOURCE_DIR) / "tests/real";
  const TemporaryFolder temporary("quantize_names");
  const auto expect_error = [&](const char* model, const std::string& part) {
    const std::string error =
        test::error_of<io::Error>([&] { quantize_model(real / model, temporary.path / "out", {.type = "fp8"}); });
    EXPECT_NE(error.find(part), std::string::npos) << error;
  };
  // Too narrow for blocks of 128, and found.
  expect_error("granitemoe", "block_sparse_moe.input_linear.weight\" the length of a row is");
  expect_error("step3p7", "moe.down_proj.weight\" the length of a row is 18");
  expect_error("llama4", "feed_forward.shared_expert.down_proj.weight\" the length of a row is 24");
  expect_error("dbrx", "rows that are multiplied from behind");
}

TEST(QuantizeModel, WhatIsCheckedAndRefusedIsBesideUnderAnotherName) {
  const TemporaryFolder temporary("quantize_check");
  SmallModel{}.write(temporary.path / "in");
  bool was_there = false;
  const std::string error = test::error_of<io::Error>([&] {
    quantize_model(temporary.path / "in", temporary.path / "out", {.check = [&](const fs::path& written) {
                     was_there = fs::exists(written / "config.json") && fs::exists(written / "model.safetensors");
                     io::fail("no");
                   }});
  });
  EXPECT_EQ(error, "no; what was written is kept as " + (temporary.path / "out.refused").string());
  EXPECT_TRUE(was_there);
  EXPECT_EQ(std::distance(fs::directory_iterator(temporary.path), {}), 2) << "the model, and what was refused";
  quantize_model(temporary.path / "in", temporary.path / "out");
  const Tensors kept = Tensors::open(temporary.path / "out.refused"), out = Tensors::open(temporary.path / "out");
  ASSERT_EQ(kept.names(), out.names());
  for (const std::string& name : kept.names()) {
    EXPECT_TRUE(std::ranges::equal(kept.at(name).bytes, out.at(name).bytes)) << name;
  }
  const std::string again = test::error_of<io::Error>([&] {
    quantize_model(temporary.path / "in", temporary.path / "out",
                   {.overwrite = true, .check = [](const fs::path&) { io::fail("no"); }});
  });
  EXPECT_NE(again.find("out.refused1"), std::string::npos) << again;
  EXPECT_TRUE(fs::exists(temporary.path / "out" / "config.json")) << "what was there stays";
  EXPECT_NE(test::error_of<io::Error>([&] {
              quantize_model(temporary.path / "in", temporary.path / "out", {.keep = {"experts.1.", "up_prj"}});
            }).find("\"up_prj\" was asked to stay, and is in no name"),
            std::string::npos);
}

TEST(QuantizeModel, WhatBlocksDoNotDivideStaysInFp8AndIsRefusedOtherwise) {
  const TemporaryFolder temporary("quantize_ragged");
  SmallModel{.ff = 136}.write(temporary.path / "in");
  const std::string fp8 =
      test::error_of<io::Error>([&] { quantize_model(temporary.path / "in", temporary.path / "out"); });
  EXPECT_NE(
      fp8.find("could be fp8: of \"model.layers.0.mlp.experts.0.down_proj.weight\" the length of a row is 136, no "
               "multiple of 128"),
      std::string::npos)
      << fp8;
  const auto all = quantize_model(temporary.path / "in", temporary.path / "out", {.type = "fp8", .all_linears = true});
  EXPECT_EQ(all.matrices.size(), 1u);
  EXPECT_EQ(all.kept.size(), 6u);
  const auto kept = json_of(temporary.path / "out" / "config.json")["quantization_config"]["modules_to_not_convert"];
  EXPECT_EQ(std::count(kept.begin(), kept.end(), "model.layers.0.mlp.experts.0.up_proj"), 1);
  const std::string refused = test::error_of<io::Error>(
      [&] { quantize_model(temporary.path / "in", temporary.path / "int4", {.type = "int4_g32"}); });
  EXPECT_NE(
      refused.find("tensor \"model.layers.0.mlp.experts.0.down_proj.weight\": the length of a row is 136, no multiple "
                   "of 32, the block of int4_g32"),
      std::string::npos)
      << refused;
  EXPECT_FALSE(fs::exists(temporary.path / "int4"));
}

TEST(QuantizeModel, ComplainsBeforeAnythingIsThere) {
  const TemporaryFolder temporary("quantize_wrong");
  const fs::path in = temporary.path / "in", out = temporary.path / "out";
  SmallModel{}.write(in);
  const auto error_of = [&](const fs::path& from, const fs::path& to, const std::string& type) {
    return test::error_of<std::exception>([&] { quantize_model(from, to, {.type = type}); });
  };
  EXPECT_EQ(error_of(in, out, "q9"),
            "no type is called \"q9\", expected one of fp8, int4_g32, int4_g128, mxfp4, nvfp4");
  EXPECT_NE(error_of(in, in, "fp8").find("is there already"), std::string::npos);
  EXPECT_NE(error_of(temporary.path / "nowhere", out, "fp8").find("no such file"), std::string::npos);
  ASSERT_EQ(error_of(in, out, "fp8"), "no error");
  EXPECT_NE(error_of(out, temporary.path / "again", "mxfp4").find("has a quantization_config (\"fp8\")"),
            std::string::npos);
  SmallModel{.first_number = std::numeric_limits<float>::infinity()}.write(temporary.path / "infinite");
  const std::string infinite = error_of(temporary.path / "infinite", temporary.path / "not", "fp8");
  EXPECT_NE(infinite.find("experts.0.gate_proj.weight\": the number at (0, 0) is inf, expected a finite one"),
            std::string::npos)
      << infinite;
  EXPECT_FALSE(fs::exists(temporary.path / "not"));
  EXPECT_FALSE(fs::exists(temporary.path / "not.tmp0"));
}

TEST(QuantizeModel, NumbersThatAreNoneOnceCodedAreRefused) {
  const TemporaryFolder temporary("quantize_tiny");
  SmallModel{.dtype = "F32", .times = 1e-41F}.write(temporary.path / "in");  // 1 / the largest is infinite
  const std::string error = test::error_of<io::Error>(
      [&] { quantize_model(temporary.path / "in", temporary.path / "out", {.type = "fp8"}); });
  EXPECT_NE(error.find("experts.0.down_proj.weight\": the number "), std::string::npos) << error;
  EXPECT_NE(error.find("), the largest of its block, is too small for the scales of fp8: keep"), std::string::npos)
      << error;
  SmallModel{.dtype = "F32", .first_number = 3e38F}.write(temporary.path / "large");
  const std::string large = test::error_of<io::Error>(
      [&] { quantize_model(temporary.path / "large", temporary.path / "out", {.type = "mxfp4"}); });
  EXPECT_NE(large.find("experts.0.gate_proj.weight\": the number 3e+38 at (0, 0) is too large for mxfp4"),
            std::string::npos)
      << large;
  EXPECT_FALSE(fs::exists(temporary.path / "out"));
}

/// How many bytes it has nobody knows, so it cannot be carried over.
TEST(QuantizeModel, ATensorOfUnknownDtypeIsRefused) {
  const TemporaryFolder temporary("quantize_unknown");
  const fs::path in = temporary.path / "in", file = in / "model.safetensors";
  SmallModel{}.write(in);
  std::ifstream stream(file, std::ios::binary);
  std::string bytes{std::istreambuf_iterator<char>(stream), {}};
  bytes.replace(bytes.find("BF16", bytes.find("\"lm_head.weight\"")), 4, "BF17");
  std::ofstream(file, std::ios::binary) << bytes;
  const std::string error = test::error_of<io::Error>([&] { quantize_model(in, temporary.path / "out"); });
  EXPECT_NE(error.find("tensor \"lm_head.weight\" has unknown dtype BF17"), std::string::npos) << error;
  EXPECT_FALSE(fs::exists(temporary.path / "out"));
}

TEST(QuantizeModel, TellsHowFarItIs) {
  const TemporaryFolder temporary("quantize_progress");
  SmallModel{}.write(temporary.path / "in");
  std::vector<io::QuantizeProgress> seen;
  quantize_model(temporary.path / "in", temporary.path / "out",
                 {.type = "fp8", .progress = [&](const io::QuantizeProgress& now) { seen.push_back(now); }});
  ASSERT_EQ(seen.size(), 12u);  // before each tensor, and at the end
  for (std::size_t i = 1; i < seen.size(); ++i) EXPECT_GE(seen[i].bytes, seen[i - 1].bytes);
  EXPECT_EQ(seen.back().bytes, seen.back().of_bytes);
}

}  // namespace
