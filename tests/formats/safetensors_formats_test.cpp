/// @file  Coded weights of safetensors files, as real software stored and decoded them: those in tests/real_quant, and
///        those in the folder that MOE_QUANT_DIR names, to the bit.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <map>
#include <set>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "moe/io/quantized_tensors.hpp"
#include "temporary_folder.hpp"

namespace {

namespace fs = std::filesystem;
using namespace moe;
using io::Quantization, io::QuantizedWeight, io::Tensor, io::Tensors;

const std::vector<std::string> families = {"compressed_tensors", "transformers_fp8", "gpt_oss_mxfp4",
                                           "gptq_awq",           "bitsandbytes",     "mlx",
                                           "modelopt",           "torchao"};

std::vector<fs::path> roots() {
  std::vector<fs::path> all = {fs::path("tests") / "real_quant"};
  if (const char* const named = std::getenv("MOE_QUANT_DIR")) all.emplace_back(named);
  return all;
}

/// What config.json says where a scheme is used.
nlohmann::json config_of(const std::string& family, const std::string& scheme) {
  const auto number_after = [&](const std::string& text) {
    return std::atoi(scheme.c_str() + scheme.find(text) + text.size());
  };
  if (family == "compressed_tensors") {
    nlohmann::json weights = {
        {"type", scheme.starts_with("int") ? "int" : "float"}, {"num_bits", 8}, {"symmetric", true}};
    std::string format = "float-quantized";
    if (scheme.starts_with("int")) {
      weights["num_bits"] = number_after("int");
      weights["symmetric"] = !scheme.ends_with("_asym");
      format = "pack-quantized";
    }
    if (scheme.starts_with("mxfp") || scheme == "nvfp4") weights["num_bits"] = number_after("fp");
    weights["strategy"] = scheme.find("channel") != scheme.npos  ? "channel"
                          : scheme.find("tensor") != scheme.npos ? "tensor"
                          : scheme == "fp8_block"                ? "block"
                          : scheme == "nvfp4"                    ? "tensor_group"
                                                                 : "group";
    if (scheme == "fp8_block") weights["block_structure"] = {128, 128};
    if (scheme.find("_g") != scheme.npos) weights["group_size"] = number_after("_g");
    if (scheme.starts_with("mxfp")) weights["group_size"] = 32;
    if (scheme == "nvfp4") weights["group_size"] = 16;
    return {{"quant_method", "compressed-tensors"},
            {"format", format},
            {"ignore", {"lm_head", "re:.*mlp\\.gate$"}},
            {"config_groups", {{"group_0", {{"targets", {"Linear"}}, {"weights", weights}}}}}};
  }
  if (family == "transformers_fp8") {
    nlohmann::json json = {{"quant_method", "fp8"}, {"modules_to_not_convert", {"lm_head", "gate"}}};
    if (scheme.find("128x128") != scheme.npos) json["weight_block_size"] = {128, 128};
    if (scheme.find("64x32") != scheme.npos) json["weight_block_size"] = {64, 32};
    return json;
  }
  if (family == "gpt_oss_mxfp4") return {{"quant_method", "mxfp4"}};
  if (family == "gptq_awq") {
    const bool awq = scheme.starts_with("awq");
    nlohmann::json json = {{"quant_method", awq ? "awq" : "gptq"},
                           {"bits", number_after(awq ? "awq" : "gptq")},
                           {"group_size", number_after("_g")}};
    if (awq) json["version"] = "gemm";
    if (scheme.ends_with("v2")) json["checkpoint_format"] = "gptq_v2";
    return json;
  }
  if (family == "bitsandbytes") return {{"quant_method", "bitsandbytes"}, {"load_in_4bit", true}};
  if (family == "mlx") {
    if (!scheme.starts_with("affine")) {
      return {{"bits", 4}, {"group_size", 32}, {"mode", scheme.substr(0, scheme.find('_'))}};
    }
    return {{"bits", number_after("affine_")}, {"group_size", std::atoi(scheme.c_str() + scheme.find('_', 7) + 1)}};
  }
  if (family == "modelopt") return {{"quant_method", "modelopt"}, {"quant_algo", "NVFP4"}};
  return {{"quant_method", "torchao"}};
}

/// "bits": of a NaN any, as software may give any.
std::uint32_t bits_of(float number) {
  if (std::isnan(number)) number = std::numeric_limits<float>::quiet_NaN();
  std::uint32_t bits;
  std::memcpy(&bits, &number, sizeof bits);
  return bits;
}

/// How many numbers differ from what was recorded, whole rows and from odd places to odd places.
/// @param at  the recorded number of a row and column
template <class At>
Index differences(const QuantizedMatrix& matrix, const At& at) {
  const Index cols = matrix.cols();
  std::vector<float> row(std::size_t(cols) + 1);
  Index different = 0;
  const auto compare = [&](Index r, Index first, Index count) {
    row[std::size_t(count)] = 12345.F;
    matrix.decode(r, first, count, row.data());
    for (Index c = 0; c < count; ++c) different += bits_of(row[std::size_t(c)]) != bits_of(at(r, first + c));
    different += row[std::size_t(count)] != 12345.F;
  };
  for (Index r = 0; r < matrix.rows(); ++r) {
    compare(r, 0, cols);
    compare(r, 1 + r % 37, std::min<Index>(cols / 2, 41 + r));
    compare(r, cols - 1 - r % 5, 1 + r % 5);
  }
  return different;
}

/// torchao's tensors in a file of their own, by the names that transformers gives them.
Tensors as_transformers_names_them(const Tensors& recorded, const fs::path& folder) {
  std::vector<Tensor> tensors;
  for (const std::string& name : recorded.names()) {
    Tensor tensor = recorded.at(name);
    for (const char* const part : {"qdata", "scale", "zero_point"}) {
      const std::size_t end = std::strlen(part) + 1;
      if (name.ends_with(std::string(".") + part)) tensor.name = name.substr(0, name.size() - end) + "._weight_" + part;
    }
    tensors.push_back(std::move(tensor));
  }
  io::write_safetensors(folder / "model.safetensors", tensors);
  return Tensors::open(folder);
}

class Family : public testing::TestWithParam<std::string> {};

TEST_P(Family, DecodesToTheBitsOfItsSoftware) {
  for (const fs::path& root : roots()) {
    const fs::path file = root / (GetParam() + ".safetensors");
    ASSERT_TRUE(fs::exists(file)) << file << ": no such file";
    const Tensors recorded = Tensors::open(file);
    const test::TemporaryFolder folder("safetensors_formats");
    const Tensors tensors = GetParam() == "torchao" ? as_transformers_names_them(recorded, folder.path) : recorded;
    std::size_t schemes = 0, numbers = 0;
    for (const std::string& name : recorded.names()) {
      const std::size_t dot = name.rfind('.');
      const std::string end = name.substr(dot + 1);
      if (!end.starts_with("dequantized") || end.ends_with("bfloat16")) continue;
      const std::string module = name.substr(0, dot), scheme = module.substr(module.find('.') + 1);
      const Weight<float> expected = recorded.read(name);
      const std::vector<Index>& shape = recorded.find(name)->shape;
      std::vector<std::string> modules = {module};
      if (tensors.any_below(module + ".v1.")) modules = {module + ".v1", module + ".v2"};
      if (GetParam() == "gpt_oss_mxfp4") modules = {module + ".gate_up_proj"};
      for (const std::string& one : modules) {
        for (const bool said : {true, false}) {
          SCOPED_TRACE(file.string() + ": " + one + (said ? ", with" : ", without") + " a config");
          if (!said && (scheme.starts_with("affine") || one.ends_with("v2")))
            continue;  // of which tensors say too little
          const Quantization quantization = said ? Quantization(config_of(GetParam(), one.substr(one.find('.') + 1)),
                                                                "config.json: quantization_config")
                                                 : Quantization();
          if (shape.size() == 2) {
            const auto weight = io::quantized_weight(tensors, one, quantization);
            ASSERT_TRUE(weight) << "is not coded";
            ASSERT_EQ(weight->matrix.rows(), shape[0]);
            ASSERT_EQ(weight->matrix.cols(), shape[1]);
            EXPECT_EQ(differences(weight->matrix, [&](Index r, Index c) { return expected(r, c); }), 0);
            EXPECT_EQ(weight->dtype, recorded.find(name)->dtype);
          } else {
            const bool turned = GetParam() == "gpt_oss_mxfp4";
            const Index rows = shape[turned ? 2 : 1], cols = shape[turned ? 1 : 2];
            for (Index e = 0; e < shape[0]; ++e) {
              const auto weight = io::quantized_weight(tensors, one, quantization, io::OfExperts{e, shape[0]});
              ASSERT_TRUE(weight) << "is not coded";
              ASSERT_EQ(weight->matrix.rows(), rows);
              ASSERT_EQ(weight->matrix.cols(), cols);
              EXPECT_EQ(differences(weight->matrix,
                                    [&](Index r, Index c) {
                                      return turned ? expected(e, c * rows + r) : expected(e, r * cols + c);
                                    }),
                        0);
            }
          }
          ++schemes;
          numbers += std::size_t(expected.size());
        }
      }
    }
    EXPECT_GT(schemes, 0U) << file << ": nothing in it was decoded";
    std::cout << file.string() << ": " << schemes << " matrices, " << numbers << " numbers\n";
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, Family, testing::ValuesIn(families), [](const auto& one) { return one.param; });

}  // namespace
