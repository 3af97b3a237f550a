/// @file  Parameters to a safetensors file, and back.
#pragma once

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "moe/core/parameters.hpp"
#include "moe/core/types.hpp"
#include "moe/io/safetensors.hpp"
#include "moe/io/safetensors_file.hpp"
#include "moe/io/tensor.hpp"

namespace moe::inline MOE_TARGET::io {

namespace detail {

/// A view of it.
template <class Scalar>
Tensor as_tensor(const Parameter<Scalar>& parameter) {
  return make_tensor(parameter.name, {parameter.rows, parameter.cols},
                     std::span<const Scalar>(parameter.data, std::size_t(parameter.size())));
}

/// The tensor of each.
/// @throws Error as load_parameters().
template <class Scalar>
std::vector<Tensor> find_parameters(const std::filesystem::path& path,
                                    const std::vector<Parameter<Scalar>>& parameters) {
  const Tensors tensors = Tensors::open(path);
  std::vector<Tensor> found;
  for (const auto& parameter : parameters) {
    found.push_back(tensors.at(parameter.name));
    as<Scalar>(found.back(), {parameter.rows, parameter.cols});  // or it throws
  }
  return found;
}

template <class Scalar>
void assign(const std::vector<Tensor>& found, const std::vector<Parameter<Scalar>>& parameters) {
  for (std::size_t p = 0; p < parameters.size(); ++p) std::ranges::copy(as<Scalar>(found[p]), parameters[p].data);
}

}  // namespace detail

/// Writes a file with a tensor [rows, cols] for each, whole or not at all: after a crash in the middle, the file that
/// was there is as it was.
/// @throws Error if the file cannot be written, or two parameters have the same name.
template <class Scalar>
void save_parameters(const std::filesystem::path& path, const std::vector<Parameter<Scalar>>& parameters,
                     const Metadata& metadata = {}) {
  std::vector<Tensor> tensors;
  for (const auto& parameter : parameters) tensors.push_back(detail::as_tensor(parameter));
  write_safetensors(path, tensors, metadata);
}

/// Reads each parameter from the tensor of its name. What else the file holds is left alone.
/// @throws Error naming the file, the parameter and both shapes, if one is missing, or of another shape or type; then
/// nothing has been written.
template <class Scalar>
void load_parameters(const std::filesystem::path& path, const std::vector<Parameter<Scalar>>& parameters) {
  detail::assign(detail::find_parameters(path, parameters), parameters);
}

}  // namespace moe::inline MOE_TARGET::io
