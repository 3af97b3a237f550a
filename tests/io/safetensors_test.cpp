#include "moe/io/safetensors.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <memory>
#include <random>
#include <span>
#include <sstream>
#include <string>
#include <type_traits>
#include <vector>

#include <gtest/gtest.h>

#if __has_include(<sys/resource.h>)
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>
#include <csignal>
#endif

namespace {

namespace fs = std::filesystem;
using namespace moe::io;
using moe::Index;

/// A folder of its own for each test.
class Safetensors : public testing::Test {
 protected:
  Safetensors() {
    const auto* const test = testing::UnitTest::GetInstance()->current_test_info();
    folder = fs::temp_directory_path() / ("moe_safetensors_" + std::to_string(std::random_device{}()) + test->name());
    fs::create_directories(folder);
  }
  ~Safetensors() override { fs::remove_all(folder); }

  std::size_t files_in_folder() const {
    return static_cast<std::size_t>(std::distance(fs::directory_iterator(folder), fs::directory_iterator()));
  }

  fs::path folder;
};

std::string text_of(const fs::path& path) {
  std::ostringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  return text.str();
}

void write_text(const fs::path& path, const std::string& text) { std::ofstream(path, std::ios::binary) << text; }

/// The bytes of a file with this header and this much data.
std::string file_of(const std::string& header, std::size_t data_size) {
  const std::uint64_t length = header.size();
  std::string text(sizeof length, '\0');
  std::memcpy(text.data(), &length, sizeof length);
  return text + header + std::string(data_size, '\0');
}

/// A copy in memory of exactly its size, `offset` bytes into an allocation: sanitizers see one byte too far.
MappedFile in_memory(const std::string& text, std::size_t offset = 0) {
  const std::shared_ptr<std::byte[]> bytes(new std::byte[text.size() + offset]);
  std::memcpy(bytes.get() + offset, text.data(), text.size());
  return {.bytes = {bytes.get() + offset, text.size()}, .owner = bytes};
}

/// What the Error says; a failure if there is none.
template <class Action>
std::string error_of(Action&& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  ADD_FAILURE() << "no error";
  return "";
}

void expect_parts(const std::string& message, const std::vector<std::string>& parts) {
  for (const std::string& part : parts) EXPECT_NE(message.find(part), message.npos) << message << "\nlacks: " << part;
}

std::vector<Tensor> all_of(const Tensors& file) {
  std::vector<Tensor> tensors;
  for (const std::string& name : file.names()) tensors.push_back(file.at(name));
  return tensors;
}

/// True if the two differ at most in where they come from.
bool same_content(const Tensor& a, const Tensor& b) {
  return a.name == b.name && a.dtype == b.dtype && a.shape == b.shape && std::ranges::equal(a.bytes, b.bytes);
}

std::vector<fs::path> golden_folders() {
  std::vector<fs::path> folders;
  for (const auto& entry : fs::directory_iterator(fs::path(MOE_SOURCE_DIR) / "tests" / "golden")) {
    if (entry.is_directory()) folders.push_back(entry.path());
  }
  return folders;
}

// ---- what is written is read ----------------------------------------------------------------------------------------

template <class T>
class SafetensorsOf : public Safetensors {};
using ElementTypes = testing::Types<double, float, moe::float16, moe::bfloat16, std::int64_t, std::uint8_t>;
TYPED_TEST_SUITE(SafetensorsOf, ElementTypes);

TYPED_TEST(SafetensorsOf, ReturnsTheValuesThatWereWritten) {
  std::vector<TypeParam> values;
  for (int i = 0; i < 6; ++i) values.push_back(static_cast<TypeParam>(static_cast<float>(i)));
  write_safetensors(this->folder / "x.safetensors", {make_tensor("w", {2, 3}, values)});

  const Tensor w = Tensors::open(this->folder / "x.safetensors").at("w");
  EXPECT_EQ(w.dtype, dtype_name<TypeParam>);
  EXPECT_TRUE(std::ranges::equal(as<TypeParam>(w, {2, 3}), values));
}

TEST_F(Safetensors, ScalarsAndEmptyTensorsAreTensors) {
  const std::vector<float> one = {42}, none;
  write_safetensors(folder / "x.safetensors", {make_tensor("scalar", {}, one), make_tensor("empty", {3, 0, 2}, none)});
  const Tensors file = Tensors::open(folder);
  const Tensor scalar = file.at("scalar"), empty = file.at("empty");
  EXPECT_EQ(as<float>(scalar, {})[0], 42);
  EXPECT_TRUE(as<float>(empty, {3, 0, 2}).empty());
}

TEST_F(Safetensors, AFileWithoutTensorsHasNone) {
  write_safetensors(folder / "x.safetensors", {});
  EXPECT_TRUE(Tensors::open(folder).names().empty());
  expect_parts(error_of([&] { Tensors::open(folder).at("w"); }), {"no tensor \"w\" among 0"});
}

TEST_F(Safetensors, MetadataAndUnicodeNamesComeBack) {
  const std::vector<float> one = {1};
  const Metadata metadata = {{"format", "pt"}, {"é \"quoted\"\n", "∞"}};
  write_safetensors(folder / "x.safetensors", {make_tensor("gewicht.ß\"\\", {1}, one)}, metadata);
  const Tensors file = Tensors::open(folder);
  EXPECT_EQ(file.metadata(), metadata);
  EXPECT_TRUE(file.contains("gewicht.ß\"\\"));
}

TEST_F(Safetensors, EveryTensorIsWrittenWhereItsTypeIsAligned) {
  const std::vector<std::uint8_t> bytes = {1, 2, 3};
  const std::vector<moe::bfloat16> halves(3);
  const std::vector<double> doubles = {1, 2};
  write_safetensors(folder / "x.safetensors",
                    {make_tensor("a", {3}, bytes), make_tensor("b", {3}, halves), make_tensor("c", {2}, doubles)});
  const TensorFile file = read_safetensors(folder / "x.safetensors");
  for (const Tensor& tensor : file.tensors) EXPECT_TRUE(is_aligned(tensor)) << tensor.name;
  EXPECT_LT(file.tensors[2].bytes.data(), file.tensors[1].bytes.data());
  EXPECT_LT(file.tensors[1].bytes.data(), file.tensors[0].bytes.data());
}

TEST_F(Safetensors, AFileHasTheseBytes) {
  const std::vector<std::uint8_t> bytes = {'x', 'y'};
  write_safetensors(folder / "x.safetensors", {make_tensor("a", {2}, bytes)});
  const std::string header = R"({"a":{"data_offsets":[0,2],"dtype":"U8","shape":[2]}})";
  const std::string padding(3, ' ');
  EXPECT_EQ(text_of(folder / "x.safetensors"), std::string("\x38\0\0\0\0\0\0\0", 8) + header + padding + "xy");
}

TEST_F(Safetensors, ATensorOutlivesTheReaderAndTheFile) {
  const std::vector<float> values = {1, 2, 3};
  write_safetensors(folder / "x.safetensors", {make_tensor("w", {3}, values)});
  const Tensor w = Tensors::open(folder).at("w");
  fs::remove(folder / "x.safetensors");
  EXPECT_TRUE(std::ranges::equal(as<float>(w), values));
}

TEST_F(Safetensors, AFileCanBeReplacedByItsOwnTensors) {
  const std::vector<float> a = {1, 2}, b = {3, 4};
  const fs::path path = folder / "x.safetensors";
  write_safetensors(path, {make_tensor("a", {2}, a), make_tensor("b", {2}, b)});
  const Tensors before = Tensors::open(path);
  write_safetensors(path, {before.at("b")});
  EXPECT_EQ(Tensors::open(path).names(), std::vector<std::string>{"b"});
  const Tensor old_a = before.at("a");
  EXPECT_TRUE(std::ranges::equal(as<float>(old_a), a));
}

TEST_F(Safetensors, ACopyInMemoryIsTheMappedFile) {
  const fs::path path = golden_folders().front() / "case.safetensors";
  EXPECT_TRUE(std::ranges::equal(map_file(path).bytes, read_file(path).bytes));
  write_text(folder / "empty", "");
  EXPECT_TRUE(map_file(folder / "empty").bytes.empty());
  EXPECT_TRUE(read_file(folder / "empty").bytes.empty());
  expect_parts(error_of([&] { read_file(folder / "none"); }), {"none: no such file"});
}

// ---- the reference files --------------------------------------------------------------------------------------------

TEST_F(Safetensors, EveryReferenceFileSurvivesARoundTrip) {
  ASSERT_GE(golden_folders().size(), 40u);
  for (const fs::path& golden : golden_folders()) {
    const std::vector<Tensor> original = all_of(Tensors::open(golden));
    write_safetensors(folder / "copy.safetensors", original, {{"format", "pt"}});
    const std::vector<Tensor> copy = all_of(Tensors::open(folder));
    ASSERT_GT(original.size(), 1u) << golden;
    EXPECT_TRUE(std::ranges::equal(original, copy, same_content)) << golden;
  }
}

TEST_F(Safetensors, ReferenceTensorsHaveTheirTypesAndShapes) {
  const fs::path golden = fs::path(MOE_SOURCE_DIR) / "tests" / "golden";
  const Tensors mixtral = Tensors::open(golden / "mixtral_bf16");
  const Tensor router = mixtral.at("gate.weight"), down = mixtral.at("experts.5.w2.weight");
  const Tensors records = Tensors::open(golden / "mixtral_bf16" / "case.safetensors");
  const Tensor input = records.at("input"), chosen = records.at("topk_index");
  EXPECT_EQ(as<moe::bfloat16>(router, {6, 72}).size(), 6u * 72);
  EXPECT_EQ(as<moe::bfloat16>(down, {72, 80}).size(), 72u * 80);
  EXPECT_EQ(as<float>(input, {33, 72}).size(), 33u * 72);
  for (const std::int64_t expert : as<std::int64_t>(chosen, {33, 2})) EXPECT_TRUE(expert >= 0 && expert < 6);
  const Tensor blocks = Tensors::open(golden / "gpt_oss_mxfp4").at("experts.gate_up_proj_blocks");
  EXPECT_EQ(as<std::uint8_t>(blocks).size(), blocks.bytes.size());
}

// ---- asking for the wrong thing -------------------------------------------------------------------------------------

TEST_F(Safetensors, AWrongShapeOrTypeIsAnErrorThatNamesBoth) {
  const std::vector<float> values(8 * 24);
  write_safetensors(folder / "model.safetensors", {make_tensor("gate.weight", {8, 24}, values)});
  const Tensor gate = Tensors::open(folder).at("gate.weight");
  expect_parts(error_of([&] { as<float>(gate, {8, 32}); }),
               {"model.safetensors: tensor \"gate.weight\" has shape [8, 24], expected [8, 32]"});
  expect_parts(error_of([&] { as<moe::bfloat16>(gate); }), {"tensor \"gate.weight\" has dtype F32, expected BF16"});
}

TEST_F(Safetensors, AMissingTensorIsAnErrorThatNamesTheNearest) {
  const std::vector<float> one = {1};
  write_safetensors(folder / "model.safetensors",
                    {make_tensor("experts.0.w1", {1}, one), make_tensor("gate", {1}, one)});
  expect_parts(error_of([&] { Tensors::open(folder).at("experts.0.w1.weight"); }),
               {"model.safetensors: no tensor \"experts.0.w1.weight\" among 2; did you mean \"experts.0.w1\"?"});
}

TEST_F(Safetensors, AnUnknownTypeHarmsNobodyWhoDoesNotAskForIt) {
  const std::string header = R"({"new": {"dtype": "F3", "shape": [4], "data_offsets": [0, 7]},
                                 "fp8": {"dtype": "F8_E4M3", "shape": [1], "data_offsets": [7, 8]},
                                 "old": {"dtype": "U8", "shape": [2], "data_offsets": [8, 10]}})";
  write_text(folder / "x.safetensors", file_of(header, 10));
  const Tensors file = Tensors::open(folder);
  const Tensor neu = file.at("new"), fp8 = file.at("fp8"), old = file.at("old");
  EXPECT_EQ(as<std::uint8_t>(old).size(), 2u);
  expect_parts(error_of([&] { as<float>(neu); }), {"tensor \"new\" has dtype F3, expected F32"});
  expect_parts(error_of([&] { as<std::uint8_t>(fp8); }), {"tensor \"fp8\" has dtype F8_E4M3, expected U8"});
  expect_parts(error_of([&] { write_safetensors(folder / "y", {neu}); }), {"\"new\" has unknown dtype F3"});
}

TEST_F(Safetensors, ATensorIsReadAsFloatWhateverItsType) {
  const std::vector<double> doubles = {1.5, -2, 0.25, 1024, 0, -0.5};  // exact in 16 bits
  const std::vector<float> floats(doubles.begin(), doubles.end());
  std::vector<moe::float16> halves;
  std::vector<moe::bfloat16> bfloats;
  for (const float value : floats) halves.emplace_back(value), bfloats.emplace_back(value);
  write_safetensors(folder / "model.safetensors",
                    {make_tensor("F64", {2, 3}, doubles), make_tensor("F32", {2, 3}, floats),
                     make_tensor("F16", {2, 3}, halves), make_tensor("BF16", {2, 3}, bfloats)});
  const Tensors tensors = Tensors::open(folder);
  for (const char* const name : {"F64", "F32", "F16", "BF16"}) {
    const auto as_floats = tensors.read<float>(name, {2, 3});
    const auto as_doubles = tensors.read<double>(name);
    EXPECT_EQ(as_floats, Eigen::Map<const moe::Weight<float>>(floats.data(), 2, 3)) << name;
    EXPECT_EQ(as_doubles, Eigen::Map<const moe::Weight<double>>(doubles.data(), 2, 3)) << name;
  }
}

TEST_F(Safetensors, ATensorOfAnyShapeIsAMatrixOfItsOutermostSizeTimesAllOthers) {
  std::vector<float> values(24);
  for (float& value : values) value = float(&value - values.data());
  const std::span<const float> all(values);
  write_safetensors(folder / "model.safetensors",
                    {make_tensor("vector", {24}, all), make_tensor("stack", {2, 3, 4}, all),
                     make_tensor("scalar", {}, all.first(1)), make_tensor("empty", {0, 5}, all.first(0))});
  const Tensors tensors = Tensors::open(folder);
  EXPECT_EQ(tensors.read("vector"), Eigen::Map<const moe::Weight<float>>(values.data(), 24, 1));
  EXPECT_EQ(tensors.read("stack"), Eigen::Map<const moe::Weight<float>>(values.data(), 2, 12));
  EXPECT_EQ(tensors.read("scalar"), moe::Weight<float>::Zero(1, 1));
  EXPECT_EQ(tensors.read("empty").rows(), 0);
  EXPECT_EQ(tensors.read("empty").cols(), 5);
}

TEST_F(Safetensors, WhatCannotBeReadAsFloatIsAnErrorThatNamesFileAndTensor) {
  const std::string header = R"({"fp8": {"dtype": "F8_E4M3", "shape": [1], "data_offsets": [0, 1]},
                                 "packed": {"dtype": "I32", "shape": [1], "data_offsets": [1, 5]},
                                 "norm": {"dtype": "BF16", "shape": [2], "data_offsets": [5, 9]}})";
  write_text(folder / "x.safetensors", file_of(header, 9));
  const Tensors file = Tensors::open(folder);
  const auto error = [&](const char* name) { return error_of([&] { file.read(name); }); };
  expect_parts(error("fp8"), {"x.safetensors: tensor \"fp8\" has dtype F8_E4M3, expected F32, BF16, F16 or F64"});
  expect_parts(error("packed"), {"x.safetensors: tensor \"packed\" has dtype I32, expected F32, BF16, F16 or F64"});
  expect_parts(error("nrm"), {"x.safetensors: no tensor \"nrm\" among 3; did you mean \"norm\"?"});
  expect_parts(error_of([&] { file.read("norm", {3}); }),
               {"x.safetensors: tensor \"norm\" has shape [2], expected [3]"});
  EXPECT_EQ(file.read("norm"), moe::Weight<float>::Zero(2, 1));  // which lies unaligned
}

TEST_F(Safetensors, AnUnalignedTensorIsCopiedToWhereItIsAligned) {
  std::string text = file_of(R"({"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 8);
  const float values[] = {1.5f, -2.5f};
  std::memcpy(text.data() + text.size() - 8, values, 8);
  ASSERT_NE(text.size() % 4, 0u);  // old writers did not pad the header
  write_text(folder / "x.safetensors", text);
  const Tensor w = Tensors::open(folder).at("w");
  EXPECT_TRUE(std::ranges::equal(as<float>(w, {2}), values));
  const Tensor in_place = read_safetensors(folder / "x.safetensors").tensors[0];
  expect_parts(error_of([&] { as<float>(in_place); }), {"tensor \"w\" is not aligned for F32"});
}

template <class T>
concept CanBeRead = requires(T&& tensor) { as<float>(std::forward<T>(tensor)); };
static_assert(CanBeRead<const Tensor&> && !CanBeRead<Tensor>, "a temporary tensor may take its bytes with it");

template <class T>
concept CanBecomeTensor = requires(T&& values) { make_tensor("w", {1}, std::forward<T>(values)); };
static_assert(CanBecomeTensor<std::vector<float>&> && CanBecomeTensor<std::span<const float>>);
static_assert(!CanBecomeTensor<std::vector<float>> && !CanBecomeTensor<std::vector<char>&>);

// ---- bad files ------------------------------------------------------------------------------------------------------

/// A tensor's part of a header.
std::string entry(const std::string& name, const std::string& dtype, const std::string& shape,
                  const std::string& offsets) {
  return "\"" + name + R"(":{"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" + offsets + "}";
}

/// Bytes of a file, and what the message about them has to say.
struct Bad {
  std::string text, message;
};

std::vector<Bad> files_without_a_header() {
  return {
      {"", "has 0 bytes, expected at least 8"},
      {"1234567", "has 7 bytes, expected at least 8"},
      {std::string(8, '\xff') + "{}", "header length is 18446744073709551615, expected at most 100000000"},
      {std::string("\0\0\0\0\0\0\0\x80{}", 10), "header length is 9223372036854775808, expected at most 100000000"},
      {std::string("\x09\0\0\0\0\0\0\0{}", 10), "header length is 9, but only 2 bytes follow"},
      {std::string(8, '\0'), "does not start with '{'"},
  };
}

std::vector<Bad> headers_that_are_no_header() {
  std::vector<Bad> bad = {
      {"[]", "does not start with '{'"},
      {R"({"w" 1})", "not JSON"},
      {"{\"\xff\": 1}", "UTF-8"},
      {R"({"w": 1e999})", "not JSON"},
      {R"({} {})", "not JSON"},
      {std::string("{}\0{}", 5), "zero byte at 2"},
      {R"({"w": {}, "w": {}})", "\"w\" appears twice"},
      {R"({"w": {"dtype": "U8", "dtype": "I8"}})", "\"dtype\" appears twice"},
      {"{\"w\":" + std::string(1'000'000, '['), "nested deeper than 32 levels"},
      {R"({"__metadata__": [1]})", "__metadata__ is an array, expected an object"},
      {R"({"__metadata__": {"n": 3}})", "__metadata__ has \"n\" 3, expected a string"},
      {R"({"w": 7})", "tensor \"w\" is 7, expected an object"},
      {R"({"w": {"shape": [], "data_offsets": [0, 0]}})", "tensor \"w\" has no \"dtype\""},
      {R"({"w": {"dtype": "U8", "data_offsets": [0, 0]}})", "tensor \"w\" has no \"shape\""},
      {R"({"w": {"dtype": "U8", "shape": [0]}})", "tensor \"w\" has no \"data_offsets\""},
      {R"({"w": {"dtype": 32}})", "tensor \"w\" has dtype 32, expected a string"},
  };
  for (Bad& file : bad) file.text = file_of(file.text, 0);
  return bad;
}

std::vector<Bad> tensors_that_do_not_fit() {
  const std::string max = "9223372036854775807", max_plus_1 = "9223372036854775808";
  std::vector<Bad> bad = {
      {entry("w", "U8", "4", "[0,4]"), "shape 4, expected an array"},
      {entry("w", "U8", "[-4]", "[0,4]"), "\"w\" has -4 in its shape"},
      {entry("w", "U8", "[4.0]", "[0,4]"), "\"w\" has 4.0 in its shape"},
      {entry("w", "U8", "[4e0]", "[0,4]"), "\"w\" has 4.0 in its shape"},
      {entry("w", "U8", "[\"4\"]", "[0,4]"), "\"w\" has \"4\" in its shape"},
      {entry("w", "U8", "[[4]]", "[0,4]"), "\"w\" has an array in its shape"},
      {entry("w", "U8", "[" + max_plus_1 + "]", "[0,4]"), max_plus_1 + " in its shape, expected a whole number less"},
      {entry("w", "U8", "[18446744073709551616]", "[0,4]"), "in its shape, expected a whole number less than 2^63"},
      {entry("w", "U8", "[4294967296,4294967296]", "[0,0]"), "shape [4294967296, 4294967296], expected at most"},
      {entry("w", "F64", "[" + max + "]", "[0,0]"), "shape [" + max + "], expected at most"},
      {entry("w", "U8", "[" + max + "," + max + ",0]", "[0,0]"), "expected at most"},
      {entry("w", "U8", "[4]", "[0,4,4]"), "\"w\" has 3 data_offsets, expected 2"},
      {entry("w", "U8", "[4]", "[-1,3]"), "\"w\" has -1 in its data_offsets"},
      {entry("w", "U8", "[4]", "[4,0]"), "data_offsets [4, 0], expected a range within 4 bytes"},
      {entry("w", "U8", "[5]", "[0,5]"), "data_offsets [0, 5], expected a range within 4 bytes"},
      {entry("w", "U8", "[0]", "[5,5]"), "data_offsets [5, 5], expected a range within 4 bytes"},
      {entry("w", "U8", "[1]", "[0," + max + "]"), "data_offsets [0, " + max + "], expected a range within 4 bytes"},
      {entry("w", "F32", "[2,2]", "[0,4]"), "\"w\" has 4 bytes, expected 16 for shape [2, 2] of F32"},
      {entry("w", "F4", "[3]", "[0,1]"), "shape [3] of F4, expected a whole number of bytes"},
      {entry("w", "U8", "[2]", "[2,4]"), "\"w\" begins at byte 2 of the data, expected 0"},
      {entry("w", "U8", "[2]", "[0,2]"), "tensors end at byte 2 of the data, expected 4"},
      {entry("v", "U8", "[3]", "[0,3]") + "," + entry("w", "U8", "[2]", "[2,4]"),
       "\"w\" begins at byte 2 of the data, expected 3"},
      {entry("v", "U8", "[4]", "[0,4]") + "," + entry("w", "U8", "[4]", "[0,4]"),
       "begins at byte 0 of the data, expected 4"},
      {entry("v", "U8", "[1]", "[0,1]") + "," + entry("w", "U8", "[2]", "[2,4]"),
       "\"w\" begins at byte 2 of the data, expected 1"},
  };
  for (Bad& file : bad) file.text = file_of("{" + file.text + "}", 4);
  return bad;
}

TEST_F(Safetensors, ABadFileIsOneErrorThatNamesTheFileAndBothNumbers) {
  for (const auto& files : {files_without_a_header(), headers_that_are_no_header(), tensors_that_do_not_fit()}) {
    for (const Bad& bad : files) {
      SCOPED_TRACE(bad.text.substr(0, 100));
      const std::string message = error_of([&] { parse_safetensors(in_memory(bad.text), "bad.safetensors"); });
      expect_parts(message, {"bad.safetensors: ", bad.message});
      EXPECT_LT(message.size(), 300u) << message;
    }
  }
}

TEST_F(Safetensors, AMessageIsShorterThanTheNonsenseItIsAbout) {
  const std::string text = file_of("{\"" + std::string(1'000'000, 'w') + "\": 7}", 0);
  EXPECT_LE(error_of([&] { parse_safetensors(in_memory(text), "x"); }).size(), max_message_bytes);
}

TEST_F(Safetensors, ATruncatedFileIsAnErrorWhereverItEnds) {
  const std::string whole = text_of(golden_folders().front() / "case.safetensors");
  for (std::size_t size = 0; size < whole.size(); size += size < 4096 ? 1 : 997) {
    EXPECT_THROW(parse_safetensors(in_memory(whole.substr(0, size)), "x"), Error) << size;
  }
  EXPECT_NO_THROW(parse_safetensors(in_memory(whole), "x"));
}

TEST_F(Safetensors, WhatIsNoReadableFileIsAnError) {
  expect_parts(error_of([&] { Tensors::open(folder / "none.safetensors"); }), {"none.safetensors: no such file"});
  expect_parts(error_of([&] { read_safetensors(folder); }), {folder.string(), "is a directory, expected a file"});
  expect_parts(error_of([&] { Tensors::open(folder); }), {folder.string(), "no *.safetensors file in this folder"});
  write_text(folder / "a.safetensors", "");
  expect_parts(error_of([&] { Tensors::open(folder); }), {"a.safetensors: has 0 bytes"});
#if __has_include(<sys/resource.h>)
  ASSERT_EQ(::mkfifo((folder / "pipe").c_str(), 0600), 0);
  expect_parts(error_of([&] { Tensors::open(folder / "pipe"); }), {"pipe: is not a regular file"});
#endif
}

#if __has_include(<sys/resource.h>)
TEST_F(Safetensors, WhatMayNotBeReadIsAnError) {
  if (::geteuid() == 0) GTEST_SKIP() << "root may read everything";
  write_text(folder / "a.safetensors", "");
  fs::permissions(folder / "a.safetensors", fs::perms::none);
  expect_parts(error_of([&] { Tensors::open(folder); }), {"a.safetensors: Permission denied"});
  expect_parts(error_of([&] { read_file(folder / "a.safetensors"); }), {"a.safetensors: cannot be opened"});
  fs::create_directory(folder / "locked");
  fs::permissions(folder / "locked", fs::perms::none);
  expect_parts(error_of([&] { Tensors::open(folder / "locked" / "b"); }), {"locked/b: Permission denied"});
  expect_parts(error_of([&] { Tensors::open(folder / "locked"); }), {"locked: Permission denied"});
  fs::permissions(folder / "locked", fs::perms::owner_all);
}
#endif

// ---- shards ---------------------------------------------------------------------------------------------------------

class Shards : public Safetensors {
 protected:
  /// Tensors "a" and "b" in two shards, and an index with this text.
  void write_model(const std::string& weight_map) {
    write_safetensors(folder / "1.safetensors", {make_tensor("a", {2}, a)}, {{"format", "pt"}, {"shard", "1"}});
    write_safetensors(folder / "2.safetensors", {make_tensor("b", {2}, b)}, {{"format", "pt"}, {"shard", "2"}});
    write_text(folder / "model.safetensors.index.json", weight_map);
  }

  const std::vector<float> a = {1, 2}, b = {3, 4};
};

TEST_F(Shards, AnIndexMakesThemOneModel) {
  write_model(R"({"metadata": {"total_size": 16}, "weight_map": {"a": "1.safetensors", "b": "2.safetensors"}})");
  for (const fs::path& path : {folder, folder / "model.safetensors.index.json"}) {
    const Tensors model = Tensors::open(path);
    EXPECT_EQ(model.names(), (std::vector<std::string>{"a", "b"}));
    const Tensor second = model.at("b");
    EXPECT_TRUE(std::ranges::equal(as<float>(second), b));
    EXPECT_EQ(second.file, (folder / "2.safetensors").string());
    EXPECT_EQ(model.metadata(), (Metadata{{"format", "pt"}, {"shard", "1"}}));
  }
}

TEST_F(Shards, AShardThatTheIndexDoesNotNameIsNotPartOfTheModel) {
  write_model(R"({"weight_map": {"a": "1.safetensors"}})");
  EXPECT_EQ(Tensors::open(folder).names(), std::vector<std::string>{"a"});
}

/// As in transformers, which reads whole shards.
TEST_F(Shards, AllThatAShardHoldsIsPartOfTheModel) {
  write_model(R"({"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}})");
  write_safetensors(folder / "2.safetensors", {make_tensor("b", {2}, b), make_tensor("c", {2}, a)});
  EXPECT_EQ(Tensors::open(folder).names(), (std::vector<std::string>{"a", "b", "c"}));
}

/// Whom the index names does not matter to transformers, where the last shard that has it counts.
TEST_F(Shards, ATensorInTwoOfThemIsAnErrorThatNamesBoth) {
  write_model(R"({"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}})");
  write_safetensors(folder / "2.safetensors", {make_tensor("a", {2}, b), make_tensor("b", {2}, b)});
  expect_parts(error_of([&] { Tensors::open(folder); }),
               {(folder / "2.safetensors").string() + ": tensor \"a\" is in another shard of ",
                (folder / "1.safetensors").string() + ": tensor \"a\""});
}

/// Transformers reads model.safetensors then, and others the index.
TEST_F(Shards, AModelThatIsThereInOneFileTooIsAnError) {
  write_model(R"({"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}})");
  write_safetensors(folder / "model.safetensors", {make_tensor("a", {2}, b)});
  expect_parts(error_of([&] { Tensors::open(folder); }),
               {folder.string() + ": has model.safetensors, and model.safetensors.index.json"});
  write_text(folder / "model.safetensors.index.json", R"({"weight_map": {"a": "model.safetensors"}})");
  EXPECT_EQ(Tensors::open(folder).names(), std::vector<std::string>{"a"});
}

TEST_F(Shards, WithoutAnIndexOneMustBeChosen) {
  write_model("");
  fs::remove(folder / "model.safetensors.index.json");
  expect_parts(error_of([&] { Tensors::open(folder); }), {"2 *.safetensors files", "1.safetensors, 2.safetensors"});
  write_safetensors(folder / "model.safetensors", {make_tensor("whole", {2}, a)});
  EXPECT_TRUE(Tensors::open(folder).contains("whole"));
}

TEST_F(Shards, ABadIndexIsOneErrorThatNamesIt) {
  const std::vector<Bad> cases = {
      {R"({"weight_map": {"a": "3.safetensors"}})", "3.safetensors: no such file"},
      {R"({"weight_map": {"a": "2.safetensors"}})", "tensor \"a\" is not in its shard"},
      {R"({"weight_map": {"a": "../1.safetensors"}})", "shard \"../1.safetensors\" is not a path within the folder"},
      {R"({"weight_map": {"a": "x/../../1.safetensors"}})", "is not a path within the folder"},
      {R"({"weight_map": {"a": "/etc/passwd"}})", "shard \"/etc/passwd\" is not a path within the folder"},
      {R"({"weight_map": {"a": ""}})", "shard \"\" is not a path within the folder"},
      {R"({"weight_map": {"a": 1}})", "tensor \"a\" has shard 1, expected a string"},
      {R"({"weight_map": {"a": "1.safetensors", "a": "2.safetensors"}})", "\"a\" appears twice"},
      {R"({"weight_map": []})", "weight_map is an array, expected an object"},
      {R"({})", "has no \"weight_map\""},
      {R"([])", "is an array, expected an object"},
      {R"({"weight_map": )", "not JSON"},
      {"", "not JSON"},
      {std::string(100, '['), "nested deeper than 32 levels"},
  };
  for (const Bad& bad : cases) {
    SCOPED_TRACE(bad.text);
    write_model(bad.text);
    const std::string index = (folder / "model.safetensors.index.json").string();
    expect_parts(error_of([&] { Tensors::open(folder); }), {index + ": ", bad.message});
  }
}

TEST_F(Shards, AnEndlessIndexIsNotRead) {
  write_model("{}");
  fs::resize_file(folder / "model.safetensors.index.json", max_json_bytes + 1);
  expect_parts(error_of([&] { Tensors::open(folder); }), {"JSON has 100000001 bytes, expected at most 100000000"});
}

TEST_F(Shards, ABadShardIsAnErrorThatNamesTheShard) {
  write_model(R"({"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}})");
  write_text(folder / "2.safetensors", "x");
  expect_parts(error_of([&] { Tensors::open(folder); }), {(folder / "2.safetensors").string() + ": has 1 bytes"});
  fs::remove(folder / "2.safetensors");
  fs::create_directory(folder / "2.safetensors");
  expect_parts(error_of([&] { Tensors::open(folder); }), {"2.safetensors: is a directory"});
}

// ---- bad writes -----------------------------------------------------------------------------------------------------

TEST_F(Safetensors, WhatCannotBeWrittenLeavesTheOldFile) {
  const std::vector<float> two = {1, 2};
  const fs::path path = folder / "x.safetensors";
  write_safetensors(path, {make_tensor("old", {2}, two)});
  const std::string before = text_of(path);
  const Tensor good = make_tensor("w", {2}, two);
  struct Case {
    std::vector<Tensor> tensors;
    std::string message;
  };
  const std::vector<Case> cases = {
      {{good, good}, "two tensors are called \"w\""},
      {{make_tensor("w", {3}, two)}, path.string() + ": tensor \"w\" has 8 bytes, expected 12 for shape [3] of F32"},
      {{make_tensor("w", {-2}, two)}, "shape [-2], expected no negative size"},
      {{make_tensor("__metadata__", {2}, two)}, "no tensor can be called \"__metadata__\""},
      {{make_tensor("\xff", {2}, two)}, "not UTF-8"},
  };
  for (const Case& bad : cases) {
    expect_parts(error_of([&] { write_safetensors(path, bad.tensors); }), {bad.message});
  }
  expect_parts(error_of([&] { write_safetensors(path, {}, {{"key", "\xff"}}); }), {path.string(), "not UTF-8"});
  expect_parts(error_of([&] { write_safetensors(path, {}, {{"key", std::string(max_json_bytes, 'x')}}); }),
               {path.string(), "header would have 100000056 bytes, expected at most 100000000"});
  EXPECT_EQ(text_of(path), before);
  EXPECT_EQ(files_in_folder(), 1u);
}

TEST_F(Safetensors, APlaceThatCannotBeWrittenIsAnError) {
  fs::create_directory(folder / "taken");
  expect_parts(error_of([&] { write_safetensors(folder / "taken", {}); }),
               {"taken: cannot be written: it is a folder, and will not be replaced"});
  expect_parts(error_of([&] { write_safetensors(folder / "no" / "x", {}); }), {"cannot be written: No such file"});
  EXPECT_EQ(files_in_folder(), 1u);
}

TEST_F(Safetensors, ALinkIsReplacedAndWhatItLeadsToStays) {
  const std::vector<float> two = {1, 2};
  write_text(folder / "of other models", "theirs");
  fs::create_symlink("of other models", folder / "link");
  fs::create_symlink("nothing", folder / "link to nothing");
  for (const fs::path& link : {folder / "link", folder / "link to nothing"}) {
    write_safetensors(link, {make_tensor("w", {2}, two)});
    EXPECT_TRUE(fs::is_regular_file(fs::symlink_status(link)));
  }
  EXPECT_EQ(text_of(folder / "of other models"), "theirs");
  EXPECT_EQ(files_in_folder(), 3u);
}

#if __has_include(<sys/resource.h>)
TEST_F(Safetensors, APipeIsNotReplacedByAFile) {
  const fs::path pipe = folder / "pipe";
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  fs::create_symlink(pipe, folder / "link");
  for (const fs::path& path : {pipe, folder / "link"}) {
    EXPECT_EQ(error_of([&] { write_safetensors(path, {}); }),
              path.string() + ": cannot be written: it is no file, and will not be replaced; choose another name");
  }
  EXPECT_TRUE(fs::is_fifo(fs::symlink_status(pipe)));
  EXPECT_TRUE(fs::is_symlink(folder / "link"));
  EXPECT_EQ(files_in_folder(), 2u);
}
#endif

TEST_F(Safetensors, AnotherWritersTemporaryFileIsLeftAlone) {
  write_text(folder / "x.safetensors.tmp0", "busy");
  write_safetensors(folder / "x.safetensors", {});
  EXPECT_EQ(text_of(folder / "x.safetensors.tmp0"), "busy");
  EXPECT_EQ(files_in_folder(), 2u);
}

#if __has_include(<sys/resource.h>)
TEST_F(Safetensors, AFullDiskLeavesTheOldFile) {
  const std::vector<float> many(100'000);
  const fs::path path = folder / "x.safetensors";
  write_safetensors(path, {});
  const std::string before = text_of(path);
  rlimit limit{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &limit), 0);
  const rlimit small{.rlim_cur = 4096, .rlim_max = limit.rlim_max};
  const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  ::setrlimit(RLIMIT_FSIZE, &small);
  const std::string message = error_of([&] { write_safetensors(path, {make_tensor("w", {100'000}, many)}); });
  ::setrlimit(RLIMIT_FSIZE, &limit);
  std::signal(SIGXFSZ, old_handler);
  expect_parts(message, {path.string(), "cannot be written: File too large"});
  EXPECT_EQ(text_of(path), before);
  EXPECT_EQ(files_in_folder(), 1u);
}
#endif

// ---- files that were damaged at random ------------------------------------------------------------------------------

template <class T>
std::uint64_t count_positive(std::span<const T> values) {
  return static_cast<std::uint64_t>(std::ranges::count_if(values, [](T value) { return value > T(0); }));
}

/// Reads all that a reader would, so that a byte out of range shows.
std::uint64_t touch(const TensorFile& file) {
  std::uint64_t sum = 0;
  for (const Tensor& tensor : file.tensors) {
    const Tensor safe = aligned(tensor);
    for (const std::byte byte : safe.bytes) sum += static_cast<std::uint64_t>(byte);
    if (safe.dtype == "F32") sum += count_positive(as<float>(safe));
    if (safe.dtype == "F64") sum += count_positive(as<double>(safe));
    if (safe.dtype == "U8") sum += count_positive(as<std::uint8_t>(safe));
  }
  return sum;
}

std::string damage(std::string text, std::mt19937& random) {
  const auto below = [&](std::size_t n) { return std::uniform_int_distribution<std::size_t>(0, n - 1)(random); };
  static const std::string likely = "0123456789-+.eE[]{}\",: \\u";
  for (std::size_t times = 1 + below(3); times > 0 && !text.empty(); --times) {
    const std::size_t at = below(text.size()), length = std::min(1 + below(8), text.size() - at);
    switch (below(6)) {
      case 0:
        text[at] = static_cast<char>(text[at] ^ (1 << below(8)));
        break;
      case 1:
        text[at] = static_cast<char>(below(256));
        break;
      case 2:
        text[at] = likely[below(likely.size())];
        break;
      case 3:
        text.erase(at, length);
        break;
      case 4:
        text.insert(at, text.substr(below(text.size()), length));
        break;
      case 5:
        text.resize(at);
        break;
    }
  }
  return text;
}

TEST_F(Safetensors, ADamagedFileIsReadInRangeOrIsAnError) {
  const std::vector<float> weights(6, 1.5f);
  const std::vector<double> biases(2);
  const std::vector<std::uint8_t> bytes(3);
  write_safetensors(folder / "x",
                    {make_tensor("w", {2, 3}, weights), make_tensor("b", {2}, biases), make_tensor("u", {3}, bytes),
                     make_tensor("none", {0}, std::span(weights).first(0))},
                    {{"format", "pt"}});
  const std::string whole = text_of(folder / "x"), data = whole.substr(whole.size() - 43);
  const std::string header = whole.substr(8, whole.size() - 8 - data.size());
  std::mt19937 random(20240607);
  int good = 0, bad = 0;
  for (int i = 0; i < 40'000; ++i) {
    // Every other time the length that stands first fits the damaged header, so that the damage reaches the JSON.
    const std::string text = i % 2 == 0 ? damage(whole, random) : file_of(damage(header, random), 0) + data;
    try {
      touch(parse_safetensors(in_memory(text, static_cast<std::size_t>(i % 8)), "x"));
      ++good;
    } catch (const Error&) {
      ++bad;
    }
  }
  EXPECT_GT(good, 1000);
  EXPECT_GT(bad, 1000);
}

TEST_F(Shards, ADamagedIndexIsReadOrIsAnError) {
  const std::string index = R"({"metadata": {}, "weight_map": {"a": "1.safetensors", "b": "2.safetensors"}})";
  write_model(index);
  std::mt19937 random(20240608);
  int good = 0, bad = 0;
  for (int i = 0; i < 2'000; ++i) {
    write_text(folder / "model.safetensors.index.json", damage(index, random));
    try {
      all_of(Tensors::open(folder));
      ++good;
    } catch (const Error&) {
      ++bad;
    }
  }
  EXPECT_GT(good, 10);
  EXPECT_GT(bad, 100);
}

}  // namespace
