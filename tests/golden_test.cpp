// One test per case folder under $MOE_GOLDEN_DIR (default: tests/golden), named after the folder: our layers, routers
// and losses against what a published reference implementation computed. Tolerances are those of golden/README.md.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "golden_checks/capacity.hpp"
#include "golden_checks/expert_choice.hpp"
#include "golden_checks/layer.hpp"
#include "golden_checks/losses.hpp"
#include "golden_checks/noisy_top_k.hpp"
#include "golden_checks/sinkhorn.hpp"
#include "golden_checks/soft_moe.hpp"
#include "moe/io/config.hpp"

namespace {

namespace fs = std::filesystem;
using namespace moe;

/// How to check what is no layer of load_layer(), by model_type.
const std::map<std::string, void (*)(const fs::path&)> checks = {
    {"aux_losses", golden::check_losses},
    {"expert_choice", golden::check_expert_choice},
    {"expert_choice_router", golden::check_expert_choice_router},
    {"megatron_router", golden::check_megatron_router},
    {"megatron_token_drop", golden::check_megatron_token_drop},
    {"noisy_topk",
     [](const fs::path& folder) {
       golden::check_noisy_top_k(folder);
       golden::check_noisy_losses(golden::Case::open(folder));
     }},
    {"sinkhorn_router", golden::check_sinkhorn},
    {"soft_moe", golden::check_soft_moe},
    {"st_moe",
     [](const fs::path& folder) {
       golden::check_st_moe(folder);
       golden::check_st_moe_losses(golden::Case::open(folder));
     }},
    {"top2_capacity",
     [](const fs::path& folder) {
       golden::check_top2_capacity(folder);
       golden::check_top2_losses(golden::Case::open(folder));
     }},
};

class GoldenTest : public testing::Test {
 public:
  explicit GoldenTest(fs::path folder) : folder_(std::move(folder)) {}

  void TestBody() override {
    const std::string type = io::Config::open(folder_ / "config.json").text("model_type");
    const auto check = checks.find(type);
    check == checks.end() ? golden::check_layer(folder_) : check->second(folder_);
  }

 private:
  fs::path folder_;
};

std::vector<fs::path> case_folders(const fs::path& root) {
  std::vector<fs::path> folders;
  for (const auto& entry : fs::directory_iterator(root)) {
    if (fs::exists(entry.path() / "config.json")) folders.push_back(entry.path());
  }
  std::ranges::sort(folders);
  return folders;
}

}  // namespace

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  const char* const chosen = std::getenv("MOE_GOLDEN_DIR");
  const fs::path root = chosen ? chosen : MOE_SOURCE_DIR "/tests/golden";
  if (!fs::is_directory(root)) {
    std::cerr << "golden_test: " << root.string() << " is not a folder\n";
    return EXIT_FAILURE;
  }
  const auto folders = case_folders(root);
  if (folders.empty()) {
    std::cerr << "golden_test: no case (a folder with config.json) in " << root.string() << "\n";
    return EXIT_FAILURE;
  }
  for (const fs::path& folder : folders) {
    testing::RegisterTest("Golden", folder.filename().string().c_str(), nullptr, nullptr, __FILE__, __LINE__,
                          [folder]() -> testing::Test* { return new GoldenTest(folder); });
  }
  return RUN_ALL_TESTS();
}
