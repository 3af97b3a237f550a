/// @file  The tensors of a folder that is to be, put together file by file.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "moe/core/parameters.hpp"
#include "moe/core/types.hpp"
#include "moe/io/block_form.hpp"
#include "moe/io/error.hpp"
#include "moe/io/model_block.hpp"
#include "moe/io/safetensors_file.hpp"
#include "moe/io/shards.hpp"
#include "moe/io/tensor.hpp"

namespace moe::inline MOE_TARGET::io::detail {

/// A tensor of the new folder: one that there is, or one to be put together.
struct PlannedTensor {
  std::string name, dtype;
  std::vector<Index> shape;
  std::vector<std::pair<const AnyParameter*, StoredParameter>> pieces = {};
  std::optional<Tensor> kept = {};
  std::span<const std::byte> spare = {};  // its last bytes, which are of no piece

  std::size_t bytes() const {
    return std::size_t(element_count({.name = name, .shape = shape}) * dtype_bits(dtype) / 8);
  }
};

/// Those of a model by name; in order of layers, as its writer had them.
using PlannedTensors = std::vector<PlannedTensor>;

/// f(its numbers, where they lie).
template <class F>
void with_numbers(const AnyParameter& parameter, const F& f) {
  const auto is = [&]<class T>(const T* numbers) {
    if (parameter.type != &moe::detail::type_id<T>) return false;
    f(numbers);
    return true;
  };
  const void* const data = parameter.data;
  if (is(static_cast<const float*>(data)) || is(static_cast<const double*>(data)) ||
      is(static_cast<const bfloat16*>(data)) || is(static_cast<const float16*>(data))) {
    return;
  }
  fail("parameter \"", parameter.name, "\" is of numbers of ", parameter.number_size,
       " bytes that are none of float, double, bfloat16 and float16");
}

/// f(T()), which a dtype is called in C++.
template <class F>
void with_dtype(const PlannedTensor& tensor, const F& f) {
  if (tensor.dtype == dtype_name<float>) return f(float());
  if (tensor.dtype == dtype_name<bfloat16>) return f(bfloat16());
  if (tensor.dtype == dtype_name<float16>) return f(float16());
  if (tensor.dtype == dtype_name<double>) return f(double());
  fail("tensor \"", tensor.name, "\" has dtype ", tensor.dtype, ", and numbers are written as F32, BF16, F16 or F64");
}

/// In memory of its own, each number rounded to the tensor's type.
/// @throws Error if a finite number is too large for that.
inline Tensor put_together(const PlannedTensor& planned) {
  if (planned.kept) return *planned.kept;
  const std::shared_ptr<std::byte[]> memory(new std::byte[planned.bytes()]);
  with_dtype(planned, [&]<class T>(T) {
    T* const all = reinterpret_cast<T*>(memory.get());
    for (const auto& [parameter, place] : planned.pieces) {
      with_numbers(*parameter, [&, &its = place, name = parameter->name](const auto* numbers) {
        for (Index r = 0; r < its.rows; ++r) {
          for (Index c = 0; c < its.cols; ++c) {
            const auto from = numbers[r * its.cols + c];
            const T to = static_cast<T>(from);
            if (std::isfinite(double(from)) && !std::isfinite(double(to))) {
              fail("tensor \"", planned.name, "\": ", double(from), " of ", name, " is too large for ", planned.dtype);
            }
            all[its.first + r * its.row_step + c * its.col_step] = to;
          }
        }
      });
    }
  });
  std::ranges::copy(planned.spare, memory.get() + (planned.bytes() - planned.spare.size()));
  return {.name = planned.name,
          .dtype = planned.dtype,
          .shape = planned.shape,
          .bytes = {memory.get(), planned.bytes()},
          .owner = memory};
}

/// Matches the parameters of a block with their places: none is left on either side.
/// @param dtype_of  (tensor, one like it) what type it is written in
template <class DtypeOf>
PlannedTensors plan_block(const ModelBlock& block, const std::vector<StoredParameter>& places,
                          const DtypeOf& dtype_of) {
  const std::string who = "\"" + block.name + "\": ";
  std::map<std::string_view, const AnyParameter*> left;
  for (const AnyParameter& parameter : block.parameters) left[parameter.name] = &parameter;
  std::map<std::string, PlannedTensor> tensors;
  for (const StoredParameter& place : places) {
    const auto found = left.find(place.parameter);
    if (found == left.end()) {
      fail(who, "the layer has no ", place.parameter, ", which the model's form keeps in tensor \"", place.tensor,
           "\"");
    }
    const AnyParameter& parameter = *found->second;
    const bool is_vector = std::min(parameter.rows, parameter.cols) == 1 && std::min(place.rows, place.cols) == 1;
    if (is_vector ? parameter.size() != place.rows * place.cols
                  : parameter.rows != place.rows || parameter.cols != place.cols) {
      fail(who, place.parameter, " has shape ", to_string({parameter.rows, parameter.cols}), ", expected ",
           to_string({place.rows, place.cols}), " of tensor \"", place.tensor, "\" ", to_string(place.shape));
    }
    if (parameter.coded != nullptr) {
      fail(who, place.parameter, " is quantised (", parameter.coded->format().name,
           "), expected numbers: save a layer of dequantized<bfloat16>(bank), or merged_as<bfloat16>(bank)");
    }
    if (parameter.data == nullptr) fail(who, place.parameter, " does not lie in one piece: save a copy of the layer");
    PlannedTensor& tensor = tensors[place.tensor];
    tensor.name = place.tensor;
    tensor.shape = place.shape;
    tensor.dtype = dtype_of(place.tensor, place.like);
    tensor.pieces.emplace_back(&parameter, place);
    left.erase(found);
  }
  if (!left.empty()) {
    fail(who, "the layer has ", left.begin()->first,
         left.size() > 1 ? " and " + std::to_string(left.size() - 1) + " others" : "",
         ", which the model's form has no tensor for");
  }
  PlannedTensors planned;
  for (auto& [name, tensor] : tensors) {
    Index numbers = tensor.pieces.front().second.spare;
    for (const auto& [parameter, place] : tensor.pieces) numbers += place.rows * place.cols;
    if (numbers != element_count({.name = name, .shape = tensor.shape})) {
      fail(who, "tensor \"", name, "\" ", to_string(tensor.shape), " gets ", numbers, " numbers");
    }
    planned.push_back(std::move(tensor));
  }
  return planned;
}

/// "model-00001-of-00004.safetensors", as the hub has it.
inline std::string hub_shard_name(std::size_t shard, std::size_t num_shards) {
  char text[100];
  std::snprintf(text, sizeof text, "model-%05zu-of-%05zu.safetensors", shard, num_shards);
  return text;
}

/// The tensors to files, one after the other; what is put together for one is gone before the next.
inline void write_shards(const std::filesystem::path& folder, const PlannedTensors& tensors, const Metadata& metadata,
                         std::size_t max_bytes) {
  std::vector<std::vector<const PlannedTensor*>> shards(1);
  std::size_t in_shard = 0, total = 0;
  for (const PlannedTensor& tensor : tensors) {
    if (!shards.back().empty() && in_shard + tensor.bytes() > max_bytes) {
      shards.emplace_back();
      in_shard = 0;
    }
    shards.back().push_back(&tensor);
    in_shard += tensor.bytes();
    total += tensor.bytes();
  }
  std::map<std::string, std::string> shard_of;
  for (std::size_t s = 0; s < shards.size(); ++s) {
    const std::string name = shards.size() == 1 ? "model.safetensors" : hub_shard_name(s + 1, shards.size());
    std::vector<Tensor> in_file;
    for (const PlannedTensor* tensor : shards[s]) {
      in_file.push_back(put_together(*tensor));
      shard_of[tensor->name] = name;
    }
    write_safetensors(folder / name, in_file, metadata);
  }
  if (shards.size() > 1) write_index(folder, shard_of, total);
}

}  // namespace moe::inline MOE_TARGET::io::detail
