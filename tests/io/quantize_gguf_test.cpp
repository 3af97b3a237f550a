/// @file  GGUF files whose experts are quantised: their bytes, what their layers answer, and what is refused.
#include <moe/io/quantize_gguf.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "errors.hpp"
#include "load_layer.hpp"
#include "moe/experts/gated_ffn_bank.hpp"
#include "moe/io/coded_tensor.hpp"
#include "moe/io/compare_models.hpp"
#include "moe/io/importance_matrix.hpp"
#include "moe/io/safetensors.hpp"
#include "moe/layers/moe_layer.hpp"
#include "moe/models/random.hpp"
#include "moe/routers/linear_top_k.hpp"
#include "moe/runtime/executors/openmp.hpp"
#include "moe/surgery/quantize.hpp"
#include "temporary_folder.hpp"
#include "two_towers.hpp"

namespace {

namespace fs = std::filesystem;
using namespace moe;
using io::Model, io::Tensor, io::Tensors, io::quantize_gguf;
using test::TemporaryFolder;

/// A qwen2_moe (with a gated shared expert) or qwen3_moe of random numbers.
struct SmallModel {
  std::string type = "qwen3_moe";
  Index d = 256, ff = 256, num_experts = 3, num_layers = 1;
  float first_number = 0.5F;  // of the first expert's gate
  Index first_at = 0;         // in its row 0
  std::string stray = {};     // one more tensor, of three numbers
  Index said_ff = ff;         // by config.json

  std::string block(Index layer) const { return "model.layers." + std::to_string(layer) + ".mlp"; }

  /// Of all tensors, by their names without ".weight".
  std::vector<std::pair<std::string, Weight<float>>> numbers() const {
    std::vector<std::pair<std::string, Weight<float>>> all;
    const auto add = [&](const std::string& name, Index rows, Index cols) {
      all.emplace_back(name, random_weight<float>(rows, cols, /*seed=*/all.size() + 1));
    };
    for (Index layer = 0; layer < num_layers; ++layer) {
      for (Index e = 0; e < num_experts; ++e) {
        const std::string expert = block(layer) + ".experts." + std::to_string(e) + ".";
        add(expert + "gate_proj", ff, d);
        add(expert + "up_proj", ff, d);
        add(expert + "down_proj", d, ff);
      }
      add(block(layer) + ".gate", num_experts, d);
      if (type != "qwen2_moe") continue;
      add(block(layer) + ".shared_expert.gate_proj", ff, d);
      add(block(layer) + ".shared_expert.up_proj", ff, d);
      add(block(layer) + ".shared_expert.down_proj", d, ff);
      add(block(layer) + ".shared_expert_gate", 1, d);
    }
    if (!stray.empty()) add(block(0) + stray, 1, 3);
    all.front().second(0, first_at) = first_number;
    return all;
  }

  void write(const fs::path& folder) const {
    fs::create_directories(folder);
    nlohmann::json config = {
        {"model_type", type},         {"hidden_size", d},         {"moe_intermediate_size", said_ff},
        {"num_experts", num_experts}, {"num_experts_per_tok", 2}, {"norm_topk_prob", type == "qwen3_moe"},
        {"hidden_act", "silu"},       {"rms_norm_eps", 1e-6}};
    if (type == "qwen2_moe") config["shared_expert_intermediate_size"] = ff;
    std::ofstream(folder / "config.json") << config.dump(2);
    const auto all = numbers();
    std::vector<Tensor> tensors;
    for (const auto& [name, w] : all) {
      tensors.push_back({.name = name + ".weight",
                         .dtype = "F32",
                         .shape = {w.rows(), w.cols()},
                         .bytes = std::as_bytes(std::span(w.data(), std::size_t(w.size())))});
    }
    io::write_safetensors(folder / "model.safetensors", tensors);
  }
};

std::vector<std::byte> bytes_in(const fs::path& file) {
  std::ifstream stream(file, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(stream), {}};
  const auto* const first = reinterpret_cast<const std::byte*>(text.data());
  return {first, first + text.size()};
}

template <class W>
void write_as(const float* x, Index count, std::byte* to, const float*) {
  for (Index i = 0; i < count; ++i) {
    const W number(x[i]);
    std::memcpy(to + i * Index(sizeof number), &number, sizeof number);
  }
}

struct Type {
  const char* name;
  Index numbers, bytes;
  void (*encode)(const float*, Index, std::byte*, const float*);
};
template <class T>
constexpr Type type_of(const char* name) {
  return {name, Encoder<T>::numbers, Encoder<T>::bytes, encode<T>};
}
constexpr Type all_types[] = {type_of<Q8_0>("q8_0"),
                              type_of<Q4_0>("q4_0"),
                              type_of<Q4_1>("q4_1"),
                              type_of<Q5_0>("q5_0"),
                              type_of<Q5_1>("q5_1"),
                              type_of<Q2_K>("q2_k"),
                              type_of<Q3_K>("q3_k"),
                              type_of<Q4_K>("q4_k"),
                              type_of<Q5_K>("q5_k"),
                              type_of<Q6_K>("q6_k"),
                              type_of<IQ4_NL>("iq4_nl"),
                              type_of<GgmlMxfp4>("mxfp4"),
                              type_of<GgmlNvfp4>("nvfp4"),
                              type_of<TQ1_0>("tq1_0"),
                              type_of<TQ2_0>("tq2_0"),
                              {"f16", 1, 2, write_as<float16>},
                              {"bf16", 1, 2, write_as<bfloat16>},
                              {"f32", 1, 4, write_as<float>}};

/// Bytes are those of encode(), one expert after the other; a layer of the file answers, to the bit, as one of the
/// numbers that they stand for, and as the float layer does within the errors of three matrices.
TEST(QuantizeGguf, EachTypeHasTheBytesOfEncodeAndTheAnswersOfItsNumbers) {
  const TemporaryFolder temporary("quantize_gguf_types");
  const SmallModel small{.num_experts = 2};
  small.write(temporary.path / "in");
  const Model model(temporary.path / "in");
  const Matrix<float> x = random_tokens<float>(small.d, 5, /*seed=*/1);
  const Matrix<float> y = model.layer(small.block(0)).layer.forward(x);
  std::string list;
  for (const Type& type : all_types) {
    SCOPED_TRACE(type.name);
    list += (list.empty() ? "" : ", ") + std::string(type.name);
    const fs::path out = temporary.path / (std::string(type.name) + ".gguf");
    const auto report = quantize_gguf(model, out, {.type = type.name}, OpenMp{2});
    ASSERT_EQ(report.matrices.size(), 6U);
    EXPECT_TRUE(report.kept.empty());
    const Model coded(out);
    double worst = 0;
    for (const auto& [name, expert, shape, error, its_type] : report.matrices) {
      const std::string kind = name.substr(sizeof "blk.0.ffn_" - 1, name.find("_exps") - (sizeof "blk.0.ffn_" - 1));
      const Weight<float> w =
          model.read(small.block(0) + ".experts." + std::to_string(expert) + "." + kind + "_proj.weight");
      EXPECT_EQ(shape, (std::vector<Index>{w.rows(), w.cols()}));
      EXPECT_EQ(its_type, type.name);
      std::vector<std::byte> expected(std::size_t(w.size() / type.numbers * type.bytes));
      const Index row_bytes = w.cols() / type.numbers * type.bytes;
      for (Index r = 0; r < w.rows(); ++r) {
        type.encode(w.data() + r * w.cols(), w.cols(), expected.data() + r * row_bytes, nullptr);
      }
      const auto is = coded.tensors().at(name).bytes.subspan(std::size_t(expert) * expected.size(), expected.size());
      EXPECT_TRUE(std::ranges::equal(is, expected)) << name << ", expert " << expert;
      const Weight<float> decoded = coded.read(name).row(expert);
      const Eigen::Map<const Weight<float>> numbers(decoded.data(), w.rows(), w.cols());
      EXPECT_NEAR(error, double((numbers - w).norm() / w.norm()), 1e-5);
      worst = std::max(worst, error);
    }
    const Matrix<float> answer = coded.layer("blk.0").layer.forward(x);
    const double off = double((answer - y).norm() / y.norm());
    EXPECT_LE(off, std::pow(1 + worst, 3) - 1 + 1e-5);
    EXPECT_GE(off, worst / 4);
    // The same numbers as floats:
    const fs::path decoded = temporary.path / "decoded.gguf";
    const auto of_coded = quantize_gguf(coded, decoded, {.type = "f32", .overwrite = true});
    for (const auto& matrix : of_coded.matrices) EXPECT_EQ(matrix.error, 0);
    if (type.numbers == 1) continue;  // which have arithmetic of their own
    EXPECT_EQ(answer, Model(decoded).layer("blk.0").layer.forward(x));
  }
  EXPECT_EQ(io::quantized_gguf_types(), list + ", q4_k_m, q5_k_m");
}

/// What moe::quantize<T>() makes of the bank answers the same, to the bit.
template <class T>
void expect_as_quantized_bank(const std::string& type) {
  SCOPED_TRACE(type);
  const TemporaryFolder temporary("quantize_gguf_bank");
  const SmallModel small{.num_experts = 2};
  small.write(temporary.path / "in");
  const Model model(temporary.path / "in");
  quantize_gguf(model, temporary.path / "out.gguf", {.type = type});
  WeightStack<float> gate(2, 256, 256), up(2, 256, 256), down(2, 256, 256);
  for (Index e = 0; e < 2; ++e) {
    const std::string expert = small.block(0) + ".experts." + std::to_string(e) + ".";
    gate.owned(e) = model.read(expert + "gate_proj.weight");
    up.owned(e) = model.read(expert + "up_proj.weight");
    down.owned(e) = model.read(expert + "down_proj.weight");
  }
  const auto loaded = Model(temporary.path / "out.gguf").layer("blk.0");
  const MoeLayer layer(
      LinearTopK<float>(model.read(small.block(0) + ".gate.weight"), std::get<TopKOptions>(loaded.shape.router)),
      quantize<T>(GatedFfnBank<float>(std::move(gate), std::move(up), std::move(down))));
  for (const Index n : {1, 17}) {
    const Matrix<float> x = random_tokens<float>(256, n, /*seed=*/2);
    EXPECT_EQ(loaded.layer.forward(x), layer.forward(x)) << n;
  }
}

TEST(QuantizeGguf, AnswersAsTheQuantisedBank) {
  expect_as_quantized_bank<Q8_0>("Q8_0");  // in capitals, as llama.cpp's users have it
  expect_as_quantized_bank<Q4_K>("Q4_K");
}

TEST(QuantizeGguf, SharedExpertsTooAndAllElseIsAsSaved) {
  const TemporaryFolder temporary("quantize_gguf_shared");
  const SmallModel small{.type = "qwen2_moe", .d = 64, .ff = 32, .num_layers = 2};
  small.write(temporary.path / "in");
  const Model model(temporary.path / "in");
  std::vector<io::QuantizeProgress> seen;
  std::vector<std::string> names;
  const auto report = quantize_gguf(model, temporary.path / "out.gguf",
                                    {.type = "q8_0", .keep = {"blk.1.ffn_up"}, .progress = [&](const auto& now) {
                                       seen.push_back(now);
                                       if (!now.tensor.empty()) names.emplace_back(now.tensor);
                                     }});
  EXPECT_EQ(report.matrices.size(), 2U * 12 - 4);
  EXPECT_EQ(report.kept,
            (std::vector<std::pair<std::string, std::string>>{{"blk.1.ffn_up_exps.weight", "asked to stay"},
                                                              {"blk.1.ffn_up_shexp.weight", "asked to stay"}}));
  std::vector<Tensor> saved;
  for (const std::string& block : model.moe_blocks()) {
    for (Tensor& tensor : io::gguf_tensors(model, block)) saved.push_back(std::move(tensor));
  }
  const io::GgufFile file = io::read_gguf(temporary.path / "out.gguf");
  ASSERT_EQ(file.tensors.size(), saved.size());
  std::size_t before = 0, after = 0, same = 0;
  for (std::size_t i = 0; i < saved.size(); ++i) {
    const Tensor &was = saved[i], &is = file.tensors[i];
    EXPECT_EQ(is.name, was.name);
    EXPECT_EQ(names[i], was.name);
    EXPECT_EQ(is.shape, was.shape);
    before += was.bytes.size();
    after += is.bytes.size();
    const bool quantized = was.name.find("exp") != std::string::npos && was.name.find("inp") == std::string::npos &&
                           !was.name.starts_with("blk.1.ffn_up");
    EXPECT_EQ(is.dtype, quantized ? "Q8_0" : "F32") << is.name;
    if (quantized) continue;
    ++same;
    EXPECT_TRUE(std::ranges::equal(is.bytes, was.bytes)) << is.name;
  }
  EXPECT_EQ(same, 2U * 2 + 2);
  EXPECT_EQ(report.bytes_before, before);
  EXPECT_EQ(report.bytes_after, after);
  ASSERT_EQ(seen.size(), saved.size() + 1);
  for (std::size_t i = 1; i < seen.size(); ++i) EXPECT_GT(seen[i].bytes, seen[i - 1].bytes);
  EXPECT_EQ(seen.back().bytes, seen.back().of_bytes);
  const Model coded(temporary.path / "out.gguf");
  const Matrix<float> x = random_tokens<float>(64, 9, /*seed=*/3);
  for (Index layer = 0; layer < 2; ++layer) {
    const Matrix<float> y = model.layer(small.block(layer)).layer.forward(x);
    const Matrix<float> is = coded.layer("blk." + std::to_string(layer)).layer.forward(x);
    EXPECT_LT((is - y).norm(), 0.02F * y.norm());
    EXPECT_GT((is - y).norm(), 0.0005F * y.norm());
  }
}

TEST(QuantizeGguf, BitsDependOnNoThreads) {
  const TemporaryFolder temporary("quantize_gguf_threads");
  SmallModel{.num_experts = 2}.write(temporary.path / "in");
  for (const int threads : {1, 3}) {
    quantize_gguf(temporary.path / "in", temporary.path / (std::to_string(threads) + ".gguf"), {.type = "q4_k"},
                  OpenMp{threads});
  }
  EXPECT_EQ(bytes_in(temporary.path / "1.gguf"), bytes_in(temporary.path / "3.gguf"));
}

TEST(QuantizeGguf, WhatIsCodedIsDecodedFirstAndWhatIsOfTheTypeStays) {
  const TemporaryFolder temporary("quantize_gguf_coded");
  // gpt-oss' MXFP4, whose numbers ggml's MXFP4 has as well
  const Model oss("tests/real/gpt_oss_mxfp4");
  const auto exact = quantize_gguf(oss, temporary.path / "oss.gguf", {.type = "mxfp4"});
  EXPECT_FALSE(exact.matrices.empty());
  for (const auto& matrix : exact.matrices) EXPECT_EQ(matrix.error, 0) << matrix.tensor;
  EXPECT_LT(exact.bytes_before, exact.bytes_after * 2) << "codes are counted as they lie";
  const Matrix<float> x = random_tokens<float>(oss.shape().d_model, 7, /*seed=*/4);
  const Matrix<float> y = oss.layer(oss.moe_blocks()[0]).layer.forward(x);
  const Model again(temporary.path / "oss.gguf");
  EXPECT_LE((again.layer("blk.0").layer.forward(x) - y).norm(), 1e-6F * y.norm());

  SmallModel{.d = 64, .ff = 64}.write(temporary.path / "in");
  quantize_gguf(temporary.path / "in", temporary.path / "a.gguf", {.type = "q5_1", .keep = {"ffn_down_exps"}});
  const auto report = quantize_gguf(temporary.path / "a.gguf", temporary.path / "b.gguf", {.type = "q5_1"});
  EXPECT_EQ(report.matrices.size(), 3U);
  ASSERT_EQ(report.kept.size(), 2U);
  EXPECT_EQ(report.kept[0].second, "is q5_1 already");
  const Tensors a = Tensors::open(temporary.path / "a.gguf"), b = Tensors::open(temporary.path / "b.gguf");
  for (const std::string& name : a.names()) {
    const bool same = name != "blk.0.ffn_down_exps.weight";
    EXPECT_EQ(std::ranges::equal(a.find(name)->bytes, b.find(name)->bytes), same) << name;
  }
  EXPECT_NE(test::error_of<io::Error>([&] {
              quantize_gguf(temporary.path / "b.gguf", temporary.path / "c.gguf", {.type = "q5_1"});
            }).find("no tensor is a weight of experts that could be q5_1: \"blk.0.ffn_"),
            std::string::npos);
}

/// Of a file: with a scale beside each weight of experts; and with the products, as floats, in place of both.
struct Scaled {
  std::vector<Tensor> beside, products;
};
Scaled with_scales(const io::GgufFile& file) {
  Scaled all;
  const auto add = [](std::vector<Tensor>& tensors, const std::string& name, std::vector<float> numbers,
                      std::vector<Index> shape) {
    const auto memory = std::make_shared<std::vector<float>>(std::move(numbers));
    tensors.push_back({.name = name,
                       .dtype = "F32",
                       .shape = std::move(shape),
                       .bytes = std::as_bytes(std::span(*memory)),
                       .owner = memory});
  };
  for (const Tensor& tensor : file.tensors) {
    all.beside.push_back(tensor);
    const std::size_t end = tensor.name.rfind("_exps.weight"), of_shared = tensor.name.rfind("_shexp.weight");
    if ((end == tensor.name.npos && of_shared == tensor.name.npos) || tensor.name.find("_inp") != tensor.name.npos) {
      all.products.push_back(tensor);
      continue;
    }
    const std::string module = tensor.name.substr(0, tensor.name.rfind('.'));
    const bool of_all = end != tensor.name.npos;
    const Tensor its = io::coded(tensor);
    std::vector<float> factors, numbers = io::decoded(its);
    const std::size_t count = its.coded->size(), size = numbers.size() / count;
    for (std::size_t e = 0; e < count; ++e) {
      factors.push_back(e == 1 ? 1 : 0.01F * float(all.beside.size() + e));
      for (std::size_t i = 0; i < size; ++i) numbers[e * size + i] *= factors[e];
    }
    add(all.products, tensor.name, std::move(numbers), tensor.shape);
    add(all.beside, module + ".scale", factors, {of_all ? Index(count) : 1});
    add(all.beside, module + ".input_scale", std::vector<float>(count, 7.0F), {of_all ? Index(count) : 1});
  }
  return all;
}

/// As llama.cpp's converter writes NVFP4 of safetensors: what it multiplies by is in what the weights decode to, and in
/// what is coded anew; and goes along with weights that stay as they are.
TEST(QuantizeGguf, ScalesBesideWeightsAreInTheirNumbers) {
  const TemporaryFolder temporary("quantize_gguf_scales");
  const auto at = [&](const std::string& name) { return temporary.path / (name + ".gguf"); };
  SmallModel{.type = "qwen2_moe", .d = 64, .ff = 64}.write(temporary.path / "in");
  for (const std::string type : {"nvfp4", "q4_1", "f16"}) {
    SCOPED_TRACE(type);
    quantize_gguf(temporary.path / "in", at("plain"), {.type = type, .overwrite = true});
    const io::GgufFile file = io::read_gguf(at("plain"));
    const auto [beside, products] = with_scales(file);
    io::write_gguf(at("scaled"), file.metadata, beside);
    io::write_gguf(at("products"), file.metadata, products);
    const Model scaled(at("scaled")), expected(at("products"));
    const auto answer = [&](const Model& model, Index n, Products of = Products::exact) {
      Workspace<float> ws;
      ws.numerics.products = of;
      return model.layer("blk.0").layer.forward(random_tokens<float>(64, n, /*seed=*/5), ws);
    };
    for (const Index n : {1, 19}) EXPECT_EQ(answer(scaled, n), answer(expected, n)) << n;
    const Matrix<float> y = answer(expected, 19);
    EXPECT_LT((answer(scaled, 19, Products::fast) - y).norm(), 0.02F * y.norm());

    quantize_gguf(scaled, at("a"), {.type = "q5_0", .overwrite = true});
    quantize_gguf(expected, at("b"), {.type = "q5_0", .overwrite = true});
    EXPECT_EQ(bytes_in(at("a")), bytes_in(at("b")));
    const auto report = quantize_gguf(scaled, at("c"), {.type = "q5_0", .keep = {"ffn_up"}, .overwrite = true});
    EXPECT_EQ(report.matrices.size(), 2U * 4);
    quantize_gguf(scaled, at("d"), {.type = "f32", .keep = {"ffn_up"}, .overwrite = true});
    EXPECT_EQ(answer(Model(at("d")), 3), answer(scaled, 3));
    const Tensors d = Tensors::open(at("d"));
    EXPECT_TRUE(std::ranges::equal(d.at("blk.0.ffn_up_exps.weight").bytes,
                                   scaled.tensors().at("blk.0.ffn_up_exps.weight").bytes));
    EXPECT_TRUE(d.contains("blk.0.ffn_up_exps.scale") && d.contains("blk.0.ffn_up_shexp.input_scale"));
    EXPECT_FALSE(d.contains("blk.0.ffn_down_exps.scale") || d.contains("blk.0.ffn_down_exps.input_scale"));

    const std::vector<Tensor> floats = io::gguf_tensors(scaled, "blk.0");
    ASSERT_EQ(floats.size(), products.size());
    for (const Tensor& tensor : products) {
      const auto its = std::ranges::find(floats, tensor.name, &Tensor::name);
      ASSERT_NE(its, floats.end()) << tensor.name;
      EXPECT_EQ(its->dtype, tensor.dtype);
      EXPECT_TRUE(std::ranges::equal(its->bytes, tensor.bytes)) << tensor.name;
    }
  }
}

TEST(QuantizeGguf, ReplacesAFileOnlyIfAsked) {
  const TemporaryFolder temporary("quantize_gguf_there");
  const fs::path in = temporary.path / "in", out = temporary.path / "out.gguf";
  SmallModel{.d = 64, .ff = 64}.write(in);
  quantize_gguf(in, out, {.type = "q4_0"});
  const auto before = bytes_in(out);
  EXPECT_EQ(test::error_of<io::Error>([&] { quantize_gguf(in, out, {.type = "q8_0"}); }),
            out.string() + ": is there already: choose another name, or ask to overwrite it");
  EXPECT_EQ(bytes_in(out), before);
  // Its own IN, through a link that stays one:
  fs::create_symlink(out, temporary.path / "link.gguf");
  quantize_gguf(temporary.path / "link.gguf", temporary.path / "link.gguf", {.type = "f32", .overwrite = true});
  EXPECT_TRUE(fs::is_symlink(temporary.path / "link.gguf"));
  EXPECT_EQ(Tensors::open(out).at("blk.0.ffn_up_exps.weight").dtype, "F32");
  fs::create_directory(temporary.path / "folder.gguf");
  EXPECT_NE(test::error_of<io::Error>([&] {
              quantize_gguf(in, temporary.path / "folder.gguf", {.overwrite = true});
            }).find("is no file, and will not be overwritten"),
            std::string::npos);
  EXPECT_EQ(std::distance(fs::directory_iterator(temporary.path), {}), 4) << "nothing else is left";
}

/// As llama-imatrix writes one: sums of squares of each column, counts of each expert.
void write_imatrix(const fs::path& file, const std::vector<std::pair<std::string, Weight<float>>>& sums,
                   const std::vector<float>& counts, const char* type = "imatrix") {
  std::vector<Tensor> tensors;
  for (const auto& [weight, its] : sums) {
    tensors.push_back({.name = weight + ".in_sum2",
                       .dtype = "F32",
                       .shape = {its.rows(), its.cols()},
                       .bytes = std::as_bytes(std::span(its.data(), std::size_t(its.size())))});
    tensors.push_back({.name = weight + ".counts",
                       .dtype = "F32",
                       .shape = {std::ssize(counts), 1},
                       .bytes = std::as_bytes(std::span(counts))});
  }
  io::write_gguf(file, {{"general.type", io::gguf_value(std::string(type))}}, tensors);
}

TEST(QuantizeGguf, AnImportanceMatrixIsThatOfEncode) {
  const TemporaryFolder temporary("quantize_imatrix");
  const fs::path in = temporary.path / "in", file = temporary.path / "imatrix.gguf";
  const SmallModel small{.num_layers = 1};
  small.write(in);
  const std::string down = "blk.0.ffn_down_exps.weight", up = "blk.0.ffn_up_exps.weight";
  Weight<float> sums = random_weight<float>(3, 256, /*seed=*/70).cwiseAbs2();
  sums.leftCols(16) *= 1000;
  write_imatrix(file, {{down, sums}, {up, sums}}, {4, 0, 9});  // of expert 1 nothing is known
  const auto report = quantize_gguf(in, temporary.path / "out.gguf",
                                    {.type = "q4_k", .importance = io::ImportanceMatrix::open(file)}, OpenMp{2});
  EXPECT_EQ(report.unweighed, std::vector<std::string>{"blk.0.ffn_gate_exps.weight"});
  EXPECT_TRUE(report.unweighing.empty());
  const auto of_others = quantize_gguf(in, temporary.path / "others.gguf",
                                       {.type = "q4_0",
                                        .type_of = {{"ffn_down", "q8_0"}, {"ffn_up", "mxfp4"}},
                                        .importance = io::ImportanceMatrix::open(file)});
  EXPECT_EQ(std::set<std::string>(of_others.unweighing.begin(), of_others.unweighing.end()),
            (std::set<std::string>{"mxfp4", "q8_0"}));
  quantize_gguf(in, temporary.path / "plain.gguf", {.type = "q4_k"});
  const io::GgufFile out = io::read_gguf(temporary.path / "out.gguf"),
                     plain = io::read_gguf(temporary.path / "plain.gguf");
  const auto bytes_of = [](const io::GgufFile& gguf, const std::string& name) {
    const auto found = std::ranges::find(gguf.tensors, name, &Tensor::name);
    return std::vector<std::byte>(found->bytes.begin(), found->bytes.end());
  };
  const auto all = small.numbers();
  for (Index e = 0; e < 3; ++e) {
    const Weight<float>& w = all[std::size_t(3 * e + 2)].second;
    std::vector<std::byte> expected(std::size_t(w.rows()) * 144);
    for (Index r = 0; r < w.rows(); ++r) {
      encode<Q4_K>(w.row(r).data(), 256, &expected[std::size_t(r) * 144], e == 1 ? nullptr : sums.row(e).data());
    }
    const std::vector<std::byte> is = bytes_of(out, down);
    EXPECT_TRUE(std::equal(expected.begin(), expected.end(), is.begin() + e * std::ssize(expected))) << e;
  }
  EXPECT_NE(bytes_of(out, down), bytes_of(plain, down));
  EXPECT_EQ(bytes_of(out, "blk.0.ffn_gate_exps.weight"), bytes_of(plain, "blk.0.ffn_gate_exps.weight"));

  const auto expect_error = [&](const std::string& part) {
    const std::string is = test::error_of<io::Error>([&] {
      quantize_gguf(in, temporary.path / "no.gguf", {.type = "q4_k", .importance = io::ImportanceMatrix::open(file)});
    });
    EXPECT_NE(is.find(part), std::string::npos) << part << "\nis not in\n" << is;
    EXPECT_FALSE(fs::exists(temporary.path / "no.gguf"));
  };
  write_imatrix(file, {{"blk.7.ffn_up_exps.weight", sums}}, {4, 1, 9});
  expect_error("says nothing of \"blk.0.ffn_gate_exps.weight\", nor of any other weight: is it of this model?");
  write_imatrix(file, {{up, sums.topRows(2)}}, {4, 1});
  expect_error("\"blk.0.ffn_up_exps.weight\" is of 2 experts, expected 3");
  write_imatrix(file, {{up, sums.leftCols(8)}}, {4, 1, 2});
  expect_error("\"blk.0.ffn_up_exps.weight\" has 8 columns, expected 256");
  write_imatrix(file, {{up, sums}}, {4, 1, -2});
  expect_error("blk.0.ffn_up_exps.weight.counts\" holds -2, expected finite numbers, none below zero");
  write_imatrix(file, {{up, sums}}, {4, 1});
  expect_error(
      "blk.0.ffn_up_exps.weight.in_sum2\" has shape [3, 256], and blk.0.ffn_up_exps.weight.counts counts for 2");
  write_imatrix(file, {{up, sums}}, {4, 1, 2}, "model");
  expect_error("its general.type is \"model\", expected \"imatrix\"");
}

TEST(QuantizeGguf, TensorsMayHaveTypesOfTheirOwnAndRecipesAreLlamaCpps) {
  const TemporaryFolder temporary("quantize_recipe");
  const fs::path in = temporary.path / "in";
  SmallModel{.num_experts = 2, .num_layers = 8}.write(in);
  const auto types_of = [&](const io::QuantizeGgufOptions& options) {
    const fs::path file = temporary.path / "out.gguf";
    quantize_gguf(in, file, options, OpenMp{2});
    std::string types;
    for (const Tensor& tensor : io::read_gguf(file).tensors) {
      if (tensor.name.find("ffn_down_exps") == std::string::npos) continue;
      types += tensor.dtype == "Q6_K" ? '6' : tensor.dtype == "Q4_K" ? '4' : tensor.dtype == "Q8_0" ? '8' : '?';
    }
    return types;
  };
  // Of 8 layers the first and the last, and of those between every third: 3, 6. Then what was asked for.
  const std::vector<io::GgufTypeOf> asked = {{"blk.0.", "q4_k"}, {"ffn_up", "q8_0"}, {"blk.5.ffn_down", "q8_0"}};
  EXPECT_EQ(types_of({.type = "Q4_K_M", .overwrite = true, .type_of = asked}), "44464866");
  EXPECT_EQ(types_of({.type = "q4_0", .overwrite = true, .type_of = {{"ffn", "q5_0"}, {"ffn_down", "q8_0"}}}),
            "88888888");
  const std::string error = test::error_of<io::Error>(
      [&] { quantize_gguf(in, temporary.path / "no.gguf", {.type = "q4_k", .type_of = {{"down_proj", "q6_k"}}}); });
  EXPECT_NE(error.find("\"down_proj\" was given a type, and is in no name of experts' weights"), std::string::npos)
      << error;
}

TEST(CompareModels, AnswersAndChoicesOfBlocksOneAfterTheOther) {
  const TemporaryFolder temporary("compare_models");
  const fs::path in = temporary.path / "in", out = temporary.path / "out.gguf";
  SmallModel{.num_experts = 8, .num_layers = 3}.write(in);
  quantize_gguf(in, out, {.type = "q2_k"}, OpenMp{2});
  const auto same = io::compare_models(in, in);
  ASSERT_EQ(same.size(), 3u);
  for (const auto& block : same) {
    EXPECT_EQ(block.answers.relative, 0) << block.block;
    EXPECT_EQ(block.choices.changed_routes, 0) << block.block;
    EXPECT_EQ(block.choices.routes, 128) << block.block;
  }
  const auto changes = io::compare_models(in, out, {.num_tokens = 33, .seed = 5}, OpenMp{2});
  ASSERT_EQ(changes.size(), 3u);
  EXPECT_EQ(changes[2].block, "model.layers.2.mlp");
  EXPECT_EQ(changes[2].other, "blk.2");
  EXPECT_EQ(changes[0].choices.changed_routes, 0) << "both models read the same there";
  EXPECT_GT(changes[2].choices.changed_routes, 0);

  // The naive twin, of the last block.
  Matrix<float> x = random_tokens<float>(256, 33, 5), other = x, y, h;
  const auto unit = [](const Matrix<float>& of) {
    Matrix<float> all = of;
    for (Index t = 0; t < all.cols(); ++t) all.col(t) *= std::sqrt(float(all.rows())) / all.col(t).stableNorm();
    return all;
  };
  double relative = 0;
  for (Index i = 0; i < 3; ++i) {
    const auto first = io::load_layer(in, "model.layers." + std::to_string(i) + ".mlp").layer,
               second = io::load_layer(out, "blk." + std::to_string(i)).layer;
    y = first.forward(unit(x));
    relative = double((second.forward(unit(x)) - y).norm() / y.norm());
    other += second.forward(unit(other));
    x += y;
  }
  EXPECT_NEAR(changes[2].answers.relative, relative, 1e-5 * relative);
  EXPECT_GT(relative, 0.05);

  // Tokens that are given.
  const Weight<float> given = random_weight<float>(7, 256, /*seed=*/9);
  io::write_safetensors(temporary.path / "inputs.safetensors",
                        {{.name = "model.layers.1.mlp.input",
                          .dtype = "F32",
                          .shape = {7, 256},
                          .bytes = std::as_bytes(std::span(given.data(), std::size_t(given.size())))}});
  const auto recorded = io::compare_models(in, out, {.recorded = Tensors::open(temporary.path / "inputs.safetensors")});
  EXPECT_FALSE(recorded[0].recorded);
  EXPECT_TRUE(recorded[1].recorded);
  EXPECT_EQ(recorded[1].tokens, 7);
  const Matrix<float> tokens = given.transpose();
  const Matrix<float> was = io::load_layer(in, "model.layers.1.mlp").layer.forward(tokens),
                      is = io::load_layer(out, "blk.1").layer.forward(tokens);
  EXPECT_NEAR(recorded[1].answers.relative, double((is - was).norm() / was.norm()), 1e-6);

  // What does not fit is told before anything is loaded.
  const auto error_of_recorded = [&](const std::string& name, std::vector<Index> shape) {
    io::write_safetensors(temporary.path / "inputs.safetensors",
                          {{.name = name,
                            .dtype = "F32",
                            .shape = std::move(shape),
                            .bytes = std::as_bytes(std::span(given.data(), std::size_t(given.size())))}});
    return test::error_of<io::Error>(
        [&] { io::compare_models(in, out, {.recorded = Tensors::open(temporary.path / "inputs.safetensors")}); });
  };
  const std::string narrow = error_of_recorded("model.layers.1.mlp.input", {14, 128}),
                    elsewhere = error_of_recorded("model.layers.7.mlp.input", {7, 256});
  EXPECT_NE(narrow.find("\"model.layers.1.mlp.input\" has shape [14, 128], expected [tokens, 256] of"),
            std::string::npos)
      << narrow;
  EXPECT_NE(elsewhere.find("none is called as what a block of"), std::string::npos) << elsewhere;

  // One of whose choices is to skip, and which hands a state on.
  const fs::path zaya = fs::path(MOE_SOURCE_DIR) / "tests/real/zaya";
  for (const auto& block : io::compare_models(zaya, zaya)) {
    EXPECT_EQ(block.why_not, "");
    EXPECT_EQ(block.answers.relative, 0);
    EXPECT_GT(block.choices.routes, 0);
    EXPECT_EQ(block.choices.changed_routes, 0);
  }

  SmallModel{.num_experts = 8, .num_layers = 2}.write(temporary.path / "short");
  const std::string error = test::error_of<io::Error>([&] { io::compare_models(in, temporary.path / "short"); });
  EXPECT_NE(error.find("has 2 MoE blocks, and "), std::string::npos) << error;
}

/// Of a folder with two models the first becomes the file, and it is said that the other does not.
TEST(QuantizeGguf, OfTwoTowersTakesTheFirst) {
  const TemporaryFolder temporary("quantize_gguf_towers");
  const fs::path real = "tests/real", in = temporary.path / "omni", out = temporary.path / "out.gguf";
  test::write_two_towers(in, real / "qwen3_omni_moe_text", real / "qwen3_omni_moe_talker_text");
  const auto report = quantize_gguf(in, out, {.type = "f32"});
  const Model model(in), alone(real / "qwen3_omni_moe_text");
  EXPECT_EQ(Model(out).moe_blocks().size(), alone.moe_blocks().size());
  ASSERT_EQ(report.kept.size(), model.moe_blocks().size() - alone.moe_blocks().size());
  for (const auto& [block, reason] : report.kept) {
    EXPECT_TRUE(block.starts_with("talker.model.layers."));
    EXPECT_NE(reason.find("is left out: it is of a qwen3_omni_moe_talker_text"), std::string::npos) << reason;
  }
  for (const auto& change : io::compare_models(model, out)) {
    EXPECT_EQ(change.why_not, "");
    EXPECT_LE(change.answers.relative, 1e-6);
    EXPECT_EQ(change.choices.changed_routes, 0);
  }
}

TEST(QuantizeGguf, ComplainsAndLeavesNothing) {
  const TemporaryFolder temporary("quantize_gguf_wrong");
  const fs::path in = temporary.path / "in", out = temporary.path / "out.gguf";
  SmallModel{.ff = 96}.write(in);
  const auto expect_error = [&](const fs::path& from, const io::QuantizeGgufOptions& options, const std::string& part) {
    const std::string is = test::error_of<io::Error>([&] { quantize_gguf(from, out, options, OpenMp{2}); });
    EXPECT_NE(is.find(part), std::string::npos) << part << "\nis not in\n" << is;
  };
  expect_error(in, {.type = "int4_g128"},
               "no type is called \"int4_g128\" that GGUF's experts could be, expected one of q8_0, q4_0, ");
  expect_error(in, {.type = "q6_k"},
               "model.safetensors: tensor \"model.layers.0.mlp.experts.0.down_proj.weight\", for "
               "\"blk.0.ffn_down_exps.weight\": the length of a row is 96, no multiple of 256, the block of "
               "q6_k: keep it as it is (--keep ffn_down_exps), or take another type: q8_0, q4_0, q4_1, q5_0, q5_1, "
               "iq4_nl, mxfp4, f16, bf16, f32");
  expect_error(in, {.keep = {"exps", "down_proj"}},
               "\"down_proj\" was asked to stay, and is in no name of experts' weights");
  expect_error(in, {.keep = {"exps"}},
               "no tensor is a weight of experts that could be q8_0: \"blk.0.ffn_gate_exps.weight\" asked to stay");
  expect_error(temporary.path / "nowhere", {}, "no such file");
  SmallModel{.first_number = std::numeric_limits<float>::infinity()}.write(temporary.path / "infinite");
  expect_error(temporary.path / "infinite", {.type = "q4_k"},
               "infinite/model.safetensors: tensor \"model.layers.0.mlp.experts.0.gate_proj.weight\", for "
               "\"blk.0.ffn_gate_exps.weight\", expert 0: the number at (0, 0) is inf, expected a finite one");
  SmallModel{.first_number = 70000}.write(temporary.path / "large");
  expect_error(temporary.path / "large", {.type = "f16"},
               "large/model.safetensors: tensor \"model.layers.0.mlp.experts.0.gate_proj.weight\", for "
               "\"blk.0.ffn_gate_exps.weight\", expert 0: the number 70000 at (0, 0) is too large for f16");
  SmallModel{.first_number = 3e38F, .first_at = 100}.write(temporary.path / "larger");
  expect_error(temporary.path / "larger", {.type = "q8_0"},
               "expert 0: the number 3e+38 at (0, 100) is too large for q8_0");
  SmallModel{.stray = ".experts.0.down_proj.turned"}.write(temporary.path / "stray");
  expect_error(
      temporary.path / "stray", {},
      "tensor \"model.layers.0.mlp.experts.0.down_proj.turned.weight\" is of the block \"model.layers.0.mlp\"");
  SmallModel{.said_ff = 512}.write(temporary.path / "wide");
  expect_error(temporary.path / "wide", {}, "has shape [256, 256], expected [512, 256]");
  quantize_gguf(in, temporary.path / "ok.gguf", {.type = "q6_k", .keep = {"ffn_down_exps"}});
  EXPECT_EQ(std::distance(fs::directory_iterator(temporary.path), {}), 7) << "six models and the last file";
}

}  // namespace
