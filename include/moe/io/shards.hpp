/// @file  The shards of a checkpoint that is saved again and again in one folder.
///
/// Each save has a number, which is in the names of its shards: so those of the save before stay as they are until the
/// index names the new ones.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <filesystem>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <system_error>
#include <vector>

#include <nlohmann/json.hpp>

#include "moe/core/types.hpp"
#include "moe/io/atomic_file.hpp"
#include "moe/io/error.hpp"

namespace moe::inline MOE_TARGET::io {

/// "model-7-00002-of-00004.safetensors" of save 7, shard 2 of 4.
inline std::string shard_name(Index save, Index shard, Index num_shards) {
  char text[100];
  std::snprintf(text, sizeof text, "model-%lld-%05lld-of-%05lld.safetensors", static_cast<long long>(save),
                static_cast<long long>(shard), static_cast<long long>(num_shards));
  return text;
}

namespace detail {

/// The save of which a file is a shard, or the beginning of one; nothing of a file of another name.
inline std::optional<Index> save_of(const std::string& file) {
  long long save = 0, shard = 0, num_shards = 0;
  int length = 0;
  std::sscanf(file.c_str(), "model-%lld-%lld-of-%lld.safetensors%n", &save, &shard, &num_shards, &length);
  if (length == 0) return std::nullopt;
  const std::string rest = file.substr(std::size_t(length));
  return rest.empty() || rest.starts_with(".tmp") ? std::optional(Index(save)) : std::nullopt;
}

/// A file of some save.
struct Shard {
  std::filesystem::path path;
  Index save;
};

/// All in a folder; those that were found before there was an error, if there was one.
inline std::vector<Shard> shards_in(const std::filesystem::path& folder, std::error_code& error) {
  std::vector<Shard> shards;
  for (std::filesystem::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error)) {
    if (const auto save = save_of(utf8(entry->path().filename()))) shards.push_back({entry->path(), *save});
  }
  return shards;
}

}  // namespace detail

/// A number that no save in this folder has, be it half written.
/// @throws Error if the folder cannot be read.
inline Index next_save(const std::filesystem::path& folder) {
  std::error_code error;
  Index last = 0;
  for (const detail::Shard& shard : detail::shards_in(folder, error)) last = std::max(last, shard.save);
  if (error) fail(utf8(folder), ": ", error.message());
  return last + 1;
}

/// Removes the shards of saves for which unwanted(number) is true, as far as it can; other files are left alone.
template <class F>
void remove_saves(const std::filesystem::path& folder, const F& unwanted) {
  std::error_code ignored;
  for (const detail::Shard& shard : detail::shards_in(folder, ignored)) {
    if (unwanted(shard.save)) std::filesystem::remove(shard.path, ignored);
  }
}

/// Writes model.safetensors.index.json as Hugging Face does, whole or not at all. From then on the folder's checkpoint
/// is what it says.
/// @param shard_of     of each tensor, by name
/// @param total_bytes  of all tensors
/// @throws Error if a shard is not there, or the file cannot be written.
inline void write_index(const std::filesystem::path& folder, const std::map<std::string, std::string>& shard_of,
                        std::size_t total_bytes) {
  std::set<std::string> shards;
  for (const auto& [tensor, shard] : shard_of) shards.insert(shard);
  for (const std::string& shard : shards) {
    std::error_code ignored;
    if (!std::filesystem::exists(folder / shard, ignored)) {
      fail(utf8(folder / shard), ": no such file: was it written to a folder of the same name elsewhere?");
    }
  }
  const nlohmann::json index = {{"metadata", {{"total_size", total_bytes}}}, {"weight_map", shard_of}};
  const std::string text = index.dump(2) + "\n";
  write_atomically(folder / "model.safetensors.index.json", {std::as_bytes(std::span(text))});
}

}  // namespace moe::inline MOE_TARGET::io
