/// @file  Packed banks in files: what comes back, and what is refused.
#include "moe/io/packed_bank.hpp"

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "errors.hpp"
#include "moe/experts/activation.hpp"
#include "moe/experts/ffn_bank.hpp"
#include "moe/formats/ggml.hpp"
#include "moe/surgery/pack.hpp"
#include "quantized_blocks.hpp"
#include "random.hpp"
#include "temporary_folder.hpp"

namespace moe::test {
namespace {

using io::Metadata, io::map_packed, io::save_packed, io::Tensor;

WeightStack<Quantized> random_blocks(const char* type, Index num_experts, Index rows, Index cols, unsigned seed) {
  std::vector<QuantizedMatrix> matrices;
  auto memory = std::make_shared<std::vector<RandomBlocks>>();
  for (Index e = 0; e < num_experts; ++e) {
    memory->emplace_back(*find_ggml_type(type), rows, cols, seed + unsigned(e));
    matrices.push_back(memory->back().matrix);
    matrices.back().factor = float(e + 1);
  }
  return WeightStack<Quantized>(std::move(matrices), memory);
}

/// Gate and up of one type, down of another, biases of odd sizes.
FfnBank<Quantized> some_bank() {
  constexpr Index d_model = 96, d_ff = 33 * 32;
  const auto bias = [](Index rows) { return random_matrix<Matrix<float>>(rows, 3, 9); };
  return packed(FfnBank<Quantized>(
      random_blocks("Q4_0", 3, d_ff, d_model, 1), random_blocks("MXFP4", 3, d_ff, d_model, 11),
      random_blocks("Q8_0", 3, d_model, d_ff, 21), SwiGlu(), {bias(d_ff), bias(d_ff), bias(d_model)}));
}

void expect_same(const WeightStack<Quantized>& a, const WeightStack<Quantized>& b) {
  ASSERT_EQ(a.num_experts(), b.num_experts());
  for (Index e = 0; e < a.num_experts(); ++e) {
    EXPECT_EQ(&a[e].format(), &b[e].format());
    EXPECT_EQ(dequantized(a[e]), dequantized(b[e]));
  }
}

TEST(PackedBankFile, GivesBackTheBank) {
  const TemporaryFolder folder("packed_bank");
  const auto path = folder.path / "bank.safetensors";
  const auto bank = some_bank();
  save_packed(path, bank);
  save_packed(path, bank);  // in its place
  const auto its = map_packed(path);
  expect_same(its.w_gate(), bank.w_gate());
  expect_same(its.w_up(), bank.w_up());
  expect_same(its.w_down(), bank.w_down());
  EXPECT_EQ(its.biases().gate, bank.biases().gate);
  EXPECT_EQ(its.biases().up, bank.biases().up);
  EXPECT_EQ(its.biases().down, bank.biases().down);
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder.path), {}), 1);  // nothing else is left
  for (Index e = 0; e < 3; ++e) {
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(its.w_gate()[e].codes.data) % 64, 0U);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(its.w_down()[e].codes.data) % 64, 0U);
  }
  save_packed(path, its);  // over the file that is mapped
  expect_same(map_packed(path).w_down(), its.w_down());
}

TEST(PackedBankFile, OfExpertsWithoutGate) {
  const TemporaryFolder folder("packed_plain_bank");
  const auto path = folder.path / "bank.safetensors";
  const FfnBank<Quantized, ReluSquared> bank = packed(
      FfnBank<Quantized, ReluSquared>(random_blocks("Q4_K", 2, 512, 256, 1), random_blocks("Q6_K", 2, 256, 512, 7)));
  save_packed(path, bank);
  const auto its = map_packed<ReluSquared>(path);
  expect_same(its.w_up(), bank.w_up());
  expect_same(its.w_down(), bank.w_down());
  EXPECT_EQ(its.biases().up.size(), 0);
  EXPECT_EQ(error_of<io::Error>([&] { map_packed(path); }),
            path.string() + ": experts have no gate, expected one, for the activation takes two");
}

/// The message where a file has other metadata or tensors.
template <class F>
std::string error_with(const F& change) {
  const TemporaryFolder folder("changed_packed_bank");
  const auto path = folder.path / "bank.safetensors";
  save_packed(path, some_bank());
  io::TensorFile file = io::read_safetensors(path);
  change(file.metadata, file.tensors);
  io::write_safetensors(path, file.tensors, file.metadata);
  std::string error = error_of<io::Error>([&] { map_packed(path); });
  if (error.starts_with(path.string())) error.erase(0, path.string().size());
  return error;
}

TEST(PackedBankFile, RefusesByNameWhatDoesNotFit) {
  const auto with = [](const std::string& key, const std::string& value) {
    return error_with([&](Metadata& metadata, auto&) { metadata[key] = value; });
  };
  EXPECT_EQ(with("format", "pt"), ": format is \"pt\", expected \"moe packed bank\"");
  EXPECT_EQ(with("version", "2"), ": version is \"2\", expected \"1\"");
  EXPECT_EQ(with("d_ff", "-3"), ": d_ff is \"-3\", expected a whole number from 1 to 1073741824");
  EXPECT_EQ(with("num_experts", "100000"), ": num_experts is \"100000\", expected a whole number from 1 to 22");
  EXPECT_EQ(with("num_experts", "4"), ": metadata have no \"format.experts.3.gate_proj\", as a packed bank has");
  EXPECT_EQ(with("format.experts.1.up_proj", "Q9_9 packed"),
            ": format.experts.1.up_proj is \"Q9_9 packed\", which is no packed format");
  EXPECT_EQ(with("d_model", "95"),
            ": format.experts.0.gate_proj is Q4_0 packed with rows of 95 numbers, expected a multiple of 32");
  EXPECT_NE(with("d_model", "128").find("codes.experts.0.gate_proj\" has shape [66, 768], expected [66, 1024]"),
            std::string::npos);
  EXPECT_EQ(error_with([](Metadata& metadata, auto&) { metadata.erase("d_model"); }),
            ": metadata have no \"d_model\", as a packed bank has");
  EXPECT_NE(error_with([](Metadata&, auto& tensors) {
              std::erase_if(tensors, [](const Tensor& t) { return t.name == "scales.experts.2.down_proj"; });
            }).find("no tensor \"scales.experts.2.down_proj\""),
            std::string::npos);
  EXPECT_EQ(with("num_experts", "2"), ": tensor \"codes.experts.2.down_proj\" is none of a packed bank of 2 experts");
  EXPECT_EQ(error_with([](Metadata&, auto& tensors) {
              for (Tensor& t : tensors) t.name = t.name == "bias.up_proj" ? "bias.up" : t.name;
            }),
            ": tensor \"bias.up\" is none of a packed bank of 3 experts");
  EXPECT_NE(error_with([](Metadata&, auto& tensors) {
              for (Tensor& t : tensors) t.dtype = t.name == "codes.experts.0.up_proj" ? "I8" : t.dtype;
            }).find("is I8, expected U8"),
            std::string::npos);
}

TEST(PackedBankFile, RefusesWhatIsNotFinite) {
  const auto with_bits = [](const char* name, std::size_t at, std::uint32_t bits, std::size_t size) {
    return error_with([&](Metadata&, auto& tensors) {
      for (Tensor& t : tensors) {
        if (t.name != name) continue;
        const auto bytes = std::make_shared<std::vector<std::byte>>(t.bytes.begin(), t.bytes.end());
        std::memcpy(bytes->data() + at, &bits, size);
        t.bytes = *bytes;
        t.owner = bytes;
      }
    });
  };
  const std::string damaged = " holds a number that is not finite: the file is damaged";
  EXPECT_EQ(with_bits("factors", 4, 0x7fc00000, 4), ": tensor \"factors\"" + damaged);
  EXPECT_EQ(with_bits("bias.down_proj", 0, 0x7f800000, 4), ": tensor \"bias.down_proj\"" + damaged);
  for (const std::uint32_t half : {0x7c00U, 0xfc00U, 0x7e01U}) {
    EXPECT_NE(with_bits("scales.experts.1.down_proj", 34, half, 2).find("not finite at byte 34"), std::string::npos);
  }
  EXPECT_EQ(with_bits("scales.experts.1.down_proj", 34, 0x7bff, 2), "no error");  // the largest

  const TemporaryFolder folder("infinite_packed_bank");
  auto stack = random_blocks("Q4_0", 1, 32, 32, 1);
  const Matrix<float> bias = Matrix<float>::Constant(32, 1, std::nanf(""));
  EXPECT_EQ(error_of<io::Error>([&] {
              save_packed(folder.path / "a.safetensors",
                          packed(FfnBank<Quantized>(stack, stack, stack, SwiGlu(), {bias, bias, bias})));
            }),
            "save_packed: a bias of gate_proj is not finite");
  const auto bank = packed(FfnBank<Quantized>(stack, stack, stack));
  QuantizedMatrix endless = bank.w_up()[0];
  endless.factor = std::numeric_limits<float>::infinity();
  EXPECT_EQ(error_of<io::Error>([&] {
              save_packed(folder.path / "a.safetensors",
                          FfnBank<Quantized>(bank.w_gate(), WeightStack<Quantized>({endless}), bank.w_down()));
            }),
            "save_packed: a scale of up_proj of expert 0 is not finite");
  EXPECT_TRUE(std::filesystem::is_empty(folder.path));
}

TEST(PackedBankFile, OutlivesTheFilesThatItWasOpenedWith) {
  const TemporaryFolder folder("packed_bank_in_shards");
  const auto bank = some_bank();
  save_packed(folder.path / "whole", bank);
  const io::TensorFile whole = io::read_safetensors(folder.path / "whole");
  std::filesystem::remove(folder.path / "whole");
  std::vector<Tensor> shards[2];
  std::string index;
  const auto shard = [](bool of_scales) { return std::string(of_scales ? "scales" : "others") + ".safetensors"; };
  for (const Tensor& t : whole.tensors) {
    const bool of_scales = t.name.starts_with("scales.");
    shards[of_scales].push_back(t);
    index += (index.empty() ? "" : ", ") + ('"' + t.name + "\": \"" + shard(of_scales) + '"');
  }
  for (const bool of_scales : {false, true}) {
    io::write_safetensors(folder.path / shard(of_scales), shards[of_scales], whole.metadata);
  }
  std::ofstream(folder.path / "model.safetensors.index.json") << "{\"weight_map\": {" << index << "}}";
  expect_same(map_packed(folder.path).w_down(), bank.w_down());
}

TEST(PackedBankFile, RefusesAFileThatIsCutShort) {
  const TemporaryFolder folder("short_packed_bank");
  const auto path = folder.path / "bank.safetensors";
  save_packed(path, some_bank());
  std::filesystem::resize_file(path, std::filesystem::file_size(path) - 1);
  EXPECT_NE(error_of<io::Error>([&] { map_packed(path); }), "no error");
}

TEST(PackedBankFile, IsOfPackedBanksAlone) {
  const TemporaryFolder folder("unpacked_bank");
  const FfnBank<Quantized> bank(random_blocks("Q4_0", 1, 32, 32, 1), random_blocks("Q4_0", 1, 32, 32, 2),
                                random_blocks("Q4_0", 1, 32, 32, 3));
  EXPECT_EQ(error_of<io::Error>([&] { save_packed(folder.path / "bank.safetensors", bank); }),
            "save_packed: format.experts.0.gate_proj is Q4_0, expected a packed format: packed(bank)");
  EXPECT_TRUE(std::filesystem::is_empty(folder.path));
}

}  // namespace
}  // namespace moe::test
