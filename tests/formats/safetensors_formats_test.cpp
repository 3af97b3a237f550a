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
#include "recorded_schemes.hpp"
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
          const Quantization quantization =
              said ? Quantization(test::config_of(GetParam(), one.substr(one.find('.') + 1)),
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
