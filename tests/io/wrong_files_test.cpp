/// @file  What is no checkpoint that we read is called by its name, and what to do is said.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <limits>
#include <map>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "errors.hpp"
#include "load_layer.hpp"
#include "moe/formats/ggml.hpp"
#include "moe/io/architectures.hpp"
#include "moe/io/gguf.hpp"
#include "moe/io/gguf_writer.hpp"
#include "temporary_folder.hpp"

namespace {

namespace fs = std::filesystem;
using namespace moe;
using namespace moe::io;
using nlohmann::json;

void write_text(const fs::path& path, const std::string& text) { std::ofstream(path, std::ios::binary) << text; }

std::string text_of(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

/// A folder with a small Qwen3-MoE block, to be spoilt.
class WrongFiles : public testing::Test {
 protected:
  WrongFiles() {
    fs::create_directories(model);
    fs::copy_file("tests/golden/qwen3_moe/config.json", model / "config.json");
    fs::copy_file("tests/golden/qwen3_moe/model.safetensors", model / "model.safetensors");
  }

  void change_config(const std::function<void(json&)>& change) {
    json config = json::parse(text_of(model / "config.json"));
    change(config);
    write_text(model / "config.json", config.dump());
  }

  /// Writes the weights anew, each as changed(it) or not at all.
  void change_tensors(const std::function<bool(Tensor&)>& change) {
    const Tensors all = Tensors::open(model / "model.safetensors");
    std::vector<Tensor> tensors;
    for (const std::string& name : all.names()) {
      Tensor tensor = all.at(name);
      if (change(tensor)) tensors.push_back(tensor);
    }
    write_safetensors(model / "model.safetensors", tensors);
  }

  std::string error_of_loading(const fs::path& folder, const std::string& prefix = "") const {
    return test::error_of<Error>([&] { load_layer(folder, prefix); });
  }
  std::string error_of_loading() const { return error_of_loading(model); }

  /// That loading says these parts, one after the other.
  void expect_error(const std::vector<std::string>& parts) const { expect_parts(error_of_loading(), parts); }
  static void expect_parts(const std::string& message, const std::vector<std::string>& parts) {
    std::size_t at = 0;
    for (const std::string& part : parts) {
      at = message.find(part, at);
      ASSERT_NE(at, std::string::npos) << "\"" << part << "\" is not in\n" << message;
      at += part.size();
    }
  }

  const test::TemporaryFolder temporary{"wrong_files"};
  const fs::path model = temporary.path / "model";
};

const std::string lfs_pointer =
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 137868\n";
const std::string gguf("GGUF\3\0\0\0\1\0\0\0\0\0\0\0", 16);

TEST_F(WrongFiles, AreNotThoseThatLoad) { EXPECT_EQ(error_of_loading(), "no error"); }

TEST_F(WrongFiles, AGitLfsPointer) {
  const std::string told = ": is a Git LFS pointer, which stands for the file: run `git lfs pull` in its folder";
  write_text(model / "model.safetensors", lfs_pointer);
  expect_error({"model.safetensors" + told});
  write_text(model / "config.json", lfs_pointer);
  expect_error({"config.json" + told});
}

TEST_F(WrongFiles, AnHtmlPage) {
  const std::string told = ": is an HTML page, which a server sent in place of the file";
  for (const char* const page : {"<!DOCTYPE html>\n<html><body>Log in</body></html>", "\n <HTML lang=\"en\"><p>404"}) {
    write_text(model / "model.safetensors", page);
    expect_error({"model.safetensors" + told});
  }
  write_text(model / "config.json", "<!doctype html>");
  expect_error({"config.json" + told});
}

TEST_F(WrongFiles, AGgufFile) {
  write_text(model / "model.safetensors", gguf);  // renamed
  expect_error({"model.safetensors: is a GGUF file: give it a name that ends with .gguf, and open it by that"});
  const std::string in_folder = ": open the file itself, ";
  write_text(temporary.path / "model.gguf", gguf);
  expect_parts(error_of_loading(temporary.path), {"config.json: no such file" + in_folder, "model.gguf"});
  fs::rename(temporary.path / "model.gguf", model / "model.gguf");
  fs::remove(model / "model.safetensors");
  expect_error({"no *.safetensors file in this folder" + in_folder, "model.gguf"});
}

TEST_F(WrongFiles, AFileOfPyTorch) {
  write_text(model / "model.safetensors", "PK\3\4 and so on");
  expect_error({"model.safetensors: is a zip archive, as PyTorch's *.bin"});
  fs::rename(model / "model.safetensors", model / "pytorch_model.bin");
  expect_error({"no *.safetensors file in this folder: pytorch_model.bin is in PyTorch's format"});
}

TEST_F(WrongFiles, ADownloadThatIsNotFinished) {
  const std::string whole = text_of(model / "model.safetensors");
  for (const std::size_t size :
       {std::size_t(0), std::size_t(5), std::size_t(100), whole.size() / 2, whole.size() - 1}) {
    write_text(model / "model.safetensors", whole.substr(0, size));
    expect_error({"model.safetensors", "the file ends early, as an unfinished download does: fetch it again"});
  }
}

TEST_F(WrongFiles, AFileInPlaceOfItsFolder) {
  expect_parts(error_of_loading(model / "model.safetensors"),
               {"model.safetensors: is a file, expected the folder that it is in, with config.json: ", model.string()});
  expect_parts(error_of_loading(temporary.path / "nowhere"),
               {"nowhere/config.json: no such file: expected a model's folder, with config.json beside"});
}

TEST_F(WrongFiles, TheTopOfAHubCache) {
  const fs::path top = temporary.path / "models--Me--Tiny", revision = top / "snapshots" / "0a1b2c";
  fs::create_directories(top / "snapshots");
  fs::rename(model, revision);
  expect_parts(error_of_loading(top), {"models--Me--Tiny: is the top of a model in a hub cache, expected the folder of "
                                       "one revision: " +
                                       revision.string()});
  fs::create_directories(top / "snapshots" / "000000");  // an older one; refs/main says which is the newest
  fs::create_directories(top / "refs");
  write_text(top / "refs" / "main", "0a1b2c");
  expect_parts(error_of_loading(top), {"one revision: " + revision.string()});
  EXPECT_EQ(error_of_loading(revision), "no error");
}

TEST_F(WrongFiles, ADenseModel) {
  for (const char* const type : {"llama", "qwen3", "mistral"}) {
    write_text(model / "config.json",
               json{{"model_type", type}, {"hidden_size", 22}, {"intermediate_size", 18}}.dump());
    expect_error({"config.json: model_type is \"" + std::string(type) +
                  "\" and no key speaks of experts: this is a dense model, without MoE layers to load"});
  }
}

TEST_F(WrongFiles, AModelTypeThatIsMisspelt) {
  for (const char* const type : {"qwen3_mo", "Qwen3_moe", "qwen3-moe"}) {
    change_config([&](json& config) { config["model_type"] = type; });
    expect_error(
        {"model_type is \"" + std::string(type) + "\" (did you mean \"qwen3_moe\"?), expected one of qwen3_moe, "});
  }
  change_config([](json& config) { config["model_type"] = "something_else_entirely"; });
  EXPECT_EQ(error_of_loading().find("did you mean"), std::string::npos);
}

TEST_F(WrongFiles, AnOptionalSettingThatIsMisspelt) {
  for (const char* const key : {"norm_topk_probs", "norm_top_k_prob", "norm_topk_pro"}) {
    change_config([&](json& config) {
      config.erase("norm_topk_prob");
      config[key] = true;
    });
    expect_error({"config.json: has \"" + std::string(key) +
                  "\", which nothing reads, and no \"norm_topk_prob\": is that meant?"});
    change_config([&](json& config) { config.erase(key); });
    EXPECT_EQ(error_of_loading(), "no error");  // absent it may be
  }
}

TEST_F(WrongFiles, ADenseLayerOfAMixedModel) {
  change_tensors([](Tensor& tensor) {
    const bool dense = tensor.name == "experts.0.gate_proj.weight";
    tensor.name = (dense ? "model.layers.0.mlp.gate_proj.weight" : "model.layers.1.mlp." + tensor.name);
    return true;
  });
  expect_parts(error_of_loading(model, "model.layers.0.mlp"),
               {"no MoE block \"model.layers.0.mlp\" among ",
                ": this one is a dense layer, without experts; did you mean "
                "\"model.layers.1.mlp\"?"});
  for (const char* const other : {"model.layers.2.mlp", "model.layers.1", "model.layers.0.gate_proj"}) {
    EXPECT_EQ(error_of_loading(model, other).find("dense"), std::string::npos) << other;
  }
}

/// What formats of few bits ask of their tensors is tested with these (tests/formats).
TEST_F(WrongFiles, CodesWithoutScales) {
  for (const char* const dtype : {"F8_E4M3", "U8", "I8"}) {
    SCOPED_TRACE(dtype);
    const std::string good = text_of(model / "model.safetensors");
    change_tensors([&](Tensor& tensor) {
      if (!tensor.name.ends_with("proj.weight")) return true;
      tensor.dtype = dtype;
      tensor.bytes = tensor.bytes.first(tensor.bytes.size() / 4);
      return true;
    });
    expect_error({"experts.0.down_proj", "scale"});
    write_text(model / "model.safetensors", good);
  }
  change_tensors([](Tensor& tensor) {
    if (const auto at = tensor.name.find("_proj.weight"); at != std::string::npos) tensor.name.insert(at + 6, "q");
    return true;
  });
  expect_error({"\"experts.0.down_proj.qzeros\"", "experts.0.down_proj.qweight"});
}

TEST_F(WrongFiles, FloatsWhereAConfigPromisesCodes) {
  change_config([](json& config) { config["quantization_config"] = {{"quant_method", "fp8"}}; });
  expect_error({"tensor \"experts.0.down_proj.weight\" has dtype F32", "quantization_config", "FP8 E4M3"});
}

/// That is no wrong file: the matrix is converted.
TEST_F(WrongFiles, OneMatrixOfAnotherTypeLoads) {
  change_tensors([](Tensor& tensor) {
    if (tensor.name != "experts.7.up_proj.weight") return true;
    tensor.dtype = "BF16";
    tensor.bytes = tensor.bytes.first(tensor.bytes.size() / 2);
    return true;
  });
  EXPECT_EQ(error_of_loading(), "no error");
  EXPECT_EQ(load_layer(model, "").dtype, "mixed");
}

/// Every model of tests/golden, every tensor that chooses experts, or weighs or shifts their answers.
TEST_F(WrongFiles, ARouterOrAScaleThatIsNotFinite) {
  int models = 0, spoilt = 0;
  for (const auto& entry : fs::directory_iterator("tests/golden")) {
    if (!fs::exists(entry.path() / "model.safetensors") || error_of_loading(entry.path()) != "no error") continue;
    ++models;
    fs::copy_file(entry.path() / "config.json", model / "config.json", fs::copy_options::overwrite_existing);
    fs::copy_file(entry.path() / "model.safetensors", model / "model.safetensors",
                  fs::copy_options::overwrite_existing);
    const std::string good = text_of(model / "model.safetensors");
    const Architecture& names = architecture_of(Config::open(model / "config.json"));
    const Tensors its_tensors = Tensors::open(entry.path());
    for (const std::string_view any_of :
         {names.router, names.router_bias, names.selection_bias, names.shared_gate, names.output_bias}) {
      const std::string name = io::WeightTensors(its_tensors, "", 1).full_name(any_of);
      if (!its_tensors.contains(name)) continue;
      for (const float bad : {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
        SCOPED_TRACE(entry.path().string() + ", " + name);
        write_text(model / "model.safetensors", good);
        std::vector<float> numbers;
        change_tensors([&](Tensor& tensor) {
          if (tensor.name != name) return true;
          const Weight<float> whole = read<float>(tensor);
          numbers.assign(whole.data(), whole.data() + whole.size());
          numbers.back() = bad;
          tensor.dtype = "F32";
          tensor.bytes = std::as_bytes(std::span(numbers));
          return true;
        });
        ASSERT_FALSE(numbers.empty());
        const std::string last = std::to_string(numbers.size() - 1), count = std::to_string(numbers.size());
        expect_error({"model.safetensors: tensor \"" + name + "\" holds ", std::isnan(bad) ? "nan" : "-inf",
                      " at " + last + " of " + count + ", expected finite numbers"});
        ++spoilt;
      }
    }
  }
  EXPECT_GE(models, 25);
  EXPECT_GE(spoilt, 2 * 36);
}

/// Of any expert, in the last block of its last row; a scale of 0 is a block of zeros.
TEST_F(WrongFiles, AScaleOfGgufThatIsNotFinite) {
  const std::map<std::string, std::vector<std::size_t>> scales = {
      {"Q8_0", {0}}, {"Q4_K", {0, 2}}, {"Q6_K", {208}}, {"Q5_1", {0, 2}}, {"Q4_0", {0}}};
  std::set<std::string> spoilt;
  for (const char* const name : {"gguf_qwen3moe_q8_0", "gguf_qwen3moe_k_q4_k", "gguf_deepseek2_q4_0"}) {
    const GgufFile good = read_gguf(fs::path("tests/real_quant/folders") / name / "model.gguf");
    const fs::path path = temporary.path / "spoilt.gguf";
    for (std::size_t i = 0; i < good.tensors.size(); ++i) {
      const Tensor& whole = good.tensors[i];
      if (!whole.name.ends_with("exps.weight") && !whole.name.ends_with("shexp.weight")) continue;
      ASSERT_TRUE(scales.contains(whole.dtype)) << whole.dtype;
      for (const std::size_t at : scales.at(whole.dtype)) {
        for (const auto bits : {std::uint16_t(0x7e00), std::uint16_t(0xfc00), std::uint16_t(0)}) {
          SCOPED_TRACE(std::string(name) + ", " + to_string(whole) + ", " + std::to_string(bits));
          GgufFile file = good;
          std::vector<std::byte> bytes(whole.bytes.begin(), whole.bytes.end());
          const GgmlType& type = *find_ggml_type(whole.dtype);
          std::memcpy(bytes.data() + bytes.size() - std::size_t(type.bytes) + at, &bits, sizeof bits);
          file.tensors[i].bytes = bytes;
          write_gguf(path, file.metadata, file.tensors);
          const std::string error = error_of_loading(path, "blk.0"), is = bits == 0x7e00 ? "NaN" : "an infinite number";
          const std::string last = std::to_string(whole.shape.back() / type.numbers - 1);
          if (bits == 0) {
            EXPECT_EQ(error, "no error");
          } else {
            const bool of_all = whole.name.ends_with("exps.weight");
            const std::string expert = of_all ? "of expert " + std::to_string(whole.shape[0] - 1) : "of the matrix";
            expect_parts(error, {"spoilt.gguf: tensor \"" + whole.name + "\"", is, expert + ", block " + last});
          }
          spoilt.insert(whole.dtype);
        }
      }
    }
  }
  EXPECT_EQ(spoilt.size(), scales.size());
}

TEST_F(WrongFiles, HalfOfTheExperts) {
  int there = 0, left_out = 0;
  change_tensors([&](const Tensor& tensor) {
    const bool is_up = tensor.name.find("experts.") != tensor.name.npos && tensor.name.ends_with("up_proj.weight");
    if (!is_up || tensor.name.find("experts.1") == tensor.name.npos) return there += is_up, true;
    return ++left_out, false;
  });
  ASSERT_GT(left_out, 0);
  expect_error({"model.safetensors: no tensor \"experts.1.up_proj.weight\"",
                std::to_string(there) + " of " + std::to_string(there + left_out) +
                    " experts have a \"experts.#.up_proj.weight\""});
}

/// Of every model of tests/real; of experts, the first one's. Left are what no class uses, and a scale that tells later
/// layers from the first.
TEST_F(WrongFiles, AnyOneTensorOfABlockThatIsLeftOut) {
  const std::set<std::string> needless = {"router.classifier.bias", "gate.router_states_scale"};
  int left_out = 0;
  for (const auto& entry : fs::directory_iterator("tests/real")) {
    const fs::path from = entry.path();
    if (!fs::exists(from / "model.safetensors") || from.filename() == "doge") continue;
    const Tensors all = Tensors::open(from / "model.safetensors");
    const Model whole(from);
    const std::string block = whole.moe_blocks().at(0), prefix = block.empty() ? "" : block + ".";
    const auto scopes = io::detail::alternatives(whole.architecture(block).scope);
    fs::copy_file(from / "config.json", model / "config.json", fs::copy_options::overwrite_existing);
    std::set<std::string> kinds;
    for (const std::string& name : all.names()) {
      if (!name.starts_with(prefix) || all.at(name).bytes.empty()) continue;
      const std::string its = name.substr(prefix.size());
      if (std::ranges::none_of(scopes, [&](std::string_view with) { return its.starts_with(with); })) continue;
      if (needless.contains(its) || (from.filename() == "qwen2_moe_no_shared" && its == "shared_expert_gate.weight"))
        continue;
      std::string kind = its;
      kind.erase(std::remove_if(kind.begin(), kind.end(), [](char c) { return c >= '0' && c <= '9'; }), kind.end());
      if (its.find("experts.") != its.npos && !kinds.insert(kind).second) continue;
      std::vector<Tensor> kept;
      for (const std::string& other : all.names()) {
        if (other != name) kept.push_back(all.at(other));
      }
      write_safetensors(model / "model.safetensors", kept);
      EXPECT_NE(error_of_loading(model, block), "no error") << from << " without " << name;
      ++left_out;
    }
  }
  EXPECT_GE(left_out, 1000);
}

/// A folder that holds blocks alone may be part of a model; one with the embedding is all of it.
TEST_F(WrongFiles, AConfigThatPromisesMoreLayersThanThereAre) {
  const Tensors block = Tensors::open(model / "model.safetensors");
  const auto write = [&](const std::vector<int>& layers, bool whole) {
    std::vector<Tensor> tensors;
    for (const int layer : layers) {
      for (const std::string& name : block.names()) {
        tensors.push_back(block.at(name));
        tensors.back().name = "model.layers." + std::to_string(layer) + ".mlp." + name;
      }
    }
    const std::vector<float> numbers(4);
    if (whole) tensors.push_back(make_tensor("model.embed_tokens.weight", {2, 2}, std::span(numbers)));
    write_safetensors(model / "model.safetensors", tensors);
  };
  const auto promise = [&](int layers) { change_config([&](json& config) { config["num_hidden_layers"] = layers; }); };
  const auto error = [&] { return error_of_loading(model, "model.layers.0.mlp"); };
  promise(5);
  write({0, 1}, true);
  expect_parts(error(), {"config.json: num_hidden_layers is 5, and no tensor is called \"model.layers.2.*\"",
                         "2 layers are there"});
  write({0, 2, 3, 4}, true);
  expect_parts(error(), {"num_hidden_layers is 5, and no tensor is called \"model.layers.1.*\"", "4 layers are there"});
  write({0, 1}, false);
  EXPECT_EQ(error(), "no error");
  write({0, 1, 2, 3, 4, 5}, true);  // one of a draft head
  EXPECT_EQ(error(), "no error");
  promise(2000000000);
  expect_parts(error(), {"num_hidden_layers is 2000000000, and no tensor is called \"model.layers.6.*\""});
}

TEST_F(WrongFiles, AConfigThatPromisesCodesOfAllExperts) {
  change_config([](json& config) {
    config = json::parse(text_of("tests/golden/gpt_oss/config.json"));
    config["quantization_config"] = {{"quant_method", "mxfp4"},
                                     {"modules_to_not_convert", {"model.layers.*.mlp.router"}}};
  });
  fs::copy_file("tests/golden/gpt_oss/model.safetensors", model / "model.safetensors",
                fs::copy_options::overwrite_existing);
  expect_error({"tensor \"experts.down_proj\" has dtype F32", "quantization_config says that it is MXFP4"});
  change_config([](json& config) { config["quantization_config"] = "mxfp4"; });
  expect_error({"config.json: quantization_config is string, expected an object"});
  change_config([](json& config) { config["quantization_config"] = nullptr; });
  EXPECT_EQ(error_of_loading(), "no error");
}

/// Of experts, and of the router, which is coded in some files.
TEST_F(WrongFiles, AScaleBesidePlainWeights) {
  for (const char* const whose : {"gate", "experts.1.up_proj"}) {
    const std::string good = text_of(model / "model.safetensors");
    const std::vector<float> one = {1};
    const Tensors all = Tensors::open(model / "model.safetensors");
    std::vector<Tensor> tensors = {make_tensor(std::string(whose) + ".weight_scale", {1}, one)};
    for (const std::string& name : all.names()) tensors.push_back(all.at(name));
    write_safetensors(model / "model.safetensors", tensors);
    expect_error({"tensor \"" + std::string(whose) + ".weight\" has dtype F32, which needs no scale", "F32 [1]"});
    write_text(model / "model.safetensors", good);
  }
}

}  // namespace
