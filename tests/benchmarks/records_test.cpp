#include "../../benchmarks/records.hpp"

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include <gtest/gtest.h>

using namespace moe::bench;

namespace {

const Setting olmoe{.shape_name = "olmoe-1b-7b",
                    .shape = moe::layer_shape("olmoe-1b-7b"),
                    .weights = WeightType::bf16,
                    .threads = 2,
                    .limits = {.fma_gflops = 466, .read_gbs = 35}};

Row sparse_row() {
  return {.kind = Kind::moe,
          .tokens = 4,
          .seconds = 0.5,
          .experts = {.flops = 3e9, .bytes = 1e9},
          .limit_share = 0.9,
          .routing_share = 0.01,
          .error = 0.125};
}

}  // namespace

TEST(Records, HaveTheseKeysInThisOrder) {
  const std::vector<std::string> expected{
      "shape", "weights",     "bits",          "kind",       "tokens",   "threads", "ms",   "gflops",  "gbs",  "bytes",
      "error", "limit_share", "routing_share", "fma_gflops", "read_gbs", "d_model", "d_ff", "experts", "top_k"};
  std::vector<std::string> keys;
  const auto record = record_of(sparse_row(), olmoe);
  for (const auto& item : record.items()) keys.push_back(item.key());
  EXPECT_EQ(keys, expected);
}

TEST(Records, SayWhatTheRowSays) {
  const auto record = record_of(sparse_row(), olmoe);
  EXPECT_EQ(record["kind"], "moe");
  EXPECT_EQ(record["ms"], 500);
  EXPECT_EQ(record["gflops"], 6);
  EXPECT_EQ(record["gbs"], 2);
  EXPECT_EQ(record["weights"], "bf16");
  EXPECT_EQ(record["bits"], 16);
  EXPECT_EQ(record["bytes"], 1e9);
  EXPECT_EQ(record["error"], 0.125);
  EXPECT_EQ(record["routing_share"], 0.01);
  EXPECT_EQ(record["fma_gflops"], 466);
  EXPECT_EQ(record["experts"], 64);
}

TEST(Records, OnlyTheSparseLayerHasAShareOfRoutingAndAnError) {
  Row row = sparse_row();
  row.kind = Kind::dense_total;
  row.routing_share.reset();
  row.error.reset();
  EXPECT_TRUE(record_of(row, olmoe)["routing_share"].is_null());
  EXPECT_TRUE(record_of(row, olmoe)["error"].is_null());
}

TEST(WriteWhole, LeavesTheFileAndNothingElse) {
  const std::filesystem::path folder = std::filesystem::path(testing::TempDir()) / "moe_records";
  std::filesystem::remove_all(folder);
  std::filesystem::create_directories(folder);
  write_whole(folder / "results.json", "[1]\n");
  write_whole(folder / "results.json", "[2]\n");
  std::ifstream in(folder / "results.json");
  EXPECT_EQ(std::string(std::istreambuf_iterator<char>(in), {}), "[2]\n");
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder), {}), 1);
  std::filesystem::remove_all(folder);
}

TEST(RecordsFile, IsWholeAfterEachRecord) {
  const std::filesystem::path file = std::filesystem::path(testing::TempDir()) / "moe_records_file.json";
  std::filesystem::remove(file);
  RecordsFile records(file);
  EXPECT_FALSE(std::filesystem::exists(file));  // what an earlier run left would still be there
  for (int i = 1; i <= 3; ++i) {
    records.add({{"row", i}});
    std::ifstream in(file);
    const auto so_far = nlohmann::json::parse(in);
    ASSERT_EQ(so_far.size(), std::size_t(i));
    EXPECT_EQ(so_far.back()["row"], i);
  }
  std::filesystem::remove(file);
}

TEST(RecordsFile, ThatCannotBeWrittenIsRefusedBeforeAnythingIsMeasured) {
  const std::string folder = testing::TempDir();
  for (const std::string& file : {std::string("/no/such/folder/results.json"), folder}) {
    try {
      RecordsFile records(file);
      FAIL();
    } catch (const std::runtime_error& error) {
      EXPECT_EQ(error.what(), "cannot write " + file);
    }
  }
  RecordsFile("").add({{"row", 1}});  // none was asked for
}

TEST(WriteWhole, AFileThatCannotBeWrittenIsNamed) {
  try {
    write_whole("/no/such/folder/results.json", "");
    FAIL();
  } catch (const std::runtime_error& error) {
    EXPECT_STREQ(error.what(), "cannot write /no/such/folder/results.json");
  }
}
