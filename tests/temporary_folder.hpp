/// @file  A folder that goes with the test.
#pragma once

#include <unistd.h>

#include <filesystem>
#include <string>

#include <gtest/gtest.h>

namespace moe::test {

/// Made, and removed with what is in it. The name tells those of one program apart.
struct TemporaryFolder {
  std::filesystem::path path;

  explicit TemporaryFolder(const std::string& name)
      : path(std::filesystem::path(testing::TempDir()) / ("moe_" + name + "_" + std::to_string(::getpid()))) {
    std::filesystem::create_directories(path);
  }
  ~TemporaryFolder() { std::filesystem::remove_all(path); }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
};

}  // namespace moe::test
