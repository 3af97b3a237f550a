/// @file  Who may include whom: the library is a house with floors, and nobody reaches upstairs.
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

namespace {

using Names = std::vector<std::string>;
using IncludeGraph = std::map<std::string, Names>;  // header, as its users write it → what it includes

const std::filesystem::path include_folder = std::filesystem::path(MOE_SOURCE_DIR) / "include";

/// "moe/core/types.hpp" of `#include <moe/core/types.hpp>`; empty for any other line.
std::string included_by(const std::string& line) {
  if (!line.starts_with("#include ")) return {};
  const auto first = line.find_first_of("<\"");
  const auto last = line.find_first_of(">\"", first + 1);
  return line.substr(first + 1, last - first - 1);
}

Names read_includes(const std::filesystem::path& header) {
  Names includes;
  std::ifstream file(header);
  for (std::string line; std::getline(file, line);) {
    if (const auto name = included_by(line); !name.empty()) includes.push_back(name);
  }
  return includes;
}

IncludeGraph read_include_graph() {
  IncludeGraph graph;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(include_folder)) {
    if (entry.path().extension() != ".hpp") continue;
    graph[entry.path().lexically_relative(include_folder).generic_string()] = read_includes(entry.path());
  }
  return graph;
}

/// The headers that `header` reaches, itself among them.
std::set<std::string> reach(const IncludeGraph& graph, const std::string& header) {
  std::set<std::string> reached;
  for (Names waiting = {header}; !waiting.empty();) {
    const std::string next = waiting.back();
    waiting.pop_back();
    if (!reached.insert(next).second || !graph.contains(next)) continue;
    waiting.insert(waiting.end(), graph.at(next).begin(), graph.at(next).end());
  }
  return reached;
}

/// The room of a header: its first folder, or "" for a door, which opens several.
std::string room_of(const std::string& header) {
  const auto first = header.find('/') + 1, last = header.find('/', first);
  return last == std::string::npos ? "" : header.substr(first, last - first);
}

/// From the ground up. A header knows its own room and those below; rooms of one floor do not know each other.
const std::vector<Names> floors = {{"core"},
                                   {"runtime", "kernels"},
                                   {"formats"},
                                   {"experts", "routers", "telemetry"},
                                   {"layers", "losses"},
                                   {"lora", "models"},
                                   {"io", "surgery"},
                                   {"distributed"},
                                   {"train"}};

/// The number of a room's floor, counted from the ground; that of none for a door.
std::size_t floor_of(const std::string& room) {
  const auto has_it = [&](const Names& rooms) { return std::find(rooms.begin(), rooms.end(), room) != rooms.end(); };
  return std::size_t(std::find_if(floors.begin(), floors.end(), has_it) - floors.begin());
}

bool is_ours(const std::string& name) { return name.starts_with("moe/"); }
bool is_training(const std::string& name) { return name.starts_with("moe/train"); }
bool is_distributed(const std::string& name) {
  return name.starts_with("moe/distributed") || name.starts_with("moe/train/distributed/");
}
bool is_eigen(const std::string& name) { return name.starts_with("Eigen/") || name.starts_with("unsupported/Eigen/"); }
bool is_standard(const std::string& name) { return name.find_first_of("./") == std::string::npos; }
bool comes_with_compiler(const std::string& name) {
  return name == "immintrin.h" || name == "cpuid.h" || name == "arm_neon.h" || name == "arm_sve.h" || name == "omp.h";
}
bool comes_with_linux(const std::string& name) {  // huge_pages.hpp, tiles.hpp
  return name == "sys/mman.h" || name == "sys/syscall.h" || name == "unistd.h";
}

TEST(Floors, EveryHeaderOfOursThatIsIncludedExists) {
  const IncludeGraph graph = read_include_graph();
  for (const auto& [header, includes] : graph) {
    for (const auto& name : includes) {
      EXPECT_TRUE(!is_ours(name) || graph.contains(name)) << header << " includes " << name;
    }
  }
}

TEST(Floors, NoHeaderReachesItself) {
  const IncludeGraph graph = read_include_graph();
  for (const auto& [header, includes] : graph) {
    for (const auto& name : includes) {
      EXPECT_FALSE(reach(graph, name).contains(header)) << header << " reaches itself through " << name;
    }
  }
}

TEST(Floors, ARoomKnowsThoseBelow) {
  std::set<std::string> rooms;
  std::set<std::pair<std::string, std::string>> imports, run_back;
  for (const auto& [header, includes] : read_include_graph()) {
    const std::string room = room_of(header);
    rooms.insert(room);
    EXPECT_TRUE(room.empty() || floor_of(room) < floors.size()) << header << " lives on no floor";
    for (const auto& name : includes) {
      if (!is_ours(name) || room_of(name) == room) continue;
      imports.emplace(room, room_of(name));
      if (floor_of(room_of(name)) < floor_of(room)) continue;
      run_back.emplace(room, room_of(name));
      ADD_FAILURE() << header << " includes " << name << ", which is no floor below";
    }
  }
  std::cout << rooms.size() - 1 << " rooms on " << floors.size() << " floors, " << imports.size()
            << " imports between them and from the doors, " << run_back.size() << " of which run back\n";
}

TEST(Floors, DoorsAloneStandInTheHall) {
  Names doors;
  for (const auto& [header, includes] : read_include_graph()) {
    if (!room_of(header).empty()) continue;
    doors.push_back(header);
    std::ifstream file(include_folder / header);
    for (std::string line; std::getline(file, line);) {
      EXPECT_TRUE(line.empty() || line.starts_with("#") || line.starts_with("//")) << header << ": " << line;
    }
  }
  EXPECT_LE(doors.size(), 12) << "doors are few";
}

/// What a call is for, its workers and its plan, is known above.
TEST(Floors, KernelsKnowNoPlansAndNoWorkers) {
  const IncludeGraph graph = read_include_graph();
  for (const auto& [header, includes] : graph) {
    if (room_of(header) != "kernels") continue;
    for (const auto& name : reach(graph, header)) {
      EXPECT_NE(name, "moe/core/dispatch.hpp") << header << " reaches it";
      EXPECT_NE(room_of(name), "runtime") << header << " reaches " << name;
    }
  }
}

TEST(Floors, NoHeaderBringsTheMacrosOfWindows) {
  for (const auto& [header, includes] : read_include_graph()) {
    for (const auto& name : includes) EXPECT_NE(name, "windows.h") << header << " includes it";
  }
}

TEST(Floors, OnlyTrainingIncludesTraining) {
  for (const auto& [header, includes] : read_include_graph()) {
    for (const auto& name : includes) {
      EXPECT_TRUE(is_training(header) || !is_training(name)) << header << " includes " << name;
    }
  }
}

TEST(Floors, InferenceNeedsEigenAlone) {
  const IncludeGraph graph = read_include_graph();
  ASSERT_TRUE(graph.contains("moe/moe.hpp"));
  for (const auto& name : reach(graph, "moe/moe.hpp")) {
    EXPECT_FALSE(name.starts_with("moe/io/") || is_distributed(name)) << "moe/moe.hpp reaches " << name;
    EXPECT_TRUE(is_ours(name) || is_eigen(name) || is_standard(name) || comes_with_compiler(name) ||
                comes_with_linux(name))
        << "moe/moe.hpp reaches " << name;
  }
}

TEST(Floors, OnlyWhatIsDistributedIncludesMpi) {
  for (const auto& [header, includes] : read_include_graph()) {
    for (const auto& name : includes) {
      EXPECT_TRUE(is_distributed(header) || (name != "mpi.h" && !is_distributed(name)))
          << header << " includes " << name;
    }
  }
}

TEST(Floors, WhatAFileCompilesIsNamedAfterItsProcessor) {
  const IncludeGraph graph = read_include_graph();
  for (const auto& [header, includes] : graph) {
    std::ifstream file(include_folder / header);
    for (std::string line; std::getline(file, line);) {
      if (!line.starts_with("namespace moe")) continue;
      EXPECT_TRUE(line.starts_with("namespace moe::inline MOE_TARGET")) << header << ": " << line;
      EXPECT_TRUE(reach(graph, header).contains("moe/core/target.hpp")) << header << " does not know MOE_TARGET";
    }
  }
}

TEST(Floors, OpenMpIsIncludedWhereTheCompilerHasIt) {
  for (const auto& [header, includes] : read_include_graph()) {
    if (std::find(includes.begin(), includes.end(), "omp.h") == includes.end()) continue;
    EXPECT_EQ(header, "moe/runtime/executors/openmp.hpp");
    std::ifstream file(include_folder / header);
    bool guarded = false;
    for (std::string line; std::getline(file, line) && included_by(line) != "omp.h";) {
      guarded = guarded || (line.starts_with("#if") && line.find("_OPENMP") != std::string::npos);
    }
    EXPECT_TRUE(guarded) << header << " includes <omp.h> whether there is OpenMP or not";
  }
}

}  // namespace
