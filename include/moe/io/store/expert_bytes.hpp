/// @file  How many bytes of a model's files are its experts'.
#pragma once

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "moe/core/types.hpp"
#include "moe/io/architecture.hpp"
#include "moe/io/expert_tensors.hpp"
#include "moe/io/model.hpp"
#include "moe/io/tensor.hpp"
#include "moe/io/weight_tensors.hpp"
#include "moe/models/moe_shape.hpp"

namespace moe::inline MOE_TARGET::io {

/// Parts of files, where they are mapped.
using FileParts = std::vector<std::span<const std::byte>>;

namespace detail {

/// Does a tensor belong to one that is called so? "…up_proj.weight_scale_inv" and "…up_proj_blocks" do to "…up_proj".
inline bool is_part_of(std::string_view name, std::string_view stem) {
  if (!name.starts_with(stem)) return false;
  const std::string_view end = name.substr(stem.size());
  return (end.empty() || end[0] == '.' || end[0] == '_') && !end.ends_with("bias");
}

/// The number of the expert whose weights, or codes, or scales, are called so; −1 if they are all experts'; none if
/// they are nobody's.
/// @param pattern  "experts.#.up_proj.weight", "experts.up_proj"
inline std::optional<Index> expert_called(std::string_view name, std::string_view pattern) {
  if (pattern.ends_with(".weight")) pattern.remove_suffix(7);
  const std::size_t hash = pattern.find('#');
  if (hash == pattern.npos) return is_part_of(name, pattern) ? std::optional<Index>(-1) : std::nullopt;
  if (!name.starts_with(pattern.substr(0, hash))) return std::nullopt;
  const std::string_view rest = name.substr(hash);
  Index number = -1;
  const auto [end, error] = std::from_chars(rest.data(), rest.data() + rest.size(), number);
  const std::string_view after = rest.substr(std::size_t(end - rest.data()));
  const bool fits = error == std::errc() && number >= 0 && is_part_of(after, pattern.substr(hash + 1));
  return fits ? std::optional(number) : std::nullopt;
}

}  // namespace detail

/// Where the weights of each of a block's experts are, with their codes and scales; biases, which are small, left out.
inline std::vector<FileParts> expert_parts(const Model& model, const std::string& block) {
  const Architecture& its = model.architecture(block);
  const MoeShape shape = moe_shape(model.config(block), its, block);
  const Index num_experts = shape.num_experts;
  const auto weights = model.weights(block);
  const WeightTensors tensors = WeightTensors(*weights, block, num_experts).with_spare(shape.num_zero_experts);
  const detail::Names names = detail::find_names(tensors, detail::expert_spellings, its.experts, its.gated);
  std::vector<FileParts> parts(static_cast<std::size_t>(num_experts));
  const std::string prefix = block.empty() ? "" : block + '.';
  model.tensors().for_each_below(prefix, [&](const Tensor& tensor) {
    const std::string_view relative = std::string_view(tensor.name).substr(prefix.size());
    std::optional<Index> expert;
    for (const std::string* const pattern : {&names.gate, &names.up, &names.down}) {
      if (!expert && !pattern->empty()) expert = detail::expert_called(relative, *pattern);
    }
    if (!expert || *expert >= num_experts) return;
    if (*expert >= 0) {
      parts[std::size_t(*expert)].push_back(tensor.bytes);
    } else if (const auto stored = std::size_t(tensors.num_stored(tensor)); tensor.bytes.size() % stored == 0) {
      const std::size_t size = tensor.bytes.size() / stored;
      for (std::size_t e = 0; e < parts.size(); ++e) parts[e].push_back(tensor.bytes.subspan(e * size, size));
    }
  });
  return parts;
}

/// Of all parts together.
inline Index bytes_of(const FileParts& parts) {
  Index bytes = 0;
  for (const auto part : parts) bytes += std::ssize(part);
  return bytes;
}

/// The room that they take in memory when they are read past the system's cache, in whole blocks of 4096, wherever in a
/// block they begin: so experts that are alike take the same room, and leave no gaps that others do not fit in.
/// Neighbours are read together, with what lies between them.
inline Index room_of(FileParts parts) {
  constexpr std::uintptr_t block = 4096, gap = std::uintptr_t(16) << 10;
  std::ranges::sort(parts, std::less<>(), [](const auto part) { return part.data(); });
  std::uintptr_t begin = 0, end = 0, room = 0;
  const auto add_last = [&] { room += end == begin ? 0 : (end - begin + block + block - 1) / block * block; };
  for (const auto part : parts) {
    const auto first = reinterpret_cast<std::uintptr_t>(part.data()), after = first + part.size();
    if (end == begin || first > end + gap) add_last(), begin = first, end = after;
    end = std::max(end, after);
  }
  add_last();
  return Index(room);
}

}  // namespace moe::inline MOE_TARGET::io
