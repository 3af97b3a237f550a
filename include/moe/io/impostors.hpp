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
  std::string begin(text.substr(0, text.find_first_of("\r\n", text.find_first_not_of(" \t\r\n"))));
  begin.erase(0, begin.find_first_not_of(" \t\r\n"));
  std::string lower = begin;
  std::ranges::transform(lower, lower.begin(), [](unsigned char c) { return char(std::tolower(c)); });
  if (lower.starts_with("<!doctype html") || lower.starts_with("<html")) {
    return "is an HTML page, which a server sent in place of the file (a login, or a wrong address): fetch it again";
  }
  return "";
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

/// The folder of one revision in the cache of huggingface_hub, of which `top` is models--OWNER--NAME; else empty.
inline std::filesystem::path revision_in_hub_cache(const std::filesystem::path& top) {
  std::error_code error;
  if (!std::filesystem::is_directory(top / "snapshots", error)) return {};
  std::string revision;
  std::ifstream(top / "refs" / "main") >> revision;
  if (!revision.empty() && std::filesystem::is_directory(top / "snapshots" / revision, error)) {
    return top / "snapshots" / revision;
  }
  return top / "snapshots" / first_with_ending(top / "snapshots", "");
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
  if (const auto revision = revision_in_hub_cache(folder); !revision.empty()) {
    fail(utf8(folder), ": is the top of a model in a hub cache, expected the folder of one revision: ", utf8(revision));
  }
  const std::string others = other_weights_in(folder);
  fail(utf8(config), ": no such file",
       !others.empty() ? others : ": expected a model's folder, with config.json beside *.safetensors");
}

}  // namespace moe::inline MOE_TARGET::io::detail
