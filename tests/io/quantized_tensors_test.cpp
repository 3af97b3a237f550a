/// @file  Tensors of coded weights that fit neither each other nor what config.json says; and those that do.
#include "moe/io/quantized_tensors.hpp"

#include <cmath>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <list>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "errors.hpp"
#include "temporary_folder.hpp"

namespace {

using namespace moe;
using io::OfExperts, io::Quantization, io::Tensor, io::Tensors;
using nlohmann::json;
using Bytes = std::vector<std::uint8_t>;

constexpr float infinity = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();

/// A file that is being made.
struct File {
  test::TemporaryFolder folder{"quantized_tensors"};
  std::list<std::vector<std::byte>> kept = {};
  std::vector<Tensor> tensors = {};

  template <class T>
  File& add(const std::string& name, const std::string& dtype, std::vector<Index> shape, const std::vector<T>& values) {
    kept.emplace_back(values.size() * sizeof(T));
    if (!values.empty()) std::memcpy(kept.back().data(), values.data(), kept.back().size());
    tensors.push_back({.name = name, .dtype = dtype, .shape = std::move(shape), .bytes = kept.back()});
    return *this;
  }
  Tensors open() const {
    io::write_safetensors(folder.path / "model.safetensors", tensors);
    return Tensors::open(folder.path);
  }
  std::string error(const Quantization& said = {}, const std::optional<OfExperts>& experts = {}) const {
    const Tensors all = open();
    return test::error_of<io::Error>([&] { (void)io::quantized_weight(all, "m", said, experts); });
  }
};

Quantization said(const json& what) { return {what, "config.json: quantization_config"}; }
Quantization fp8_of(Index rows, Index cols) {
  return said(
      {{"quant_method", "fp8"}, {"weight_block_size", {rows, cols}}, {"modules_to_not_convert", {"lm_head", "gate"}}});
}
Quantization compressed(const json& weights, const json& more = json::object()) {
  json all = {{"quant_method", "compressed-tensors"},
              {"format", "pack-quantized"},
              {"config_groups", {{"group_0", {{"targets", {"Linear"}}, {"weights", weights}}}}}};
  all.update(more);
  return said(all);
}
json integers(int bits, Index group, bool symmetric = true) {
  return {{"type", "int"}, {"num_bits", bits}, {"strategy", "group"}, {"group_size", group}, {"symmetric", symmetric}};
}

void expect_says(const std::string& error, const std::vector<std::string>& parts) {
  for (const std::string& part : parts)
    EXPECT_NE(error.find(part), error.npos) << "lacks \"" << part << "\": " << error;
}

/// An FP8 weight (8 × 16) with these scales.
File& with_fp8(File& file, const std::vector<float>& scales, std::vector<Index> shape) {
  return file.add("m.weight", "F8_E4M3", {8, 16}, Bytes(128, 0x38))
      .add("m.weight_scale_inv", "F32", std::move(shape), scales);
}

TEST(QuantizedTensors, PlainWeightsAreNone) {
  File file;
  file.add("m.weight", "BF16", {2, 4}, std::vector<std::uint16_t>(8));
  const Tensors all = file.open();
  EXPECT_FALSE(io::quantized_weight(all, "m"));
  EXPECT_FALSE(io::quantized_weight(all, "another"));
  EXPECT_FALSE(io::quantized_weight(all, "m", said({{"quant_method", "gptq"}, {"bits", 4}})));  // names no module
  EXPECT_FALSE(io::quantized_weight(all, "m", said({{"quant_method", "bitsandbytes"}})));
}

TEST(QuantizedTensors, PlainWeightsThatAreSaidToBeCodedAreRefused) {
  File file;
  file.add("m.weight", "BF16", {2, 4}, std::vector<std::uint16_t>(8));
  expect_says(file.error(fp8_of(128, 128)),
              {"model.safetensors", "\"m.weight\"", "BF16", "FP8 E4M3, blocks of 128×128"});
  expect_says(file.error(compressed(integers(4, 32))), {"\"m.weight\"", "BF16", "INT4, groups of 32"});
  expect_says(file.error(said({{"quant_method", "modelopt"}, {"quant_algo", "NVFP4"}})), {"BF16", "NVFP4"});
}

TEST(QuantizedTensors, ModulesThatAreNotConvertedArePlain) {
  File file;
  for (const char* const name : {"model.layers.0.mlp.gate", "lm_head", "model.layers.0.mlp.shared_expert.up_proj"}) {
    file.add(std::string(name) + ".weight", "BF16", {1, 1}, std::vector<std::uint16_t>(1));
  }
  const Tensors all = file.open();
  const json lists[] = {
      {{"quant_method", "fp8"}, {"modules_to_not_convert", {"lm_head", "gate", "model.layers.*.shared_expert"}}},
      {{"quant_method", "compressed-tensors"},
       {"ignore", {"lm_head", "re:.*mlp\\.gate$", "re:.*shared_expert"}},
       {"config_groups", {{"g", {{"targets", {"Linear"}}, {"weights", integers(4, 32)}}}}}},
      {{"quant_method", "modelopt"},
       {"quant_algo", "NVFP4"},
       {"ignore", {"lm_head", "*.mlp.gate", "model.layers.0.mlp.shared_expert*"}}},
      {{"producer", {{"name", "modelopt"}}},
       {"quantization", {{"quant_algo", "FP8"}, {"exclude_modules", {"lm_head", "*.mlp.gate", "*shared_expert*"}}}}}};
  for (const json& list : lists) {
    for (const std::string& name : all.names()) {
      const std::string module = name.substr(0, name.rfind('.'));
      EXPECT_FALSE(io::quantized_weight(all, module, said(list))) << list << ": " << name;
    }
    EXPECT_FALSE(said(list).of("model.layers.0.mlp.experts.0.gate_proj").plain) << list;
  }
}

TEST(QuantizedTensors, AScaleBesidePlainWeightsIsRefused) {
  for (const char* const stray :
       {"m.weight_scale", "m.weight_scale_inv", "m.weight_scale_2", "m.weight_packed", "m.scales"}) {
    File file;
    file.add("m.weight", "BF16", {2, 4}, std::vector<std::uint16_t>(8))
        .add(stray, "F32", {2, 1}, std::vector<float>(2));
    expect_says(file.error(), {"model.safetensors: tensor \"m.weight\" has dtype BF16", stray, "F32 [2, 1]"});
  }
}

TEST(QuantizedTensors, CodesWithoutScalesAreRefused) {
  File fp8, bytes, nvfp4;
  fp8.add("m.weight", "F8_E4M3", {8, 16}, Bytes(128));
  expect_says(fp8.error(), {"m: no tensor \"m.weight_scale_inv\" beside \"m.weight\""});
  bytes.add("m.weight", "I8", {8, 16}, Bytes(128));
  expect_says(bytes.error(), {"tensor \"m.weight\" has dtype I8"});
  nvfp4.add("m.weight_packed", "U8", {2, 16}, Bytes(32))
      .add("m.weight_global_scale", "F32", {1}, std::vector<float>{1});
  expect_says(nvfp4.error(), {"no tensor \"m.weight_scale\""});
}

TEST(QuantizedTensors, ScalesThatAreNoNumbersAreRefusedAndZeroIsLegal) {
  for (const float bad : {nan, infinity, -infinity}) {
    File file;
    expect_says(with_fp8(file, {1, 0, bad, 1}, {2, 2}).error(),
                {"\"m.weight_scale_inv\"", bad != bad ? "NaN" : "an infinite number", "at 2 of 4"});
  }
  File zero;
  const Tensors all = with_fp8(zero, {1, 0, 2, -0.5F}, {2, 2}).open();
  const auto weight = io::quantized_weight(all, "m");
  ASSERT_TRUE(weight);
  float row[16];
  weight->matrix.decode(0, 0, 16, row);
  EXPECT_EQ(row[7], 1);  // 0x38
  EXPECT_EQ(row[8], 0);
  weight->matrix.decode(7, 0, 16, row);
  EXPECT_EQ(row[7], 2);
  EXPECT_EQ(row[8], -0.5F);

  File exponents;
  exponents.add("m.weight", "F8_E4M3", {8, 16}, Bytes(128)).add("m.weight_scale_inv", "F8_E8M0", {1, 1}, Bytes{255});
  expect_says(exponents.error(), {"\"m.weight_scale_inv\" holds NaN at 0 of 1"});
  File mxfp8;
  mxfp8.add("m.weight", "F8_E4M3", {1, 64}, Bytes(64)).add("m.weight_scale", "U8", {1, 2}, Bytes{254, 255});
  expect_says(mxfp8.error(), {"\"m.weight_scale\" holds 255 at 1 of 2"});
  File nvfp4;
  nvfp4.add("m.weight_packed", "U8", {1, 16}, Bytes(16)).add("m.weight_scale", "F8_E4M3", {1, 2}, Bytes{0x38, 0xff});
  nvfp4.add("m.weight_global_scale", "F32", {1}, std::vector<float>{1});
  expect_says(nvfp4.error(), {"\"m.weight_scale\" holds NaN at 1 of 2"});
  File mxfp4;  // here 255 is 2^128
  mxfp4.add("m.weight_packed", "U8", {1, 16}, Bytes(16, 0x10)).add("m.weight_scale", "U8", {1, 1}, Bytes{255});
  const Tensors four = mxfp4.open();
  io::quantized_weight(four, "m")->matrix.decode(0, 0, 16, row);
  EXPECT_EQ(row[0], 0);
  EXPECT_EQ(row[1], 0x1p127F);
}

TEST(QuantizedTensors, AGlobalScaleOfZeroDividesNothing) {
  File file;
  file.add("m.weight_packed", "U8", {1, 16}, Bytes(16)).add("m.weight_scale", "F8_E4M3", {1, 2}, Bytes(2));
  file.add("m.weight_global_scale", "F32", {1}, std::vector<float>{0});
  expect_says(file.error(), {"\"m.weight_global_scale\" is 0"});
}

TEST(QuantizedTensors, ScalesOfAnotherShapeAreRefused) {
  File blocks, rows, several;
  expect_says(with_fp8(blocks, std::vector<float>(6), {2, 3}).error(fp8_of(4, 8)),
              {"\"m.weight_scale_inv\" has shape [2, 3]", "4 × 8", "(8 × 16)", "config.json"});
  expect_says(with_fp8(rows, std::vector<float>(7), {7}).error(), {"has shape [7]", "[8]", "(8 × 16)"});
  expect_says(with_fp8(several, std::vector<float>(15), {3, 5}).error(), {"has shape [3, 5]", "(8 × 16)"});
  File gpt_oss;
  gpt_oss.add("m_blocks", "U8", {2, 4, 3, 16}, Bytes(384)).add("m_scales", "U8", {2, 4, 2}, Bytes(16));
  expect_says(gpt_oss.error({}, OfExperts{1, 2}), {"\"m_scales\" has shape [4, 2], expected [4, 3]"});
  expect_says(gpt_oss.error({}, OfExperts{1, 3}), {"\"m_blocks\" has shape [2, 4, 3, 16]", "3 experts"});
  File shape;
  shape.add("m.weight_packed", "I32", {2, 4}, std::vector<std::int32_t>(8))
      .add("m.weight_scale", "F32", {2, 1}, std::vector<float>(2));
  shape.add("m.weight_shape", "I64", {2}, std::vector<std::int64_t>{3, 32});
  expect_says(shape.error(), {"\"m.weight_shape\" says 3 × 32", "has shape [2, 4]"});
}

TEST(QuantizedTensors, AnotherCodingThanIsSaidIsRefused) {
  File file;
  file.add("m.weight_packed", "I32", {2, 8}, std::vector<std::int32_t>(16))
      .add("m.weight_shape", "I64", {2}, std::vector<std::int64_t>{2, 64});
  file.add("m.weight_scale", "F32", {2, 2}, std::vector<float>(4, 1.F));
  EXPECT_EQ(file.error(compressed(integers(4, 32))), "no error");
  expect_says(file.error(compressed(integers(8, 32))),
              {"\"m.weight_packed\"", "is INT4, and", "says that it is INT8, groups of 32"});
  expect_says(file.error(compressed(integers(4, 64))), {"\"m.weight_scale\" has shape [2, 2]", "1 × 64", "(2 × 64)"});
  expect_says(file.error(compressed(integers(4, 32, false))),
              {"is INT4, groups of 32,", "INT4, groups of 32, with zero points"});
  expect_says(file.error(fp8_of(128, 128)),
              {"\"m.weight_packed\" (I32 [2, 8]) is packed integers of compressed-tensors, and config.json",
               "quant_method is \"fp8\" (FP8 E4M3, blocks of 128×128)"});
  File short_row;
  short_row.add("m.weight_packed", "I32", {2, 3}, std::vector<std::int32_t>(6))
      .add("m.weight_shape", "I64", {2}, std::vector<std::int64_t>{2, 24});
  short_row.add("m.weight_scale", "F32", {2, 1}, std::vector<float>(2));
  expect_says(short_row.error(), {"3 words for 24 numbers", "3 or 4 bits"});
  File fp8;
  expect_says(
      with_fp8(fp8, {1}, {1, 1}).error(said({{"quant_method", "modelopt"}, {"quant_algo", "NVFP4"}})),
      {"\"m.weight\" (F8_E4M3 [8, 16]) is FP8 beside its weight_scale_inv", "\"modelopt\" (NVFP4, groups of 16)"});
  File gptq;
  gptq.add("m.qweight", "I32", {4, 32}, std::vector<std::int32_t>(128))
      .add("m.qzeros", "I32", {1, 4}, std::vector<std::int32_t>(4));
  gptq.add("m.scales", "F16", {1, 32}, std::vector<std::uint16_t>(32));
  EXPECT_EQ(gptq.error(said({{"quant_method", "gptq"}, {"bits", 4}, {"group_size", 32}})), "no error");
  expect_says(gptq.error(said({{"quant_method", "awq"}, {"bits", 4}})),
              {"packed as GPTQ does", "the quant_method is \"awq\" (INT4)"});
  expect_says(gptq.error(said({{"quant_method", "gptq"}, {"bits", 4}, {"group_size", 8}})),
              {"groups of 32", "groups of 8"});
  expect_says(gptq.error(), {"how many bits"});
}

TEST(QuantizedTensors, ZeroPointsAndGroupsOutOfRangeAreRefused) {
  for (const int zero : {-9, 8}) {
    File file;
    file.add("m.weight_packed", "I32", {2, 4}, std::vector<std::int32_t>(8))
        .add("m.weight_shape", "I64", {2}, std::vector<std::int64_t>{2, 32});
    file.add("m.weight_scale", "F32", {2, 1}, std::vector<float>(2))
        .add("m.weight_zero_point", "I8", {2, 1}, Bytes{0, std::uint8_t(zero)});
    expect_says(file.error(), {"\"m.weight_zero_point\" holds " + std::to_string(zero) + " at 1", "-8 to 7"});
  }
  for (const std::int32_t group : {-1, 2}) {
    File file;
    std::vector<std::int32_t> index(64);
    index[40] = group;
    file.add("m.qweight", "I32", {8, 32}, std::vector<std::int32_t>(256))
        .add("m.qzeros", "I32", {2, 4}, std::vector<std::int32_t>(8));
    file.add("m.scales", "F16", {2, 32}, std::vector<std::uint16_t>(64)).add("m.g_idx", "I32", {64}, index);
    expect_says(file.error(), {"\"m.g_idx\" holds " + std::to_string(group) + " at 40", "0 to 1"});
  }
}

/// Codes of 4 bits begin with a byte at every second number only, those of 3 at every eighth.
TEST(QuantizedTensors, GroupsThatBeginWithinAByteAreReadByTheirIndexOrRefused) {
  std::mt19937 random(11);
  std::vector<std::int32_t> codes(4 * 32), index(32);
  for (auto& word : codes) word = std::int32_t(random());
  for (std::size_t i = 0; i < 32; ++i) index[i] = std::int32_t(i / 11);
  std::vector<float> scales(3 * 32);
  for (float& scale : scales) scale = float(random() % 64) - 31;
  File gptq;
  gptq.add("m.qweight", "I32", {4, 32}, codes).add("m.qzeros", "I32", {3, 4}, std::vector<std::int32_t>(12));
  gptq.add("m.scales", "F32", {3, 32}, scales);
  const Quantization elevens = said({{"quant_method", "gptq"}, {"bits", 4}, {"group_size", 11}});
  expect_says(gptq.error(elevens), {"\"m.scales\" has shape [3, 32], one for 11 numbers of a row", "multiple of 8"});
  gptq.add("m.g_idx", "I32", {32}, index);
  const Tensors all = gptq.open();
  const auto weight = io::quantized_weight(all, "m", elevens);
  ASSERT_TRUE(weight);
  for (Index r = 0; r < 32; ++r) {
    float row[32];
    weight->matrix.decode(r, 0, 32, row);
    for (Index c = 0; c < 32; ++c) {
      const int q = int(std::uint32_t(codes[std::size_t(c / 8 * 32 + r)]) >> (c % 8 * 4) & 15U) - 1;
      ASSERT_EQ(row[c], float(q) * scales[std::size_t(c / 11 * 32 + r)]) << r << ' ' << c;
    }
  }
  File awq;
  awq.add("m.qweight", "I32", {36, 4}, std::vector<std::int32_t>(144));
  awq.add("m.qzeros", "I32", {12, 4}, std::vector<std::int32_t>(48));
  awq.add("m.scales", "F16", {12, 32}, std::vector<std::uint16_t>(384));
  expect_says(awq.error(), {"\"m.scales\" has shape [12, 32], one for 3 numbers of a row", "multiple of 8"});
}

/// Of weights that may have some, they happen to be; of others they are written all the same.
TEST(QuantizedTensors, ZeroPointsThatAreAllZeroMayBeThere) {
  const auto channels = [](bool symmetric) {
    return compressed({{"type", "int"}, {"num_bits", 8}, {"strategy", "channel"}, {"symmetric", symmetric}},
                      {{"format", "int-quantized"}});
  };
  for (const auto zero : {std::uint8_t(0), std::uint8_t(1)}) {
    File file;
    file.add("m.weight", "I8", {2, 8}, Bytes(16, 3)).add("m.weight_scale", "F32", {2, 1}, std::vector<float>{1, 2});
    file.add("m.weight_zero_point", "I8", {2, 1}, Bytes{0, zero});
    EXPECT_EQ(file.error(channels(false)), "no error");
    if (zero == 0) {
      EXPECT_EQ(file.error(channels(true)), "no error");
    } else {
      expect_says(file.error(channels(true)),
                  {"\"m.weight\"", "is INT8, a scale a row, with zero points", "that it is INT8, a scale a row:"});
    }
  }
}

TEST(QuantizedTensors, MethodsThatAreNotReadAreNamed) {
  const auto error = [](const json& what) { return test::error_of<io::Error>([&] { (void)said(what); }); };
  expect_says(error({{"quant_method", "exl3"}}),
              {"config.json: quantization_config", "\"exl3\"", "compressed-tensors"});
  expect_says(error({{"bits", 4}}), {"quant_method is \"\""});
  expect_says(error({{"quant_method", "gptq"}, {"checkpoint_format", "marlin"}}), {"\"marlin\"", "gptq_v2"});
  expect_says(error({{"quant_method", "awq"}, {"version", "gemv"}}), {"\"gemv\"", "gemm"});
  expect_says(error(json::array()), {"is array, expected an object"});
  expect_says(error({{"quant_method", "fp8"}, {"modules_to_not_convert", "gate"}}),
              {"modules_to_not_convert", "a list of names"});
  const auto error_of_module = [](const json& what) {
    return test::error_of<io::Error>([&] { (void)said(what).of("m"); });
  };
  expect_says(error_of_module({{"quant_method", "fp8"}, {"weight_block_size", {0, 128}}}),
              {"weight_block_size", "two sizes"});
  expect_says(error_of_module({{"quant_method", "modelopt"}, {"quant_algo", "W4A8_AWQ"}}), {"\"W4A8_AWQ\"", "NVFP4"});
  expect_says(error_of_module({{"quant_method", "gptq"}, {"bits", 5}}), {"bits is 5, expected one of 2, 3, 4, 8"});
  expect_says(error_of_module({{"bits", 7}, {"group_size", 64}}), {"bits is 7"});
}

TEST(QuantizedTensors, ModulesHaveTheirOwnWord) {
  const Quantization mlx =
      said({{"bits", 4}, {"group_size", 64}, {"a.b", {{"bits", 8}, {"group_size", 32}}}, {"a.c", false}});
  EXPECT_EQ(to_string(mlx.of("a.a")), "INT4, groups of 64, with zero points");
  EXPECT_EQ(to_string(mlx.of("a.b")), "INT8, groups of 32, with zero points");
  EXPECT_TRUE(mlx.of("a.c").plain);
  const Quantization gptq =
      said({{"quant_method", "gptq"},
            {"bits", 4},
            {"group_size", 128},
            {"dynamic", {{"+:.*\\.down_proj", {{"bits", 8}, {"group_size", 32}}}, {"-:.*gate", json::object()}}}});
  EXPECT_EQ(to_string(gptq.of("m.up_proj")), "INT4, groups of 128");
  EXPECT_EQ(to_string(gptq.of("m.down_proj")), "INT8, groups of 32");
  EXPECT_TRUE(gptq.of("m.gate").plain);
  const Quantization mixed =
      said({{"quant_method", "modelopt"},
            {"quant_algo", "MIXED_PRECISION"},
            {"quantized_layers", {{"a", {{"quant_algo", "FP8"}}}, {"b", {{"quant_algo", "NVFP4"}}}}}});
  EXPECT_EQ(to_string(mixed.of("a")), "FP8 E4M3");
  EXPECT_EQ(to_string(mixed.of("b")), "NVFP4, groups of 16");
  EXPECT_TRUE(mixed.of("c").plain);
  const Quantization groups =
      compressed(integers(4, 32), {{"config_groups",
                                    {{"a", {{"targets", {"Linear"}}, {"weights", integers(4, 32)}}},
                                     {"b", {{"targets", {"re:.*down_proj$"}}, {"weights", integers(8, 128)}}}}}});
  EXPECT_EQ(to_string(groups.of("m.up_proj")), "INT4, groups of 32");
  EXPECT_EQ(to_string(groups.of("m.down_proj")), "INT8, groups of 128");
}

/// As compressed-tensors' class has them.
TEST(QuantizedTensors, AbsentKeysMeanWhatTheyMeanToTheSoftware) {
  const auto says = [](const json& weights) { return to_string(compressed(weights).of("m")); };
  EXPECT_EQ(says(json::object()), "INT8, one scale");
  EXPECT_EQ(says({{"num_bits", 4}, {"group_size", 32}}), "INT4, groups of 32");
  EXPECT_EQ(says({{"num_bits", 4}, {"group_size", -1}, {"symmetric", false}}), "INT4, a scale a row, with zero points");
  EXPECT_EQ(says({{"type", "float"}}), "FP8 E4M3, one scale");
  EXPECT_EQ(says({{"type", "float"}, {"strategy", "block"}, {"block_structure", "128x64"}}),
            "FP8 E4M3, blocks of 128×64");
  for (const char* const wrong : {"128", "128x", "128x64x2", "x64", "0x64", "99999999999x1", "-1x8"}) {
    const std::string error = test::error_of<io::Error>(
        [&] { says({{"type", "float"}, {"strategy", "block"}, {"block_structure", wrong}}); });
    expect_says(error, {"block_structure", "expected two sizes"});
  }
  File file;
  file.add("m.weight_packed", "I32", {2, 8}, std::vector<std::int32_t>(16))
      .add("m.weight_shape", "I64", {2}, std::vector<std::int64_t>{2, 64});
  file.add("m.weight_scale", "F32", {2, 2}, std::vector<float>(4, 1.F));
  EXPECT_EQ(file.error(compressed({{"num_bits", 4}, {"group_size", 32}})), "no error");
}

/// Stacks of all experts, whose rows alternate, as gate and up of gpt-oss do.
TEST(QuantizedTensors, OneExpertOfAllIsUsedWhereItLies) {
  std::mt19937 random(7);
  Bytes blocks(2 * 6 * 2 * 16), scales(2 * 6 * 2);
  for (auto& byte : blocks) byte = std::uint8_t(random());
  for (auto& byte : scales) byte = std::uint8_t(120 + random() % 16);
  File file;
  file.add("m_blocks", "U8", {2, 6, 2, 16}, blocks).add("m_scales", "U8", {2, 6, 2}, scales);
  const Tensors all = file.open();
  const float e2m1[16] = {0, .5F, 1, 1.5F, 2, 3, 4, 6, -0.F, -.5F, -1, -1.5F, -2, -3, -4, -6};
  for (Index e = 0; e < 2; ++e) {
    const auto weight = io::quantized_weight(all, "m", said({{"quant_method", "mxfp4"}}), OfExperts{e, 2});
    ASSERT_TRUE(weight);
    EXPECT_EQ(weight->own_bytes, 0U);
    EXPECT_EQ(weight->tensors, (std::vector<std::string>{"m_blocks", "m_scales"}));
    EXPECT_EQ(to_string(weight->coding), "MXFP4, groups of 32");
    EXPECT_EQ(weight->matrix.codes.data, all.find("m_blocks")->bytes.data() + e * 192);
    const QuantizedMatrix up = weight->matrix.some_rows(1, 2, 3);
    for (Index r = 0; r < 3; ++r) {
      float row[64];
      up.decode(r, 0, 64, row);
      for (Index c = 0; c < 64; ++c) {
        const std::size_t at = std::size_t((e * 6 + 1 + 2 * r) * 64 + c);
        const float number = e2m1[blocks[at / 2] >> (c % 2 * 4) & 15];
        ASSERT_EQ(row[c], std::ldexp(number, scales[at / 32] - 127)) << e << ' ' << r << ' ' << c;
      }
    }
  }
}

/// What a folder of tests/real_quant holds of one weight, and what its config says.
struct Recorded {
  std::string name;
  Tensors tensors;
  json config;
  std::string module;
  std::optional<OfExperts> experts = {};

  std::string error(const Tensors& of) const {
    const Quantization its = config.empty() ? Quantization() : said(config);
    return test::error_of<io::Error>([&] { (void)io::quantized_weight(of, module, its, experts); });
  }
  std::string error_of_config(const json& other) const {
    return test::error_of<io::Error>([&] { (void)io::quantized_weight(tensors, module, said(other), experts); });
  }
};

std::vector<Recorded> recorded() {
  std::vector<Recorded> all;
  for (const auto& folder : std::filesystem::directory_iterator("tests/real_quant/folders")) {
    if (!std::filesystem::exists(folder.path() / "config.json")) continue;
    const json config = json::parse(std::ifstream(folder.path() / "config.json"));
    const Tensors tensors = Tensors::open(folder.path());
    const json its = config.value("quantization_config", config.value("quantization", json::object()));
    for (const std::string& name : tensors.names()) {
      const bool of_all = name.find("experts.gate_up_proj") != name.npos,
                 of_one = name.find("experts.1.up_proj.") != name.npos;
      if (!of_all && !of_one) continue;
      const std::size_t end = name.find(of_all ? "gate_up_proj" : "up_proj") + (of_all ? 12U : 7U);
      Recorded one{folder.path().filename().string(), tensors, its, name.substr(0, end)};
      if (of_all) one.experts = OfExperts{0, tensors.find(name)->shape[0]};
      all.push_back(one);
      break;
    }
  }
  EXPECT_GE(all.size(), 9U);
  return all;
}

/// Of any number of dimensions, with and without elements, whatever others have: an answer or an error, never a crash.
TEST(QuantizedTensors, ShapesThatFitNothingAreRefusedOrRead) {
  constexpr Index huge = Index(1) << 56;
  std::size_t errors = 0;
  for (const Recorded& its : recorded()) {
    EXPECT_EQ(its.error(its.tensors), "no error") << its.name;
    std::vector<Tensor> all;
    its.tensors.for_each_below(its.module, [&](const Tensor& tensor) { all.push_back(tensor); });
    for (std::size_t i = 0; i < all.size(); ++i) {
      for (std::size_t j = 0; j < all.size(); ++j) {
        for (const std::vector<Index>& shape : std::vector<std::vector<Index>>{{},
                                                                               {1},
                                                                               {0},
                                                                               {2, 1},
                                                                               {1, 2},
                                                                               {0, 4},
                                                                               {4, 0},
                                                                               {huge, 0},
                                                                               {0, huge},
                                                                               {1, 1, 1},
                                                                               {0, 4, 4},
                                                                               {2, 2, 2, 2}}) {
          std::vector<Tensor> changed = all;
          for (const std::size_t at : {i, j}) {
            changed[at].shape = at == i ? shape : std::vector<Index>{4, 0};
            const auto bytes = std::size_t(io::element_count(changed[at]) * io::dtype_bits(changed[at].dtype) / 8);
            changed[at].bytes = changed[at].bytes.first(std::min(bytes, changed[at].bytes.size()));
          }
          for (const auto* const config : {&its.config, static_cast<const json*>(nullptr)}) {
            Recorded one = its;
            if (config == nullptr) one.config = json::object();
            if (one.error(Tensors::of("F", changed)) != "no error") ++errors;
          }
        }
      }
    }
  }
  EXPECT_GE(errors, 1000U);
  File scalar;  // no groups of no bytes
  scalar.add("m.weight_packed", "U8", {64, 0}, Bytes()).add("m.weight_scale", "U8", {}, Bytes(1));
  expect_says(scalar.error(), {"model.safetensors: tensor \"m.weight_packed\" (U8) has shape [64, 0]", "nothing"});
  File one_scale;
  one_scale.add("m.weight_packed", "U8", {64, 16}, Bytes(1024)).add("m.weight_scale", "U8", {}, Bytes(1));
  expect_says(one_scale.error(), {"model.safetensors: tensor \"m.weight_scale\" has shape [], expected a matrix"});
}

TEST(QuantizedTensors, BlocksThatAreNoSizeAreRefused) {
  for (const char* const size : {"0", "3", "16777218", "9223372036854775806", "18446744073709551615", "-2", "1.5"}) {
    const std::string state = std::string(R"({"shape": [3, 5], "dtype": "float32", "blocksize": )") + size + "}";
    File file;
    file.add("m.weight", "U8", {8, 1}, Bytes(8)).add("m.weight.absmax", "F32", {1}, std::vector<float>{1});
    file.add("m.weight.quant_map", "F32", {16}, std::vector<float>(16));
    file.add("m.weight.quant_state.bitsandbytes__nf4", "U8", {Index(state.size())}, Bytes(state.begin(), state.end()));
    expect_says(file.error(), {"model.safetensors: tensor \"m.weight.quant_state.bitsandbytes__nf4\"", "blocksize"});
  }
}

/// Whatever software is named instead of the one that wrote a folder.
TEST(QuantizedTensors, AnotherMethodThanTheTensorsAreOfIsRefused) {
  for (const Recorded& its : recorded()) {
    if (its.config.empty()) continue;
    for (const char* const method :
         {"fp8", "compressed-tensors", "modelopt", "mxfp4", "gptq", "awq", "bitsandbytes", "torchao"}) {
      json other = its.config;
      if (other.value("quant_method", "") == method) continue;
      other["quant_method"] = method;
      const std::string error = its.error_of_config(other);
      EXPECT_NE(error, "no error") << its.name << " as " << method;
      EXPECT_NE(error.find("config.json: quantization_config"), error.npos) << error;
      const auto names = [&](const std::string& one) { return one == method || its.config["quant_method"] == one; };
      if (!names("modelopt") && method != std::string("gptq") && method != std::string("awq")) {
        // gptq and awq say nothing without bits, modelopt nothing without a quant_algo, and has patterns of its own
        expect_says(error, {"tensor \"" + its.module, std::string("quant_method is \"") + method + "\""});
      }
    }
    if (its.config.value("quant_method", "") != "compressed-tensors") continue;
    for (const char* const format : {"nonsense", "pack-quantized", "int-quantized", "float-quantized",
                                     "nvfp4-pack-quantized", "mxfp4-pack-quantized", "mxfp6-pack-quantized"}) {
      json other = its.config;
      if (other["format"] == format) continue;
      other["format"] = format;
      expect_says(its.error_of_config(other), {std::string("\"") + format + "\"", "config.json: quantization_config"});
    }
    const auto with = [&](const char* key, const json& value) {
      json other = its.config;
      other["config_groups"]["group_0"]["weights"][key] = value;
      return its.error_of_config(other);
    };
    for (const char* const key : {"type", "strategy"}) {
      expect_says(with(key, "nonsense"), {std::string(key) + " is \"nonsense\"", "expected one of "});
    }
    for (const int bits : {-1, 0, 1, 5, 7, 9, 16, 1 << 24}) {
      EXPECT_NE(with("num_bits", bits), "no error") << its.name << ", bits: " << bits;
    }
  }
  const Quantization eight = said({{"quant_method", "bitsandbytes"}, {"load_in_8bit", true}});
  File file;
  const std::string state = R"({"shape": [2, 4], "dtype": "float32", "blocksize": 64})";
  file.add("m.weight", "U8", {4, 1}, Bytes(4)).add("m.weight.absmax", "F32", {1}, std::vector<float>{1});
  file.add("m.weight.quant_map", "F32", {16}, std::vector<float>(16));
  file.add("m.weight.quant_state.bitsandbytes__nf4", "U8", {Index(state.size())}, Bytes(state.begin(), state.end()));
  EXPECT_EQ(file.error(said({{"quant_method", "bitsandbytes"}, {"load_in_4bit", true}})), "no error");
  expect_says(file.error(eight), {"\"m.weight\" (U8 [4, 1]) is 4 bits of bitsandbytes", "\"load_in_8bit\""});
  expect_says(
      file.error(said({{"quant_method", "bitsandbytes"}, {"load_in_4bit", true}, {"bnb_4bit_quant_type", "fp4"}})),
      {"is NF4", "FP4"});
}

/// Packs codes of `bits` bits, low ones first, in 32-bit words; those of a row begin with a word.
std::vector<std::int32_t> packed(const std::vector<int>& codes, Index rows, Index cols, int bits) {
  const Index words = (cols * bits + 31) / 32;
  std::vector<std::int32_t> packed(std::size_t(rows * words));
  for (Index r = 0; r < rows; ++r) {
    for (Index bit = 0; bit < cols * bits; ++bit) {
      const int one = codes[std::size_t(r * cols + bit / bits)] >> (bit % bits) & 1;
      auto& word = packed[std::size_t(r * words + bit / 32)];
      word = std::int32_t(std::uint32_t(word) | std::uint32_t(one) << (bit % 32));
    }
  }
  return packed;
}

/// (rows × cols) integers, in groups.
struct Integers {
  int bits;
  Index rows, cols, group;
  bool asymmetric;
  std::vector<int> codes = {}, zeros = {};
  std::vector<float> scales = {};

  Index groups() const { return cols / group; }
  float number(Index r, Index c) const {
    const auto at = std::size_t(r * groups() + c / group);
    return float(codes[std::size_t(r * cols + c)] - zeros[at]) * scales[at];
  }
  void fill(std::mt19937& random) {
    codes.resize(std::size_t(rows * cols));
    zeros.assign(std::size_t(rows * groups()), 1 << (bits - 1));
    scales.resize(zeros.size());
    for (int& code : codes) code = int(random() % (1U << bits));
    for (int& zero : zeros) zero = asymmetric ? int(random() % (1U << bits)) : zero;
    for (float& scale : scales) scale = float(int(random() % 2001) - 1000) * 0.37F;
  }
  /// Zero points, packed down the rows: words [·, groups].
  std::vector<std::int32_t> packed_zeros() const {
    std::vector<int> turned;
    for (Index g = 0; g < groups(); ++g) {
      for (Index r = 0; r < rows; ++r) turned.push_back(zeros[std::size_t(r * groups() + g)]);
    }
    const std::vector<std::int32_t> across = packed(turned, groups(), rows, bits);
    const Index words = (rows * bits + 31) / 32;
    std::vector<std::int32_t> down;
    for (Index w = 0; w < words; ++w) {
      for (Index g = 0; g < groups(); ++g) down.push_back(across[std::size_t(g * words + w)]);
    }
    return down;
  }
  void add_to(File& file, const std::string& name) const {
    file.add(name + ".weight_packed", "I32", {rows, (cols * bits + 31) / 32}, packed(codes, rows, cols, bits));
    file.add(name + ".weight_shape", "I64", {2}, std::vector<std::int64_t>{rows, cols});
    file.add(name + ".weight_scale", "F32", {rows, groups()}, scales);
    if (asymmetric) {
      file.add(name + ".weight_zero_point", "I32", {(rows * bits + 31) / 32, groups()}, packed_zeros());
    }
  }
};

TEST(QuantizedTensors, IntegersOfAnyBitsAndAnyLengthOfRow) {
  std::mt19937 random(3);
  for (int bits = 2; bits <= 8; ++bits) {
    std::vector<Integers> all;
    File file;
    for (const Index cols : {1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 40, 64, 65, 130, 520}) {
      for (const bool asymmetric : {false, true}) {
        all.push_back({bits, 5, cols, cols, asymmetric});
        if (cols % 8 == 0) all.push_back({bits, 5, cols, 8, asymmetric});
      }
    }
    for (std::size_t i = 0; i < all.size(); ++i) {
      all[i].fill(random);
      all[i].add_to(file, std::to_string(i));
    }
    const Tensors tensors = file.open();
    for (std::size_t i = 0; i < all.size(); ++i) {
      const Integers& expected = all[i];
      json weights = integers(bits, expected.group, !expected.asymmetric);
      if (expected.groups() == 1) weights["strategy"] = "channel";
      const auto weight = io::quantized_weight(tensors, std::to_string(i), compressed(weights));
      ASSERT_TRUE(weight);
      EXPECT_EQ(weight->own_bytes, expected.asymmetric ? expected.zeros.size() : 0U);
      std::vector<float> row(std::size_t(expected.cols) + 1);
      for (Index r = 0; r < expected.rows; ++r) {
        for (Index first = 0; first < expected.cols; first += 1 + first % 3 * 5) {
          const Index count = std::max<Index>(1, (expected.cols - first) / (1 + first % 2));
          row[std::size_t(count)] = -77;
          weight->matrix.decode(r, first, count, row.data());
          for (Index k = 0; k < count; ++k) {
            ASSERT_EQ(row[std::size_t(k)], expected.number(r, first + k))
                << bits << " bits, " << expected.cols << " columns, row " << r << ", from " << first << " on, " << k;
          }
          ASSERT_EQ(row[std::size_t(count)], -77);
        }
      }
    }
  }
}

TEST(QuantizedTensors, ColumnsMaySayTheirGroups) {
  const Index rows = 3, cols = 40, groups = 3;
  std::mt19937 random(5);
  for (const int bits : {3, 4, 8}) {
    std::vector<int> codes(std::size_t(rows * cols));
    for (int& code : codes) code = int(random() % (1U << bits));
    std::vector<std::int32_t> index(40);
    for (auto& group : index) group = std::int32_t(random() % 3);
    const std::vector<float> scales = {1, 2, 3, 4, 5, 6, 7, 8, -9};
    File file;
    file.add("m.weight_packed", "I32", {rows, (cols * bits + 31) / 32}, packed(codes, rows, cols, bits));
    file.add("m.weight_shape", "I64", {2}, std::vector<std::int64_t>{rows, cols});
    file.add("m.weight_scale", "F32", {rows, groups}, scales).add("m.weight_g_idx", "I32", {cols}, index);
    const Tensors all = file.open();
    const auto weight = io::quantized_weight(all, "m");
    ASSERT_TRUE(weight);
    for (Index r = 0; r < rows; ++r) {
      float row[40];
      weight->matrix.decode(r, 0, cols, row);
      for (Index c = 0; c < cols; ++c) {
        const int q = codes[std::size_t(r * cols + c)] - (1 << (bits - 1));
        ASSERT_EQ(row[c], float(q) * scales[std::size_t(r * groups + index[std::size_t(c)])])
            << bits << ' ' << r << ' ' << c;
      }
    }
  }
}

}  // namespace
