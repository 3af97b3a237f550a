/// @file  The tensors of a model by name, in however many safetensors files they are.
#pragma once

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "moe/io/built_with.hpp"
#include "moe/io/edit_distance.hpp"
#include "moe/io/error.hpp"
#include "moe/io/gguf.hpp"
#include "moe/io/impostors.hpp"
#include "moe/io/json.hpp"
#include "moe/io/safetensors_file.hpp"
#include "moe/io/tensor.hpp"

namespace moe::inline MOE_TARGET::io {

namespace detail {

inline std::vector<std::filesystem::path> safetensors_names_in(const std::filesystem::path& folder) {
  std::error_code error;
  std::vector<std::filesystem::path> names;
  for (std::filesystem::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error)) {
    if (entry->path().extension() == ".safetensors") names.push_back(entry->path().filename());
  }
  if (error) fail(utf8(folder), ": ", error.message());
  std::ranges::sort(names);
  return names;
}

/// What an index says is in which shard.
inline std::map<std::string, std::vector<std::string>> names_by_shard(const std::filesystem::path& index) {
  const nlohmann::json json = read_json(index);
  const std::string whose = utf8(index) + ": the index";
  const nlohmann::json& weight_map = member(json, "weight_map", whose);
  if (!weight_map.is_object()) {
    fail(utf8(index), ": weight_map is ", describe(weight_map), ", expected an object");
  }
  std::map<std::string, std::vector<std::string>> names;
  for (const auto& [name, shard] : weight_map.items()) {
    names[to_text(shard, "shard", utf8(index) + ": tensor \"" + name + "\"")].push_back(name);
  }
  return names;
}

/// The one file in a folder to begin with.
inline std::filesystem::path entry_file_of(const std::filesystem::path& folder) {
  std::error_code ignored;
  const std::filesystem::path index = folder / "model.safetensors.index.json", single = folder / "model.safetensors";
  const bool has_index = std::filesystem::exists(index, ignored), has_single = std::filesystem::exists(single, ignored);
  if (has_index && has_single && !names_by_shard(index).contains("model.safetensors")) {
    fail(utf8(folder), ": has model.safetensors, and model.safetensors.index.json, which does not name it: ",
         "one of them was left behind; remove it");
  }
  if (has_index) return index;
  if (has_single) return single;
  const std::vector<std::filesystem::path> names = safetensors_names_in(folder);
  if (names.empty()) fail(utf8(folder), ": no *.safetensors file in this folder", other_weights_in(folder));
  if (names.size() == 1) return folder / names[0];
  std::string list;
  for (const auto& name : names) list += (list.empty() ? "" : ", ") + utf8(name);
  fail(utf8(folder), ": ", names.size(), " *.safetensors files without model.safetensors.index.json: ", list);
}

/// Names of shards come from a stranger, who must not choose which folders we read.
inline std::filesystem::path shard_path(const std::filesystem::path& index, const std::string& shard) {
  const std::filesystem::path relative(shard);
  if (relative.empty() || relative.has_root_path() || std::ranges::count(relative, "..") > 0) {
    fail(utf8(index), ": shard \"", shard, "\" is not a path within the folder of the index");
  }
  const std::filesystem::path path = index.parent_path() / relative;
  std::error_code ignored;
  if (std::filesystem::status(path, ignored).type() == std::filesystem::file_type::not_found) {
    fail(utf8(index), ": shard ", utf8(path), ": no such file");
  }
  return path;
}

}  // namespace detail

/// Everything is checked when it is opened; bytes are read when they are used. Copies share the mapped files, and so
/// does every Tensor that comes out, which therefore outlives this object.
class Tensors {
 public:
  /// @param path  a *.safetensors file; a *.gguf, or one part of it; a *.index.json whose "weight_map" says in which
  ///              shard beside it each tensor is; or a folder with model.safetensors.index.json, or
  ///              model.safetensors, else one *.safetensors.
  /// @throws Error if there is none of these, or a file, or the index, is not as it should be.
  /// @param access  how to the bytes
  template <class BuiltAs = detail::Flags>
  static Tensors open(const std::filesystem::path& path, Access access = Access::mapped);

  /// Of tensors that were read already, or never were in a file.
  /// @param path  for messages
  /// @throws Error if two have one name.
  static Tensors of(std::string path, std::vector<Tensor> tensors, Metadata metadata = {}) {
    Map all;
    for (Tensor& tensor : tensors) {
      const std::string name = tensor.name;
      const bool is_new = all.try_emplace(name, std::move(tensor)).second;
      if (!is_new) fail(path, ": tensor \"", name, "\" appears twice");
    }
    return {std::move(path), std::move(all), std::move(metadata)};
  }

  /// In alphabetical order.
  std::vector<std::string> names() const {
    std::vector<std::string> names;
    for (const auto& [name, tensor] : tensors_) names.push_back(name);
    return names;
  }

  /// f(tensor), as find() has it, of those whose names begin with a prefix, in alphabetical order.
  template <class F>
  void for_each_below(std::string_view prefix, const F& f) const {
    for (auto one = tensors_.lower_bound(prefix); one != tensors_.end() && one->first.starts_with(prefix); ++one) {
      f(one->second);
    }
  }

  bool contains(std::string_view name) const { return tensors_.contains(name); }  ///< Is there a tensor of this name?

  /// Is there a tensor whose name begins so?
  bool any_below(std::string_view prefix) const {
    const auto first = tensors_.lower_bound(prefix);
    return first != tensors_.end() && first->first.starts_with(prefix);
  }

  /// As the file has it, maybe unaligned; null if there is none. at() is for reading it.
  const Tensor* find(std::string_view name) const {
    const auto found = tensors_.find(name);
    return found == tensors_.end() ? nullptr : &found->second;
  }

  /// The tensor, in place. Where an old or careless writer left it unaligned for its dtype: a copy, made on every call.
  /// @throws Error if there is no tensor of this name.
  Tensor at(std::string_view name) const {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) fail(path_, ": no tensor \"", name, "\" among ", tensors_.size(), did_you_mean(name));
    return aligned(found->second);
  }

  /// Its numbers as Scalar: read() of tensor.hpp. A copy, of any floating-point type: a norm's gains, an embedding.
  /// @throws Error if there is no tensor of this name, or it holds no such numbers.
  template <std::floating_point Scalar = float>
  Weight<Scalar> read(std::string_view name) const {
    const Tensor tensor = at(name);
    return io::read<Scalar>(tensor);
  }

  /// The same of a tensor of this shape.
  /// @throws Error if the shape is another, or as above.
  template <std::floating_point Scalar = float>
  Weight<Scalar> read(std::string_view name, const std::vector<Index>& shape) const {
    const Tensor tensor = at(name);
    require_shape(tensor, shape);
    return io::read<Scalar>(tensor);
  }

  /// Of shards: of all together; where two disagree, of the one whose name comes first.
  const Metadata& metadata() const { return metadata_; }

 private:
  using Map = std::map<std::string, Tensor, std::less<>>;

  Tensors(std::string path, Map tensors, Metadata metadata)
      : path_(std::move(path)), tensors_(std::move(tensors)), metadata_(std::move(metadata)) {}

  static Tensors open_file(const std::filesystem::path& path, Access access) {
    TensorFile file = read_safetensors(path, access);
    Map tensors;
    for (Tensor& tensor : file.tensors) tensors.emplace_hint(tensors.end(), tensor.name, std::move(tensor));
    return {utf8(path), std::move(tensors), std::move(file.metadata)};
  }

  /// All that the shards hold, as transformers has it, which looks for no name in the index.
  static Tensors open_shards(const std::filesystem::path& index, Access access) {
    Tensors all(utf8(index), {}, {});
    for (const auto& [shard, names] : detail::names_by_shard(index)) {
      Tensors some = open_file(detail::shard_path(index, shard), access);
      for (const std::string& name : names) {
        if (!some.contains(name)) fail(utf8(index), ": tensor \"", name, "\" is not in its shard ", some.path_);
      }
      all.tensors_.merge(some.tensors_);
      if (!some.tensors_.empty()) {
        const auto& [name, twice] = *some.tensors_.begin();
        fail(to_string(twice), " is in another shard of ", utf8(index), ", too: ", to_string(all.tensors_.at(name)),
             "; expected one tensor of a name");
      }
      all.metadata_.merge(some.metadata_);
    }
    return all;
  }

  std::string did_you_mean(std::string_view name) const {
    if (tensors_.empty()) return "";
    const auto nearest = std::ranges::min_element(
        tensors_, {}, [&](const auto& entry) { return detail::edit_distance(entry.first, name); });
    if (nearest->first.ends_with(".qweight")) {
      return "; \"" + nearest->first + "\" is quantised (GPTQ or AWQ), expected weights that are not";
    }
    return "; did you mean \"" + nearest->first + "\"?";
  }

  std::string path_;  // for messages
  Map tensors_;
  Metadata metadata_;
};

template <class BuiltAs>
Tensors Tensors::open(const std::filesystem::path& path, Access access) {
  std::error_code ignored;
  const std::filesystem::path file = std::filesystem::is_directory(path, ignored) ? detail::entry_file_of(path) : path;
  if (file.extension() == ".gguf") return of(utf8(file), read_gguf(file, access).tensors);
  return file.extension() == ".json" ? open_shards(file, access) : open_file(file, access);
}

#if defined(MOE_IO_COMPILED)
extern template Tensors Tensors::open<detail::Flags>(const std::filesystem::path&, Access);
#endif

}  // namespace moe::inline MOE_TARGET::io
