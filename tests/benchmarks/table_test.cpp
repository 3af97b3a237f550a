#include "../../benchmarks/table.hpp"

#include <sstream>
#include <string>

#include <gtest/gtest.h>

#include "made_up_rows.hpp"

using namespace moe::bench;

namespace {

std::string longest_line(const std::string& lines) {
  std::istringstream in(lines);
  std::string longest;
  for (std::string line; std::getline(in, line);) {
    if (line.size() > longest.size()) longest = line;
  }
  return longest;
}

}  // namespace

TEST(Table, FitsIn120Columns) {
  auto rows = rows_of({{1024, 123.456, 99.99, 1e-5}});
  rows[0].error = 1.234e-7;
  EXPECT_LE(longest_line(table_head()).size(), 120U) << longest_line(table_head());
  const std::string lines = table_lines(rows, moe::layer_shape("kimi-k2"));
  EXPECT_LE(longest_line(lines).size(), 120U) << longest_line(lines);
  EXPECT_LE(longest_line(table_of_presets()).size(), 120U) << longest_line(table_of_presets());
}

TEST(Table, ARowSaysHowMuchFasterAndSlowerItIs) {
  const std::string lines = table_lines(rows_of({{16, 2, 1, 7}}), moe::layer_shape("olmoe-1b-7b"));
  const std::string first = lines.substr(0, lines.find('\n'));
  EXPECT_NE(first.find("403 M"), std::string::npos) << first;
  EXPECT_TRUE(first.ends_with("     3.50      2.00")) << first;
}

TEST(Table, ARowThatWasNotMeasuredSaysSo) {
  auto rows = rows_of({{16, 2, 1, 7}});
  rows[2].measured = false;
  const std::string lines = table_lines(rows, moe::layer_shape("olmoe-1b-7b"));
  EXPECT_NE(lines.find("not measured: a call may take 7.00 s"), std::string::npos) << lines;
  EXPECT_TRUE(lines.substr(0, lines.find('\n')).ends_with("        -      2.00")) << lines;
}

TEST(Table, TheSparseLayerSaysHowFarItsAnswersAreOff) {
  auto rows = rows_of({{16, 2, 1, 7}});
  rows[0].error = 0.07123;
  const std::string lines = table_lines(rows, moe::layer_shape("olmoe-1b-7b"));
  EXPECT_NE(lines.substr(0, lines.find('\n')).find(" 0.071 "), std::string::npos) << lines;
  EXPECT_EQ(lines.find("0.071", lines.find('\n')), std::string::npos) << lines;
}

TEST(Table, AllPresetsAreListed) {
  const std::string table = table_of_presets();
  for (const auto& preset : moe::presets()) EXPECT_NE(table.find(preset.name), std::string::npos) << preset.name;
  for (const auto& preset : moe::layer_presets()) EXPECT_NE(table.find(preset.name), std::string::npos) << preset.name;
}
