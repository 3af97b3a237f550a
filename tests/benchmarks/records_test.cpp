#include "../../benchmarks/records.hpp"

#include <sys/stat.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "errors.hpp"
#include "temporary_folder.hpp"

using namespace moe::bench;
using moe::test::error_of;
using moe::test::TemporaryFolder;

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

std::string text_of(const std::filesystem::path& file) {
  std::ifstream in(file);
  return {std::istreambuf_iterator<char>(in), {}};
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

TEST(RecordsFile, LeavesNothingElseInItsFolder) {
  const TemporaryFolder folder("records");
  RecordsFile records(folder.path / "results.json");
  records.add({{"row", 1}});
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder.path), {}), 1);
}

TEST(RecordsFile, ThatCannotBeWrittenIsRefusedBeforeAnythingIsMeasured) {
  const std::string none = "/no/such/folder/results.json", folder = testing::TempDir();
  EXPECT_EQ(error_of<moe::io::Error>([&] { RecordsFile{none}; }),
            none + ": cannot be written: No such file or directory");
  EXPECT_EQ(error_of<moe::io::Error>([&] { RecordsFile{folder}; }),
            folder + ": cannot be written: it is a folder, and will not be replaced; choose another name");
  RecordsFile("").add({{"row", 1}});  // none was asked for
}

TEST(RecordsFile, ThatIsALinkStaysOne) {
  const TemporaryFolder folder("records_link");
  const auto file = folder.path / "results.json", link = folder.path / "link.json";
  std::filesystem::create_symlink("results.json", link);
  RecordsFile(link).add({{"row", 1}});
  EXPECT_TRUE(std::filesystem::is_symlink(link));
  EXPECT_EQ(text_of(file), "[\n {\n  \"row\": 1\n }\n]\n");
}

TEST(RecordsFile, ThatIsAPipeGetsAllRecordsAfterEach) {
  const TemporaryFolder folder("records_pipe");
  const auto pipe = folder.path / "pipe", link = folder.path / "link";
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  std::filesystem::create_symlink(pipe, link);
  for (const auto& path : {pipe, link}) {
    std::string text;
    std::thread reader([&] { text = text_of(path); });  // to its end
    {
      RecordsFile records(path);
      records.add(1);
      records.add(2);
    }
    reader.join();
    EXPECT_EQ(text, "[\n 1\n]\n[\n 1,\n 2\n]\n");
  }
  EXPECT_TRUE(std::filesystem::is_fifo(std::filesystem::symlink_status(pipe)));
  EXPECT_TRUE(std::filesystem::is_symlink(link));
}

TEST(RecordsFile, MayBeNowhere) {
  RecordsFile("/dev/null").add({{"row", 1}});
  EXPECT_TRUE(std::filesystem::is_character_file("/dev/null"));
}

TEST(RecordsFile, IsNotWhereTheProgramPrints) {
  testing::internal::CaptureStdout();  // to a file
  const std::string error = error_of<moe::io::Error>([&] { RecordsFile("/proc/self/fd/1"); });
  std::printf("still there");
  EXPECT_EQ(testing::internal::GetCapturedStdout(), "still there");
  EXPECT_EQ(error, "/proc/self/fd/1: cannot be written: what this program prints goes there; choose another name");
}
