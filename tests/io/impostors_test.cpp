/// @file  What a server, a cache or a renaming leaves in place of a model's files is called by its name.
#include "moe/io/impostors.hpp"

#include <filesystem>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "errors.hpp"
#include "moe/io/json.hpp"
#include "moe/io/quantization.hpp"
#include "moe/io/safetensors.hpp"
#include "temporary_folder.hpp"

namespace {

namespace fs = std::filesystem;
using namespace moe::io;

const std::string html = "is an HTML page, which a server sent in place of the file";
const std::string complaint = "is a server's complaint";

void expect_starts(const std::string& text, const std::string& start) {
  EXPECT_EQ(text.substr(0, start.size()), start) << text;
}

TEST(Impostors, ThatServersSendAreCalledByTheirNames) {
  const std::vector<std::pair<std::string, std::string>> bodies = {
      {"Entry not found", complaint + ", \"Entry not found\", which was sent in place of the file"},
      {"Repository not found\n and more", complaint + ", \"Repository not found\", which"},
      {R"({"error":"Repository not found"})", complaint + " in JSON"},
      {"{\n  \"error\" : \"gated\" }", complaint + " in JSON"},
      {"<?xml version=\"1.0\"?><Error><Code>AccessDenied</Code></Error>", "is XML, as a server's complaint"},
      {"<head><title>Log in</title></head>", html},
      {"<!-- a proxy -->\n<!DOCTYPE html><html>", html},
      {"\xEF\xBB\xBF<!DOCTYPE html>", html}};
  const moe::test::TemporaryFolder folder("impostors");
  const fs::path file = folder.path / "model.safetensors";
  for (const auto& [body, name] : bodies) {
    std::ofstream(file, std::ios::binary) << body;
    const std::string start = file.string() + ": " + name;
    for (const std::string& error : {moe::test::error_of<Error>([&] { (void)Tensors::open(file); }),
                                     moe::test::error_of<Error>([&] { (void)read_json(file); })}) {
      expect_starts(error, start);
      EXPECT_TRUE(error.ends_with("fetch it again")) << error;
    }
  }
}

TEST(Impostors, AreNotSettingsThatLookLikeThem) {
  for (const char* const text : {R"({"error_rate": 1})", R"({"model_type": "error"})", "{}", "[]", ""}) {
    EXPECT_EQ(detail::answer_of_a_server(text), "") << text;
  }
}

/// What is said where a folder has no config.json.
std::string error_in(const fs::path& folder) {
  return moe::test::error_of<Error>([&] { (void)detail::config_file_in(folder); });
}

TEST(Impostors, ThatAreTopsOfHubCachesAreToldWhereTheModelIs) {
  const moe::test::TemporaryFolder home("hub_cache");
  const fs::path hub = home.path / "hub", model = hub / "models--Me--Tiny", other = hub / "models--You--Small";
  fs::create_directories(model / "snapshots");
  expect_starts(error_in(model), model.string() +
                                     ": is the top of a model in a hub cache, and no revision is in its "
                                     "snapshots/: the model was not fetched");
  expect_starts(error_in(hub), hub.string() +
                                   ": is a hub cache of models, expected the folder of one revision of one of "
                                   "them, as " +
                                   (model / "snapshots").string() + "/…, once it is fetched");
  fs::create_directories(model / "snapshots" / "0a1b2c");
  fs::create_directories(other);
  for (const fs::path& top : {hub, home.path}) {
    expect_starts(error_in(top), top.string() +
                                     ": is a hub cache of models, expected the folder of one revision of one "
                                     "of them, as " +
                                     (model / "snapshots" / "0a1b2c").string());
  }
  expect_starts(error_in(model), model.string() +
                                     ": is the top of a model in a hub cache, expected the folder of one "
                                     "revision: " +
                                     (model / "snapshots" / "0a1b2c").string());
}

TEST(Impostors, ThatAreFoldersCalledGgufAreToldSo) {
  const moe::test::TemporaryFolder folder("folder_of_gguf");
  const fs::path gguf = folder.path / "tiny.gguf";
  fs::create_directories(gguf);
  expect_starts(error_in(gguf), gguf.string() +
                                    ": is a folder, though its name ends with .gguf as a file's does, and no "
                                    "*.gguf and no config.json is in it");
  std::ofstream(gguf / "q8.gguf") << "GGUF";
  for (const fs::path& path : {gguf, gguf / ""}) {
    expect_starts(error_in(path), path.string() +
                                      ": is a folder, though its name ends with .gguf as a file's does: open "
                                      "the file in it, ");
  }
}

TEST(Impostors, ThatOtherToolsQuantisedAreToldWhatToTake) {
  for (const char* const method : {"hqq", "eetq", "quanto"}) {
    expect_starts(
        moe::test::error_of<Error>([&] { (void)Quantization({{"quant_method", method}}, "here"); }),
        "here: quant_method is \"" + std::string(method) +
            "\", a quantised model of another tool, whose codes nothing here reads: take the model that it was "
            "made of (moe_quantize makes 8 or 4 bits of it), or one by another method; expected fp8, ");
  }
}

}  // namespace
