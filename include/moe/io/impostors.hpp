/// @file  Calls by its name what was found in place of a model's file.
#pragma once

#include <algorithm>
#include <array>
#include <cctype>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

#include "moe/io/error.hpp"

namespace moe::inline MOE_TARGET::io::detail {

/// What to do about a file that ends early.
inline constexpr std::string_view if_unfinished =
    ": the file ends early, as an unfinished download does: fetch it again";

/// What a server sent in place of a file, and what to do; empty if this is none of what servers send.
inline std::string answer_of_a_server(std::string_view text) {
  if (text.starts_with("\xEF\xBB\xBF")) text.remove_prefix(3);  // a mark of UTF-8
  text.remove_prefix(std::min(text.size(), text.find_first_not_of(" \t\r\n")));
  std::string lower(text);
  std::ranges::transform(lower, lower.begin(), [](unsigned char c) { return char(std::tolower(c)); });
  const auto begins = [&](const auto&... with) { return (lower.starts_with(with) || ...); };
  if (begins("<!doctype html", "<html", "<head", "<body", "<!--")) {
    return "is an HTML page, which a server sent in place of the file (a login, or a wrong address): fetch it again";
  }
  if (begins("<?xml", "<error")) {
    return "is XML, as a server's complaint that it sent in place of the file (a wrong address, or one that is too "
           "old): fetch it again";
  }
  if (begins("entry not found", "repository not found", "revision not found", "not found", "invalid credentials",
             "invalid username or password", "access to ", "unauthorized", "forbidden")) {
    const auto is_control = [](unsigned char c) { return std::iscntrl(c) != 0; };
    const std::string_view line = text.substr(0, 100);
    return "is a server's complaint, \"" + std::string(line.begin(), std::ranges::find_if(line, is_control)) +
           "\", which was sent in place of the file (a wrong name, or no leave to read it): fetch it again";
  }
  if (begins("{")) {
    std::erase_if(lower, [](unsigned char c) { return std::isspace(c) != 0; });
    if (begins("{\"error\":", "{\"errors\":", "{\"message\":", "{\"detail\":")) {
      return "is a server's complaint in JSON, which was sent in place of the file (a wrong name, or no leave to read "
             "it): fetch it again";
    }
  }
  return "";
}

/// What these bytes are, and what to do; empty for what is none of the usual mistakes.
inline std::string impostor(std::span<const std::byte> bytes) {
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), std::min<std::size_t>(bytes.size(), 1024));
  if (text.starts_with("version https://git-lfs")) {
    return "is a Git LFS pointer, which stands for the file: run `git lfs pull` in its folder to fetch it";
  }
  if (text.starts_with("GGUF")) return "is a GGUF file: give it a name that ends with .gguf, and open it by that";
  if (text.starts_with("PK\x03\x04")) {
    return "is a zip archive, as PyTorch's *.bin, *.pt and *.pth are: take the model's *.safetensors";
  }
  return answer_of_a_server(text);
}

/// The first file in a folder with this ending; empty if there is none.
inline std::string first_with_ending(const std::filesystem::path& folder, std::string_view ending) {
  std::error_code error;
  std::string first;
  for (std::filesystem::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error)) {
    std::string name = utf8(entry->path().filename());
    if (name.ends_with(ending) && (first.empty() || name < first)) first = std::move(name);
  }
  return first;
}

/// What a folder has in place of *.safetensors, and what to do; empty if it has none of the usual.
inline std::string other_weights_in(const std::filesystem::path& folder) {
  constexpr auto others = std::to_array<std::pair<std::string_view, std::string_view>>(
      {{".bin", "PyTorch's format"}, {".pt", "PyTorch's format"}, {".pth", "PyTorch's format"}});
  if (const std::string gguf = first_with_ending(folder, ".gguf"); !gguf.empty()) {
    return ": open the file itself, " + utf8(folder / gguf);
  }
  for (const auto& [ending, format] : others) {
    const std::string name = first_with_ending(folder, ending);
    if (name.empty()) continue;
    return ": " + name + " is in " + std::string(format) + ", which is not read: take the model's *.safetensors";
  }
  return "";
}

/// The first folder of a model in a cache of huggingface_hub, of which `top` is the top, or what holds its "hub"; else
/// empty.
inline std::filesystem::path model_in_hub_cache(const std::filesystem::path& top) {
  for (const std::filesystem::path& cache : {top, top / "hub"}) {
    std::error_code error;
    std::filesystem::path first;
    for (std::filesystem::directory_iterator entry(cache, error), end; !error && entry != end; entry.increment(error)) {
      if (!utf8(entry->path().filename()).starts_with("models--")) continue;
      if (first.empty() || entry->path() < first) first = entry->path();
    }
    if (!first.empty()) return first;
  }
  return {};
}

/// Is this models--OWNER--NAME in a cache of huggingface_hub?
inline bool is_model_in_hub_cache(const std::filesystem::path& top) {
  std::error_code error;
  return std::filesystem::is_directory(top / "snapshots", error);
}

/// The folder of the revision that is meant, or of the first, in such a folder; empty if it has none.
inline std::filesystem::path revision_in_hub_cache(const std::filesystem::path& top) {
  std::error_code error;
  std::string revision;
  std::ifstream(top / "refs" / "main") >> revision;
  if (!revision.empty() && std::filesystem::is_directory(top / "snapshots" / revision, error)) {
    return top / "snapshots" / revision;
  }
  revision = first_with_ending(top / "snapshots", "");
  return revision.empty() ? std::filesystem::path() : top / "snapshots" / revision;
}

/// The config.json of a model's folder.
/// @throws Error saying what `folder` is instead, if there is none.
inline std::filesystem::path config_file_in(const std::filesystem::path& folder) {
  std::error_code error;
  const std::filesystem::path config = folder / "config.json";
  if (std::filesystem::exists(config, error) || error) return config;  // who reads it says what is wrong with it
  if (std::filesystem::is_regular_file(folder, error)) {
    if (folder.extension() == ".gguf") {
      fail(utf8(folder), ": is a GGUF file, expected a model's folder, with config.json beside *.safetensors");
    }
    const auto parent = folder.has_parent_path() ? folder.parent_path() : std::filesystem::path(".");
    fail(utf8(folder), ": is a file, expected the folder that it is in, with config.json: ", utf8(parent));
  }
  if (is_model_in_hub_cache(folder)) {
    const auto revision = revision_in_hub_cache(folder);
    fail(utf8(folder), ": is the top of a model in a hub cache, ",
         revision.empty() ? "and no revision is in its snapshots/: the model was not fetched, or was removed; fetch it"
                          : "expected the folder of one revision: " + utf8(revision));
  }
  if (const auto model = model_in_hub_cache(folder); !model.empty()) {
    const auto revision = revision_in_hub_cache(model);
    fail(utf8(folder), ": is a hub cache of models, expected the folder of one revision of one of them, as ",
         revision.empty() ? utf8(model / "snapshots") + "/…, once it is fetched" : utf8(revision));
  }
  if (utf8((folder / "").parent_path()).ends_with(".gguf") && std::filesystem::is_directory(folder, error)) {
    const std::string gguf = first_with_ending(folder, ".gguf");
    fail(utf8(folder), ": is a folder, though its name ends with .gguf as a file's does",
         gguf.empty() ? ", and no *.gguf and no config.json is in it: expected a GGUF file, or a model's folder"
                      : ": open the file in it, " + utf8(folder / gguf));
  }
  const std::string others = other_weights_in(folder);
  fail(utf8(config), ": no such file",
       !others.empty() ? others : ": expected a model's folder, with config.json beside *.safetensors");
}

}  // namespace moe::inline MOE_TARGET::io::detail
