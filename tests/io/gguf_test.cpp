/// @file  GGUF files: what is read, and what is refused and how.
#include "moe/io/gguf.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <limits>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "errors.hpp"
#include "gguf_files.hpp"
#include "moe/io/gguf_writer.hpp"
#include "temporary_folder.hpp"

namespace {

namespace fs = std::filesystem;
using namespace moe;
using namespace moe::io;
using test::GgufBuilder;
using test::GgufText;

std::string floats(std::size_t count) {
  std::string bytes;
  for (std::size_t i = 0; i < count; ++i) {
    const float value = float(i) / 4;
    bytes.append(reinterpret_cast<const char*>(&value), sizeof value);
  }
  return bytes;
}

GgufFile parse(const std::string& bytes) { return parse_gguf(test::in_memory(bytes), "a.gguf"); }
std::string error_of(const std::string& bytes) {
  return test::error_of<Error>([&] { parse(bytes); });
}

void write_text(const fs::path& path, const std::string& text) { std::ofstream(path, std::ios::binary) << text; }
std::string text_of(const fs::path& path) {
  std::ostringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  return text.str();
}

void expect_parts(const std::string& message, const std::vector<std::string>& parts) {
  for (const std::string& part : parts)
    EXPECT_NE(message.find(part), std::string::npos) << part << "\nis not in\n" << message;
  EXPECT_NE(message, "no error");
}

/// A file with a key of each kind, and three tensors.
GgufBuilder small() {
  GgufBuilder file;
  file.text("general.architecture", "qwen3moe").u32("general.alignment", 32);
  file.key("list", 9, GgufText().number(std::uint32_t(8)).number(std::uint64_t(2)).text("a").text("bc").bytes);
  file.number("flag", 7, std::uint8_t(1));
  file.tensor("x", {3, 2}, 0, floats(6))
      .tensor("coded", {64}, 8, std::string(68, '\1'))
      .tensor("one", {}, 1, std::string("\0\x3c", 2));
  return file;
}

template <class T>
nlohmann::json read_number(std::uint32_t type, T value) {
  return to_json(parse(GgufBuilder().number("key", type, value).file()).metadata.at(0).value);
}

TEST(Gguf, ReadsNumbersOfEveryType) {
  EXPECT_EQ(read_number(0, std::uint8_t(255)), 255);
  EXPECT_EQ(read_number(1, std::int8_t(-128)), -128);
  EXPECT_EQ(read_number(2, std::uint16_t(65535)), 65535);
  EXPECT_EQ(read_number(3, std::int16_t(-32768)), -32768);
  EXPECT_EQ(read_number(4, std::numeric_limits<std::uint32_t>::max()), 4294967295);
  EXPECT_EQ(read_number(5, std::numeric_limits<std::int32_t>::min()), -2147483648);
  EXPECT_EQ(read_number(6, 1.5F), 1.5);
  EXPECT_EQ(read_number(7, true), true);
  EXPECT_EQ(read_number(7, false), false);
  EXPECT_EQ(read_number(10, std::numeric_limits<std::uint64_t>::max()), std::numeric_limits<std::uint64_t>::max());
  EXPECT_EQ(read_number(11, std::numeric_limits<std::int64_t>::min()), std::numeric_limits<std::int64_t>::min());
  EXPECT_EQ(read_number(12, 0.1), 0.1);
}

TEST(Gguf, ReadsTextsAndLists) {
  const auto list = [](std::uint32_t element, std::uint64_t count, const std::string& values) {
    return GgufText().number(element).number(count).bytes + values;
  };
  const std::string two = GgufText().number(std::int32_t(-1)).number(std::int32_t(7)).bytes;
  GgufBuilder file;
  file.text("text", "with \n and \"").text("no text", "");
  file.key("numbers", 9, list(5, 2, two)).key("nothing", 9, list(5, 0, ""));
  file.key("texts", 9, list(8, 2, GgufText().text("").text("é").bytes))
      .key("flags", 9, list(7, 3, std::string("\0\1\1", 3)));
  file.key("lists", 9, list(9, 2, list(5, 2, two) + list(8, 1, GgufText().text("x").bytes)));
  const GgufMetadata metadata = parse(file.file()).metadata;
  ASSERT_EQ(metadata.size(), 7U);
  EXPECT_EQ(to_json(*find_key(metadata, "text")), "with \n and \"");
  EXPECT_EQ(to_json(*find_key(metadata, "no text")), "");
  EXPECT_EQ(to_json(*find_key(metadata, "numbers")), nlohmann::json({-1, 7}));
  EXPECT_EQ(to_json(*find_key(metadata, "nothing")), nlohmann::json::array());
  EXPECT_EQ(to_json(*find_key(metadata, "texts")), nlohmann::json({"", "é"}));
  EXPECT_EQ(to_json(*find_key(metadata, "flags")), nlohmann::json({false, true, true}));
  EXPECT_EQ(to_json(*find_key(metadata, "lists")), nlohmann::json({{-1, 7}, {"x"}}));
  EXPECT_EQ(find_key(metadata, "texts "), nullptr);
}

TEST(Gguf, ReadsTensorsWhereTheyLieOutermostSizeFirst) {
  for (const std::uint32_t version : {2U, 3U}) {
    GgufBuilder file = small();
    file.version = version;
    const MappedFile memory = test::in_memory(file.file());
    const GgufFile read = parse_gguf(memory, "a.gguf");
    ASSERT_EQ(read.tensors.size(), 3U);
    const Tensor& x = read.tensors[0];
    EXPECT_EQ(x.name, "x");
    EXPECT_EQ(x.dtype, "F32");
    EXPECT_EQ(x.shape, (std::vector<Index>{2, 3}));
    EXPECT_EQ(as<float>(x)[5], 1.25F);
    EXPECT_GE(x.bytes.data(), memory.bytes.data());
    EXPECT_LE(x.bytes.data() + x.bytes.size(), memory.bytes.data() + memory.bytes.size());
    EXPECT_EQ(read.tensors[1].dtype, "Q8_0");
    EXPECT_EQ(read.tensors[1].bytes.size(), 68U);
    EXPECT_EQ(read.tensors[2].shape, std::vector<Index>());
    EXPECT_EQ(float(as<float16>(read.tensors[2])[0]), 1.0F);
  }
}

TEST(Gguf, ReadsAnyAlignmentAndAnyOrder) {
  for (const std::size_t alignment : {1U, 4U, 32U, 64U, 4096U}) {
    GgufBuilder file;
    file.alignment = alignment;
    file.u32("general.alignment", std::uint32_t(alignment));
    file.tensor("x", {3}, 0, floats(3)).tensor("y", {5}, 24, "abcde");
    std::swap(file.tensors[0], file.tensors[1]);
    const GgufFile read = parse(file.file());
    EXPECT_EQ(read.tensors[0].name, "y");
    const Tensor x = aligned(read.tensors[1]);
    EXPECT_EQ(as<float>(x)[2], 0.5F);
    EXPECT_EQ(char(read.tensors[0].bytes[4]), 'e');
  }
}

TEST(Gguf, ReadsAFileOfNothing) {
  EXPECT_TRUE(parse(GgufBuilder().file()).tensors.empty());
  EXPECT_TRUE(parse(GgufBuilder().tensor("x", {0, 4}, 0, "").file()).tensors.at(0).bytes.empty());
}

TEST(Gguf, KnowsTypesByNumberNameAndSize) {
  const auto* const q4_k = find_ggml_type("Q4_K");
  ASSERT_NE(q4_k, nullptr);
  EXPECT_EQ(q4_k->number, 12U);
  EXPECT_EQ(q4_k->numbers, 256);
  EXPECT_EQ(q4_k->bytes, 144);
  EXPECT_EQ(find_ggml_type("Q4_L"), nullptr);
}

// ---- every field, as it should not be

struct Wrong {
  const char* what;
  std::function<void(GgufBuilder&)> change;
  std::vector<std::string> message;
};

TEST(Gguf, RefusesEveryFieldThatIsWrong) {
  const std::uint64_t most = std::numeric_limits<std::uint64_t>::max();
  const auto nested = [](int depth) {
    std::string value = GgufText().number(std::uint32_t(4)).number(std::uint64_t(0)).bytes;
    for (int i = 1; i < depth; ++i) value = GgufText().number(std::uint32_t(9)).number(std::uint64_t(1)).bytes + value;
    return value;
  };
  const std::vector<Wrong> all = {
      {"magic", [](auto& f) { f.magic = "GGML"; }, {"a.gguf: does not begin with \"GGUF\""}},
      {"an HTML page", [](auto& f) { f.magic = "<!doctype html>"; }, {"a.gguf: is an HTML page"}},
      {"big-endian", [](auto& f) { f.magic = "FUGG"; }, {"a.gguf: is big-endian"}},
      {"big-endian version", [](auto& f) { f.version = 0x03000000; }, {"a.gguf: is big-endian"}},
      {"version 0", [](auto& f) { f.version = 0; }, {"is of GGUF version 0, expected 2 or 3"}},
      {"version 1", [](auto& f) { f.version = 1; }, {"is of GGUF version 1, expected 2 or 3"}},
      {"version 4", [](auto& f) { f.version = 4; }, {"is of GGUF version 4, expected 2 or 3"}},
      {"one key too many", [](auto& f) { f.more_keys = 1; }, {"a.gguf: tensor 0 has name of "}},
      {"far too many keys",
       [&](auto& f) { f.more_keys = most / 2; },
       {"the header has ", " as its number of keys, but only "}},
      {"far too many tensors", [&](auto& f) { f.more_tensors = most / 4; }, {"as its number of tensors, but only "}},
      {"a key twice", [](auto& f) { f.u32("flag", 1); }, {"key \"flag\" appears twice"}},
      {"an empty key", [](auto& f) { f.u32("", 1); }, {"key 4 has an empty name"}},
      {"a key that is not UTF-8", [](auto& f) { f.u32("\xff", 1); }, {"key 4 has a name at byte "}},
      {"a key with a zero", [](auto& f) { f.u32(std::string("a\0b", 3), 1); }, {"key 4 has a name at byte "}},
      {"a type of value", [](auto& f) { f.number("k", 13, 1); }, {"key \"k\" has a type 13, expected 0 to 12"}},
      {"a flag of 2",
       [](auto& f) { f.number("k", 7, std::uint8_t(2)); },
       {"key \"k\" has the flag 2, expected 0 or 1"}},
      {"a long text",
       [&](auto& f) { f.number("k", 8, most); },
       {"key \"k\" has a text of 18446744073709551615 bytes at byte "}},
      {"a long list",
       [&](auto& f) { f.key("k", 9, GgufText().number(std::uint32_t(10)).number(most / 8 + 1).bytes); },
       {"key \"k\" has 2305843009213693952 as its number of elements, but only "}},
      {"a long list of texts",
       [&](auto& f) { f.key("k", 9, GgufText().number(std::uint32_t(8)).number(std::uint64_t(1) << 40).bytes); },
       {"key \"k\" has 1099511627776 as its number of elements, but only "}},
      {"a type of elements",
       [&](auto& f) { f.key("k", 9, GgufText().number(std::uint32_t(99)).number(std::uint64_t(0)).bytes); },
       {"key \"k\" has a type of elements 99, expected 0 to 12"}},
      {"lists in lists in lists",
       [&](auto& f) { f.key("k", 9, nested(3)); },
       {"key \"k\" is nested deeper than 2 arrays"}},
      {"an alignment of 0",
       [](auto& f) { f.keys.clear(), f.u32("general.alignment", 0); },
       {"general.alignment is 0, expected a power of two"}},
      {"an alignment of 48",
       [](auto& f) { f.keys.clear(), f.u32("general.alignment", 48); },
       {"general.alignment is 48, expected a power of two"}},
      {"an alignment of another type",
       [](auto& f) { f.keys.clear(), f.number("general.alignment", 10, std::uint64_t(32)); },
       {"general.alignment has type 10, expected 4"}},
      {"an alignment that tensors have not",
       [](auto& f) { f.keys.clear(), f.u32("general.alignment", 64), f.alignment = 64; },
       {"tensor \"coded\" begins at byte 32 of the data, expected a multiple of the alignment, 64"}},
      {"a tensor twice", [](auto& f) { f.tensor("x", {1}, 0, floats(1)); }, {"tensor \"x\" appears twice"}},
      {"a tensor without a name", [](auto& f) { f.tensor("", {1}, 0, floats(1)); }, {"tensor 3 has an empty name"}},
      {"five dimensions",
       [](auto& f) { f.tensor("t", {1, 1, 1, 1, 1}, 0, floats(1)); },
       {"tensor \"t\" has 5 dimensions, expected at most 4"}},
      {"a size of 2^63",
       [](auto& f) { f.tensor("t", {std::uint64_t(1) << 63}, 0, ""); },
       {"tensor \"t\" has size 9223372036854775808 in dimension 0"}},
      {"sizes whose product is too large",
       [](auto& f) { f.tensor("t", {std::uint64_t(1) << 32, std::uint64_t(1) << 32}, 0, ""); },
       {"tensor \"t\" has shape [4294967296, 4294967296], expected at most "}},
      {"a row of part of a block",
       [](auto& f) { f.tensor("t", {48, 2}, 2, std::string(54, 'x')); },
       {"tensor \"t\" has rows of 48 numbers, expected a multiple of 32, the block of Q4_0"}},
      {"a row of part of a large block",
       [](auto& f) { f.tensor("t", {128, 2}, 12, std::string(144, 'x')); },
       {"tensor \"t\" has rows of 128 numbers, expected a multiple of 256, the block of Q4_K"}},
      {"a scalar in blocks",
       [](auto& f) { f.tensor("t", {}, 2, std::string(18, 'x')); },
       {"tensor \"t\" has rows of 1 numbers, expected a multiple of 32"}},
      {"a type that ggml gave up",
       [](auto& f) { f.tensor("t", {32}, 4, "x"); },
       {"tensor \"t\" has type 4, Q4_2: llama.cpp removed it"}},
      {"an interleaved type",
       [](auto& f) { f.tensor("t", {32}, 31, "x"); },
       {"tensor \"t\" has type 31, Q4_0_4_4: llama.cpp removed it"}},
      {"a type to come",
       [](auto& f) { f.tensor("t", {32}, 43, "x"); },
       {"tensor \"t\" has type 43, which is none of ggml's that are known"}},
      {"a type of ik_llama.cpp's",
       [](auto& f) { f.tensor("t", {256}, 139, "x"); },
       {"tensor \"t\" has type 139, IQ4_K: it is of ik_llama.cpp alone"}},
      {"another",
       [](auto& f) { f.tensor("t", {256}, 344, "x"); },
       {"tensor \"t\" has type 344, IQ4_KS_R4: it is of ik_llama.cpp alone"}},
      {"a type of ggml's as ik_llama.cpp has it",
       [](auto& f) { f.tensor("t", {256}, 212, "x"); },
       {"tensor \"t\" has type 212, Q4_K_R4: it is of ik_llama.cpp alone"}},
      {"a type of nobody's",
       [](auto& f) { f.tensor("t", {256}, 4000000000U, "x"); },
       {"tensor \"t\" has type 4000000000, which is none of ggml's that are known"}},
      {"an offset between",
       [](auto& f) { f.entry("t", {1}, 0, 8); },
       {"tensor \"t\" begins at byte 8 of the data, expected a multiple of the alignment, 32"}},
      {"an offset beyond",
       [](auto& f) { f.entry("t", {1}, 0, 1 << 20); },
       {"tensor \"t\" has 4 bytes from byte 1048576 of the data on, which has 130"}},
      {"an offset far beyond",
       [&](auto& f) { f.entry("t", {1}, 0, most - 31); },
       {"tensor \"t\" has 4 bytes from byte 18446744073709551584 of the data on, which has 130"}},
      {"a tensor over another",
       [](auto& f) { f.entry("t", {8}, 0, 32); },
       {"tensor \"coded\" begins at byte 32 of the data, expected 64, where the last one ends"}},
      {"a gap",
       [](auto& f) {
         f.data.resize(192);
         f.tensor("t", {1}, 0, floats(1));
       },
       {"tensor \"t\" begins at byte 192 of the data, expected 160, where the last one ends"}},
      {"bytes after the end",
       [](auto& f) { f.data.resize(161); },
       {"a.gguf: tensors end at byte 130 of the data, expected 161, where it ends"}},
      {"a file that is cut",
       [](auto& f) { f.data.resize(129); },
       {"tensor \"one\" has 2 bytes from byte 128 of the data on, which has 129: the file ends early"}},
  };
  for (const auto& [what, change, message] : all) {
    SCOPED_TRACE(what);
    GgufBuilder file = small();
    change(file);
    expect_parts(error_of(file.file()), message);
  }
  EXPECT_EQ(error_of(small().file()), "no error");
}

TEST(Gguf, RefusesEveryPartOfAFile) {
  const std::string whole = small().file();
  for (std::size_t size = 0; size < whole.size(); ++size) {
    EXPECT_NE(error_of(whole.substr(0, size)), "no error") << size << " bytes";
  }
}

/// Whatever it says, it is an Error or no error.
TEST(Gguf, ReadsOrRefusesEveryChangedByte) {
  const std::string whole = small().file();
  Index read = 0;
  for (std::size_t i = 0; i < whole.size(); ++i) {
    for (const int byte : {0x00, 0x01, 0x7f, 0x80, 0xff}) {
      std::string changed = whole;
      changed[i] = static_cast<char>(byte);
      if (error_of(changed) == "no error") ++read;
    }
  }
  EXPECT_GT(read, 0);
  EXPECT_LT(read, Index(5 * whole.size()));
}

// ---- parts

struct SplitGguf : testing::Test {
  const test::TemporaryFolder temporary{"split_gguf"};

  static GgufBuilder part(std::uint16_t number, std::uint16_t count) {
    GgufBuilder file;
    if (number == 0) file.text("general.architecture", "qwen3moe");
    file.number("split.no", 2, number)
        .number("split.count", 2, count)
        .number("split.tensors.count", 5, std::int32_t(3));
    return file.tensor("t" + std::to_string(number), {4}, 0, floats(4));
  }
  fs::path path(int number, int count = 3) const {
    return temporary.path / ("m-0000" + std::to_string(number) + "-of-0000" + std::to_string(count) + ".gguf");
  }
  void write() const {
    for (int i = 0; i < 3; ++i) write_text(path(i + 1), part(std::uint16_t(i), 3).file());
  }
};

TEST_F(SplitGguf, IsReadByTheNameOfAnyPart) {
  write();
  for (int i = 1; i <= 3; ++i) {
    for (const Access access : {Access::mapped, Access::copied}) {
      const GgufFile all = read_gguf(path(i), access);
      ASSERT_EQ(all.tensors.size(), 3U);
      for (std::size_t t = 0; t < 3; ++t) {
        EXPECT_EQ(all.tensors[t].name, "t" + std::to_string(t));
        EXPECT_EQ(as<float>(all.tensors[t])[3], 0.75F);
      }
      EXPECT_EQ(to_json(*find_key(all.metadata, "general.architecture")), "qwen3moe");
    }
  }
}

TEST_F(SplitGguf, ThatIsOnePartIsAFile) {
  write_text(temporary.path / "whole.gguf", part(0, 1).file());
  EXPECT_EQ(read_gguf(temporary.path / "whole.gguf").tensors.size(), 1U);
}

TEST_F(SplitGguf, RefusesPartsThatDoNotBelongTogether) {
  const auto error = [&](const fs::path& file) { return test::error_of<Error>([&] { read_gguf(file); }); };
  write();
  fs::remove(path(2));
  expect_parts(error(path(1)), {"m-00002-of-00003.gguf: no such file"});
  write_text(path(2), part(2, 3).file());
  expect_parts(error(path(1)), {"m-00002-of-00003.gguf: says that it is part 2 of 3, expected 1 of 3"});
  write_text(path(2), part(1, 4).file());
  expect_parts(error(path(1)), {"m-00002-of-00003.gguf: says that it is part 1 of 4, expected 1 of 3"});
  write_text(path(2), part(1, 3).text("general.architecture", "llama").file());
  expect_parts(
      error(path(1)),
      {"m-00002-of-00003.gguf: key \"general.architecture\" is not in the first part, or says something else there"});
  write_text(path(2), part(1, 3).tensor("t0", {1}, 0, floats(1)).file());
  expect_parts(error(path(1)), {"m-00002-of-00003.gguf: tensor \"t0\" is in an earlier part, too"});
  write_text(path(2), part(1, 3).tensor("t7", {1}, 0, floats(1)).file());
  expect_parts(error(path(3)), {"split.tensors.count is 3, and the 3 parts have 4"});
  fs::copy_file(path(1), temporary.path / "renamed.gguf");
  expect_parts(error(temporary.path / "renamed.gguf"), {"renamed.gguf: is part 0 of 3 by its split.no and split.count, "
                                                        "expected a name that ends with -00001-of-00003.gguf"});
  write_text(path(1), part(5, 3).file());
  expect_parts(error(path(1)), {"is part 5 of 3"});
  write_text(path(1), GgufBuilder().number("split.no", 6, 1.0F).file());
  expect_parts(error(path(1)), {"split.no is 1.0, expected a whole number from 0 to 2147483647"});
  write_text(path(1), GgufBuilder().text("split.no", "\xff").file());  // no UTF-8
  expect_parts(error(path(1)), {"split.no is a text, expected a whole number from 0 to 2147483647"});
}

// ---- what we write

TEST(GgufWriter, WritesWhatWasRead) {
  const test::TemporaryFolder temporary("gguf_writer");
  GgufBuilder file = small();
  file.data.resize(160);  // as writers do, up to the alignment
  write_text(temporary.path / "a.gguf", file.file());
  const GgufFile read = read_gguf(temporary.path / "a.gguf");
  write_gguf(temporary.path / "a.gguf", read.metadata, read.tensors);  // over itself
  EXPECT_EQ(text_of(temporary.path / "a.gguf"), file.file());
  EXPECT_EQ(std::distance(fs::directory_iterator(temporary.path), fs::directory_iterator()), 1);
}

TEST(GgufWriter, WritesValuesThatAreReadAgain) {
  const test::TemporaryFolder temporary("gguf_values");
  const std::vector<float> numbers = {1, 2, 3};
  const GgufMetadata metadata = {{"general.alignment", gguf_value(std::uint32_t(64))},
                                 {"flag", gguf_value(true)},
                                 {"small", gguf_value(std::int8_t(-3))},
                                 {"large", gguf_value(std::uint64_t(1) << 60)},
                                 {"text", gguf_value("é")},
                                 {"floats", gguf_list(numbers)},
                                 {"texts", gguf_list(std::vector<std::string>{"a", ""})}};
  write_gguf(temporary.path / "a.gguf", metadata,
             {make_tensor("x", {3, 1}, std::span(numbers)), make_tensor("y", {3}, std::span(numbers))});
  const GgufFile read = read_gguf(temporary.path / "a.gguf");
  EXPECT_EQ(to_json(*find_key(read.metadata, "flag")), true);
  EXPECT_EQ(to_json(*find_key(read.metadata, "small")), -3);
  EXPECT_EQ(to_json(*find_key(read.metadata, "large")), std::uint64_t(1) << 60);
  EXPECT_EQ(to_json(*find_key(read.metadata, "text")), "é");
  EXPECT_EQ(to_json(*find_key(read.metadata, "floats")), nlohmann::json({1.0, 2.0, 3.0}));
  EXPECT_EQ(to_json(*find_key(read.metadata, "texts")), nlohmann::json({"a", ""}));
  EXPECT_EQ(read.tensors[0].shape, (std::vector<Index>{3, 1}));
  EXPECT_EQ(as<float>(read.tensors[1])[2], 3.0F);
  EXPECT_EQ((read.tensors[1].bytes.data() - read.tensors[0].bytes.data()) % 64, 0);
}

TEST(GgufWriter, RefusesWhatAReaderWouldAndLeavesTheFileAsItWas) {
  const test::TemporaryFolder temporary("gguf_refused");
  const fs::path path = temporary.path / "a.gguf";
  write_text(path, "before");
  const std::vector<float> numbers = {1, 2, 3};
  const Tensor x = make_tensor("x", {3}, std::span(numbers));
  const auto error = [&](const GgufMetadata& metadata, const std::vector<Tensor>& tensors) {
    const std::string message = test::error_of<Error>([&] { write_gguf(path, metadata, tensors); });
    EXPECT_EQ(text_of(path), "before");
    EXPECT_EQ(std::distance(fs::directory_iterator(temporary.path), fs::directory_iterator()), 1);
    return message;
  };
  expect_parts(error({}, {x, x}), {"a.gguf: tensor \"x\" is given twice"});
  expect_parts(error({{"k", gguf_value(1)}, {"k", gguf_value(1)}}, {}), {"a.gguf: key \"k\" appears twice"});
  expect_parts(error({{"", gguf_value(1)}}, {}), {"key \"\" has an empty name"});
  GgufValue cut = gguf_value(std::uint64_t(1));
  cut.bytes = cut.bytes.first(4);
  expect_parts(error({{"k", cut}}, {}), {"a.gguf: key \"k\" has a value of 8 bytes"});
  GgufValue longer = gguf_value(std::uint64_t(1));
  longer.type = longer.element = GgufType::u32;
  expect_parts(error({{"k", longer}}, {}), {"a.gguf: key \"k\" has 4 bytes after its value"});
  Tensor other = x;
  other.dtype = "F8_E4M3";
  expect_parts(error({}, {other}), {"a.gguf: tensor \"x\" has dtype F8_E4M3, which GGUF has no number for"});
  other.dtype = "Q4_2";
  expect_parts(error({}, {other}), {"a.gguf: tensor \"x\" has dtype Q4_2, which GGUF has no number for"});
  other = x;
  other.shape = {4};
  expect_parts(error({}, {other}), {"a.gguf: tensor \"x\" has 12 bytes, expected 16 for shape [4] of F32"});
  other = x;
  other.dtype = "Q8_0";
  expect_parts(error({}, {other}),
               {"tensor \"x\" has rows of 3 numbers, expected a multiple of 32, the block of Q8_0"});
  other = x;
  other.name = std::string(64, 'n');
  expect_parts(error({}, {other}), {"has a name of 64 bytes, expected at most 63"});
  other = x;
  other.shape = {1, 1, 1, 1, 3};
  expect_parts(error({}, {other}), {"tensor \"x\" has 5 dimensions, expected at most 4"});
  expect_parts(error({{"general.alignment", gguf_value(std::uint32_t(3))}}, {}),
               {"general.alignment is 3, expected a power of two"});
}

}  // namespace
