/// @file  Writes a model's folder, whole or not at all.
#pragma once

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include "moe/core/parameters.hpp"
#include "moe/io/atomic_file.hpp"
#include "moe/io/atomic_folder.hpp"
#include "moe/io/checkpoint.hpp"
#include "moe/io/config.hpp"
#include "moe/io/error.hpp"
#include "moe/io/json.hpp"
#include "moe/io/model.hpp"
#include "moe/io/ordered_json.hpp"
#include "moe/io/planned_tensors.hpp"
#include "moe/io/safetensors_file.hpp"
#include "moe/io/tensor.hpp"

namespace moe::inline MOE_TARGET::io {

/// How save_model() writes.
struct SaveOptions {
  bool overwrite = false;                        // a model's folder of this name, with all that is in it
  std::size_t max_shard_bytes = 50'000'000'000;  // of tensors in one file, unless one alone has more: transformers 5.23
  bool other_files = true;                       // what lies beside: tokenizer.json, generation_config.json, …
};

namespace detail {

/// Settings as a file has them, in its order, to be changed and written again.
class SettingsFile {
 public:
  explicit SettingsFile(const std::filesystem::path& path) : file_(read_file(path)) {
    settings = OrderedJson::parse(with_quoted_numbers(text(), mark));
    before_ = settings;
  }

  OrderedJson settings;

  /// The file's own bytes, if nothing is changed.
  void write(const std::filesystem::path& path) const {
    const std::string changed = without_quotes(settings.dump(2) + "\n", mark);
    const std::string_view written = settings == before_ ? text() : std::string_view(changed);
    write_atomically(path, {std::as_bytes(std::span(written))});
  }

 private:
  std::string_view text() const { return {reinterpret_cast<const char*>(file_.bytes.data()), file_.bytes.size()}; }

  static constexpr const char* mark = "a number that is not finite: ";

  MappedFile file_;
  OrderedJson before_;
};

/// Files of a model's folder that are neither weights nor settings: tokenizers, templates, licences.
inline void copy_other_files(const std::filesystem::path& from, const std::filesystem::path& to) {
  const std::set<std::string> weights = {".safetensors", ".bin", ".pt",      ".pth", ".ckpt",
                                         ".gguf",        ".h5",  ".msgpack", ".onnx"};
  std::error_code error;
  for (std::filesystem::directory_iterator entry(from, error), end; !error && entry != end; entry.increment(error)) {
    const std::string name = utf8(entry->path().filename());
    if (!entry->is_regular_file(error) || weights.contains(utf8(entry->path().extension())) || name == "config.json" ||
        name.ends_with(".index.json")) {
      continue;
    }
    std::filesystem::copy_file(entry->path(), to / entry->path().filename(), error);
    if (error) break;
  }
  if (error) fail(utf8(from), ": other files cannot be copied to ", utf8(to), ": ", error.message());
}

/// Loads the blocks anew: what is written is what can be read. (Those of F64 alone are taken on trust: to load layers
/// of double would have every program compile them.)
inline void require_readable(const std::filesystem::path& folder, const std::vector<std::string>& blocks,
                             const PlannedTensors& tensors) {
  const Model written(folder);
  if (std::ranges::any_of(tensors, [](const auto& t) { return !t.kept && t.dtype == dtype_name<double>; })) return;
  for (const std::string& block : blocks) load_parts<float>(written, block);
}

/// @param from    whose other files are copied
/// @param blocks  that must be MoE blocks of what is written
inline void write_model(const std::filesystem::path& folder, const std::filesystem::path& from,
                        const SettingsFile& settings, PlannedTensors tensors, Metadata metadata,
                        const std::vector<std::string>& blocks, const SaveOptions& options) {
  std::ranges::stable_sort(tensors, {}, [](const PlannedTensor& t) { return in_order_of_numbers(t.name); });
  if (!metadata.contains("format")) metadata["format"] = "pt";  // without which transformers reads no file
  write_folder_atomically(folder, options.overwrite, "config.json", [&](const std::filesystem::path& in) {
    try {
      if (options.other_files) copy_other_files(from, in);
      settings.write(in / "config.json");
      write_shards(in, tensors, metadata, options.max_shard_bytes);
      require_readable(in, blocks, tensors);
    } catch (const Error& error) {  // in the words of whoever knows the folder by its name to be
      std::string what = error.what();
      for (std::size_t at = 0; (at = what.find(utf8(in), at)) != what.npos;)
        what.replace(at, utf8(in).size(), utf8(folder));
      throw Error(what);
    }
  });
}

}  // namespace detail

}  // namespace moe::inline MOE_TARGET::io
