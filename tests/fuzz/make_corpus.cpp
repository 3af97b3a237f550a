// What fuzzers begin with: the models and adapters below some folders, written down as folder.hpp reads them.
//   make_corpus CORPUS FOLDER…    writes CORPUS/layer/, CORPUS/adapters/, CORPUS/model/, CORPUS/gguf/ and
//                                 CORPUS/words.dict
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "moe/io/gguf.hpp"
#include "moe/io/gguf_architectures.hpp"
#include "moe/io/safetensors.hpp"

namespace {

namespace fs = std::filesystem;
using namespace moe;

std::string bytes_of(const fs::path& file) {
  std::ifstream in(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

std::string section(const std::string& name, const std::string& kind, const std::string& text) {
  return "@@ " + name + " " + kind + "\n" + text + "\n";
}

/// A line of folder.hpp's `tensors`.
std::string described(const io::Tensor& tensor) {
  std::string line = tensor.name + " " + tensor.dtype + " ";
  for (std::size_t i = 0; i < tensor.shape.size(); ++i) line += (i > 0 ? "," : "") + std::to_string(tensor.shape[i]);
  line += tensor.shape.empty() ? ", " : " ";
  for (std::size_t i = 0; i < std::min<std::size_t>(tensor.bytes.size(), 8); ++i) {
    constexpr const char* digits = "0123456789abcdef";
    const auto byte = std::to_integer<unsigned>(tensor.bytes[i]);
    line += {digits[byte / 16], digits[byte % 16]};
  }
  return line + "\n";
}

struct Corpus {
  fs::path folder;
  std::set<std::string> words = {"@@ ", " text", " tensors", " header", "F32", "BF16",    "F16",    "F64",
                                 "I64", "U8",    "I8",       "I32",     "U32", "F8_E4M3", "F8_E8M0"};

  void add(const std::string& target, const std::string& name, const std::string& text) {
    fs::create_directories(folder / target);
    std::ofstream(folder / target / name, std::ios::binary) << text;
  }

  void add_words(const nlohmann::json& json) {
    for (const auto& [key, value] : json.items()) {
      if (json.is_object()) words.insert(key);
      if (value.is_string()) words.insert(value.get<std::string>());
      if (value.is_structured()) add_words(value);
    }
  }

  void write_words() const {
    std::ofstream file(folder / "words.dict");
    for (const std::string& word : words) {
      const auto plain = [](char c) { return c >= ' ' && c <= '~' && c != '"' && c != '\\'; };
      if (!word.empty() && word.size() <= 40 && std::ranges::all_of(word, plain)) file << '"' << word << "\"\n";
    }
  }
};

/// Of a model in one file or in shards, those that hold numbers of blocks and not of tests.
void add_model(Corpus& corpus, const fs::path& model, const std::string& name) {
  const std::string config = bytes_of(model / "config.json");
  corpus.add_words(nlohmann::json::parse(config, nullptr, /*allow_exceptions=*/false));
  const bool is_case = fs::exists(model / "case.safetensors");  // of tests/golden
  const io::Tensors all = io::Tensors::open(is_case ? model / "case.safetensors" : model);
  std::string tensors, halves[2], index;
  for (const std::string& tensor : all.names()) {
    const std::string line = described(all.at(tensor));
    tensors += line;
    const bool second = halves[0].size() > halves[1].size();
    halves[second] += line;
    index +=
        (index.empty() ? "" : ", ") + nlohmann::json(tensor).dump() + ": \"" + (second ? "b" : "a") + ".safetensors\"";
  }
  const std::string first = section("config.json", "text", config);
  corpus.add("layer", name, first + section("model.safetensors", "tensors", tensors));
  corpus.add("model", name,
             first + section("a.safetensors", "tensors", halves[0]) + section("b.safetensors", "tensors", halves[1]) +
                 section("model.safetensors.index.json", "text", "{\"weight_map\": {" + index + "}}"));
}

/// A folder `adapter` with its `base` beside it, as tests of adapters have them.
void add_adapter(Corpus& corpus, const fs::path& adapter, const std::string& name) {
  const fs::path base = adapter.parent_path() / "base";
  if (!fs::exists(base / "config.json")) return;
  std::string tensors;
  const io::Tensors all = io::Tensors::open(adapter / "adapter_model.safetensors");
  for (const std::string& tensor : all.names()) tensors += described(all.at(tensor));
  const std::string config = bytes_of(adapter / "adapter_config.json");
  corpus.add_words(nlohmann::json::parse(config, nullptr, /*allow_exceptions=*/false));
  std::string of_base;
  const io::Tensors its = io::Tensors::open(base);
  for (const std::string& tensor : its.names()) of_base += described(its.at(tensor));
  corpus.add(
      "adapters", name,
      section("config.json", "text", bytes_of(base / "config.json")) + section("adapter_config.json", "text", config) +
          section("adapter_model.safetensors", "tensors", tensors) + section("model.safetensors", "tensors", of_base));
}

/// What comes before the tensors' bytes: the fuzzer brings those itself.
void add_gguf(Corpus& corpus, const fs::path& path, const std::string& name) {
  const io::GgufFile file = io::read_gguf(path);
  std::string header = bytes_of(path);
  std::size_t data = 0;
  for (const io::Tensor& tensor : file.tensors) {
    corpus.words.insert(tensor.name);
    data = (data + 31) / 32 * 32 + tensor.bytes.size();  // the alignment of all files of tests
  }
  header.resize(header.size() - std::min(header.size(), (data + 31) / 32 * 32));
  for (const io::GgufEntry& entry : file.metadata) corpus.words.insert(entry.key);
  for (const std::string& architecture : io::gguf_architectures()) corpus.words.insert(architecture);
  corpus.add("gguf", name, header);
}

/// The file format itself.
void add_safetensors(Corpus& corpus) {
  const std::string config =
      R"({"model_type": "mixtral", "hidden_size": 2, "intermediate_size": 1, "num_local_experts": 1, "num_experts_per_tok": 1})";
  std::string header = "{\"__metadata__\": {\"format\": \"pt\"}", data;
  const auto add = [&](const std::string& name, const std::string& shape, std::size_t size) {
    header += ", \"" + name + "\": {\"dtype\": \"F32\", \"shape\": " + shape + ", \"data_offsets\": [" +
              std::to_string(data.size()) + ", " + std::to_string(data.size() + size) + "]}";
    data += std::string(size, '=');
  };
  add("model.layers.0.block_sparse_moe.gate.weight", "[1, 2]", 8);
  add("model.layers.0.block_sparse_moe.experts.0.w1.weight", "[1, 2]", 8);
  add("model.layers.0.block_sparse_moe.experts.0.w2.weight", "[2, 1]", 8);
  add("model.layers.0.block_sparse_moe.experts.0.w3.weight", "[1, 2]", 8);
  header += "}";
  for (const char* const target : {"model", "layer"}) {
    corpus.add(target, "safetensors",
               section("config.json", "text", config) +
                   section("model.safetensors", "header", header + std::string(1, '\0') + data));
  }
}

/// One expert, coded in ways that no folder of tests has.
void add_small_codings(Corpus& corpus) {
  const std::string config =
      R"({"model_type": "qwen3_moe", "hidden_size": 32, "moe_intermediate_size": 32, "num_experts": 1, "num_experts_per_tok": 1, "quantization_config": )";
  const auto add = [&](const char* name, const std::string& said, const std::vector<std::string>& ends) {
    std::string tensors = "mlp.gate.weight F32 1,32 cdcc4c3d\n";
    for (const char* const module : {"gate_proj", "up_proj", "down_proj"}) {
      for (const std::string& end : ends) tensors += std::string("mlp.experts.0.") + module + '.' + end + '\n';
    }
    corpus.add("layer", name,
               section("config.json", "text", config + said + '}') + section("model.safetensors", "tensors", tensors));
  };
  add("gptq", R"({"quant_method": "gptq", "bits": 4, "group_size": 32})",
      {"qweight I32 4,32 12345678", "qzeros I32 1,4 77777777", "scales F16 1,32 cd2c", "g_idx I32 32 00000000"});
  add("awq", R"({"quant_method": "awq", "bits": 4, "group_size": 32})",
      {"qweight I32 32,4 12345678", "qzeros I32 1,4 77777777", "scales F16 1,32 cd2c"});
  add("mlx", R"({"bits": 4, "group_size": 32})",
      {"weight U32 32,4 12345678", "scales F16 32,1 cd2c", "biases F16 32,1 cdac"});
  add("mlx_mxfp4", R"({"bits": 4, "group_size": 32, "mode": "mxfp4"})",
      {"weight U32 32,4 12345678", "scales U8 32,1 7b"});
  add("torchao", R"({"quant_method": "torchao"})",
      {"_weight_qdata I8 32,32 0102fe", "_weight_scale F32 32,1 cdcc4c3d"});
  add("int8", R"({"quant_method": "bitsandbytes"})", {"weight I8 32,32 0102fe", "SCB F32 32 cdcc4c3d"});
}

/// One adapter an expert, and one of all of them.
void add_small_adapters(Corpus& corpus) {
  const std::string config =
      R"({"model_type": "mixtral", "hidden_size": 4, "intermediate_size": 3, "num_local_experts": 2, "num_experts_per_tok": 1})";
  const std::string layer = "base_model.model.model.layers.0.mlp.";
  const std::string apart = R"({"peft_type": "LORA", "r": 1, "lora_alpha": 2, "target_modules": ["gate_proj"]})";
  const std::string fused =
      R"({"peft_type": "LORA", "r": 1, "lora_alpha": 2, "target_parameters": ["mlp.experts.gate_up_proj"]})";
  const auto both = [&](const std::string& name, const std::string& a, const std::string& b) {
    return layer + name + ".lora_A.weight F32 " + a + " cdcc4c3d\n" + layer + name + ".lora_B.weight F32 " + b +
           " cdcc4c3d\n";
  };
  const auto add = [&](const char* name, const std::string& peft, const std::string& tensors) {
    corpus.add("adapters", name,
               section("config.json", "text", config) + section("adapter_config.json", "text", peft) +
                   section("adapter_model.safetensors", "tensors", tensors));
  };
  add("apart", apart,
      both("gate", "1,4", "2,1") + both("experts.0.gate_proj", "1,4", "3,1") +
          both("experts.1.down_proj", "2,3", "4,2"));
  add("fused", fused, both("experts", "2,4", "6,2"));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) return 2;
  Corpus corpus{argv[1]};
  for (int i = 2; i < argc; ++i) {
    for (const auto& entry : fs::recursive_directory_iterator(argv[i])) {
      const fs::path folder = entry.path();
      std::string name = fs::relative(folder, argv[i]).generic_string();
      std::ranges::replace(name, '/', '_');
      if (folder.extension() == ".gguf") add_gguf(corpus, folder, name);
      if (!entry.is_directory()) continue;
      try {
        if (fs::exists(folder / "config.json")) add_model(corpus, folder, name);
        if (fs::exists(folder / "adapter_config.json")) add_adapter(corpus, folder, name);
      } catch (const io::Error&) {  // not all folders of tests are whole models
      }
    }
  }
  add_safetensors(corpus);
  add_small_adapters(corpus);
  add_small_codings(corpus);
  corpus.write_words();
}
