/// @file  Parameters to a safetensors file, and back.
#pragma once

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "moe/io/safetensors.hpp"
#include "moe/io/safetensors_file.hpp"
#include "moe/io/tensor.hpp"
#include "moe/parameters.hpp"
#include "moe/types.hpp"

namespace moe::io {

/// Writes a file with a tensor [rows, cols] for each, whole or not at all: after a crash in the middle, the file that
/// was there is as it was.
/// @throws Error if the file cannot be written, or two parameters have the same name.
template <class Scalar>
void save_parameters(const std::filesystem::path& path, const std::vector<Parameter<Scalar>>& parameters,
                     const Metadata& metadata = {}) {
  std::vector<Tensor> tensors;
  for (const auto& parameter : parameters) {
    tensors.push_back({.name = parameter.name,
                       .dtype = std::string(dtype_name<Scalar>),
                       .shape = {parameter.rows, parameter.cols},
                       .bytes = std::as_bytes(std::span(parameter.data, std::size_t(parameter.size())))});
  }
  write_safetensors(path, tensors, metadata);
}

/// Reads each parameter from the tensor of its name. What else the file holds is left alone.
/// @throws Error naming the file, the parameter and both shapes, if one is missing, or of another shape or type; then
/// nothing has been written.
template <class Scalar>
void load_parameters(const std::filesystem::path& path, const std::vector<Parameter<Scalar>>& parameters) {
  const Tensors tensors = Tensors::open(path);
  std::vector<Tensor> found;  // keep the file mapped
  std::vector<std::span<const Scalar>> numbers;
  for (const auto& parameter : parameters) {
    found.push_back(tensors.at(parameter.name));
    numbers.push_back(as<Scalar>(found.back(), {parameter.rows, parameter.cols}));
  }
  for (std::size_t p = 0; p < parameters.size(); ++p) std::ranges::copy(numbers[p], parameters[p].data);
}

}  // namespace moe::io
