#include "../../benchmarks/memory.hpp"

#include <filesystem>
#include <fstream>
#include <string>

#include <gtest/gtest.h>

namespace {

using namespace moe::bench;

/// A root with a proc and a sys of its own, gone with the test.
class Root : public testing::Test {
 protected:
  void SetUp() override {
    const std::string name = testing::UnitTest::GetInstance()->current_test_info()->name();
    root = std::filesystem::path(testing::TempDir()) / ("moe_memory_" + name);
    std::filesystem::remove_all(root);
  }
  void TearDown() override { std::filesystem::remove_all(root); }

  void write(const std::filesystem::path& file, const std::string& content) const {
    std::filesystem::create_directories((root / file).parent_path());
    std::ofstream(root / file) << content;
  }

  std::filesystem::path root;
};

}  // namespace

TEST_F(Root, WithoutAnyGroupWhatTheMachineHasIsAvailable) {
  write("proc/meminfo", "MemTotal:  9000 kB\nMemFree:  10 kB\nMemAvailable:    4000 kB\n");
  EXPECT_EQ(available_memory(root), 4000.0 * 1024);
}

TEST_F(Root, WhereNobodyTellsThereIsNoLimit) { EXPECT_GT(available_memory(root), 1e300); }

TEST_F(Root, AGroupOfVersion2Limits) {
  write("proc/meminfo", "MemAvailable: 4000 kB\n");
  write("proc/self/cgroup", "0::/a/b\n");
  write("sys/fs/cgroup/a/b/memory.max", "max\n");
  write("sys/fs/cgroup/a/b/memory.current", "5000\n");
  write("sys/fs/cgroup/a/memory.max", "100000\n");
  write("sys/fs/cgroup/a/memory.current", "70000\n");
  write("sys/fs/cgroup/a/memory.stat", "anon 50000\ninactive_file 20000\n");
  EXPECT_EQ(available_memory(root), 50000);
}

TEST_F(Root, AGroupOfVersion1Limits) {
  write("proc/meminfo", "MemAvailable: 4000 kB\n");
  write("proc/self/cgroup", "5:cpu:/x\n4:memory:/a\n");
  write("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "60000\n");
  write("sys/fs/cgroup/memory/a/memory.usage_in_bytes", "20000\n");
  write("sys/fs/cgroup/memory/a/memory.stat", "inactive_file 1\ntotal_inactive_file 5000\n");
  EXPECT_EQ(available_memory(root), 45000);
}

TEST_F(Root, InsideAContainerTheGroupIsTheMountItself) {
  write("proc/meminfo", "MemAvailable: 4000 kB\n");
  write("proc/self/cgroup", "0::/not/visible/in/here\n");
  write("sys/fs/cgroup/memory.max", "30000\n");
  EXPECT_EQ(available_memory(root), 30000);
}

TEST(RequireMemory, WhatDoesNotFitIsRefusedWithBothSizes) {
  try {
    require_memory(45e9, "deepseek-v3 with f32 weights", 20.5e9);
    FAIL();
  } catch (const DoesNotFit& error) {
    EXPECT_STREQ(error.what(), "deepseek-v3 with f32 weights needs 45.0 GB of memory; 20.5 GB are available");
  }
}

TEST(RequireMemory, WhatFitsIsNot) { EXPECT_NO_THROW(require_memory(20e9, "it", 20e9)); }
