/// @file  Folders of recorded cases: those of the tests, and those that an environment variable names.
#pragma once

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <filesystem>
#include <ostream>
#include <string>
#include <vector>

#include <gtest/gtest.h>

namespace moe::test {

struct RecordedFolder {
  std::string name;  // of a test
  std::filesystem::path path;
};

inline void PrintTo(const RecordedFolder& folder, std::ostream* out) { *out << folder.path; }

inline std::string name_of(const testing::TestParamInfo<RecordedFolder>& info) { return info.param.name; }

/// Those below `own`, and below the folder that the variable names, or what is called `part` in it, in which there is a
/// file of this name; of a root without any, one that is not there, so that its test fails.
inline std::vector<RecordedFolder> recorded_folders(const std::filesystem::path& own, const char* variable,
                                                    const std::string& file, const std::string& part = "") {
  std::vector<RecordedFolder> all;
  const auto add = [&](const std::filesystem::path& root, const std::string& whose) {
    std::vector<std::filesystem::path> paths;
    std::error_code error;
    for (std::filesystem::directory_iterator entry(root, error), end; !error && entry != end; entry.increment(error)) {
      if (std::filesystem::exists(entry->path() / file)) paths.push_back(entry->path());
    }
    if (paths.empty()) paths.push_back(root / ("no_folder_with_" + file));
    std::ranges::sort(paths);
    for (const auto& path : paths) {
      std::string name = whose + path.filename().string();
      for (char& c : name) c = std::isalnum(static_cast<unsigned char>(c)) ? c : '_';
      all.push_back({name, path});
    }
  };
  add(own, "");
  if (const char* const named = std::getenv(variable)) {
    const std::filesystem::path whole = named;
    add(!part.empty() && std::filesystem::is_directory(whole / part) ? whole / part : whole, "named_");
  }
  return all;
}

}  // namespace moe::test
